"""Finds the tasks of one queue id, of all tenants, that have stalled, and says so in the log.

Each open task has one place in a heap, at the earliest time at which it could have stalled.
Only then is it looked at, and put where it could stall next: so a round costs what is due in
it, however many tasks are open. All of it follows from the queues' states and from what
workers say.
"""

import asyncio
import heapq
from collections.abc import Mapping
from functools import partial

import structlog
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.clock import NANOSECONDS, Clock
from services.scheduler.domain import names, stalls
from services.scheduler.domain.state import FAILED, RUNNING, Entry
from services.scheduler.journal import Decide, Facts
from services.scheduler.settings import SchedulerSettings
from services.scheduler.tenant_queue import TenantQueue
from services.scheduler.workers import Held, Shape, Worker, unschedulable_reason, worker_of
from weft.scheduler.v1 import events_pb2 as facts
from weft.scheduler.v1 import worker_service_pb2 as pb

LOOKS_MAX = 500
"""Tasks that one round looks at: what else is due waits for the next, so that a long queue
that stalls as a whole holds nothing up."""
SPARE = 1_024
"""Places of the heap beside those of open tasks, before it is made anew."""

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
        self._heap: list[tuple[int, Key]] = []
        self._due_ns: dict[Key, int] = {}

    def add(self, queue: TenantQueue) -> None:
        """Takes a tenant's queue in, whose state is loaded."""
        self._queues[queue.tenant] = queue
        queue.aggregate.observers.append(partial(self._observe, queue))
        # Each is due, and is looked at in one of the next rounds.
        now_ns = self._clock.now_ns()
        keys = [(queue.tenant, task) for task in queue.state.tasks]
        self._due_ns.update(dict.fromkeys(keys, now_ns))
        self._heap += [(now_ns, key) for key in keys]
        heapq.heapify(self._heap)

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
            if not self._heap or self._heap[0][0] > now_ns:
                return
            due_ns, key = heapq.heappop(self._heap)
            if self._due_ns.get(key) == due_ns:
                self._look_at(key, now_ns)

    def _look_at(self, key: Key, now_ns: int) -> None:
        queue, task = self._queues[key[0]], key[1]
        entry = queue.state.tasks.get(task)
        if entry is None or entry.task.state == FAILED:
            # Its end is on its way into the log; where it doesn't get there, it's looked at
            # again.
            self._push(key, now_ns + self._bounds.queued_ns)
            return
        bound_ns = stalls.bound_ns(entry, self._bounds)
        held = self._held(queue, entry, task)
        moved_ns = held.moved_ns if held is not None else 0
        since_ns = stalls.idle_since_ns(queue.state, entry, moved_ns)
        if since_ns is not None and since_ns + bound_ns > now_ns:
            self._push(key, since_ns + bound_ns)
            return
        self._push(key, now_ns + bound_ns)
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
        """Something happened to a task just now: has it looked at once it could have stalled.
        Too early does no harm, and each fact of each task comes through here."""
        key = (queue.tenant, task)
        entry = queue.state.tasks.get(task)
        state = entry.task.state if entry is not None else FAILED
        if state == FAILED:
            self._due_ns.pop(key, None)
            return
        bounds = self._bounds
        bound_ns = bounds.running_ns if state == RUNNING else bounds.queued_ns
        self._push(key, self._clock.now_ns() + bound_ns)

    def _push(self, key: Key, due_ns: int) -> None:
        self._due_ns[key] = due_ns
        heapq.heappush(self._heap, (due_ns, key))
        if len(self._heap) > 2 * len(self._due_ns) + SPARE:
            # What is left of tasks that ended, and of what happened to others.
            self._heap = [(due_ns, key) for key, due_ns in self._due_ns.items()]
            heapq.heapify(self._heap)

    def _held(self, queue: TenantQueue, entry: Entry, task: str) -> Held | None:
        """What the worker here that runs the task says of it."""
        if entry.task.state != RUNNING:
            return None
        name = names.task_name(queue.stream, task)
        worker = worker_of(self._workers, queue.tenant, entry.worker)
        return worker.held.get((name, entry.attempt)) if worker is not None else None

    def _tell(self, queue: TenantQueue, fact: facts.TaskWithdrawn) -> None:
        """Has the worker end what was taken from it; it keeps the slot until it has."""
        name = names.task_name(queue.stream, fact.task)
        worker = worker_of(self._workers, queue.tenant, fact.worker)
        if worker is not None and (name, fact.attempt) in worker.held:
            cancel = pb.WorkerCancel(task=name, attempt=fact.attempt, reason=fact.reason)
            worker.send(pb.AttachResponse(cancel=cancel))

    def _put(self, queue: TenantQueue, task: str, change: Decide) -> None:
        """Stores what nobody waits for; where it can't be stored, a later look says it."""
        queue.journal.put(task, change).add_done_callback(_stored)


def _stored(future: "asyncio.Future[Facts]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _log.warning("a stall wasn't stored", error=str(error))
