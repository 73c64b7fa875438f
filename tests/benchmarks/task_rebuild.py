"""Queues that hold 100,000 tasks: how long a start takes with them, and what it costs to
submit one more, also while a snapshot of them all is made.

A start is measured three times: as it is, with a snapshot and the log behind it; from the log
alone; and with the read model lost, too.
"""

import asyncio
import itertools
import tempfile
import time
from pathlib import Path

import nats

from mesh.events.jetstream.assets import SNAPSHOTS
from tests.benchmarks.measure import UNLIMITED
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.nats import NatsServer, running_nats
from tests.support.platform import TENANT, platform
from tests.support.scheduling import Scheduling, spec
from weft.scheduler.v1 import queue_service_pb2 as queue_pb
from weft.scheduler.v1 import queues_pb2

OPEN_TASKS = 100_000
OPEN_TASKS_MAX = 200_000
FILL_IN_FLIGHT = 64
IN_FLIGHT = 8
SUBMITS = 16_000
"""Some 2,000 commits: as many as there are between two snapshots."""
PERCENTILE = 0.99
START_SECONDS_GOAL = 3.0
PAYLOAD = b"x" * 100


async def run() -> list[Result]:
    """The results."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            running_nats(Path(folder)) as server,
            platform(Path(folder) / "weft", NATS_URL=server.url, **UNLIMITED) as weft,
        ):
            scheduling = Scheduling(weft, f"{TENANT}/queues/many")
            await scheduling.queues.CreateQueue(
                queue_pb.CreateQueueRequest(
                    parent=TENANT,
                    queue_id="many",
                    limits=queues_pb2.QueueLimits(open_tasks_max=OPEN_TASKS_MAX),
                )
            )
            before = await _submit_ms(scheduling)
            empty = await _start_seconds(scheduling)
            await _submitted(scheduling, OPEN_TASKS - SUBMITS, FILL_IN_FLIGHT)
            starts = await _starts(scheduling, server)
            after = await _submit_ms(scheduling)
    goal = Goal(START_SECONDS_GOAL, at_most=True)
    rows = [
        Result(f"start with {OPEN_TASKS:,} open tasks, {how}", "s", [seconds - empty], goal=goal)
        for how, seconds in starts.items()
    ]
    return [
        *rows,
        Result(
            f"task, submit, p99, {OPEN_TASKS:,} open",
            "ms",
            [after],
            Baseline("ms, none open at first", [before]),
        ),
    ]


async def _starts(scheduling: Scheduling, server: NatsServer) -> dict[str, float]:
    found = {"as it is": await _start_seconds(scheduling)}
    stats = await scheduling.stats()
    assert stats.ready == OPEN_TASKS, stats
    await scheduling.platform.kill()
    client = await nats.connect(server.url)
    await client.jetstream().purge_stream(SNAPSHOTS)
    await client.close()
    found["without a snapshot"] = await _start_seconds(scheduling)
    await scheduling.platform.kill()
    for path in scheduling.platform.data_dir.glob("scheduler.sqlite3*"):
        path.unlink()
    found["nor a read model"] = await _start_seconds(scheduling)
    return found


async def _start_seconds(scheduling: Scheduling) -> float:
    await scheduling.platform.kill()
    started = time.perf_counter()
    await scheduling.platform.start()
    return time.perf_counter() - started


async def _submit_ms(scheduling: Scheduling) -> float:
    times = await _submitted(scheduling, SUBMITS, IN_FLIGHT)
    return sorted(times)[int(len(times) * PERCENTILE)] * 1e3


async def _submitted(scheduling: Scheduling, count: int, in_flight: int) -> list[float]:
    """Seconds that each of so many submits took."""
    numbers = itertools.count()
    times: list[float] = []

    async def some() -> None:
        while next(numbers) < count:
            started = time.perf_counter()
            await scheduling.submit(spec("nobody-can", PAYLOAD))
            times.append(time.perf_counter() - started)

    await asyncio.gather(*(some() for _ in range(in_flight)))
    return times
