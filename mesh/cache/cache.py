"""The cache of a process: memory, then Redis, then the disk, then whoever makes the value.

What is found in a lower level goes into those above it with what is left of its time. In one
process a value is made once, however many wait for it; several processes that miss at the
same moment each make it once.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import orjson
import structlog

from mesh.cache.entries import NEVER, TAGS_MAX, Entry, Mark, Seals
from mesh.cache.flight import Flight
from mesh.cache.level import Level, LevelFailed, LevelOff, Sealed
from mesh.cache.memory import Memory
from mesh.cache.metrics import FAULT, HIT, LOAD, MEMORY, MISS, OFF, STALE, CacheMetrics
from mesh.cache.tags import MemoryTags, Tags, is_usable
from mesh.call import current_call
from mesh.clock import NANOSECONDS, SYSTEM, Clock
from mesh.errors import DataDamaged, DeadlineExceeded, NotFound
from mesh.events.jetstream.assets import CACHE_SECONDS_MAX

T = TypeVar("T")
VALUE_BYTES_MAX = 262_144
DEADLINE_SLACK_SECONDS = 0.1
"""Who fails so shortly before its deadline most likely fails by it."""

_log = structlog.get_logger(__name__)


class Codec(Protocol[T]):
    """Writes values as bytes. What it can't read, as of an older version of Weft, it may
    refuse with a ValueError: then the value is made anew."""

    def encode(self, value: T) -> bytes: ...

    def decode(self, data: bytes) -> T: ...


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value is kept, and with which tags."""

    tenant: bytes
    entry_id: bytes
    tags: tuple[bytes, ...]


class Cache:
    """See the module; one per process, which `Host` makes. `secret` is what ids and seals are
    derived from, the same in every process. Values over `value_bytes_max` aren't kept."""

    def __init__(
        self,
        secret: bytes,
        memory: Memory,
        levels: Sequence[Level] = (),
        tags: Tags | None = None,
        *,
        metrics: CacheMetrics | None = None,
        clock: Clock = SYSTEM,
        value_bytes_max: int = VALUE_BYTES_MAX,
    ) -> None:
        self.seals = Seals(secret)
        self.memory = memory
        self.levels = tuple(levels)
        self.tags: Tags = tags if tags is not None else MemoryTags()
        self.metrics = metrics if metrics is not None else CacheMetrics()
        self.clock = clock
        self.value_bytes_max = value_bytes_max
        self.flights: dict[bytes, Flight[Entry]] = {}
        self.tags.on_invalidated(self._invalidated)
        self.metrics.measure(MEMORY, lambda: (memory.size_bytes, memory.evicted))
        for level in self.levels:
            self._measure(level)

    def of(self, namespace: str, codec: Codec[T], *, absent_seconds: float = 0) -> "Namespace[T]":
        """The values of one kind. With `absent_seconds` it is kept so long, too, that there is
        none: that the load raised NotFound."""
        return Namespace(self, namespace, codec, absent_seconds)

    async def invalidate(self, tenant: str, tags: Collection[str]) -> None:
        """Forgets, in all processes, what was made with one of the tags: once this returned,
        nothing that was made before is given in this process, and a moment later in none.

        Raises EventStoreUnavailable where NATS doesn't take it. Safe to repeat.
        """
        named = {self.seals.tag(tenant, tag) for tag in tags}
        await asyncio.gather(*(self.tags.invalidate(tenant, tag) for tag in named))

    async def start(self) -> None:
        """Begins. Nothing is waited for: until a level is there, it is missed."""
        for level in self.levels:
            await level.start()
        await self.tags.start()

    async def stop(self) -> None:
        """Ends loads under way, and keeps what waits to be kept."""
        await asyncio.gather(*(flight.cancel() for flight in self.flights.values()))
        await self.tags.stop()
        for level in reversed(self.levels):
            await level.stop()

    def keep(self, place: _Place, entry: Entry, levels: Sequence[Level]) -> None:
        """Puts the entry in memory and `levels`, unless it is too old by now."""
        if not is_usable(self.tags, entry) or len(entry.value) > self.value_bytes_max:
            return
        self.memory.put(place.tenant, place.entry_id, entry)
        if not levels:
            return
        sealed = Sealed(
            place.entry_id,
            place.tenant,
            self.seals.seal(place.tenant, place.entry_id, entry),
            entry.expire_ns,
            entry.mark.position,
            entry.tags,
        )
        for level in levels:
            level.put(sealed)

    def landed(self, entry_id: bytes, flight: Flight[Entry]) -> None:
        """A flight is over."""
        if self.flights.get(entry_id) is flight:
            del self.flights[entry_id]

    def is_valid(self, entry: Entry) -> bool:
        """Whether the entry may be given now. One that lasts longer than any may was made
        while the clock was wrong."""
        left_ns = entry.expire_ns - self.clock.now_ns()
        return 0 < left_ns <= CACHE_SECONDS_MAX * NANOSECONDS and is_usable(self.tags, entry)

    async def look(self, namespace: str, place: _Place, level: Level) -> Entry | None:
        """What a level has, and may be given."""
        started = time.perf_counter()
        result, entry = MISS, None
        try:
            stored = await level.get(place.entry_id)
            if stored is not None:
                entry = self.seals.open(place.tenant, place.entry_id, stored)
                result = HIT
        except LevelOff:
            result = OFF
        except LevelFailed:
            result = FAULT
        except DataDamaged:
            result = FAULT
            level.drop(place.entry_id)
        if entry is not None and not self.is_valid(entry):
            result, entry = STALE, None
        self.metrics.looks(namespace, level.name).ended(result, time.perf_counter() - started)
        return entry

    def _measure(self, level: Level) -> None:
        self.metrics.measure(level.name, lambda: (level.size_bytes, level.evicted))

    def _invalidated(self, tag: bytes, position: int) -> None:
        self.metrics.invalidations += 1
        self.memory.drop_tagged(tag)
        for level in self.levels:
            level.drop_tagged(tag, position)


class Namespace(Generic[T]):
    """Values of one kind; `Cache.of` makes it."""

    def __init__(
        self, cache: Cache, namespace: str, codec: Codec[T], absent_seconds: float
    ) -> None:
        self._cache = cache
        self._name = namespace
        self._codec = codec
        self._absent_seconds = absent_seconds
        self._memory = cache.metrics.looks(namespace, MEMORY)
        self._loads = cache.metrics.looks(namespace, LOAD)

    async def get(
        self,
        tenant: str,
        key: bytes,
        load: Callable[[], Awaitable[T]],
        *,
        ttl_seconds: float,
        tags: Collection[str] = (),
    ) -> T:
        """The value of `key`, which tells values of a tenant apart: what is kept, or what
        `load` returns, which then is kept for `ttl_seconds`, a week at most.

        Whoever asks meanwhile waits for the same load, and gets what it returns or raises;
        errors aren't kept, but for NotFound where the namespace says so. The load ends when
        nobody waits for it any more. It runs within the context of the call that came first,
        whose deadline may be nearer than those of the others: they try once more.

        Each caller gets a value of its own. Raises what `load` raises, and nothing else.
        """
        if not 0 < ttl_seconds <= CACHE_SECONDS_MAX or len(tags) > TAGS_MAX:
            raise ValueError("a value is kept for at most a week, with at most 16 tags")
        cache = self._cache
        place = _Place(
            cache.seals.tenant(tenant),
            cache.seals.id(self._name, tenant, key),
            tuple(sorted({cache.seals.tag(tenant, tag) for tag in tags})),
        )
        found = self._in_memory(place)
        if found is not None:
            return self._value(found)
        flight, joined = self._flight(place, load, ttl_seconds)
        try:
            return self._value(await flight.wait())
        except Exception as error:
            hasty = isinstance(error, DeadlineExceeded)
            hasty = hasty or cache.clock.monotonic() >= flight.deadline - DEADLINE_SLACK_SECONDS
            if not joined or not hasty:
                raise
        flight, _ = self._flight(place, load, ttl_seconds)
        return self._value(await flight.wait())

    async def find(self, tenant: str, key: bytes) -> T | None:
        """The value that is kept of `key`, None where there is none. With `put`, for values of
        which several are made at once: whoever looks meanwhile doesn't wait for them."""
        place = self._untagged(tenant, key)
        entry = self._in_memory(place) or await self._in_levels(place)
        return None if entry is None or entry.absent else self._value(entry)

    def put(self, tenant: str, key: bytes, value: T, *, ttl_seconds: float) -> None:
        """Keeps the value of `key` for `ttl_seconds`, a week at most. Without tags."""
        if not 0 < ttl_seconds <= CACHE_SECONDS_MAX:
            raise ValueError("a value is kept for at most a week")
        cache = self._cache
        expire_ns = cache.clock.now_ns() + int(ttl_seconds * NANOSECONDS)
        entry = Entry(self._codec.encode(value), expire_ns, NEVER, (), absent=False)
        cache.keep(self._untagged(tenant, key), entry, cache.levels)

    def _untagged(self, tenant: str, key: bytes) -> _Place:
        seals = self._cache.seals
        return _Place(seals.tenant(tenant), seals.id(self._name, tenant, key), ())

    def _in_memory(self, place: _Place) -> Entry | None:
        started = time.perf_counter()
        cache = self._cache
        entry = cache.memory.get(place.tenant, place.entry_id)
        result = MISS if entry is None else HIT
        if entry is not None and not cache.is_valid(entry):
            result, entry = STALE, None
            cache.memory.drop(place.tenant, place.entry_id)
        self._memory.ended(result, time.perf_counter() - started)
        return entry

    def _flight(
        self, place: _Place, load: Callable[[], Awaitable[T]], ttl_seconds: float
    ) -> tuple[Flight[Entry], bool]:
        """The flight to wait for, and whether somebody else began it. One that began before
        an invalidation of its tags isn't joined: what it makes may be the old value."""
        cache = self._cache
        flight = cache.flights.get(place.entry_id)
        known = cache.tags.known
        if flight and not flight.over and known.is_fresh(flight.mark, flight.tags):
            cache.metrics.joined += 1
            return flight, True
        mark, call = known.mark, current_call.get()
        seconds = math.inf if call is None else call.remaining_seconds()
        deadline = cache.clock.monotonic() + seconds
        made = Flight(self._find(place, load, ttl_seconds, mark), mark, place.tags, deadline)
        cache.flights[place.entry_id] = made
        made.on_landing(lambda: cache.landed(place.entry_id, made))
        return made, False

    async def _find(
        self, place: _Place, load: Callable[[], Awaitable[T]], ttl_seconds: float, mark: Mark
    ) -> Entry:
        found = await self._in_levels(place)
        if found is not None:
            return found
        entry = await self._load(load, ttl_seconds, mark if place.tags else NEVER, place.tags)
        self._cache.keep(place, entry, self._cache.levels)
        return entry

    async def _in_levels(self, place: _Place) -> Entry | None:
        cache = self._cache
        for index, level in enumerate(cache.levels):
            entry = await cache.look(self._name, place, level)
            if entry is not None and self._is_readable(entry):
                cache.keep(place, entry, cache.levels[:index])
                return entry
        return None

    async def _load(
        self,
        load: Callable[[], Awaitable[T]],
        ttl_seconds: float,
        mark: Mark,
        tags: tuple[bytes, ...],
    ) -> Entry:
        started = time.perf_counter()
        result, absent = "error", False
        try:
            value = self._codec.encode(await load())
            result = "made"
        except NotFound as error:
            if type(error) is not NotFound or not self._absent_seconds:
                raise
            value, absent, result = _written(error), True, "absent"
        finally:
            self._loads.ended(result, time.perf_counter() - started)
        seconds = self._absent_seconds if absent else ttl_seconds
        expire_ns = self._cache.clock.now_ns() + int(seconds * NANOSECONDS)
        return Entry(value, expire_ns, mark, tags, absent)

    def _value(self, entry: Entry) -> T:
        if entry.absent:
            raise _read(entry.value)
        return self._codec.decode(entry.value)

    def _is_readable(self, entry: Entry) -> bool:
        """Whether this version of Weft can read what is kept."""
        try:
            if not entry.absent:
                self._codec.decode(entry.value)
        except ValueError as error:
            _log.info("cached_value_unreadable", namespace=self._name, error=type(error).__name__)
            return False
        return True


def _written(error: NotFound) -> bytes:
    return orjson.dumps([error.message, error.metadata])


def _read(stored: bytes) -> NotFound:
    message, metadata = orjson.loads(stored)
    return NotFound(message, metadata=metadata)
