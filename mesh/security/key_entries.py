"""Keys by name, wrapped in the key store and open in memory.

An entry holds the versions of one key. Data keys (`data.<tenant>...`) are wrapped by the
tenant's key (`tenant.<tenant>`), everything else by the master key. What is open here is
at most CACHED_SECONDS old when it is used, and dropped as soon as another process puts
something else in its place.
"""

import asyncio
import secrets
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.protobuf.message import DecodeError

from mesh.clock import SYSTEM, Clock
from mesh.errors import DataDamaged, DataErased, LimitExceeded, Unavailable
from mesh.security.aead import KEY_BYTES, bound, seal, unseal
from mesh.security.key_store import KeyConflict, KeyStore, StoredKey
from mesh.security.master_key import MasterKey
from weft.security.v1 import keys_pb2

CACHED_SECONDS = 5.0
CACHED_ENTRIES_MAX = 10_000
VERSIONS_MAX = 256
CONFLICTS_MAX = 32

_ID_BYTES = 8
_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Key:
    """A version of a key. `sealed` counts what this process sealed with it."""

    id: str
    secret: bytes = field(repr=False)
    aead: AESGCM = field(init=False, repr=False)
    sealed: int = 0

    def __post_init__(self) -> None:
        self.aead = AESGCM(self.secret)

    @classmethod
    def new(cls) -> "Key":
        """A random one."""
        return cls(secrets.token_hex(_ID_BYTES), secrets.token_bytes(KEY_BYTES))


@dataclass(slots=True)
class OpenEntry:
    """An entry as it was at `revision`; `keys` are those versions that could be unwrapped,
    oldest first. `newest` is None where the last one couldn't, or the key is erased."""

    raw: bytes
    revision: int
    read_at: float
    keys: dict[str, Key]
    newest: Key | None
    erased: bool


class KeyEntries:
    """Reads, makes and changes the entries of one key store; see the module."""

    def __init__(self, store: KeyStore, master: MasterKey, clock: Clock = SYSTEM) -> None:
        self.store = store
        self.master = master
        self._clock = clock
        self._cache: OrderedDict[str, OpenEntry] = OrderedDict()
        self._flights: dict[tuple[str, bool], asyncio.Task[OpenEntry | None]] = {}

    def at_hand(self, name: str) -> OpenEntry | None:
        """The entry, where memory has it and it is new enough. What is erased stays so."""
        entry = self._cache.get(name)
        if entry is None:
            return None
        if self._clock.monotonic() - entry.read_at > CACHED_SECONDS and not entry.erased:
            return None
        self._cache.move_to_end(name)
        return entry

    async def find(self, name: str) -> OpenEntry | None:
        """The entry; None where there is none."""
        return self.at_hand(name) or await self._in_flight(name, make=False)

    async def find_or_make(self, name: str) -> OpenEntry:
        """The entry, made of a random key where there is none: of any number of racing
        processes one makes it, and all get the same."""
        entry = self.at_hand(name) or await self._in_flight(name, make=True)
        assert entry is not None, "made where it was missing"
        return entry

    async def put_first(self, name: str, key: Key) -> OpenEntry:
        """The entry, made of `key` unless another process was first."""
        with suppress(KeyConflict):
            await self._put(name, keys_pb2.KeyEntry(), key, 0)
        return await self.find_or_make(name)

    async def read(self, name: str) -> OpenEntry | None:
        """The entry as it is now, not as it was a moment ago."""
        return await self._read(name, make=False)

    def forget(self, name: str) -> None:
        """Drops what memory has of the entry."""
        self._cache.pop(name, None)

    def heard(self, name: str, value: bytes) -> None:
        """An entry was put, here or elsewhere: what differs from it is old."""
        cached = self._cache.get(name)
        if cached is not None and cached.raw != value:
            del self._cache[name]

    async def add_version(self, name: str) -> Key:
        """Puts a new random version behind those of the entry, and makes it where it is
        missing. DataErased where the key was erased, LimitExceeded past 256 versions."""
        for _ in range(CONFLICTS_MAX):
            stored = await self.store.get(name)
            entry = parse_entry(name, stored.value) if stored else keys_pb2.KeyEntry()
            if entry.HasField("erase_time"):
                raise erased(name)
            if len(entry.versions) >= VERSIONS_MAX:
                raise LimitExceeded(f"a key has at most {VERSIONS_MAX} versions")
            key = Key.new()
            try:
                await self._put(name, entry, key, stored.revision if stored else 0)
            except KeyConflict:
                continue
            self.forget(name)
            return key
        raise _contended(name)

    async def rewrap(self, name: str) -> bool:
        """Wraps the entry's versions with the newest key that there is to wrap them;
        whether any wasn't yet. Another process's change comes first."""
        for _ in range(CONFLICTS_MAX):
            stored = await self.store.get(name)
            if stored is None:
                return False
            entry = parse_entry(name, stored.value)
            if not await self._rewrap_versions(name, entry):
                return False
            try:
                await self.store.put(name, entry.SerializeToString(), stored.revision)
            except KeyConflict:
                continue
            return True
        raise _contended(name)

    async def drop_before(self, name: str, key_id: str) -> None:
        """Drops the versions that are older than `key_id`, for good."""
        for _ in range(CONFLICTS_MAX):
            stored = await self.store.get(name)
            entry = parse_entry(name, stored.value) if stored else keys_pb2.KeyEntry()
            ids = [version.id for version in entry.versions]
            if stored is None or key_id not in ids[1:]:
                return
            del entry.versions[: ids.index(key_id)]
            try:
                await self.store.put(name, entry.SerializeToString(), stored.revision)
            except KeyConflict:
                continue
            self.forget(name)
            return
        raise _contended(name)

    async def erase(self, name: str) -> bytes:
        """Overwrites all versions of the key, here and on the disk, and leaves a mark, so
        that none is made again; returns the mark. Safe to repeat."""
        for _ in range(CONFLICTS_MAX):
            stored = await self.store.get(name)
            if stored and parse_entry(name, stored.value).HasField("erase_time"):
                # Whoever erased it may have died before what it replaced was overwritten.
                await self.store.scrub()
                self.forget(name)
                return stored.value
            mark = keys_pb2.KeyEntry()
            mark.erase_time.FromNanoseconds(self._clock.now_ns())
            try:
                await self.store.put(
                    name, mark.SerializeToString(), stored.revision if stored else 0
                )
            except KeyConflict:
                continue
            self.forget(name)
            return mark.SerializeToString()
        raise _contended(name)

    async def _in_flight(self, name: str, *, make: bool) -> OpenEntry | None:
        """One read for all who want the entry at once; it outlives any of them."""
        flight = self._flights.get((name, make))
        if flight is None:
            flight = asyncio.create_task(self._read(name, make=make))
            self._flights[name, make] = flight
            flight.add_done_callback(lambda done: self._landed(name, make, done))
        return await asyncio.shield(flight)

    def _landed(self, name: str, make: bool, flight: asyncio.Task[OpenEntry | None]) -> None:
        del self._flights[name, make]
        if not flight.cancelled():
            # Retrieved, also where nobody waits any more.
            flight.exception()

    async def _read(self, name: str, *, make: bool) -> OpenEntry | None:
        for _ in range(CONFLICTS_MAX):
            stored = await self.store.get(name)
            if stored is None and make:
                try:
                    stored = await self._put(name, keys_pb2.KeyEntry(), Key.new(), 0)
                except KeyConflict:
                    continue
            return await self._opened(name, stored) if stored else None
        raise _contended(name)

    async def _opened(self, name: str, stored: StoredKey) -> OpenEntry:
        cached = self._cache.get(name)
        if cached is not None and cached.raw == stored.value:
            cached.read_at = self._clock.monotonic()
            return cached
        entry = parse_entry(name, stored.value)
        keys: dict[str, Key] = {}
        for version in entry.versions:
            plain = await self._unwrapped(name, version)
            if plain is not None:
                known = cached.keys.get(version.id) if cached is not None else None
                # The same object goes on counting what it sealed.
                keys[version.id] = known or Key(version.id, plain)
        newest = keys.get(entry.versions[-1].id) if entry.versions else None
        opened = OpenEntry(
            *(stored.value, stored.revision, self._clock.monotonic()),
            *(keys, newest, entry.HasField("erase_time")),
        )
        self._cache[name] = opened
        self._cache.move_to_end(name)
        if len(self._cache) > CACHED_ENTRIES_MAX:
            self._cache.popitem(last=False)
        return opened

    async def _put(self, name: str, entry: keys_pb2.KeyEntry, key: Key, revision: int) -> StoredKey:
        """Puts `key` behind the entry's versions. Only when this returns it may be used:
        a key that was wrapped while its tenant's key was rotated is wrapped again first,
        since the old version of that is about to be dropped."""
        for _ in range(CONFLICTS_MAX):
            version = await self._wrapped(name, key.id, key.secret)
            put = keys_pb2.KeyEntry(versions=[*entry.versions, version])
            raw = put.SerializeToString()
            revision = await self.store.put(name, raw, revision)
            parent = tenant_key_of(name)
            tenant = await self.read(parent) if parent else None
            if tenant is None or tenant.newest is None:
                return StoredKey(raw, revision)
            if tenant.newest.id == version.wrapping_key_id:
                return StoredKey(raw, revision)
        raise _contended(name)

    async def _wrapped(self, name: str, key_id: str, plain: bytes) -> keys_pb2.KeyVersion:
        version = keys_pb2.KeyVersion(id=key_id)
        version.create_time.FromNanoseconds(self._clock.now_ns())
        parent = tenant_key_of(name)
        if parent:
            wrapping = await self._newest(parent)
            version.wrapping_key_id = wrapping.id
            place = bound((name, key_id, wrapping.id))
            version.wrapped = seal(wrapping.aead, plain, place)
        else:
            version.wrapped = await self.master.wrap(plain, bound((name, key_id)))
            version.wrapping_key_id = self.master.key_id
        return version

    async def _newest(self, name: str) -> Key:
        entry = await self.find_or_make(name)
        if entry.erased:
            raise erased(name)
        if entry.newest is None:
            raise DataDamaged("a key has no version that can be opened", metadata={"key": name})
        return entry.newest

    async def _unwrapped(self, name: str, version: keys_pb2.KeyVersion) -> bytes | None:
        """None where the version of the tenant's key is gone that wrapped it."""
        parent = tenant_key_of(name)
        if not parent:
            return await self.master.unwrap(version.wrapped, bound((name, version.id)))
        for look in (self.find, self.read):
            tenant = await look(parent)
            wrapping = tenant.keys.get(version.wrapping_key_id) if tenant else None
            if wrapping is not None:
                place = bound((name, version.id, wrapping.id))
                return unseal(wrapping.aead, version.wrapped, place)
        _log.warning("a data key's wrapping key is gone", key=name, version=version.id)
        return None

    async def _rewrap_versions(self, name: str, entry: keys_pb2.KeyEntry) -> bool:
        parent = tenant_key_of(name)
        tenant = await self.read(parent) if parent else None
        # Oldest first: what is wrapped by one before the last is to be wrapped again.
        older = list(tenant.keys)[:-1] if tenant else []
        changed = False
        for version in entry.versions:
            old = version.wrapping_key_id
            if (old in older) if parent else (old != self.master.key_id):
                plain = await self._unwrapped(name, version)
                if plain is not None:
                    wrapped = await self._wrapped(name, version.id, plain)
                    version.wrapped = wrapped.wrapped
                    version.wrapping_key_id = wrapped.wrapping_key_id
                    changed = changed or version.wrapping_key_id != old
        return changed


def tenant_key_of(name: str) -> str:
    """Name of the key that wraps this one; empty where the master key does."""
    area, *rest = name.split(".")
    return f"tenant.{rest[0]}" if area == "data" else ""


def parse_entry(name: str, value: bytes) -> keys_pb2.KeyEntry:
    """The entry in `value`; DataDamaged where it isn't one."""
    try:
        return keys_pb2.KeyEntry.FromString(value)
    except DecodeError as error:
        raise DataDamaged(
            "an entry of the key store doesn't parse", metadata={"key": name}
        ) from error


def erased(name: str) -> DataErased:
    """The error for a key that was erased."""
    return DataErased("it was erased, and its key with it", metadata={"key": name})


def _contended(name: str) -> Unavailable:
    return Unavailable("other processes change the same key all the time", metadata={"key": name})
