"""A tenant with 10,000 queued tasks beside another one: what it costs the other.

The other one's task comes now and then; its time goes from the request to its end. Two ways:

- each tenant has workers of its own, over the wire, on one Weft and one nats-server;
- both share a worker, by a dispatcher in this process on a store in memory, so that only the
  order of tasks is measured. `shared_worker` is what an RPC for such workers takes the place of.

Where slots are shared the other one's task waits for the first that is free, since none is taken
from a task that runs: with N slots of tasks of T seconds about T / N on average, and all of T
where they keep in step. So the noisy one's tasks take any time up to 2 T, and the other one's
don't come together: of several at once every second slot is the other tenant's.
"""

import asyncio
import contextlib
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from mesh.clock import SYSTEM
from mesh.events.aggregate import Repository
from mesh.events.memory import MemoryEventStore
from mesh.events.store import StreamName
from mesh.worker import Worker, WorkerTask
from services.scheduler.dispatcher import Dispatcher
from services.scheduler.domain import decide
from services.scheduler.domain.state import QUEUE_FOLD
from services.scheduler.service import SNAPSHOT_COMMITS
from services.scheduler.settings import SchedulerSettings
from services.scheduler.tenant_queue import TenantQueue
from services.scheduler.workers import Worker as AttachedWorker
from tests.benchmarks.measure import UNLIMITED
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.keyed import KeyedChannel
from tests.support.nats import running_nats
from tests.support.platform import Platform, platform
from tests.support.scheduling import attached, spec
from weft.auth.v1 import tenant_service_pb2
from weft.auth.v1.tenant_service_pb2_grpc import TenantServiceStub
from weft.scheduler.v1 import queue_service_pb2 as queue_pb
from weft.scheduler.v1 import queues_pb2, tasks_pb2
from weft.scheduler.v1 import task_service_pb2 as task_pb
from weft.scheduler.v1 import worker_service_pb2 as worker_pb
from weft.scheduler.v1.queue_service_pb2_grpc import QueueServiceStub
from weft.scheduler.v1.task_service_pb2_grpc import TaskServiceStub

ROUNDS = 2
QUEUED = 10_000
FILL_IN_FLIGHT = 64
SLOTS = 32
TASK_SECONDS = 0.1
PAUSE_SECONDS = 0.05
ASKED = 150
"""Tasks of the other tenant in a round."""
IN_FLIGHT = 2
PERCENTILE = 0.99
COST_MAX = 1.2

Seconds = Callable[[], Awaitable[float]]
"""Has one task done, and says how long that took."""


class Tenant:
    """A tenant over the wire, with a worker of its own."""

    def __init__(self, weft: Platform, tenant: str, key: str) -> None:
        self.queue = f"tenants/{tenant}/queues/default"
        self.worker = Worker(
            self.queue, address=weft.addresses["grpc"], api_key=key, slots=SLOTS, worker_id=tenant
        )
        self.worker.task("echo")(self._handle)
        bare: Any = weft.open_channel
        channel: Any = KeyedChannel(bare.bare, key)
        self._tasks: Any = TaskServiceStub(channel)
        self._queues: Any = QueueServiceStub(channel)
        self._numbers = itertools.count()
        self._ends: dict[bytes, asyncio.Future[float]] = {}

    async def submit(self, payload: bytes) -> None:
        """Submits a task."""
        request = task_pb.SubmitTaskRequest(parent=self.queue, spec=spec(payload=payload))
        await self._tasks.SubmitTask(request, timeout=30)

    async def seconds(self) -> float:
        """How long a task takes."""
        payload = b"%d" % next(self._numbers)
        end = self._ends[payload] = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        await self.submit(payload)
        seconds: float = await end - started
        return seconds

    async def fill(self) -> None:
        """Queues tasks, of which none is begun before all are there."""
        await self.seconds()
        await self._queues.PauseQueue(queue_pb.PauseQueueRequest(name=self.queue))
        slots = asyncio.Semaphore(FILL_IN_FLIGHT)

        async def one() -> None:
            async with slots:
                await self.submit(b"")

        await asyncio.gather(*(one() for _ in range(QUEUED)))
        await self._queues.ResumeQueue(queue_pb.ResumeQueueRequest(name=self.queue))

    async def queued(self) -> int:
        """How many of its tasks wait."""
        answer = await self._queues.GetQueue(queue_pb.GetQueueRequest(name=self.queue))
        ready: int = answer.queue.stats.ready
        return ready

    async def _handle(self, task: WorkerTask) -> None:
        end = self._ends.pop(task.payload, None)
        await asyncio.sleep(task_seconds(noisy=end is None))
        if end is not None:
            end.set_result(time.perf_counter())


@contextlib.asynccontextmanager
async def tenants(weft: Platform, *names: str) -> AsyncIterator[list[Tenant]]:
    """Tenants that are made, each with its worker at work."""
    made = []
    stub: Any = TenantServiceStub(weft.open_channel)
    for name in names:
        request = tenant_service_pb2.CreateTenantRequest(tenant_id=name)
        answer = await stub.CreateTenant(request, timeout=30)
        made.append(Tenant(weft, name, answer.api_key_secret))
    working = [asyncio.create_task(tenant.worker.work()) for tenant in made]
    try:
        for tenant in made:
            await attached(tenant.worker)
        yield made
    finally:
        for task in working:
            task.cancel()
        await asyncio.wait(working)


def task_seconds(*, noisy: bool) -> float:
    """How long a task takes."""
    return random.random() * 2 * TASK_SECONDS if noisy else TASK_SECONDS


async def p99_ms(seconds: Seconds) -> float:
    """The 99th percentile of how long the other tenant's tasks take."""
    times: list[float] = []
    left = iter(range(ASKED))

    async def some() -> None:
        for _ in left:
            times.append(await seconds())
            await asyncio.sleep(random.random() * 2 * PAUSE_SECONDS)

    await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))
    return sorted(times)[int(len(times) * PERCENTILE)] * 1e3


async def _own_workers() -> tuple[list[float], list[float]]:
    """The other tenant's p99 by round, without and with the noisy one's tasks."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            running_nats(Path(folder)) as server,
            platform(Path(folder) / "weft", NATS_URL=server.url, **UNLIMITED) as weft,
            tenants(weft, "noisy", "other") as (loud, other),
        ):
            await p99_ms(other.seconds)
            quiet = [await p99_ms(other.seconds) for _ in range(ROUNDS)]
            await loud.fill()
            noisy = [await p99_ms(other.seconds) for _ in range(ROUNDS)]
            assert await loud.queued(), "it was quiet before the end"
    return quiet, noisy


class Alone:
    """Leases of a process that has no other beside it."""

    instance = "bench"

    def held(self) -> bool:
        """See Leases."""
        return True

    def expired(self, instance: str) -> bool:
        """See Leases."""
        return False


class Shared:
    """A dispatcher with one worker for all tenants."""

    def __init__(self) -> None:
        settings = SchedulerSettings()
        self.dispatcher = Dispatcher(settings, Alone(), SYSTEM)
        self._repository = Repository(
            MemoryEventStore(), QUEUE_FOLD, snapshot_commits=SNAPSHOT_COMMITS, ahead=False
        )
        self._numbers = itertools.count()
        self._ends: dict[str, asyncio.Future[float]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def queue(self, tenant: str) -> TenantQueue:
        """A tenant's queue, made."""
        aggregate = self._repository.open(StreamName("scheduler", tenant, ("default",)))
        await aggregate.load()
        found = await self.dispatcher.add(aggregate)
        await found.journal.put("", lambda state: decide.create(state, queues_pb2.QueueLimits()))
        return found

    def shared_worker(self) -> AttachedWorker:
        """A worker of all tenants."""
        hello = worker_pb.WorkerHello(capabilities=["echo"], slots=SLOTS)
        return self.dispatcher.attach(hello, "shared", "")

    async def submit(self, queue: TenantQueue) -> str:
        """Name of a task."""
        task = f"t{next(self._numbers)}"
        wanted: tasks_pb2.TaskSpec = spec()
        await self.dispatcher.submit(queue, decide.Submission(task, wanted, "", b"", "bench"))
        return f"tenants/{queue.tenant}/queues/default/tasks/{task}"

    async def seconds(self, queue: TenantQueue) -> float:
        """How long a task takes."""
        started = time.perf_counter()
        name = await self.submit(queue)
        end = self._ends.setdefault(name, asyncio.get_running_loop().create_future())
        return await end - started

    async def work(self, worker: AttachedWorker) -> None:
        """Runs what the worker gets."""
        while (message := await worker.outbox.get()) is not None:
            worker.seen = SYSTEM.monotonic()
            if message.HasField("assignment"):
                running = asyncio.create_task(self._run(worker, message.assignment))
                self._running.add(running)
                running.add_done_callback(self._running.discard)

    async def _run(self, worker: AttachedWorker, assignment: worker_pb.WorkerAssignment) -> None:
        other = assignment.task.startswith("tenants/other/")
        await asyncio.sleep(task_seconds(noisy=not other))
        if other:
            end = self._ends.setdefault(assignment.task, asyncio.get_running_loop().create_future())
            end.set_result(time.perf_counter())
        self.dispatcher.report(worker, assignment.task, assignment.attempt, b"")


async def _shared_worker() -> tuple[list[float], list[float]]:
    """As `_own_workers`, with one worker for both."""
    shared = Shared()
    shared.dispatcher.start()
    loud, other = await shared.queue("noisy"), await shared.queue("other")
    worker = shared.shared_worker()
    working = asyncio.create_task(shared.work(worker))

    async def seconds() -> float:
        return await shared.seconds(other)

    try:
        await p99_ms(seconds)
        quiet = [await p99_ms(seconds) for _ in range(ROUNDS)]
        await loud.journal.put("", decide.pause)
        await asyncio.gather(*(shared.submit(loud) for _ in range(QUEUED)))
        await loud.journal.put("", decide.resume)
        noisy = [await p99_ms(seconds) for _ in range(ROUNDS)]
        assert loud.ready_count, "it was quiet before the end"
    finally:
        working.cancel()
        await asyncio.wait({working})
        await shared.dispatcher.stop()
    return quiet, noisy


async def run() -> list[Result]:
    """The results of the rounds."""
    results = []
    for name, measure in (("own workers", _own_workers), ("a shared worker", _shared_worker)):
        quiet, noisy = await measure()
        results.append(
            Result(
                f"task beside {QUEUED:,} of another tenant, {name}, p99",
                "ms",
                noisy,
                Baseline("ms, alone", [statistics.median(quiet)] * len(noisy)),
                Goal(COST_MAX, at_most=True, of_ratio=True),
            )
        )
    return results
