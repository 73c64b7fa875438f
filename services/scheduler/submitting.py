"""How a task comes into its queue, whether a caller submits it or a schedule."""

from mesh.errors import AlreadyExists, LimitExceeded
from services.scheduler.domain import decide, names
from services.scheduler.domain.state import QUEUED, RUNNING, QueueState
from services.scheduler.journal import Facts
from services.scheduler.queues import Queues
from services.scheduler.tenant_queue import TenantQueue
from weft.scheduler.v1 import queues_pb2, tasks_pb2


class Submitter:
    """Puts tasks into queues."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues

    async def submit(
        self, parent: str, submission: decide.Submission, *, id_is_new: bool
    ) -> tasks_pb2.Task:
        """The task in the queue `parent`, once it is stored; the one that its request made
        before, where there was one. `id_is_new` says that no task can have its id yet.

        Raises NotFound for a queue that wasn't made, InvalidArgument for a capability that
        the queue doesn't take and times that can't be kept, AlreadyExists for an id that
        is in use, LimitExceeded where the queue is full.
        """
        queue = await self.queue(parent)
        if not submission.request_id or submission.request_id not in queue.state.requests:
            # A repeated request gets its answer, whatever time it is.
            decide.check_spec(submission.spec, self._queues.clock.now_ns())
            if not id_is_new:
                await self._check_id(queue, parent, submission)
        queue.refuse_shape(submission.spec)
        if queue.journal.full:
            raise LimitExceeded("the queue has too much to store already", retry_seconds=0.25)
        dispatcher = self._queues.dispatcher(queue.stream.key[0])
        with self._queues.payloads.coming(len(submission.spec.payload)):
            stored = await dispatcher.submit(queue, submission)
        if not stored:
            found = decide.known_request(
                queue.state, submission.request_id, submission.request_hash
            )
            assert found is not None, "nothing is stored only where the request is known"
            return await self._queues.task(f"{parent}/tasks/{found}")
        return self._accepted(queue, submission, RUNNING if len(stored) > 1 else QUEUED)

    async def check(self, parent: str, capability: str, field: str) -> None:
        """Raises NotFound for a queue that wasn't made, InvalidArgument that names the field
        for a capability that it doesn't take."""
        stream = names.queue_stream(parent)
        if stream.key[0] in names.MADE_BY_USE:
            queue = await self._queues.queue(stream)
        else:
            queue = await self._queues.existing(parent)
        decide.check_capability(queue.state, capability, field)

    async def queue(self, name: str) -> TenantQueue:
        """The queue of that name, made where it need not be created. NotFound for another
        one that wasn't made."""
        stream = names.queue_stream(name)
        if stream.key[0] not in names.MADE_BY_USE:
            return await self._queues.existing(name)
        queue = await self._queues.queue(stream)
        if not queue.state.exists:
            await queue.journal.put("", _create_default)
        return queue

    async def _check_id(
        self, queue: TenantQueue, parent: str, submission: decide.Submission
    ) -> None:
        if await self._queues.read_model.task(f"{parent}/tasks/{submission.task}") is None:
            return
        # The same request may have come twice at once, and the other attempt was faster.
        state = await queue.aggregate.load()
        if decide.known_request(state, submission.request_id, submission.request_hash) is None:
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
        if state == QUEUED:
            self._queues.complete(queue, task)
        return task


def _create_default(state: QueueState) -> Facts:
    return [] if state.exists else decide.create(state, queues_pb2.QueueLimits())
