"""One tenant's queue in memory: which of its tasks are ready, wait for their time, or run.

All of it follows from the queue's state and is made anew from it, so nothing is lost with
the process.
"""

import asyncio
import itertools
import math
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.clock import NANOSECONDS, Clock
from mesh.errors import LimitExceeded
from mesh.events.aggregate import Aggregate
from services.scheduler.agenda import Agenda
from services.scheduler.batch_slots import BatchSlots
from services.scheduler.domain import decide
from services.scheduler.domain.priority import (
    COST_SECONDS_DEFAULT,
    PRIORITY_DEFAULT,
    WEIGHT_DEFAULT,
    Share,
    Wants,
    due,
)
from services.scheduler.domain.stalls import has_stalled
from services.scheduler.domain.state import FAILED, QUEUED, RUNNING, Entry, QueueState
from services.scheduler.journal import Journal
from services.scheduler.workers import Shape
from weft.scheduler.v1 import events_pb2 as facts
from weft.scheduler.v1 import tasks_pb2

LOAD_TASKS = 500
"""Tasks that are placed in one go: some milliseconds' work."""

SHAPES_MAX = 1_000
"""Kinds of tasks that a queue keeps apart."""


class TenantQueue:
    """The tasks of one stream, in the order in which they are to be run."""

    def __init__(self, aggregate: Aggregate[QueueState], clock: Clock) -> None:
        self.stream = aggregate.stream
        self.aggregate = aggregate
        self.journal = Journal(aggregate)
        self.share = Share(0.0)
        self.running: set[str] = set()
        self.claimed: set[str] = set()
        """Are about to be given to a worker."""
        self.dead: dict[str, None] = {}
        self._clock = clock
        self.stalled: set[str] = set()
        self._ready: dict[str, dict[Shape, Agenda[str, float]]] = {}
        """By capability, so that a look for a worker's next task passes the others over."""
        # A plain dict looks for its first key past all that were deleted before it.
        self._ready_tasks: OrderedDict[str, None] = OrderedDict()
        self._shape_of: dict[str, Shape] = {}
        """Of all that wait, also for their time."""
        self._shapes: Counter[Shape] = Counter()
        self._delayed: Agenda[str, int] = Agenda()
        self._ends: Agenda[str, int] = Agenda()
        self._slots = BatchSlots()
        self._doomed: dict[str, None] = {}

    @property
    def tenant(self) -> str:
        """Id of the tenant."""
        return self.stream.tenant

    @property
    def state(self) -> QueueState:
        """The queue's state, all of it stored."""
        return self.aggregate.state

    @property
    def ready_count(self) -> int:
        """How many tasks could be run now."""
        return len(self._ready_tasks)

    @property
    def delayed_count(self) -> int:
        """How many wait for their time."""
        return len(self._delayed)

    @property
    def may_start(self) -> bool:
        """Whether one more task of it may run."""
        limit = self.state.limits.running_tasks_max
        return not self.state.paused and not (
            limit and len(self.running) + len(self.claimed) >= limit
        )

    def waiting_by_shape(self) -> dict[Shape, int]:
        """How many tasks of each shape wait, also for their time."""
        return self._shapes

    def refuse_shape(self, spec: tasks_pb2.TaskSpec) -> None:
        """Raises LimitExceeded for one shape more than a queue keeps apart: each is looked at
        whenever a worker is free."""
        if len(self._shapes) >= SHAPES_MAX and Shape.of(spec) not in self._shapes:
            raise LimitExceeded(
                f"the queue holds tasks of {SHAPES_MAX} kinds already: by capability, labels,"
                " resources and preferred zone"
            )

    def observe(self, revision: int, time: Timestamp, fact: Message) -> None:
        """A fact was stored."""
        task = getattr(fact, "task", "")
        if task:
            self.refresh(task)
        elif isinstance(fact, facts.BatchCancelled):
            for each in [t for t, entry in self.state.tasks.items() if entry.batch == fact.batch]:
                self.refresh(each)
        else:
            if isinstance(fact, facts.QueuePaused):
                self.stalled = {
                    each for each in self.stalled if has_stalled(self.state.tasks[each])
                }
            self._weigh()

    async def load(self) -> None:
        """Places all tasks of the state, while others use the process; who observes by now
        places those to which something happens meanwhile."""
        self._weigh()
        for number, task in enumerate(list(self.state.tasks), 1):
            self.refresh(task)
            if number % LOAD_TASKS == 0:
                await asyncio.sleep(0)

    def refresh(self, task: str) -> None:
        """Places a task where it stands in the state by now."""
        self._forget(task)
        entry = self.state.tasks.get(task)
        if entry is None:
            return
        if has_stalled(entry):
            self.stalled.add(task)
        state = entry.task.state
        if state == QUEUED:
            self._place_queued(task, entry)
        elif state == RUNNING:
            self.running.add(task)
            self._ends.put(task, decide.attempt_end_ns(entry))
            if entry.batch:
                self._slots.take(task, entry.batch)
                if self.state.batches[entry.batch].cancelled and not entry.task.cancelling:
                    self._doomed[task] = None
        elif state == FAILED:
            self.dead[task] = None

    def ends_within(self, task: str, seconds: float) -> None:
        """Has `over` tell of a task that runs once that much time has passed."""
        self._ends.put(task, self._clock.now_ns() + int(seconds * NANOSECONDS))

    def heads(self, capabilities: Collection[str]) -> Iterator[tuple[float, int, Shape]]:
        """Of each shape of these capabilities that has ready tasks, when the next one is due,
        and its order. Shapes of batches of which no more may run are left out."""
        for capability in self._ready.keys() & capabilities:
            for shape, agenda in self._ready[capability].items():
                if shape.batch and self._is_busy(shape.batch):
                    continue
                head = agenda.head()
                assert head is not None, "an agenda without tasks is deleted"
                yield head[0], head[1], shape

    def take(self, shape: Shape) -> str:
        """Takes the next task of a shape out, which `heads` told of: it is about to be given
        to a worker. `refresh` puts it back."""
        task = self._ready[shape.capability][shape].pop(math.inf)
        assert task is not None, "`heads` told of it"
        self._forget(task)
        self.claimed.add(task)
        if shape.batch:
            self._slots.take(task, shape.batch)
        return task

    def ripen(self, now_ns: int) -> None:
        """Makes those ready whose time has come."""
        while (task := self._delayed.pop(now_ns)) is not None:
            self.refresh(task)

    def doomed(self, count: int) -> list[str]:
        """Tasks of cancelled batches that are to end, `count` at most; each is told of once,
        until it is refreshed."""
        found = list(itertools.islice(self._doomed, count))
        for task in found:
            del self._doomed[task]
        return found

    def over(self, now_ns: int) -> list[str]:
        """Tasks that waited, or run, past what they may; each is told of once, until it is
        refreshed."""
        found = []
        while (task := self._ends.pop(now_ns)) is not None:
            found.append(task)
        return found

    def next_ns(self) -> int | None:
        """When something is due next; None where nothing is."""
        heads = (self._delayed.head(), self._ends.head())
        return min((head[0] for head in heads if head is not None), default=None)

    def oldest_seconds(self) -> float:
        """How old the task is that has been ready for longest."""
        first = next(iter(self._ready_tasks), None)
        entry = self.state.tasks.get(first) if first is not None else None
        if entry is None:
            return 0.0
        created_ns = entry.task.create_time.ToNanoseconds()
        return max(0.0, (self._clock.now_ns() - created_ns) / NANOSECONDS)

    def _is_busy(self, batch: str) -> bool:
        # What is left of one that is over may be here for longer than the batch.
        known = self.state.batches.get(batch)
        return known is not None and self._slots.taken(batch) >= known.running_tasks_max

    def _place_queued(self, task: str, entry: Entry) -> None:
        batch = self.state.batches[entry.batch] if entry.batch else None
        if batch is not None and batch.cancelled:
            self._doomed[task] = None
            return
        end_ns = decide.wait_end_ns(entry)
        if end_ns is not None:
            self._ends.put(task, end_ns)
        limited = entry.batch if batch is not None and batch.running_tasks_max else ""
        shape = self._shape_of[task] = Shape.of(entry.task.spec, limited)
        self._shapes[shape] += 1
        next_ns = entry.task.next_time.ToNanoseconds() if entry.task.HasField("next_time") else 0
        if next_ns > self._clock.now_ns():
            self._delayed.put(task, next_ns)
            return
        ready_ns = max(next_ns, entry.task.create_time.ToNanoseconds())
        agendas = self._ready.setdefault(shape.capability, {})
        agenda = agendas.get(shape)
        if agenda is None:
            agenda = agendas[shape] = Agenda()
        agenda.put(task, due(wants_of(entry, ready_ns)))
        self._ready_tasks[task] = None

    def _forget(self, task: str) -> None:
        shape = self._shape_of.pop(task, None)
        if shape is not None:
            self._forget_waiting(task, shape)
        self._ends.drop(task)
        self.stalled.discard(task)
        self.running.discard(task)
        self.claimed.discard(task)
        self.dead.pop(task, None)
        self._doomed.pop(task, None)
        self._slots.free(task)

    def _forget_waiting(self, task: str, shape: Shape) -> None:
        self._shapes[shape] -= 1
        if not self._shapes[shape]:
            del self._shapes[shape]
        self._delayed.drop(task)
        if task not in self._ready_tasks:
            return
        del self._ready_tasks[task]
        agendas = self._ready[shape.capability]
        agendas[shape].drop(task)
        if not agendas[shape]:
            del agendas[shape]
        if not agendas:
            del self._ready[shape.capability]

    def _weigh(self) -> None:
        weight = self.state.limits.weight or WEIGHT_DEFAULT
        self.share = Share(self.share.virtual, weight)


def wants_of(entry: Entry, ready_ns: int) -> Wants:
    """What a task wants, for `priority`; the order of equals is the agenda's."""
    spec = entry.task.spec
    cost = spec.estimated_cost.ToNanoseconds() / NANOSECONDS or COST_SECONDS_DEFAULT
    return Wants(
        priority=spec.priority if spec.HasField("priority") else PRIORITY_DEFAULT,
        ready=ready_ns / NANOSECONDS,
        order=0,
        cost_seconds=cost,
        deadline=spec.deadline.ToNanoseconds() / NANOSECONDS if spec.HasField("deadline") else None,
    )
