"""Gives the tasks of one queue, of all tenants, to workers.

A task is given in two steps: a worker's slot and the task are set aside in memory, the
fact that it was started is stored, and then the worker is told. So what a worker has is
always in the log, and whoever takes over knows it.
"""

import asyncio
import contextlib
import heapq
from collections.abc import Callable
from functools import partial

import structlog
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.clock import NANOSECONDS, Clock
from mesh.control.leases import Leases
from mesh.errors import LimitExceeded, NotServing
from mesh.events.aggregate import Aggregate
from services.scheduler.domain import batches, decide, names
from services.scheduler.domain.codes import Code
from services.scheduler.domain.priority import COST_SECONDS_DEFAULT, charged, returned
from services.scheduler.domain.state import QUEUED, RUNNING, Entry, QueueState
from services.scheduler.journal import Facts
from services.scheduler.losses import Losses
from services.scheduler.settings import SchedulerSettings
from services.scheduler.stalls import Stalls
from services.scheduler.tenant_queue import TenantQueue
from services.scheduler.watchers import Watchers
from services.scheduler.workers import (
    Attempt,
    Held,
    Shape,
    Worker,
    Workers,
    failure_of,
    holder_of,
)
from weft.scheduler.v1 import events_pb2 as facts
from weft.scheduler.v1 import tasks_pb2
from weft.scheduler.v1 import worker_service_pb2 as pb

IDLE_SECONDS = 0.5
"""How often it looks for what is lost, where nothing else is due."""
DOOMED_MAX = 500
"""Tasks of cancelled batches that it ends in one look, so that others aren't kept waiting."""
PAUSE_SECONDS = 0.2
"""How long it waits after a transition couldn't be stored."""

_log = structlog.get_logger(__name__)


class Dispatcher:
    """The workers of one queue, and the tasks of it that tenants have. `owns` says whether
    this instance is to do what falls due by itself."""

    def __init__(
        self,
        settings: SchedulerSettings,
        leases: Leases,
        clock: Clock,
        owns: Callable[[], bool] = lambda: True,
    ) -> None:
        self._owns = owns
        self.tenants: dict[str, TenantQueue] = {}
        self.workers = Workers()
        self._settings = settings
        self._leases = leases
        self._clock = clock
        self._virtual_now = 0.0
        self._draining = False
        self._losses = Losses(self.tenants, self.workers, settings, leases, clock, self._lose)
        self.watchers = Watchers()
        self._stalls = Stalls(settings, self.workers, clock)
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to give tasks to workers."""
        self._loop = asyncio.create_task(self._run(), name="dispatch")

    async def stop(self) -> None:
        """Gives out nothing more, and lets workers go."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        self.drain()

    def drain(self) -> None:
        """Has workers attach elsewhere, and takes in no others."""
        self._draining = True
        self.let_go()

    def let_go(self) -> None:
        """Has workers attach again, where the queue is then; each gets what was sent to it
        before, and keeps what it runs."""
        for worker in self.workers.values():
            worker.send(pb.AttachResponse(drain=pb.WorkerDrain()))
            worker.leave()

    async def add(self, aggregate: Aggregate[QueueState]) -> TenantQueue:
        """Takes a tenant's queue in, whose state is loaded."""
        queue = TenantQueue(aggregate, self._clock)
        aggregate.pins += 1
        aggregate.observers.append(partial(self._observe, queue))
        await queue.load()
        self._stalls.add(queue)
        self.tenants[queue.tenant] = queue
        self._wake.set()
        return queue

    def workers_of(self, tenant: str) -> list[Worker]:
        """The attached workers that have tasks of that tenant."""
        return [each for each in self.workers.values() if each.attached and each.serves(tenant)]

    def submit(self, queue: TenantQueue, submission: decide.Submission) -> "asyncio.Future[Facts]":
        """Stores a task, and in the same commit that a worker has it, where one is idle and
        nobody else waits for it."""
        shape = Shape.of(submission.spec)
        attempt = (names.task_name(queue.stream, submission.task), 1)
        worker = self._idle_worker(queue, submission, shape)
        if worker is not None and attempt in worker.held:
            # It isn't new: the worker has yet to end what became of it.
            worker = None
        taker = None
        if worker is not None:
            worker.held[attempt] = Held(shape)
            queue.claimed.add(submission.task)
            self._charge(queue, submission.spec)
            taker = decide.Taker(worker.id, self._leases.instance)
        stored = queue.journal.put(
            submission.task,
            partial(decide.submit, submission=submission, taker=taker),
            request_id=submission.request_id,
            actor=submission.creator,
        )
        if worker is not None:
            stored.add_done_callback(partial(self._given, queue, submission.task, attempt, worker))
        # A caller that goes away takes nothing back.
        return asyncio.shield(stored)

    def _idle_worker(
        self, queue: TenantQueue, submission: decide.Submission, shape: Shape
    ) -> Worker | None:
        spec, task = submission.spec, submission.task
        if spec.HasField("not_before") or queue.ready_count or not queue.may_start:
            return None
        if task in queue.claimed or task in queue.state.tasks:
            # It isn't new: a worker may have it already.
            return None
        return self._worker_for(shape, queue.tenant)

    def _charge(self, queue: TenantQueue, spec: tasks_pb2.TaskSpec) -> None:
        cost = spec.estimated_cost.ToNanoseconds() / NANOSECONDS
        self._virtual_now = queue.share.virtual
        queue.share = charged(queue.share, cost or COST_SECONDS_DEFAULT)

    # Workers

    def attach(self, hello: pb.WorkerHello, worker_id: str, tenant: str) -> Worker:
        """Takes a worker in, and what it goes on with. LimitExceeded where there are too
        many, NotServing once it drains."""
        if self._draining:
            raise NotServing("the process ends: attach again, or elsewhere")
        key = (tenant, worker_id)
        before = self.workers.get(key)
        if before is None and len(self.workers) >= self._settings.workers_max:
            raise LimitExceeded("too many workers are attached")
        worker = Worker.of(hello, worker_id, tenant, self._clock.monotonic())
        if before is not None and before.attached:
            before.leave()
        self.workers[key] = worker
        named = {(progress.task, progress.attempt) for progress in hello.running}
        lost = [self._takes_over(worker, task, attempt) for task, attempt in sorted(named)]
        self._stalls.attached(worker, hello)
        for queue in self._queues_of(tenant):
            for task in sorted(queue.running):
                entry = queue.state.tasks.get(task)
                if entry is None:
                    continue
                name = names.task_name(queue.stream, task)
                if entry.worker == worker.id and (name, entry.attempt) not in named:
                    # It doesn't know of it any more: it was started anew.
                    self._lose(queue, task, entry.attempt)
        worker.welcome(
            [name for name in lost if name],
            heartbeat_seconds=self._settings.heartbeat_seconds,
            lease_seconds=self._settings.lease_seconds,
        )
        self._wake.set()
        return worker

    def detach(self, worker: Worker) -> None:
        """Its stream has ended; what it has stays its own until its lease is over."""
        worker.attached = False
        if not worker.held and self.workers.get((worker.tenant, worker.id)) is worker:
            del self.workers[worker.tenant, worker.id]
        self._wake.set()

    def heartbeat(self, worker: Worker, beat: pb.WorkerHeartbeat) -> None:
        """A worker lives."""
        worker.load = beat.load
        for progress in beat.running:
            held = worker.held.get((progress.task, progress.attempt))
            if held is not None:
                self._stalls.heard(held, progress)
                self.watchers.tell(progress.task)

    def change_slots(self, worker: Worker, slots: int) -> None:
        """A worker takes so many tasks at once from now on."""
        if worker.slots != slots:
            worker.slots = slots
            self._wake.set()

    def report(self, worker: Worker, task: str, attempt: int, what: decide.Failure | bytes) -> None:
        """A worker says how a task ended; it is told once that is stored."""
        self._report(worker, task, attempt, partial(self._ending, what, task, attempt))

    def release(self, worker: Worker, task: str, attempt: int) -> None:
        """A worker gives a task back that it didn't begin."""

        def ending(state: QueueState) -> Facts:
            return decide.release(state, names.task_id(task), attempt)

        self._report(worker, task, attempt, ending)

    def _report(
        self,
        worker: Worker,
        task: str,
        attempt: int,
        ending: Callable[[QueueState], Facts],
    ) -> None:
        if (task, attempt) not in worker.held:
            worker.recorded(task, attempt, stale=True)
            return
        queue = self.tenants[names.queue_stream(task).tenant]
        stored = queue.journal.put(names.task_id(task), ending, actor=worker.actor)
        stored.add_done_callback(partial(self._reported, worker, task, attempt))

    def _ending(
        self, what: decide.Failure | bytes, task: str, attempt: int, state: QueueState
    ) -> Facts:
        task = names.task_id(task)
        if isinstance(what, bytes):
            return decide.succeed(state, task, attempt, what)
        return decide.fail(state, task, attempt, what, self._clock.now_ns())

    def _reported(
        self, worker: Worker, task: str, attempt: int, stored: "asyncio.Future[Facts]"
    ) -> None:
        error = None if stored.cancelled() else stored.exception()
        if stored.cancelled() or error is not None:
            # Not known to be stored: it attaches again, and reports again what it wasn't
            # told of.
            _log.warning("a report wasn't stored", worker=worker.id, error=str(error))
            worker.leave()
            return
        worker.held.pop((task, attempt), None)
        worker.recorded(task, attempt, stale=not stored.result())
        self._wake.set()

    def _takes_over(self, worker: Worker, name: str, attempt: int) -> str:
        """Has a worker go on with a task that it has from before; its name, where it isn't
        the worker's any more."""
        queue = self._queue_of(name, worker)
        task = names.task_id(name)
        if queue is None or not decide.runs(queue.state, task, attempt):
            return name
        entry = queue.state.tasks[task]
        if entry.worker != worker.id:
            return name
        worker.held[name, attempt] = Held(Shape.of(entry.task.spec))
        self._losses.goes_on(name, attempt)
        instance = self._leases.instance
        if entry.task.attempts[-1].instance != instance:
            # So that the one where it was doesn't take it for lost.
            take_over = partial(decide.take_over, task=task, attempt=attempt, instance=instance)
            self._put(queue, task, take_over)
        if entry.task.cancelling:
            self._cancel(queue, task, entry)
        return ""

    # What happens by itself

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            try:
                self._look()
                self._dispatch()
            except Exception:  # noqa: BLE001 - the loop serves all tasks; the log has the fault
                _log.exception("dispatch failed")
                await asyncio.sleep(PAUSE_SECONDS)
            timer = loop.call_later(self._idle_seconds(), self._wake.set)
            await self._wake.wait()
            timer.cancel()

    def _idle_seconds(self) -> float:
        if not self._owns():
            return IDLE_SECONDS
        due = min(
            (ns for q in self.tenants.values() if (ns := q.next_ns()) is not None), default=None
        )
        if due is None:
            return IDLE_SECONDS
        return min(IDLE_SECONDS, max(0.001, (due - self._clock.now_ns()) / NANOSECONDS))

    def _look(self) -> None:
        now_ns, owns = self._clock.now_ns(), self._owns()
        for queue in self.tenants.values():
            queue.ripen(now_ns)
            if not owns:
                continue
            for task in queue.over(now_ns):
                self._over(queue, task)
            for task in queue.doomed(DOOMED_MAX):
                self._put(queue, task, partial(batches.cancel_task, task=task))
        if owns:
            self._stalls.look(now_ns)
        self._losses.look()

    def _over(self, queue: TenantQueue, task: str) -> None:
        """A task waited, or runs, past what it may."""
        entry = queue.state.tasks.get(task)
        if entry is None:
            return
        if entry.task.state != RUNNING:
            self._put(queue, task, lambda state: decide.expire(state, task, self._clock.now_ns()))
            return
        message = "its worker didn't end it" if entry.task.cancelling else "took too long"
        self._tell_to_end(queue, task, entry, message)
        self._fail(queue, task, entry.attempt, failure_of(Code.DEADLINE_EXCEEDED, message))

    def _lose(self, queue: TenantQueue, task: str, attempt: int) -> None:
        failure = failure_of(Code.UNAVAILABLE, "its worker was lost", lost=True)
        self._fail(queue, task, attempt, failure)

    def _fail(self, queue: TenantQueue, task: str, attempt: int, failure: decide.Failure) -> None:
        self._put(
            queue,
            task,
            lambda state: decide.fail(state, task, attempt, failure, self._clock.now_ns()),
        )

    def _put(self, queue: TenantQueue, task: str, change: Callable[[QueueState], Facts]) -> None:
        """Stores a transition of which nobody waits for the end. Where it can't be stored,
        the task is placed anew and the same is found due again."""

        def stored(future: "asyncio.Future[Facts]") -> None:
            if not future.cancelled() and future.exception() is not None:
                _log.warning("a transition wasn't stored", error=str(future.exception()))
                self._pause(queue, task)

        queue.journal.put(task, change).add_done_callback(stored)

    def _pause(self, queue: TenantQueue, task: str) -> None:
        def again() -> None:
            queue.refresh(task)
            self._wake.set()

        asyncio.get_running_loop().call_later(PAUSE_SECONDS, again)

    # Giving tasks to workers

    def _dispatch(self) -> None:
        """Gives tasks to workers while both are there: the tenant that had least goes
        first, of its tasks the one that is due first, to the idlest worker that can."""
        if not any(worker.free_slots for worker in self.workers.values()):
            return
        waiting = []
        for queue in self.tenants.values():
            if queue.ready_count and queue.may_start:
                queue.share = returned(queue.share, self._virtual_now)
                waiting.append((queue.share.virtual, queue.tenant))
        heapq.heapify(waiting)
        able = {tenant: self.workers.able(tenant) for _, tenant in waiting}
        # Slots only become fewer here: what nobody takes now isn't asked for again.
        passed: dict[str, set[Shape]] = {tenant: set() for _, tenant in waiting}
        while waiting:
            _, tenant = heapq.heappop(waiting)
            queue = self.tenants[tenant]
            if not self._give_one(queue, able[tenant], passed[tenant]):
                continue
            if queue.ready_count and queue.may_start:
                heapq.heappush(waiting, (queue.share.virtual, tenant))

    def _give_one(self, queue: TenantQueue, able: set[str], passed: set[Shape]) -> bool:
        heads = [head for head in queue.heads(able) if head[2] not in passed]
        heapq.heapify(heads)
        while heads:
            _, _, shape = heapq.heappop(heads)
            worker = self._worker_for(shape, queue.tenant)
            if worker is not None:
                self._give(queue, queue.take(shape), shape, worker)
                return True
            passed.add(shape)
        return False

    def _worker_for(self, shape: Shape, tenant: str) -> Worker | None:
        fitting = self.workers.fitting(shape)
        found = [worker for worker in fitting if worker.serves(tenant) and worker.takes(shape)]
        if shape.zone:
            found = [worker for worker in found if worker.zone == shape.zone] or found
        return min(found, key=lambda worker: worker.business, default=None)

    def _give(self, queue: TenantQueue, task: str, shape: Shape, worker: Worker) -> None:
        entry = queue.state.tasks.get(task)
        if entry is None or entry.task.state != QUEUED:
            # Its end is on its way into the log.
            return
        self._charge(queue, entry.task.spec)
        attempt = (names.task_name(queue.stream, task), entry.attempt + 1)
        worker.held[attempt] = Held(shape)
        instance = self._leases.instance
        stored = queue.journal.put(
            task, lambda state: decide.start(state, task, worker.id, instance)
        )
        stored.add_done_callback(partial(self._given, queue, task, attempt, worker))

    def _given(
        self,
        queue: TenantQueue,
        task: str,
        attempt: Attempt,
        worker: Worker,
        stored: "asyncio.Future[Facts]",
    ) -> None:
        name, number = attempt
        error = None if stored.cancelled() else stored.exception()
        if stored.cancelled() or error is not None:
            worker.held.pop(attempt, None)
            _log.warning("a task wasn't given to a worker", task=name, error=str(error))
            self._pause(queue, task)
            return
        if not stored.result():
            # Paused, cancelled or given by somebody else meanwhile.
            worker.held.pop(attempt, None)
            queue.refresh(task)
            self._wake.set()
            return
        entry = queue.state.tasks.get(task)
        if entry is None or not decide.runs(queue.state, task, number):
            worker.held.pop(attempt, None)
            return
        if not worker.attached:
            # It left before it could be told.
            worker.held.pop(attempt, None)
            self._put(queue, task, partial(decide.release, task=task, attempt=number))
            return
        assignment = pb.WorkerAssignment(
            task=name,
            attempt=number,
            capability=entry.task.spec.capability,
            payload=entry.task.spec.payload,
            idempotency_key=name,
            creator=entry.task.creator,
        )
        assignment.deadline.FromNanoseconds(decide.attempt_end_ns(entry))
        worker.send(pb.AttachResponse(assignment=assignment))

    # Facts

    def _observe(self, queue: TenantQueue, revision: int, time: Timestamp, fact: Message) -> None:
        queue.observe(revision, time, fact)
        task = getattr(fact, "task", "")
        if task:
            entry = queue.state.tasks.get(task)
            if isinstance(fact, facts.TaskCancelRequested) and entry is not None:
                self._cancel(queue, task, entry)
            if self.watchers:
                self.watchers.tell(names.task_name(queue.stream, task))
        self._wake.set()

    def _cancel(self, queue: TenantQueue, task: str, entry: Entry) -> None:
        """Has the worker end a task, and ends it without, where that takes too long."""
        queue.ends_within(task, self._settings.cancel_grace_seconds)
        self._tell_to_end(queue, task, entry, entry.task.reason)

    def _tell_to_end(self, queue: TenantQueue, task: str, entry: Entry, reason: str) -> None:
        attempt = (names.task_name(queue.stream, task), entry.attempt)
        worker = holder_of(self.workers, queue.tenant, entry.worker, attempt)
        if worker is not None:
            worker.cancel(attempt, reason)

    def _queues_of(self, tenant: str) -> list[TenantQueue]:
        return [queue for queue in self.tenants.values() if not tenant or queue.tenant == tenant]

    def _queue_of(self, name: str, worker: Worker) -> TenantQueue | None:
        """The queue of a task that a worker names, where it may have tasks of it."""
        for queue in self._queues_of(worker.tenant):
            if name == names.task_name(queue.stream, names.task_id(name)):
                return queue
        return None
