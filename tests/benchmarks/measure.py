"""Measuring: variants that take turns, one value of each per round."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

UNLIMITED = {
    "WEFT_LIMITS_KEY_WRITES_PER_SECOND": "1000000",
    "WEFT_LIMITS_KEY_READS_PER_SECOND": "1000000",
    "WEFT_LIMITS_TENANT_WRITES_PER_SECOND": "1000000",
    "WEFT_LIMITS_TENANT_READS_PER_SECOND": "1000000",
}
"""Settings of a platform whose one client may call it as often as it can."""

Variant = Callable[[], Awaitable[float]]
"""Measures once: a median time, or a rate."""


async def alternate(rounds: int, variants: Mapping[str, Variant]) -> dict[str, list[float]]:
    """What each variant measured in each round.

    The machine may be busy with other things: variants of one round see about the same of
    that, so they are compared round by round. Every other round goes backwards, so that
    none always has the better place.
    """
    values: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        names = list(variants)
        for name in reversed(names) if number % 2 else names:
            values[name].append(await variants[name]())
    return values


async def median_ms(work: Callable[[], Awaitable[object]], count: int) -> float:
    """Median time of `work`, one after the other, in milliseconds."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        await work()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


async def per_second(works: Sequence[Callable[[], Awaitable[object]]], count: int) -> float:
    """How many runs per second `works` reach, all at once, each `count` times in a row."""

    async def repeated(work: Callable[[], Awaitable[object]]) -> None:
        for _ in range(count):
            await work()

    started = time.perf_counter()
    await asyncio.gather(*map(repeated, works))
    return len(works) * count / (time.perf_counter() - started)
