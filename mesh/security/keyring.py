"""The key hierarchy: the master key wraps tenants' keys and named secrets, a tenant's key
wraps its data keys, a data key seals what one session, or one area, stores.

Names in the key store: `master` (which master key this is), `secret.<name>`,
`tenant.<tenant>`, `data.<tenant>.state.<agent>.<session>`, `data.<tenant>.<area>`.
"""

from collections.abc import Callable
from functools import lru_cache

import structlog
from google.protobuf.message import DecodeError

from mesh.clock import SYSTEM, Clock
from mesh.errors import DataDamaged, FailedPrecondition, Unavailable
from mesh.security.aead import KEY_BYTES
from mesh.security.key_entries import Key, KeyEntries, erased, parse_entry
from mesh.security.key_store import KeyStore
from mesh.security.master_key import VARIABLE, MasterKey, MasterKeyUnknown
from weft.security.v1 import keys_pb2

DataKey = Key
"""Seals what a session or area stores; `id` stands in each commit."""

SEALED_MAX = 2**26
"""A process seals so many texts with a key, then makes its next version. With a random
nonce of 96 bits a key is good for 2**32 (NIST SP 800-38D, 8.3): 64 processes' worth."""

PEPPER = "pepper"
READ_MODELS = "read-models"
SHARED = (PEPPER, READ_MODELS)
"""Secrets that every process needs and none but the first makes."""

_log = structlog.get_logger(__name__)
_FINGERPRINT = "master"
_SEALED_AFTER = "sealed-after"
ONCE = (_FINGERPRINT, *(f"secret.{name}" for name in (*SHARED, _SEALED_AFTER)))
"""Names of the entries that a deployment has once, made when it is founded."""
_SESSIONS = "state"
_SESSION_TOKENS = 4
_PASSES_MAX = 16


class Keyring:
    """Gives keys to those who seal and open; implements `Secrets`.

    Every method may raise EventStoreUnavailable while the key store is out of reach.
    Streams are given by their text form. Another process's erasure or rotation is heard
    of at once as a rule, and no later than five seconds after it.
    """

    def __init__(self, store: KeyStore, master: MasterKey, clock: Clock = SYSTEM) -> None:
        self._entries = KeyEntries(store, master, clock)
        self._store = store
        self._master = master
        self._on_erased: list[Callable[[str], None]] = []

    async def found(self, position: int) -> None:
        """Makes what a deployment has once, where it isn't there yet: the master key's mark,
        the secrets of SHARED, and the mark that all behind `position` is sealed."""
        await self._check_master()
        for name in SHARED:
            await self.secret(name)
        await self.sealed_after(position)

    async def start(self) -> None:
        """Checks that the key store belongs to this master key, which is made where both
        are new. FailedPrecondition where it belongs to another one."""
        await self._store.watch(self._heard)
        await self._check_master()
        await self._store.scrub()

    async def _check_master(self) -> None:
        try:
            await self._entries.find_or_make(_FINGERPRINT)
        except MasterKeyUnknown as error:
            raise FailedPrecondition(
                f"{error.message}: set WEFT_SECURITY_SECRETS_DIR to the secrets folder of this "
                f"deployment, or {VARIABLE} to its master key",
                metadata=error.metadata,
            ) from error

    async def secret(self, name: str) -> bytes:
        """See Secrets."""
        entry = await self._entries.find_or_make(f"secret.{name}")
        if entry.newest is None:
            raise DataDamaged("a secret can't be opened", metadata={"secret": name})
        return entry.newest.secret

    async def destroy(self, name: str) -> None:
        """See Secrets."""
        await self._store.destroy(f"secret.{name}")
        self._entries.forget(f"secret.{name}")

    async def sealed_after(self, position: int) -> int:
        """The position behind which all commits are sealed: `position` when this is called
        for the first time in this deployment, ever after what it was then."""
        name = f"secret.{_SEALED_AFTER}"
        entry = await self._entries.find(name)
        if entry is None:
            key = Key(_SEALED_AFTER, position.to_bytes(KEY_BYTES, "big"))
            entry = await self._entries.put_first(name, key)
        if entry.newest is None:
            raise DataDamaged("where the seals begin can't be read")
        return int.from_bytes(entry.newest.secret, "big")

    async def data_key_to_seal(self, stream: str) -> DataKey:
        """The key to seal with what `stream` stores next; made where there is none.
        DataErased once the stream's keys were erased."""
        name = key_name(stream)
        entry = await self._entries.find_or_make(name)
        if entry.erased:
            raise erased(name)
        key = entry.newest
        if key is None or key.sealed >= SEALED_MAX:
            return await self._entries.add_version(name)
        return key

    async def data_key_to_open(self, stream: str, key_id: str) -> DataKey:
        """The key of that id, with which `stream` was sealed. DataErased once it was erased,
        DataDamaged where the key store has none of that id."""
        name = key_name(stream)
        for look in (self._entries.find, self._entries.read):
            entry = await look(name)
            if entry is not None and entry.erased:
                raise erased(name)
            if entry is not None and key_id in entry.keys:
                return entry.keys[key_id]
        raise DataDamaged(
            "the key store lacks a key that data are sealed with",
            metadata={"stream": stream, "key_id": key_id},
        )

    def data_key_at_hand(self, stream: str, key_id: str) -> DataKey | None:
        """As `data_key_to_open`, where memory has it."""
        entry = self._entries.at_hand(key_name(stream))
        return entry.keys.get(key_id) if entry is not None else None

    async def rotate_data_key(self, stream: str) -> str:
        """Seals with a new key from here on; returns its id. What is sealed stays readable."""
        return (await self._entries.add_version(key_name(stream))).id

    async def rotate_tenant_key(self, tenant: str) -> tuple[str, int]:
        """Wraps the tenant's data keys with a new key and drops the old one; returns the new
        key's id, and how many data keys were wrapped again. What a crash or a deadline left
        half done, the next rotation completes, and makes no other key."""
        name = f"tenant.{tenant}"
        current = await self._entries.read(name)
        if current is None or len(current.keys) < 2:
            await self._entries.add_version(name)
            current = await self._entries.read(name)
        assert current is not None, "made where it was missing"
        *older, key_id = list(current.keys)
        count = 0
        for _ in range(_PASSES_MAX):
            # Until nobody makes one with the old key any more.
            done = await self._rewrap_all(
                f"data.{tenant}", lambda found: not found.isdisjoint(older)
            )
            count += done
            if not done:
                await self._entries.drop_before(name, key_id)
                return key_id, count
        raise Unavailable("data keys are made faster than they are wrapped again; try again")

    async def rotate_master_key(self) -> tuple[str, int]:
        """Makes a new generation of the master key, where its back end can, and wraps all
        tenants' keys and secrets with it; returns its id and how many those were. What was
        left half done is completed, and no other generation made."""
        if not await self._is_master_rotation_unfinished():
            await self._master.rotate()
        newest = {self._master.key_id}
        count = 0
        for prefix in ("tenant", "secret"):
            count += await self._rewrap_all(prefix, lambda found: found != newest)
        await self._entries.rewrap(_FINGERPRINT)
        return self._master.key_id, count

    async def erase(self, stream: str) -> None:
        """Destroys the keys of a session for good: nothing opens what it stored, and nothing
        is sealed for it any more. Safe to repeat. ValueError for a stream that shares its
        key with others."""
        name = key_name(stream)
        if name.count(".") < _SESSION_TOKENS:
            raise ValueError(f"{stream} has no key of its own")
        mark = await self._entries.erase(name)
        self._heard(name, mark)

    def on_erased(self, callback: Callable[[str], None]) -> None:
        """Calls back with each stream whose keys are erased, here or elsewhere."""
        self._on_erased.append(callback)

    async def _is_master_rotation_unfinished(self) -> bool:
        """The fingerprint goes last: until then an older generation wraps it."""
        # To wrap is to look which generation there is now, in whichever process it was made.
        await self._master.wrap(b"", b"")
        stored = await self._store.get(_FINGERPRINT)
        if stored is None:
            return False
        versions = parse_entry(_FINGERPRINT, stored.value).versions
        return any(version.wrapping_key_id != self._master.key_id for version in versions)

    async def _rewrap_all(self, prefix: str, is_old: Callable[[set[str]], bool]) -> int:
        """Wraps again those entries of which `is_old` says so, told the ids of the keys that
        wrap them; how many there were."""
        count = 0
        async for name, stored in self._store.list(prefix):
            try:
                versions = parse_entry(name, stored.value).versions
            except DataDamaged:
                # Nothing can be opened with it any more; the others are rotated all the same.
                _log.error("key_damaged", key=name)
                continue
            found = {version.wrapping_key_id for version in versions}
            if is_old(found) and await self._entries.rewrap(name):
                count += 1
        return count

    def _heard(self, name: str, value: bytes) -> None:
        self._entries.heard(name, value)
        area, _, rest = name.partition(".")
        if area != "data" or not _is_mark(value):
            return
        tenant, _, scope = rest.partition(".")
        session = scope.removeprefix(f"{_SESSIONS}.")
        for callback in self._on_erased:
            callback(f"{_SESSIONS}.{tenant}.{session}")


@lru_cache(maxsize=10_000)
def key_name(stream: str) -> str:
    """Name of the key that seals a stream: its own for a session, else its area's."""
    tokens = stream.split(".")
    if len(tokens) < 2:
        raise ValueError(f"not a stream: {stream!r}")
    area, tenant, *key = tokens
    if area == _SESSIONS and len(tokens) == _SESSION_TOKENS:
        return ".".join(("data", tenant, area, *key))
    return f"data.{tenant}.{area}"


def _is_mark(value: bytes) -> bool:
    try:
        return keys_pb2.KeyEntry.FromString(value).HasField("erase_time")
    except DecodeError:
        return False
