"""The cache: what a hit takes at each level against the bare thing below it, what a miss adds to a
load, where hits come from when few values are asked for often, and what a Redis that is killed
costs. In one process, with a real Valkey and a disk; values of 2 kB."""

import asyncio
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import accumulate, count
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.cache.cache import Cache
from mesh.cache.metrics import HIT, LOAD, MEMORY
from mesh.clock import SYSTEM
from mesh.runtime.valkey_server import EmbeddedValkey
from tests.benchmarks.measure import alternate, median_ms
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.cached import TENANT, Text, full_cache, settled
from tests.support.processes import until

if TYPE_CHECKING:
    from redis.asyncio import Redis

ROUNDS = 9
HITS = 500
VALUE = "x" * 2_000
KEYS = 5_000
WALK = 20_000
IN_MEMORY = 500
JOINED = 1_000
CLIENTS = 32
KILLS = 3
KILL_SECONDS = 2.0
NONE_FAILED = Goal(0, at_most=True)


async def run() -> list[Result]:
    """The results of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        valkey = EmbeddedValkey(path)
        await valkey.start()
        redis = valkey.client()
        try:
            results = await _levels(path, redis)
            results += await _single_flight(path, redis)
            results += await _walks(path, redis)
            results += await _kills(path, valkey, redis)
        finally:
            await redis.aclose()
            await valkey.stop()
    return results


@asynccontextmanager
async def _opened(
    folder: Path, redis: "Redis | None", *, memory_bytes: int = 0, disk_bytes: int = 100_000_000
) -> AsyncIterator[Cache]:
    client = (lambda: redis) if redis is not None else None
    cache = full_cache(
        folder, client, memory_bytes=memory_bytes, disk_bytes=disk_bytes, timeout_seconds=0.5
    )
    await cache.start()
    await settled([cache])
    try:
        yield cache
    finally:
        await cache.stop()


async def _load() -> str:
    return VALUE


def _getter(cache: Cache) -> Callable[[int], Awaitable[str]]:
    values = cache.of("bench", Text())

    def get(number: int) -> Awaitable[str]:
        return values.get(TENANT, b"%d" % number, _load, ttl_seconds=600, tags=("bench",))

    return get


async def _levels(folder: Path, redis: "Redis") -> list[Result]:
    """Hits, one after the other."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        async with (
            _opened(folder / "m", None, memory_bytes=1_000_000) as in_memory,
            _opened(folder / "r", redis, disk_bytes=1_000) as in_redis,
            _opened(folder / "d", None) as on_disk,
            _opened(folder / "a", redis, memory_bytes=1_000_000) as whole,
        ):
            getters = [_getter(cache) for cache in (in_memory, in_redis, on_disk)]
            for get in getters:
                await get(0)
            await settled([in_memory, in_redis, on_disk])
            await redis.set("weft:bench", VALUE)
            fresh = count(1_000_000)
            missing = _getter(whole)
            works: dict[str, Callable[[], Awaitable[object]]] = {
                "memory": lambda: getters[0](0),
                "redis": lambda: getters[1](0),
                "get": lambda: redis.get("weft:bench"),
                "disk": lambda: getters[2](0),
                "thread": lambda: loop.run_in_executor(thread, int),
                "miss": lambda: missing(next(fresh)),
            }
            variants = {name: _median_us(work) for name, work in works.items()}
            await alternate(1, variants)
            values = await alternate(ROUNDS, variants)
    return [
        Result("hit in memory", "us", values["memory"]),
        Result("hit in Redis", "us", values["redis"], Baseline("a bare GET", values["get"])),
        Result("hit on disk", "us", values["disk"], Baseline("a thread's turn", values["thread"])),
        Result(
            "miss at all levels, beside the load",
            "us",
            values["miss"],
            Baseline("a bare GET", values["get"]),
        ),
    ]


def _median_us(work: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[float]]:
    async def measured() -> float:
        return await median_ms(work, HITS) * 1e3

    return measured


async def _single_flight(folder: Path, redis: "Redis") -> list[Result]:
    """A thousand who miss at once."""
    loads, times = [], []
    async with _opened(folder / "s", redis, memory_bytes=1_000_000) as cache:
        get = _getter(cache)
        for number in range(ROUNDS):
            before = sum(cache.metrics.looks("bench", LOAD).counts.values())
            started = time.perf_counter()
            await asyncio.gather(*(get(2_000_000 + number) for _ in range(JOINED)))
            times.append((time.perf_counter() - started) * 1e3)
            loads.append(sum(cache.metrics.looks("bench", LOAD).counts.values()) - before)
    return [
        Result(f"loads for {JOINED:,} who miss at once", "", loads, goal=Goal(1, at_most=True)),
        Result(f"until {JOINED:,} who miss at once have it", "ms", times),
    ]


async def _walks(folder: Path, redis: "Redis") -> list[Result]:
    """Some values are asked for much more often than others (Zipf's law, exponent 1); memory
    has room for a tenth of them. Then the same without Redis."""
    weights = list(accumulate(1 / rank for rank in range(1, KEYS + 1)))
    results = []
    memory_bytes = IN_MEMORY * (len(VALUE) + 400)
    for name, client in (("", redis), (", without Redis", None)):
        draw = random.Random(7)
        async with _opened(folder / f"w{len(name)}", client, memory_bytes=memory_bytes) as cache:
            get = _getter(cache)
            # What was put before isn't meant.
            await cache.invalidate(TENANT, ["bench"])
            started = time.perf_counter()
            for _ in range(WALK):
                (number,) = draw.choices(range(KEYS), cum_weights=weights)
                await get(3_000_000 + number)
            seconds = time.perf_counter() - started
            for level in (MEMORY, *(each.name for each in cache.levels)):
                hits = cache.metrics.looks("bench", level).counts.get(HIT, 0)
                results.append(Result(f"hits, {level}{name}", "%", [100 * hits / WALK]))
            made = sum(cache.metrics.looks("bench", LOAD).counts.values())
            results.append(Result(f"loads{name}", "%", [100 * made / WALK]))
            results.append(Result(f"gets{name}", "/s", [WALK / seconds]))
    return results


async def _kills(folder: Path, valkey: EmbeddedValkey, redis: "Redis") -> list[Result]:
    """Redis is killed again and again while clients ask; memory keeps nothing."""
    failed, calls, slowest = 0, 0, 0.0
    ended = asyncio.Event()
    cache = full_cache(folder / "k", lambda: redis, memory_bytes=0, timeout_seconds=0.02)
    await cache.start()
    get = _getter(cache)

    async def client(number: int) -> None:
        nonlocal failed, calls, slowest
        draw = random.Random(number)
        while not ended.is_set():
            started = SYSTEM.monotonic()
            try:
                await get(4_000_000 + draw.randrange(200))
            except Exception:  # noqa: BLE001 - whatever it is, it is counted
                failed += 1
            calls += 1
            slowest = max(slowest, SYSTEM.monotonic() - started)
            await asyncio.sleep(0.01)

    clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
    for _ in range(KILLS):
        await asyncio.sleep(KILL_SECONDS)
        died = valkey.pid
        assert died is not None
        os.kill(died, signal.SIGKILL)
        await until(lambda died=died: valkey.pid not in (None, died), 30)  # type: ignore[misc]
    await asyncio.sleep(KILL_SECONDS)
    ended.set()
    await asyncio.gather(*clients)
    await cache.stop()
    return [
        Result(
            f"failed of {calls:,} calls, Redis killed {KILLS} times", "", [failed], goal=NONE_FAILED
        ),
        Result("the slowest of them", "ms", [slowest * 1e3]),
    ]
