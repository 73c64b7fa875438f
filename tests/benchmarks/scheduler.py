"""Tasks over the wire: submitting one, its way to an idle worker, many to the end.

Weft runs in a process of its own on a real nats-server that writes every message to the
disk before it acknowledges it; client and worker share this one. The baseline is a plain
work queue of JetStream, by nats-py: a message stored, fetched by a pull consumer, and
acknowledged. It knows no priorities, results or attempts.
"""

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import nats
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import ConsumerConfig, RetentionPolicy, StorageType, StreamConfig
from nats.js.client import JetStreamContext

from mesh.ids import new_id
from mesh.worker import WorkerTask
from tests.benchmarks.measure import alternate, median_ms
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.batches import Batches, items
from tests.support.nats import running_nats
from tests.support.platform import platform
from tests.support.scheduling import Scheduling, spec

ROUNDS = 5
TASKS = 2_000
IN_FLIGHT = 64
SLOTS = 64
LATENCIES = 200
IDLE_SECONDS = 0.01
"""How long the worker has had nothing to do, and nothing to report, before it gets a task."""
ITEMS = 1_000
"""Of a request."""
RATE = Goal(1_500, at_most=False)


class Tasks:
    """The scheduler, with a worker in this process. Each method measures once."""

    def __init__(self, scheduling: Scheduling) -> None:
        self.scheduling = scheduling
        self._begun: dict[bytes, float] = {}
        self._done = asyncio.Semaphore(0)

    async def handle(self, task: WorkerTask) -> None:
        """The handler, which does nothing."""
        self._begun[task.payload] = time.perf_counter()
        self._done.release()

    async def submit_ms(self) -> float:
        """Submitting, one after the other, until it is answered."""
        value = await median_ms(lambda: self.scheduling.submit(spec()), LATENCIES)
        await self._drained(LATENCIES)
        return value

    async def dispatch_ms(self) -> float:
        """From the request to the handler's first line, one after the other."""
        times = []
        for number in range(LATENCIES):
            await asyncio.sleep(IDLE_SECONDS)
            payload = b"dispatch %d" % number
            started = time.perf_counter()
            submitting = asyncio.create_task(self.scheduling.submit(spec(payload=payload)))
            await self._drained(1)
            times.append(self._begun[payload] - started)
            await submitting
        return statistics.median(times) * 1e3

    async def many_per_second(self) -> float:
        """From the first request to the last handler's end, many at once."""
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one() -> None:
            async with slots:
                await self.scheduling.submit(spec())

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(TASKS):
                group.create_task(one())
            await self._drained(TASKS)
        return TASKS / (time.perf_counter() - started)

    async def batch_per_second(self) -> float:
        """As many, submitted as a batch, up to where its last result is known."""
        batches, batch = Batches(self.scheduling), new_id()
        started = time.perf_counter()
        for first in range(0, TASKS, ITEMS):
            wanted = items(b"" for _ in range(ITEMS))
            more = first + ITEMS < TASKS
            await batches.submit(batch, wanted, first_index=first, open=more)
        results = await batches.results(batch)
        seconds = time.perf_counter() - started
        assert len(results) == TASKS
        await self._drained(TASKS)
        return TASKS / seconds

    async def _drained(self, count: int) -> None:
        for _ in range(count):
            await self._done.acquire()


class WorkQueue:
    """A plain work queue. Each method measures once."""

    def __init__(self, context: JetStreamContext) -> None:
        self._context = context
        self._done = asyncio.Semaphore(0)
        self._taking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Makes the stream and begins to take from it."""
        await self._context.add_stream(
            StreamConfig(
                name="WORK",
                subjects=["work"],
                storage=StorageType.FILE,
                retention=RetentionPolicy.WORK_QUEUE,
            )
        )
        self._taking = asyncio.create_task(self._take())

    async def stop(self) -> None:
        """Takes no more."""
        assert self._taking is not None
        self._taking.cancel()
        await asyncio.wait({self._taking})

    async def submit_ms(self) -> float:
        """Storing a message, one after the other."""
        value = await median_ms(lambda: self._context.publish("work", b"x"), LATENCIES)
        await self._drained(LATENCIES)
        return value

    async def dispatch_ms(self) -> float:
        """From the request to where the message was taken."""
        times = []
        for _ in range(LATENCIES):
            await asyncio.sleep(IDLE_SECONDS)
            started = time.perf_counter()
            publishing = asyncio.create_task(self._context.publish("work", b"x"))
            await self._drained(1)
            times.append(time.perf_counter() - started)
            await publishing
        return statistics.median(times) * 1e3

    async def many_per_second(self) -> float:
        """From the first message stored to the last one acknowledged."""
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one() -> None:
            async with slots:
                await self._context.publish("work", b"x")

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(TASKS):
                group.create_task(one())
            await self._drained(TASKS)
        return TASKS / (time.perf_counter() - started)

    async def batch_per_second(self) -> float:
        """The same: it knows no batches."""
        return await self.many_per_second()

    async def _take(self) -> None:
        consumer = await self._context.pull_subscribe(
            "work", durable="worker", config=ConsumerConfig(max_ack_pending=SLOTS)
        )
        while True:
            with contextlib.suppress(NatsTimeoutError, TimeoutError):
                for message in await consumer.fetch(SLOTS, timeout=1):
                    await message.ack()
                    self._done.release()

    async def _drained(self, count: int) -> None:
        for _ in range(count):
            await self._done.acquire()


async def run() -> list[Result]:
    """The results of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            running_nats(Path(folder)) as server,
            platform(Path(folder) / "weft", NATS_URL=server.url) as weft,
        ):
            scheduling = Scheduling(weft)
            tasks = Tasks(scheduling)
            async with (
                scheduling.working({"echo": tasks.handle}, slots=SLOTS),
                _work_queue(server.url) as work,
            ):
                values = await _measured(tasks, work)
    return [
        _result("task, submit, p50", "ms", values, "submit_ms"),
        _result(
            "task, to an idle worker, p50", "ms", values, "dispatch_ms", Goal(3.0, at_most=True)
        ),
        _result("tasks to their end, one by one", "/s", values, "many_per_second", RATE),
        _result("tasks to their end, as a batch", "/s", values, "batch_per_second", RATE),
    ]


async def _measured(tasks: Tasks, work: WorkQueue) -> dict[str, list[float]]:
    variants = {
        f"{name} {measure}": getattr(each, measure)
        for name, each in (("task", tasks), ("work", work))
        for measure in ("submit_ms", "dispatch_ms", "many_per_second", "batch_per_second")
    }
    await alternate(1, variants)
    return await alternate(ROUNDS, variants)


def _result(
    title: str, unit: str, values: dict[str, list[float]], measure: str, goal: Goal | None = None
) -> Result:
    baseline = Baseline(f"{unit}, JetStream work queue", values[f"work {measure}"])
    return Result(title, unit, values[f"task {measure}"], baseline, goal)


@contextlib.asynccontextmanager
async def _work_queue(url: str) -> AsyncIterator[WorkQueue]:
    client = await nats.connect(url)
    work = WorkQueue(client.jetstream())
    await work.start()
    try:
        yield work
    finally:
        await work.stop()
        await client.close()
