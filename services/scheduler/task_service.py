"""The servicer of `weft.scheduler.v1.TaskService`."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Callable
from functools import partial

from mesh.call import Call
from mesh.errors import AlreadyExists, FailedPrecondition, InvalidArgument, LimitExceeded, NotFound
from mesh.ids import new_id
from mesh.rpc.pages import read_page_number, write_page_token
from services.scheduler.domain import decide, names, stalls
from services.scheduler.domain.state import QUEUED, RUNNING, QueueState
from services.scheduler.journal import Facts
from services.scheduler.queues import Queues
from services.scheduler.read_model import Filter
from services.scheduler.tenant_queue import TenantQueue
from weft.scheduler.v1 import queues_pb2, tasks_pb2
from weft.scheduler.v1 import task_service_pb2 as pb

PAGE_SIZE = 100
NUMBER_MAX = 2**62
OPEN_STATES = (QUEUED, RUNNING)


class TaskService:
    """Takes tasks and tells what became of them."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues

    async def submit_task(self, request: pb.SubmitTaskRequest, call: Call) -> pb.SubmitTaskResponse:
        """Returns once the task is stored.

        Raises NotFound for a queue that wasn't made, InvalidArgument for a capability that
        the queue doesn't take and times that can't be kept, AlreadyExists for an id that
        is in use, LimitExceeded where the queue is full.
        """
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        queue = await self._queue_to_submit(request.parent)
        if not request.request_id or request.request_id not in queue.state.requests:
            # A repeated request gets its answer, whatever time it is.
            decide.check_spec(request.spec, self._queues.clock.now_ns())
            await self._check_id(request)
        if queue.journal.full:
            raise LimitExceeded("the queue has too much to store already", retry_seconds=0.25)
        submission = decide.Submission(
            request.task_id or new_id(), request.spec, request.request_id, digest, call.actor
        )
        stored = await self._queues.dispatcher(queue.stream.key[0]).submit(queue, submission)
        if not stored:
            found = decide.known_request(queue.state, request.request_id, digest)
            assert found is not None, "nothing is stored only where the request is known"
            return await self._answer(request.parent, found)
        state = RUNNING if len(stored) > 1 else QUEUED
        return pb.SubmitTaskResponse(task=self._accepted(queue, submission, state))

    async def get_task(self, request: pb.GetTaskRequest, call: Call) -> pb.GetTaskResponse:
        """NotFound where there is none."""
        return pb.GetTaskResponse(task=await self._queues.task(request.name))

    async def list_tasks(self, request: pb.ListTasksRequest, call: Call) -> pb.ListTasksResponse:
        """Newest first."""
        queue = await self._queues.existing(request.parent)
        state = request.state
        if state not in tasks_pb2.TaskState.values():
            raise InvalidArgument.of("state", "isn't a state")
        if state == tasks_pb2.TASK_STATE_UNSCHEDULABLE:
            state = QUEUED
        before = read_page_number(request.page_token, request.parent, NUMBER_MAX)
        size = request.page_size or PAGE_SIZE
        wanted = Filter(state, request.capability, request.stalled)
        rows = await self._queues.read_model.tasks(request.parent, wanted, before, size + 1)
        response = pb.ListTasksResponse()
        for _, row in rows[:size]:
            if row.state in OPEN_STATES:
                self._queues.complete(queue, row)
            response.tasks.append(row)
        if len(rows) > size:
            response.next_page_token = write_page_token(str(rows[size - 1][0]), request.parent)
        return response

    async def cancel_task(self, request: pb.CancelTaskRequest, call: Call) -> pb.CancelTaskResponse:
        """Does nothing to a task that is cancelled already. FailedPrecondition for one that
        is final otherwise."""
        reason = request.reason or f"cancelled by {call.actor}"
        return pb.CancelTaskResponse(task=await self._end(request.name, decide.cancel, reason))

    async def skip_task(self, request: pb.SkipTaskRequest, call: Call) -> pb.SkipTaskResponse:
        """As cancelling, but doesn't wait for the worker."""
        reason = request.reason or f"skipped by {call.actor}"
        return pb.SkipTaskResponse(task=await self._end(request.name, stalls.skip, reason))

    async def fail_task(self, request: pb.FailTaskRequest, call: Call) -> pb.FailTaskResponse:
        """Does nothing to a dead letter. FailedPrecondition for a task that is final
        otherwise, NotFound for none."""
        reason = request.reason or f"failed by {call.actor}"
        queue = await self._queues.existing(request.name)
        task = names.task_id(request.name)
        try:
            await queue.journal.put(task, partial(stalls.fail_now, task=task, reason=reason))
        except NotFound:
            final = await self._queues.task(request.name)
            raise FailedPrecondition(f"the task is {_said(final.state)} already") from None
        return pb.FailTaskResponse(task=await self._queues.task(request.name))

    async def retry_task(self, request: pb.RetryTaskRequest, call: Call) -> pb.RetryTaskResponse:
        """FailedPrecondition for a task that hasn't failed, NotFound for none."""
        queue = await self._queues.existing(request.name)
        task = names.task_id(request.name)
        try:
            await queue.journal.put(task, partial(decide.redrive, task=task))
        except NotFound:
            final = await self._queues.task(request.name)
            raise FailedPrecondition(f"the task is {_said(final.state)}: submit it anew") from None
        return pb.RetryTaskResponse(task=await self._queues.task(request.name))

    async def watch_task(
        self, request: pb.WatchTaskRequest, call: Call
    ) -> AsyncGenerator[pb.WatchTaskResponse, None]:
        """Begins with the task as it is. What happens in quick succession comes together."""
        queue = await self._queues.existing(request.name)
        dispatcher = self._queues.dispatcher(queue.stream.key[0])
        last = None
        with dispatcher.watchers.watching(request.name) as changed:
            while True:
                changed.clear()
                task = await self._queues.task(request.name)
                if task != last:
                    yield pb.WatchTaskResponse(task=task)
                if task.state not in (*OPEN_STATES, tasks_pb2.TASK_STATE_UNSCHEDULABLE):
                    return
                last = task
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await changed.wait()

    async def _end(self, name: str, end: Callable[..., Facts], reason: str) -> tasks_pb2.Task:
        """The task once its end is stored, or asked for. FailedPrecondition for one that is
        final otherwise, NotFound for none."""
        queue = await self._queues.existing(name)
        task = names.task_id(name)
        try:
            await queue.journal.put(task, partial(end, task=task, reason=reason))
        except NotFound:
            final = await self._queues.task(name)
            if final.state != tasks_pb2.TASK_STATE_CANCELLED:
                raise FailedPrecondition(f"the task is {_said(final.state)} already") from None
            return final
        return await self._queues.task(name)

    async def _queue_to_submit(self, name: str) -> TenantQueue:
        stream = names.queue_stream(name)
        if stream.key[0] != names.DEFAULT_QUEUE:
            return await self._queues.existing(name)
        queue = await self._queues.queue(stream)
        if not queue.state.exists:
            await queue.journal.put("", _create_default)
        return queue

    async def _check_id(self, request: pb.SubmitTaskRequest) -> None:
        if not request.task_id:
            return
        name = f"{request.parent}/tasks/{request.task_id}"
        if await self._queues.read_model.task(name) is not None:
            raise AlreadyExists("a task of that id is there already")

    def _accepted(
        self,
        queue: TenantQueue,
        submission: decide.Submission,
        state: tasks_pb2.TaskState.ValueType,
    ) -> tasks_pb2.Task:
        """The task as it was stored a moment ago."""
        task = tasks_pb2.Task(
            name=names.task_name(queue.stream, submission.task),
            spec=submission.spec,
            state=state,
            creator=submission.creator,
        )
        task.create_time.FromNanoseconds(self._queues.clock.now_ns())
        task.update_time.CopyFrom(task.create_time)
        self._queues.complete(queue, task)
        return task

    async def _answer(self, parent: str, task: str) -> pb.SubmitTaskResponse:
        return pb.SubmitTaskResponse(task=await self._queues.task(f"{parent}/tasks/{task}"))


def _said(state: int) -> str:
    return tasks_pb2.TaskState.Name(state).removeprefix("TASK_STATE_").lower()  # type: ignore[arg-type]


def _create_default(state: QueueState) -> Facts:
    return [] if state.exists else decide.create(state, queues_pb2.QueueLimits())
