"""Finds the tasks of one queue id, of all tenants, that have stalled, and says so in the log.

Each open task has one place in an agenda, no later than when it could have stalled. Only then
is it looked at, and put where it could stall next: so a round costs what is due in it, however
many tasks are open, and most of what happens to a task costs nothing here. All of it follows
from the queues' states and from what workers say.
"""

import asyncio
from collections.abc import Mapping
from functools import partial

import structlog
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.clock import NANOSECONDS, Clock
from services.scheduler.agenda import Agenda
from services.scheduler.domain import names, stalls
from services.scheduler.domain.state import FAILED, RUNNING, Entry
from services.scheduler.journal import Decide, Facts
from services.scheduler.settings import SchedulerSettings
from services.scheduler.tenant_queue import TenantQueue
from services.scheduler.workers import Held, Shape, Worker, holder_of, unschedulable_reason
from weft.scheduler.v1 import events_pb2 as facts
from weft.scheduler.v1 import worker_service_pb2 as pb

LOOKS_MAX = 500
"""Tasks that one round looks at: what else is due waits for the next, so that a long queue
that stalls as a whole holds nothing up."""

_log = structlog.get_logger(__name__)
Key = tuple[str, str]


class Stalls:
    """Looks at tasks that could have stalled; `workers` are the dispatcher's own."""

    def __init__(
        self,
        settings: SchedulerSettings,
        workers: Mapping[tuple[str, str], Worker],
        clock: Clock,
    ) -> None:
        self._bounds = stalls.Bounds(
            int(settings.stalled_queued_seconds * NANOSECONDS),
            int(settings.stalled_running_seconds * NANOSECONDS),
        )
        self._workers = workers
        self._clock = clock
        self._queues: dict[str, TenantQueue] = {}
        self._agenda: Agenda[Key, int] = Agenda()

    def add(self, queue: TenantQueue) -> None:
        """Takes a tenant's queue in, whose state is loaded."""
        self._queues[queue.tenant] = queue
        queue.aggregate.observers.append(partial(self._observe, queue))
        # Each is due, and is looked at in one of the next rounds.
        now_ns = self._clock.now_ns()
        for task in queue.state.tasks:
            self._agenda.put((queue.tenant, task), now_ns)

    def attached(self, worker: Worker, hello: pb.WorkerHello) -> None:
        """A worker goes on with tasks: what it says of them now isn't news, but a sign."""
        for progress in hello.running:
            held = worker.held.get((progress.task, progress.attempt))
            if held is not None:
                held.hear(progress, self._clock.now_ns())

    def heard(self, held: Held, progress: pb.TaskProgress) -> None:
        """A worker says how far a task is that it has."""
        if not held.hear(progress, self._clock.now_ns()):
            return
        queue = self._queues[names.queue_stream(progress.task).tenant]
        task = names.task_id(progress.task)
        entry = queue.state.tasks.get(task)
        if entry is not None and stalls.has_stalled(entry):
            change = partial(stalls.progress, task=task, attempt=progress.attempt)
            self._put(queue, task, change)

    def look(self, now_ns: int) -> None:
        """Says of those that have stalled by now that they have."""
        for _ in range(LOOKS_MAX):
            key = self._agenda.pop(now_ns)
            if key is None:
                return
            self._look_at(key, now_ns)

    def _look_at(self, key: Key, now_ns: int) -> None:
        queue, task = self._queues[key[0]], key[1]
        entry = queue.state.tasks.get(task)
        if entry is None or entry.task.state == FAILED:
            # Its end is on its way into the log; where it doesn't get there, it's looked at
            # again.
            self._agenda.put(key, now_ns + self._bounds.queued_ns)
            return
        bound_ns = stalls.bound_ns(entry, self._bounds)
        held = self._held(queue, entry, task)
        moved_ns = held.moved_ns if held is not None else 0
        since_ns = stalls.idle_since_ns(queue.state, entry, moved_ns)
        if since_ns is not None and since_ns + bound_ns > now_ns:
            self._agenda.put(key, since_ns + bound_ns)
            return
        self._agenda.put(key, now_ns + bound_ns)
        # One that runs and isn't held here is another instance's, or about to be lost; and
        # whether a turn has stalled that runs, the agents service says.
        told_of = queue.stream.key[0] == names.TURNS_QUEUE or held is None
        if since_ns is None or stalls.has_stalled(entry):
            return
        if entry.task.state == RUNNING and told_of:
            return
        reason = self._reason(queue, entry)
        change = partial(
            stalls.stall,
            task=task,
            attempt=entry.attempt,
            reason=reason,
            bounds=self._bounds,
            now_ns=now_ns,
            moved_ns=moved_ns,
        )
        self._put(queue, task, change)

    def _reason(self, queue: TenantQueue, entry: Entry) -> str:
        """What a task waits for, or who has it."""
        if entry.task.state == RUNNING:
            return f"worker {entry.worker} has it and says nothing new of it"
        serving = [
            each for each in self._workers.values() if each.attached and each.serves(queue.tenant)
        ]
        shape = Shape.of(entry.task.spec)
        if lacking := unschedulable_reason(shape, serving):
            return f"unschedulable: {lacking}"
        if not queue.may_start:
            return f"the queue runs {queue.state.limits.running_tasks_max} tasks, its limit"
        if not any(worker.takes(shape) for worker in serving):
            return "the workers that can do it are busy"
        return "other tasks went first"

    def _observe(self, queue: TenantQueue, revision: int, time: Timestamp, fact: Message) -> None:
        if isinstance(fact, facts.TaskWithdrawn):
            self._tell(queue, fact)
        task = getattr(fact, "task", "")
        if task and not isinstance(fact, facts.TaskStalled):
            self._place(queue, task)

    def _place(self, queue: TenantQueue, task: str) -> None:
        """Something happened to a task just now: has it looked at by when it could have
        stalled. Too early does no harm, and each fact of each task comes through here."""
        key = (queue.tenant, task)
        entry = queue.state.tasks.get(task)
        state = entry.task.state if entry is not None else FAILED
        if state == FAILED:
            self._agenda.drop(key)
            return
        bounds = self._bounds
        bound_ns = bounds.running_ns if state == RUNNING else bounds.queued_ns
        due_ns = self._clock.now_ns() + bound_ns
        known_ns = self._agenda.when(key)
        if known_ns is None or due_ns < known_ns:
            self._agenda.put(key, due_ns)

    def _held(self, queue: TenantQueue, entry: Entry, task: str) -> Held | None:
        """What the worker here that runs the task says of it."""
        if entry.task.state != RUNNING:
            return None
        attempt = (names.task_name(queue.stream, task), entry.attempt)
        worker = holder_of(self._workers, queue.tenant, entry.worker, attempt)
        return worker.held[attempt] if worker is not None else None

    def _tell(self, queue: TenantQueue, fact: facts.TaskWithdrawn) -> None:
        """Has the worker end what was taken from it."""
        attempt = (names.task_name(queue.stream, fact.task), fact.attempt)
        worker = holder_of(self._workers, queue.tenant, fact.worker, attempt)
        if worker is not None:
            worker.cancel(attempt, fact.reason)

    def _put(self, queue: TenantQueue, task: str, change: Decide) -> None:
        """Stores what nobody waits for; where it can't be stored, a later look says it."""
        queue.journal.put(task, change).add_done_callback(_stored)


def _stored(future: "asyncio.Future[Facts]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _log.warning("a stall wasn't stored", error=str(error))
