"""How many calls a second a key and a tenant may make, over all processes.

The count is kept in Redis as a sliding window of two counters: the calls of this second,
and those of the one before in the share in which it still counts. A process doesn't ask
for every call: it leases some calls at once and decides in memory. Without Redis each
process counts for itself.

A process that runs out of its lease goes on, on credit, for at most one more lease while
the next is on its way: so no call waits, and what is let through too much is bounded by
one lease per process and second.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog

from mesh.clock import SYSTEM, Clock
from mesh.errors import RateLimited
from mesh.principal import Principal
from mesh.rpc.settings import RateLimitSettings

BUCKETS_MAX = 20_000
LEASES_PER_SECOND = 10
"""A lease is this share of the limit: as many questions to Redis a second and bucket."""
WINDOW_SECONDS = 1.0
KEPT_SECONDS = 3
"""How long Redis keeps a counter: two windows, and some."""
PAUSE_SECONDS = 1.0
"""How long Redis isn't asked after it failed."""

_log = structlog.get_logger(__name__)


class Counters(Protocol):
    """Counters that all processes share; `RedisCounters` are some."""

    async def take(self, key: str, count: int, limit: int) -> int:
        """How many of `count` calls fit under `limit` calls a second; they count as made.
        Raises CountersUnavailable."""
        ...


class CountersUnavailable(Exception):
    """The shared counters can't be reached."""


class _Bucket:
    """What is left of a lease, which ends at `until`; below 0 it is credit. `alone_left` is
    what is left where this process counts alone."""

    __slots__ = (
        *("alone_at", "alone_left", "asking", "key", "lease", "left", "limit", "name"),
        *("refused_until", "until"),
    )

    def __init__(self, name: str, read: bool, limit: int, now: float) -> None:
        self.name = name
        self.key = f"{name}:{'read' if read else 'write'}"
        self.limit = limit
        self.lease = max(1, limit // LEASES_PER_SECOND)
        self.left = 0
        self.until = self.alone_at = now
        self.alone_left = float(limit)
        self.refused_until = 0.0
        self.asking = False


class RateLimiter:
    """Decides in memory, in a microsecond. `counters` None: this process counts alone."""

    def __init__(
        self,
        settings: RateLimitSettings,
        counters: Counters | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._limits = {
            ("key", True): settings.key_reads_per_second,
            ("key", False): settings.key_writes_per_second,
            ("tenant", True): settings.tenant_reads_per_second,
            ("tenant", False): settings.tenant_writes_per_second,
        }
        self._counters = counters
        self._clock = clock
        self._pairs: dict[tuple[str, bool], tuple[_Bucket, _Bucket]] = {}
        self._tenants: dict[tuple[str, bool], _Bucket] = {}
        self._alone_until = 0.0
        self._asking: set[asyncio.Task[None]] = set()

    def take(self, principal: Principal, *, read: bool) -> None:
        """Counts a call. Raises RateLimited, with the time after which one fits again."""
        now = self._clock.monotonic()
        key = (principal.name, read)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pair(principal, read, now)
        for bucket in pair:
            if not self._take(bucket, now):
                wait = max(bucket.refused_until - now, WINDOW_SECONDS / LEASES_PER_SECOND)
                raise RateLimited(
                    f"more than {bucket.limit} {'reads' if read else 'writes'} a second of"
                    f" {bucket.name}",
                    retry_seconds=round(wait, 3),
                )

    def _pair(self, principal: Principal, read: bool, now: float) -> tuple[_Bucket, _Bucket]:
        if len(self._pairs) >= BUCKETS_MAX:
            # Leases that are forgotten so are lost: they count as used.
            self._pairs.clear()
            self._tenants.clear()
        tenant = self._tenants.get((principal.tenant, read))
        if tenant is None:
            limit = self._limits["tenant", read]
            tenant = _Bucket(f"tenant {principal.tenant}", read, limit, now)
            self._tenants[principal.tenant, read] = tenant
        key = _Bucket(principal.name, read, self._limits["key", read], now)
        pair = self._pairs[principal.name, read] = (key, tenant)
        return pair

    def _take(self, bucket: _Bucket, now: float) -> bool:
        if self._counters is None or now < self._alone_until:
            return _take_alone(bucket, now)
        if now >= bucket.until and bucket.left > 0:
            # Of the second that it was leased in; what of it wasn't used is over.
            bucket.left = 0
        if bucket.left < 1 and now < bucket.refused_until:
            return False
        if bucket.left <= bucket.lease / 2 and not bucket.asking:
            self._ask(bucket)
        if bucket.left <= -bucket.lease:
            return False
        bucket.left -= 1
        return True

    def _ask(self, bucket: _Bucket) -> None:
        bucket.asking = True
        task = asyncio.create_task(self._lease(bucket))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _lease(self, bucket: _Bucket) -> None:
        assert self._counters is not None
        try:
            granted = await self._counters.take(bucket.key, bucket.lease, bucket.limit)
        except CountersUnavailable as error:
            now = self._clock.monotonic()
            if now >= self._alone_until:
                _log.warning("rate limits are counted alone", reason=str(error))
            self._alone_until = now + PAUSE_SECONDS
            return
        finally:
            bucket.asking = False
        now = self._clock.monotonic()
        bucket.until = now + WINDOW_SECONDS
        # Credit was spent on what is granted now.
        bucket.left += granted
        if granted < bucket.lease:
            bucket.refused_until = now + WINDOW_SECONDS / LEASES_PER_SECOND


def _take_alone(bucket: _Bucket, now: float) -> bool:
    """A token bucket that fills by the limit each second, and holds as much."""
    grown = (now - bucket.alone_at) * bucket.limit
    bucket.alone_left = min(float(bucket.limit), bucket.alone_left + grown)
    bucket.alone_at = now
    if bucket.alone_left < 1:
        bucket.refused_until = now + (1 - bucket.alone_left) / bucket.limit
        return False
    bucket.alone_left -= 1
    return True


class Pipeline(Protocol):
    """Commands that go together."""

    def incrby(self, name: str, amount: int) -> object: ...

    def expire(self, name: str, time: int) -> object: ...

    def get(self, name: str) -> object: ...

    async def execute(self) -> Sequence[Any]: ...


class Redis(Protocol):
    """What is needed of `redis.asyncio.Redis`."""

    def pipeline(self, transaction: bool = ...) -> Pipeline: ...


class RedisCounters:
    """Counters in Redis. `client` gives the client, once there is one; `now` is Unix time in
    seconds, on which the processes' clocks have to agree within about half a second."""

    def __init__(
        self, client: Callable[[], Redis | None], now: Callable[[], float] = time.time
    ) -> None:
        self._client = client
        self._now = now

    async def take(self, key: str, count: int, limit: int) -> int:
        """See Counters."""
        redis = self._client()
        if redis is None:
            raise CountersUnavailable("there is no Redis")
        from redis.exceptions import RedisError

        try:
            return await self._take(redis, key, count, limit)
        except (RedisError, OSError, RuntimeError) as error:
            # RuntimeError is uvloop's word for a connection that was closed a moment ago.
            raise CountersUnavailable(type(error).__name__) from error

    async def _take(self, redis: Redis, key: str, count: int, limit: int) -> int:
        now = self._now()
        window = int(now // WINDOW_SECONDS)
        share = 1 - (now / WINDOW_SECONDS - window)
        present = f"weft:rate:{key}:{window}"
        commands = redis.pipeline(transaction=False)
        commands.incrby(present, count)
        commands.expire(present, KEPT_SECONDS)
        commands.get(f"weft:rate:{key}:{window - 1}")
        counted, _, before = await commands.execute()
        used = int(counted) + share * int(before or 0)
        excess = min(count, max(0, math.ceil(used - limit)))
        if excess:
            # What wasn't granted mustn't count against those who wait for it.
            back = redis.pipeline(transaction=False)
            back.incrby(present, -excess)
            await back.execute()
        return count - excess
