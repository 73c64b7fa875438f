"""The queues that this process has in memory, and how a task of them looks to a caller."""

import asyncio
from collections.abc import Sequence
from functools import partial

from mesh.clock import Clock
from mesh.control.leases import Leases
from mesh.errors import NotFound, WeftError
from mesh.events.aggregate import Repository
from mesh.events.store import StoredCommit, StreamName
from services.scheduler.dispatcher import Dispatcher
from services.scheduler.domain import names
from services.scheduler.domain.state import QUEUED, RUNNING, QueueState
from services.scheduler.owners import Owners
from services.scheduler.payloads import Payloads
from services.scheduler.read_model import TasksReadModel
from services.scheduler.settings import SchedulerSettings
from services.scheduler.tenant_queue import TenantQueue
from services.scheduler.workers import Shape, unschedulable_reason
from weft.scheduler.v1 import queues_pb2, tasks_pb2

REFRESHES_MAX = 100
"""How often a queue is read on end while others write it; the next commit begins anew."""


class Queues:
    """One dispatcher for all queues of one id, whichever tenant's they are."""

    def __init__(
        self,
        repository: Repository[QueueState],
        read_model: TasksReadModel,
        settings: SchedulerSettings,
        leases: Leases,
        clock: Clock,
        owners: Owners,
    ) -> None:
        self._owners = owners
        self.read_model = read_model
        self.clock = clock
        self._repository = repository
        self._settings = settings
        self._leases = leases
        self._dispatchers: dict[str, Dispatcher] = {}
        self._loading: dict[StreamName, asyncio.Lock] = {}
        self.draining = False
        self._started = False
        self._seen: dict[StreamName, int] = {}
        self._refreshing: dict[StreamName, asyncio.Task[None]] = {}
        self.payloads = Payloads(settings.payloads_bytes_max, self._payload_bytes, clock)

    async def start(self) -> None:
        """Takes up all queues that there are."""
        self._started = True
        for stream in self.read_model.queues():
            await self.queue(stream)

    async def stop(self) -> None:
        """Gives out no more tasks."""
        for dispatcher in self._dispatchers.values():
            await dispatcher.stop()
        for task in self._refreshing.values():
            task.cancel()

    def drain(self) -> None:
        """Lets workers and those who watch tasks go: the process is about to end."""
        self.draining = True
        for dispatcher in self._dispatchers.values():
            dispatcher.drain()

    def owns(self, queue_id: str) -> bool:
        """Whether no other instance has the queues of that id."""
        return not queue_id or self._owners.elsewhere(queue_id) is None

    def let_go(self, queue_id: str) -> None:
        """Has the workers of the queues of that id attach again."""
        if queue_id in self._dispatchers:
            self._dispatchers[queue_id].let_go()

    def dispatcher(self, queue_id: str) -> Dispatcher:
        """What gives out the tasks of the queues of that id."""
        found = self._dispatchers.get(queue_id)
        if found is None:
            found = self._dispatchers[queue_id] = Dispatcher(
                self._settings, self._leases, self.clock, partial(self.owns, queue_id)
            )
            found.start()
        return found

    async def queue(self, stream: StreamName) -> TenantQueue:
        """The queue of that stream, whether it was made or not."""
        dispatcher = self.dispatcher(stream.key[0])
        found = dispatcher.tenants.get(stream.tenant)
        if found is not None:
            return found
        async with self._loading.setdefault(stream, asyncio.Lock()):
            found = dispatcher.tenants.get(stream.tenant)
            if found is None:
                aggregate = self._repository.open(stream)
                await aggregate.load()
                found = await dispatcher.add(aggregate)
        self._loading.pop(stream, None)
        return found

    async def existing(self, name: str) -> TenantQueue:
        """The queue of that name, or of a name under it. NotFound where it wasn't made
        and has to be."""
        stream = names.queue_stream(name)
        # Before its first task it is empty.
        made_by_use = stream.key[0] in names.MADE_BY_USE
        dispatcher = self._dispatchers.get(stream.key[0])
        found = dispatcher.tenants.get(stream.tenant) if dispatcher is not None else None
        if found is None and not made_by_use and not await self.read_model.has_queue(stream):
            raise NotFound.of("queue", names.queue_name(stream))
        found = found or await self.queue(stream)
        if not found.state.exists:
            # Another instance may have made it a moment ago.
            await found.aggregate.load()
        if not (found.state.exists or made_by_use):
            raise NotFound.of("queue", names.queue_name(stream))
        return found

    def observe(self, batch: Sequence[StoredCommit]) -> None:
        """Commits were stored, and are in the read model: who follows a queue there is told,
        and those of other instances are read by who has the queue."""
        if not self._started:
            # What was stored before is read at the start.
            return
        for name, position in {each.commit.stream: each.position for each in batch}.items():
            stream = StreamName.parse(name)
            dispatcher = self._dispatchers.get(stream.key[0])
            if dispatcher is not None and dispatcher.watchers:
                dispatcher.watchers.tell(names.queue_name(stream))
            self._seen[stream] = position
            if stream not in self._refreshing and self._is_behind(stream):
                refreshing = asyncio.create_task(self._refresh(stream))
                self._refreshing[stream] = refreshing
                refreshing.add_done_callback(partial(self._refreshed, stream))

    def _payload_bytes(self) -> int:
        return sum(
            queue.state.payload_bytes
            for dispatcher in self._dispatchers.values()
            for queue in dispatcher.tenants.values()
        )

    def _is_behind(self, stream: StreamName) -> bool:
        aggregate = self._repository.hot(stream)
        return aggregate is None or aggregate.head.position < self._seen[stream]

    async def _refresh(self, stream: StreamName) -> None:
        try:
            queue = await self.queue(stream)
            for _ in range(REFRESHES_MAX):
                if not self._is_behind(stream):
                    return
                await queue.aggregate.load()
        except WeftError:
            # Whoever uses it next reads it again and hears of the error.
            return

    def _refreshed(self, stream: StreamName, _: "asyncio.Task[None]") -> None:
        del self._refreshing[stream]

    def view(self, queue: TenantQueue, task: str) -> tasks_pb2.Task | None:
        """A task that isn't final, as a caller sees it; None where there is none."""
        entry = queue.state.tasks.get(task)
        if entry is None:
            return None
        found = tasks_pb2.Task()
        found.CopyFrom(entry.task)
        found.name = names.task_name(queue.stream, task)
        if entry.batch:
            found.batch = names.batch_name(queue.stream, entry.batch)
            found.batch_index = entry.batch_index
        self.complete(queue, found)
        return found

    def complete(self, queue: TenantQueue, task: tasks_pb2.Task) -> None:
        """Adds what isn't in the log: whether it could be run at all or waits for its queue,
        and how far it is. Only the queue's owner knows: it has the workers."""
        if not self.owns(queue.stream.key[0]):
            return
        workers = self.dispatcher(queue.stream.key[0]).workers_of(queue.tenant)
        if task.state == QUEUED:
            reason = unschedulable_reason(Shape.of(task.spec), workers)
            if reason:
                task.state = tasks_pb2.TASK_STATE_UNSCHEDULABLE
                task.reason = reason
            elif queue.state.paused:
                task.reason = "the queue is paused"
        elif task.state == RUNNING:
            for worker in workers:
                held = worker.held.get((task.name, len(task.attempts)))
                if held is not None:
                    task.progress, task.progress_note = held.progress, held.note

    async def task(self, name: str) -> tasks_pb2.Task:
        """The task of that name, final or not. NotFound where there is none."""
        queue = await self.existing(name)
        found = self.view(queue, names.task_id(name)) or await self.read_model.task(name)
        if found is None:
            raise NotFound.of("task", name)
        return found

    def queue_view(self, queue: TenantQueue) -> queues_pb2.Queue:
        """A queue as a caller sees it."""
        dispatcher = self.dispatcher(queue.stream.key[0])
        workers = dispatcher.workers_of(queue.tenant)
        unschedulable = sum(
            count
            for shape, count in queue.waiting_by_shape().items()
            if not any(
                each.attached and each.serves(queue.tenant)
                for each in dispatcher.workers.fitting(shape)
            )
        )
        return queues_pb2.Queue(
            name=names.queue_name(queue.stream),
            limits=queue.state.limits,
            paused=queue.state.paused,
            create_time=queue.state.create_time,
            stats=queues_pb2.QueueStats(
                ready=queue.ready_count,
                delayed=queue.delayed_count,
                unschedulable=unschedulable,
                running=len(queue.running),
                dead_letters=len(queue.dead),
                workers=len(workers),
                free_slots=sum(worker.free_slots for worker in workers),
                oldest_seconds=queue.oldest_seconds(),
                stalled=len(queue.stalled),
            ),
        )
