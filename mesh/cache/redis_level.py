"""The second level: Redis or Valkey, which the processes of a deployment share. How much it
keeps its server bounds (`maxmemory`, with the policy `allkeys-lru`).

What is kept of a session is listed, so that it can be taken out. Where the list went for want
of room, what it named isn't used either; it stays, sealed, until it expires.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from mesh.cache.entries import is_of_session
from mesh.cache.level import Chores, Guard, LevelFailed, LevelOff, Sealed
from mesh.clock import Clock
from mesh.events.jetstream.assets import CACHE_SECONDS_MAX, CACHE_TAGS_MAX

SESSION_ENTRIES_MAX = 1_024
"""Most entries that are kept here of one session: to scrub them they are listed."""

# Connections that it takes at once: rate limits use the same client, which has 16.
_GETS_AT_ONCE = 6
_CHANGES_AT_ONCE = 2
_GETS_MAX = 64
_CHORES_MAX = 64
_CHORE_SECONDS_MAX = 0.2
_SCRUB_PAUSE_SECONDS = 1.0
_SCRUB_TRIES_MAX = 3_600
_MILLISECOND_NS = 1_000_000


class Pipeline(Protocol):
    """Commands that go together."""

    def set(self, name: str, value: bytes, *, px: int) -> object: ...

    def hset(self, name: str, key: str, value: str) -> object: ...

    def hlen(self, name: str) -> object: ...

    def expire(self, name: str, time: int) -> object: ...

    async def execute(self) -> Sequence[Any]: ...


class Redis(Protocol):
    """What is needed of `redis.asyncio.Redis`."""

    def get(self, name: str) -> Awaitable[bytes | None]: ...

    def set(self, name: str, value: bytes, *, px: int) -> Awaitable[object]: ...

    def unlink(self, *names: str) -> Awaitable[object]: ...

    def hgetall(self, name: str) -> Awaitable[Mapping[bytes, bytes]]: ...

    def pipeline(self, transaction: bool = ...) -> Pipeline: ...


class RedisLevel:
    """See the module, and the port `mesh.cache.level.Level`. `client` gives the client, once
    there is one."""

    name = "redis"
    size_bytes = 0
    evicted = 0

    def __init__(
        self, client: Callable[[], Redis | None], timeout_seconds: float, clock: Clock
    ) -> None:
        self._client = client
        self._clock = clock
        now = clock.monotonic
        self._gets = Guard("redis", timeout_seconds, now, _GETS_MAX)
        seconds = max(timeout_seconds, _CHORE_SECONDS_MAX)
        self._changes = Guard("redis writes", seconds, now, _CHORES_MAX)
        self._get_places = asyncio.Semaphore(_GETS_AT_ONCE)
        self._change_places = asyncio.Semaphore(_CHANGES_AT_ONCE)
        self._chores = Chores(_CHORES_MAX)
        self._erased: set[bytes] = set()
        self._scrubbing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Nothing to open: the client connects by itself."""

    async def stop(self) -> None:
        """Ends what is under way."""
        if self._scrubbing is not None:
            self._scrubbing.cancel()
            await asyncio.wait({self._scrubbing})
        await self._chores.end()
        await self._gets.stop()
        await self._changes.stop()

    async def get(self, entry_id: bytes) -> bytes | None:
        """See Level."""
        redis = self._client()
        if redis is None:
            raise LevelOff

        async def get() -> bytes | None:
            async with self._get_places:
                found: object = await redis.get(_entry(entry_id))
            if found is None or isinstance(found, bytes):
                return found
            # Whatever answers there may answer anything.
            raise TypeError("Redis answered a GET with what isn't a string")

        return await self._gets.ask(get)

    def put(self, sealed: Sealed) -> None:
        """See Level."""
        left_ns = sealed.expire_ns - self._clock.now_ns()
        if left_ns >= _MILLISECOND_NS:
            self._chores.begin(lambda: self._put(sealed, left_ns // _MILLISECOND_NS))

    def drop(self, entry_id: bytes) -> None:
        """See Level."""
        self._chores.begin(lambda: self._drop([_entry(entry_id)]))

    def drop_tagged(self, tag: bytes, position: int) -> None:
        """See Level. Only what is a session's is taken out; the rest isn't used any more, and
        expires."""
        if is_of_session(tag) and len(self._erased) < CACHE_TAGS_MAX:
            self._erased.add(tag)
            if self._scrubbing is None:
                self._scrubbing = asyncio.create_task(self._scrub(), name="cache scrub in redis")

    async def _put(self, sealed: Sealed, milliseconds: int) -> None:
        sessions = [_index(tag) for tag in sealed.tags if is_of_session(tag)]
        if sessions:
            counts = await self._ask(lambda redis: _counts(redis, sessions))
            if max(counts) >= SESSION_ENTRIES_MAX:
                return

        async def put(redis: Redis) -> object:
            name = _entry(sealed.entry_id)
            if not sessions:
                return await redis.set(name, sealed.stored, px=milliseconds)
            # All or nothing, so that nothing of a session is kept that isn't listed.
            commands = redis.pipeline(transaction=True)
            for session in sessions:
                commands.hset(session, sealed.entry_id.hex(), "")
                commands.expire(session, CACHE_SECONDS_MAX)
            commands.set(name, sealed.stored, px=milliseconds)
            return await commands.execute()

        await self._ask(put)

    async def _drop(self, names: Sequence[str]) -> None:
        await self._ask(lambda redis: redis.unlink(*names))

    async def _scrub(self) -> None:
        """Until all is scrubbed, or Redis was away for so long that most has expired."""
        tries_left = _SCRUB_TRIES_MAX
        try:
            while self._erased and tries_left:
                # What is being put now may be of them.
                await self._chores.settled()
                try:
                    for tag in list(self._erased):
                        await self._drop_session(tag)
                        self._erased.discard(tag)
                except LevelFailed:
                    tries_left -= 1
                    await asyncio.sleep(_SCRUB_PAUSE_SECONDS)
        finally:
            self._erased.clear()
            self._scrubbing = None

    async def _drop_session(self, tag: bytes) -> None:
        # With it goes what was put under the same id since: it is made once more.
        listed = await self._ask(lambda redis: _listed(redis, _index(tag)))
        names = [f"weft:cache:{entry_id}" for entry_id in listed]
        await self._drop([*names, _index(tag)])

    async def _ask(self, work: Callable[[Redis], Awaitable[Any]]) -> Any:
        redis = self._client()
        if redis is None:
            raise LevelOff

        async def change() -> Any:
            async with self._change_places:
                return await work(redis)

        return await self._changes.ask(change)


async def _counts(redis: Redis, names: Sequence[str]) -> Sequence[int]:
    commands = redis.pipeline(transaction=False)
    for name in names:
        commands.hlen(name)
    counts = await commands.execute()
    if not all(isinstance(count, int) for count in counts):
        raise TypeError("Redis answered an HLEN with what isn't a number")
    return counts


async def _listed(redis: Redis, name: str) -> Sequence[str]:
    """The ids that the index lists."""
    found: object = await redis.hgetall(name)
    if not isinstance(found, Mapping) or not all(isinstance(each, bytes) for each in found):
        raise TypeError("Redis answered an HGETALL with what isn't a hash")
    return [entry_id.decode() for entry_id in found]


def _entry(entry_id: bytes) -> str:
    return f"weft:cache:{entry_id.hex()}"


def _index(tag: bytes) -> str:
    return f"weft:cache-tag:{tag.hex()}"
