"""Rate limits, decided in memory over counters that processes share."""

import asyncio
import contextlib

import pytest

from mesh.clock import Clock
from mesh.errors import RateLimited
from mesh.rpc.rate_limiter import CountersUnavailable, RateLimiter
from mesh.rpc.settings import RateLimitSettings
from tests.support.edge import administrator

SETTINGS = RateLimitSettings(
    key_reads_per_second=100,
    key_writes_per_second=10,
    tenant_reads_per_second=1000,
    tenant_writes_per_second=1000,
)
WHO = administrator("acme")


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    @property
    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.now)


class SharedCounters:
    """Counts as Redis does, within one second that never ends; can be away."""

    def __init__(self) -> None:
        self.counted: dict[str, int] = {}
        self.away = False
        self.asked = 0

    async def take(self, key: str, count: int, limit: int) -> int:
        self.asked += 1
        if self.away:
            raise CountersUnavailable("away")
        granted = max(0, min(count, limit - self.counted.get(key, 0)))
        self.counted[key] = self.counted.get(key, 0) + granted
        return granted


def passed(limiter: RateLimiter, calls: int, *, read: bool = False) -> int:
    """How many of so many calls get through."""
    count = 0
    for _ in range(calls):
        with contextlib.suppress(RateLimited):
            limiter.take(WHO, read=read)
            count += 1
    return count


def test_alone_a_process_lets_the_limit_through_and_more_as_time_goes_by() -> None:
    time = Time()
    limiter = RateLimiter(SETTINGS, clock=time.clock)
    assert passed(limiter, 50) == 10
    time.now += 0.5
    assert passed(limiter, 50) == 5
    time.now += 60
    assert passed(limiter, 50) == 10
    assert passed(limiter, 500, read=True) == 100


async def test_processes_share_one_limit_to_within_a_lease_each() -> None:
    counters, time = SharedCounters(), Time()
    limiters = [RateLimiter(SETTINGS, counters, time.clock) for _ in range(3)]
    through = 0
    for _ in range(300):
        through += sum(passed(limiter, 1, read=True) for limiter in limiters)
        await asyncio.sleep(0)
    assert 100 <= through <= 100 + 3 * 10
    # Far fewer questions than calls.
    assert counters.asked < 100


async def test_without_the_counters_each_process_counts_alone_and_asks_again_later() -> None:
    counters, time = SharedCounters(), Time()
    counters.away = True
    limiter = RateLimiter(SETTINGS, counters, time.clock)
    passed(limiter, 1, read=True)
    await asyncio.sleep(0.01)
    asked = counters.asked
    assert passed(limiter, 300, read=True) == 100
    assert counters.asked == asked
    counters.away = False
    time.now += 2
    passed(limiter, 1, read=True)
    await asyncio.sleep(0.01)
    assert counters.asked > asked


async def test_one_keys_calls_do_not_count_for_another() -> None:
    limiter = RateLimiter(SETTINGS, clock=Time().clock)
    assert passed(limiter, 20) == 10
    limiter.take(administrator("globex"), read=False)
    with pytest.raises(RateLimited) as raised:
        limiter.take(WHO, read=False)
    assert raised.value.retry_seconds
