"""The servicer of `weft.scheduler.v1.TaskService`."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial

from mesh.call import Call
from mesh.errors import FailedPrecondition, InvalidArgument, NotFound, NotServing
from mesh.events.store import EventStore
from mesh.ids import new_id
from mesh.rpc.pages import read_page_number, write_page_token
from services.scheduler.domain import decide, names, stalls
from services.scheduler.domain.state import CANCELLED, FAILED, QUEUED, RUNNING
from services.scheduler.journal import Facts
from services.scheduler.queues import Queues
from services.scheduler.read_model import Filter
from services.scheduler.submitting import Submitter
from services.scheduler.turn_tasks import check_turn_task, refuse_absent_session
from weft.scheduler.v1 import task_service_pb2 as pb
from weft.scheduler.v1 import tasks_pb2

PAGE_SIZE = 100
PAGE_BYTES_MAX = 2_000_000
"""Whose last task makes it larger is cut: clients receive 4 MiB where they aren't told else."""
NUMBER_MAX = 2**62
OPEN_STATES = (QUEUED, RUNNING)


class TaskService:
    """Takes tasks and tells what became of them."""

    def __init__(self, queues: Queues, submitter: Submitter, store: EventStore) -> None:
        self._queues = queues
        self._submitter = submitter
        self._store = store

    async def submit_task(self, request: pb.SubmitTaskRequest, call: Call) -> pb.SubmitTaskResponse:
        """Returns once the task is stored.

        Raises NotFound for a queue that wasn't made, InvalidArgument for a capability that
        the queue doesn't take and times that can't be kept, AlreadyExists for an id that
        is in use, LimitExceeded where the queue is full; for a turn also what
        `check_turn_task` raises, and NotFound where its session isn't there.
        """
        digest = b""
        if request.request_id:
            digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        session = check_turn_task(names.queue_stream(request.parent), request.spec, call)
        if session:
            await refuse_absent_session(self._store, session)
        submission = decide.Submission(
            request.task_id or new_id(), request.spec, request.request_id, digest, call.actor
        )
        task = await self._submitter.submit(
            request.parent, submission, id_is_new=not request.task_id
        )
        return pb.SubmitTaskResponse(task=task)

    async def get_task(self, request: pb.GetTaskRequest, call: Call) -> pb.GetTaskResponse:
        """NotFound where there is none."""
        return pb.GetTaskResponse(task=await self._queues.task(request.name))

    async def list_tasks(self, request: pb.ListTasksRequest, call: Call) -> pb.ListTasksResponse:
        """Newest first. InvalidArgument for what can't be a state, and for a batch of another
        queue; NotFound for one that isn't there."""
        wanted = _filter_of(request)
        queue = await self._queues.existing(request.parent)
        if request.batch and await self._queues.read_model.batch(request.batch) is None:
            raise NotFound.of("batch", request.batch)
        before = read_page_number(request.page_token, request.parent, NUMBER_MAX)
        size = request.page_size or PAGE_SIZE
        rows = await self._queues.read_model.tasks(request.parent, wanted, before, size + 1)
        tasks, behind = page_of(rows, size)
        for task in tasks:
            if task.state in OPEN_STATES:
                self._queues.complete(queue, task)
        token = write_page_token(behind, request.parent) if behind else ""
        return pb.ListTasksResponse(tasks=tasks, next_page_token=token)

    async def cancel_task(self, request: pb.CancelTaskRequest, call: Call) -> pb.CancelTaskResponse:
        """Does nothing to a task that is cancelled already. FailedPrecondition for one that
        is final otherwise."""
        reason = request.reason or f"cancelled by {call.actor}"
        task = await self._end(request.name, decide.cancel, reason, CANCELLED, call.actor)
        return pb.CancelTaskResponse(task=task)

    async def skip_task(self, request: pb.SkipTaskRequest, call: Call) -> pb.SkipTaskResponse:
        """As cancelling, but doesn't wait for the worker."""
        reason = request.reason or f"skipped by {call.actor}"
        task = await self._end(request.name, stalls.skip, reason, CANCELLED, call.actor)
        return pb.SkipTaskResponse(task=task)

    async def fail_task(self, request: pb.FailTaskRequest, call: Call) -> pb.FailTaskResponse:
        """Does nothing to a dead letter. FailedPrecondition for a task that is final
        otherwise, NotFound for none."""
        reason = request.reason or f"failed by {call.actor}"
        task = await self._end(request.name, stalls.fail_now, reason, FAILED, call.actor)
        return pb.FailTaskResponse(task=task)

    async def retry_task(self, request: pb.RetryTaskRequest, call: Call) -> pb.RetryTaskResponse:
        """FailedPrecondition for a task that hasn't failed, NotFound for none."""
        queue = await self._queues.existing(request.name)
        task = names.task_id(request.name)
        try:
            await queue.journal.put(task, partial(decide.redrive, task=task), actor=call.actor)
        except NotFound:
            final = await self._queues.task(request.name)
            raise FailedPrecondition(f"the task is {_said(final.state)}: submit it anew") from None
        return pb.RetryTaskResponse(task=await self._queues.task(request.name))

    async def watch_task(
        self, request: pb.WatchTaskRequest, call: Call
    ) -> AsyncGenerator[pb.WatchTaskResponse, None]:
        """Begins with the task as it is. What happens in quick succession comes together.
        NotServing once the process ends."""
        queue = await self._queues.existing(request.name)
        dispatcher = self._queues.dispatcher(queue.stream.key[0])
        last = None
        with dispatcher.watchers.watching(request.name) as changed:
            while True:
                changed.clear()
                task = await self._queues.task(request.name)
                if last is not None:
                    # Whoever watches has it: it would be most of what waits to be read.
                    task.spec.ClearField("payload")
                if task != last:
                    yield pb.WatchTaskResponse(task=task)
                if task.state not in (*OPEN_STATES, tasks_pb2.TASK_STATE_UNSCHEDULABLE):
                    return
                if self._queues.draining:
                    raise NotServing("the process ends: watch again")
                last = tasks_pb2.Task()
                last.CopyFrom(task)
                last.spec.ClearField("payload")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await changed.wait()

    async def _end(
        self, name: str, end: Callable[..., Facts], reason: str, as_state: int, actor: str
    ) -> tasks_pb2.Task:
        """The task once its end is stored, or asked for, or where it ended `as_state` before.
        FailedPrecondition for one that is final otherwise, NotFound for none."""
        queue = await self._queues.existing(name)
        task = names.task_id(name)
        try:
            await queue.journal.put(task, partial(end, task=task, reason=reason), actor=actor)
        except NotFound:
            final = await self._queues.task(name)
            if final.state != as_state:
                raise FailedPrecondition(f"the task is {_said(final.state)} already") from None
            return final
        return await self._queues.task(name)


def _filter_of(request: pb.ListTasksRequest) -> Filter:
    state = request.state
    if state not in tasks_pb2.TaskState.values():
        raise InvalidArgument.of("state", "isn't a state")
    if request.batch and not request.batch.startswith(f"{request.parent}/batches/"):
        raise InvalidArgument.of("batch", "isn't of the queue")
    return Filter(
        state=QUEUED if state == tasks_pb2.TASK_STATE_UNSCHEDULABLE else state,
        capability=request.capability,
        creator=request.creator,
        batch=names.batch_id(request.batch),
        priority=request.priority if request.HasField("priority") else None,
        start_ns=request.create_start_time.ToNanoseconds(),
        end_ns=request.create_end_time.ToNanoseconds(),
        stalled=request.stalled,
    )


def page_of(
    rows: Sequence[tuple[int, tasks_pb2.Task]], size: int
) -> tuple[list[tasks_pb2.Task], str]:
    """Of rows, one more than a page has where there are more: those that fit in it, and the
    number of the last, where others are behind it."""
    size_bytes = 0
    for count, (_, task) in enumerate(rows[:size], 1):
        size_bytes += task.ByteSize()
        if size_bytes >= PAGE_BYTES_MAX:
            size = count
            break
    behind = str(rows[size - 1][0]) if len(rows) > size else ""
    return [task for _, task in rows[:size]], behind


def _said(state: int) -> str:
    return tasks_pb2.TaskState.Name(state).removeprefix("TASK_STATE_").lower()  # type: ignore[arg-type]
