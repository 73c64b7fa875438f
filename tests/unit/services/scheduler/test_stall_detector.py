"""How tasks that have stalled are found, on a queue in memory and a clock that is moved."""

import asyncio
from functools import partial

from mesh.clock import NANOSECONDS, Clock
from mesh.events.aggregate import Repository
from mesh.events.memory import MemoryEventStore
from mesh.events.store import StreamName
from services.scheduler.domain import decide, stalls
from services.scheduler.domain.state import QUEUE_FOLD
from services.scheduler.settings import SchedulerSettings
from services.scheduler.stalls import LOOKS_MAX, Stalls
from services.scheduler.tenant_queue import TenantQueue
from weft.scheduler.v1 import queues_pb2, tasks_pb2

SPEC = tasks_pb2.TaskSpec(capability="c")


class Detected:
    """A queue whose stalls are looked for."""

    def __init__(self) -> None:
        self.now_ns = 1_700_000_000 * NANOSECONDS
        self.clock = Clock(lambda: self.now_ns, lambda: self.now_ns / NANOSECONDS)
        self.store = MemoryEventStore()
        self.queue: TenantQueue
        self.stalls: Stalls

    def wait(self, seconds: int) -> None:
        self.now_ns += seconds * NANOSECONDS

    async def load(self) -> None:
        """As a process does that starts."""
        repository = Repository(self.store, QUEUE_FOLD, clock=self.clock)
        aggregate = repository.open(StreamName("scheduler", "acme", ("q",)))
        await aggregate.load()
        self.queue = TenantQueue(aggregate, self.clock)
        aggregate.observers.append(self.queue.observe)
        await self.queue.load()
        self.stalls = Stalls(SchedulerSettings(), {}, self.clock)
        self.stalls.add(self.queue)

    async def make(self, count: int) -> None:
        """Makes the queue, and so many tasks."""
        await self.queue.journal.put("", partial(decide.create, limits=queues_pb2.QueueLimits()))
        await asyncio.gather(*(self.submit(f"t{number}") for number in range(count)))

    async def submit(self, task: str) -> None:
        submission = decide.Submission(task, SPEC, "", b"", "somebody")
        await self.queue.journal.put(task, partial(decide.submit, submission=submission))

    async def look(self) -> int:
        """How many tasks are said to have stalled after one more round."""
        self.stalls.look(self.now_ns)
        await self.queue.journal.put("", lambda state: ())
        return sum(map(stalls.has_stalled, self.queue.state.tasks.values()))


async def detected(count: int) -> Detected:
    made = Detected()
    await made.load()
    await made.make(count)
    return made


async def test_a_long_queue_that_stalls_is_told_of_round_by_round() -> None:
    found = await detected(LOOKS_MAX + 10)
    found.wait(599)
    assert await found.look() == 0
    found.wait(2)
    assert await found.look() == LOOKS_MAX
    assert await found.look() == LOOKS_MAX + 10
    assert await found.look() == LOOKS_MAX + 10


async def test_a_stall_is_not_stored_again_after_a_restart() -> None:
    found = await detected(3)
    found.wait(601)
    assert await found.look() == 3
    before = found.queue.aggregate.head.revision
    await found.load()
    found.wait(10_000)
    for _ in range(3):
        assert await found.look() == 3
    assert found.queue.aggregate.head.revision == before


async def test_a_pause_ends_stalls_and_later_ones_are_found() -> None:
    found = await detected(2)
    found.wait(601)
    assert await found.look() == 2
    await found.queue.journal.put("", decide.pause)
    found.wait(10_000)
    assert await found.look() == 0
    await found.queue.journal.put("", decide.resume)
    found.wait(599)
    assert await found.look() == 0
    found.wait(2)
    assert await found.look() == 2


async def test_what_is_kept_is_bounded_by_the_tasks_that_are_open() -> None:
    found = await detected(1)
    for number in range(10):
        task = f"more{number}"
        await found.submit(task)
        await found.queue.journal.put(
            task, partial(decide.start, task=task, worker="w", instance="i")
        )
        await found.queue.journal.put(
            task, partial(decide.succeed, task=task, attempt=1, result=b"")
        )
    assert len(found.stalls._agenda) == 1
    assert found.stalls._agenda.when(("acme", "t0")) is not None
