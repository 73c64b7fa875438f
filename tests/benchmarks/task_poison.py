"""Tasks that always fail among others: what they cost the others.

Chunks with and without them take turns, so that both see the same machine. A task's time goes
from its request to the handler; a poisoned one fails all its attempts and becomes a dead letter.
"""

import asyncio
import itertools
import tempfile
import time
from pathlib import Path

from mesh.worker import TaskFailure, WorkerTask
from tests.benchmarks.measure import UNLIMITED, alternate
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.nats import running_nats
from tests.support.platform import platform
from tests.support.scheduling import Scheduling, spec

ROUNDS = 10
TASKS = 10_000
POISON_EVERY = 100
IN_FLIGHT = 16
SLOTS = 64
PERCENTILE = 0.99
POISON = b"poison"
SETTLE_SECONDS_MAX = 120.0


class Load:
    """Tasks, and a worker in this process that runs them."""

    def __init__(self, scheduling: Scheduling) -> None:
        self.scheduling = scheduling
        self.poisoned = 0
        self._numbers = itertools.count()
        self._begun: dict[bytes, asyncio.Future[float]] = {}

    async def handle(self, task: WorkerTask) -> None:
        """The handler."""
        if task.payload == POISON:
            raise TaskFailure("poison")
        self._begun.pop(task.payload).set_result(time.perf_counter())

    async def p99_ms(self, poison_every: int) -> float:
        """The 99th percentile of the times of those tasks that aren't poisoned; of a chunk, of
        which every so many is, or none with 0."""
        times: list[float] = []
        left = iter(range(TASKS))

        async def some() -> None:
            for number in left:
                if poison_every and number % poison_every == 0:
                    self.poisoned += 1
                    await self.scheduling.submit(spec(payload=POISON))
                    continue
                times.append(await self._seconds())

        await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))
        await self._settled()
        return sorted(times)[int(len(times) * PERCENTILE)] * 1e3

    async def _seconds(self) -> float:
        payload = b"%d" % next(self._numbers)
        begun = self._begun[payload] = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        await self.scheduling.submit(spec(payload=payload))
        seconds: float = await begun - started
        return seconds

    async def _settled(self) -> None:
        """Returns once all poisoned ones are dead letters."""
        async with asyncio.timeout(SETTLE_SECONDS_MAX):
            while (await self.scheduling.stats()).dead_letters < self.poisoned:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def run() -> list[Result]:
    """The results of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            running_nats(Path(folder)) as server,
            platform(Path(folder) / "weft", NATS_URL=server.url, **UNLIMITED) as weft,
        ):
            scheduling = Scheduling(weft)
            load = Load(scheduling)
            async with scheduling.working({"echo": load.handle}, slots=SLOTS):
                variants = {
                    "poison": lambda: load.p99_ms(POISON_EVERY),
                    "none": lambda: load.p99_ms(0),
                }
                values = await alternate(ROUNDS, variants)
            dead = await scheduling.all_dead_letters()
    assert len(dead) == load.poisoned == ROUNDS * TASKS // POISON_EVERY, len(dead)
    assert {task.spec.payload for task in dead} <= {POISON, b""}
    name = f"task to a worker, p99, {load.poisoned:,} poisoned of {ROUNDS * TASKS:,}"
    return [
        Result(
            name,
            "ms",
            values["poison"],
            Baseline("ms, none poisoned", values["none"]),
            Goal(2.0, at_most=True, of_ratio=True),
        )
    ]
