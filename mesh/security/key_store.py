"""Where wrapped keys lie: the port, and a store in memory.

It has no history: what is replaced or destroyed is overwritten, not only forgotten.
"""

import re
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple, Protocol

from mesh.errors import Conflict

VALUE_BYTES_MAX = 256_000

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}")

OnPut = Callable[[str, bytes], None]
"""Is told the name and the value of an entry that was put."""


class StoredKey(NamedTuple):
    """An entry's value, and the revision that it was stored as."""

    value: bytes
    revision: int


class KeyConflict(Conflict):
    """The entry isn't at the revision that was named; nothing was stored."""


class KeyStore(Protocol):
    """Keeps small values by name; names are NATS tokens, up to eight, with dots between.

    Both back ends pass `tests/contract/test_key_store.py`. Every method may raise
    EventStoreUnavailable once its own bound on retries has passed, and ValueError for
    what isn't a name.
    """

    async def get(self, name: str) -> StoredKey | None:
        """The entry as it is now, never a stale one; None where there is none."""
        ...

    async def put(self, name: str, value: bytes, revision: int) -> int:
        """Puts `value` in the place of what is there and returns its revision. What it
        replaces is overwritten when this returns.

        KeyConflict unless the entry is at `revision`, 0 where there is none: of any number
        of racing puts exactly one wins. LimitExceeded where the store is full.
        """
        ...

    async def destroy(self, name: str) -> None:
        """Overwrites the entry and forgets it; harmless where there is none."""
        ...

    def list(self, prefix: str) -> AsyncGenerator[tuple[str, StoredKey], None]:
        """The entries whose names begin with `prefix` and a dot, as they are when it begins.
        One that is put meanwhile may be missing, come as it was, or come twice."""
        ...

    async def scrub(self) -> None:
        """Overwrites what a crash between a put and its end left of replaced values."""
        ...

    async def watch(self, callback: OnPut) -> None:
        """Calls back for each put from now on, by whichever process. A call may get lost."""
        ...


def checked_name(name: str) -> str:
    """`name` itself; ValueError where it isn't one."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a name in the key store: {name!r}")
    return name


class MemoryKeyStore:
    """Keeps entries as long as it lives, for one event loop."""

    def __init__(self) -> None:
        self._entries: dict[str, StoredKey] = {}
        self._last = 0
        self._watchers: list[OnPut] = []

    async def get(self, name: str) -> StoredKey | None:
        """See KeyStore."""
        return self._entries.get(checked_name(name))

    async def put(self, name: str, value: bytes, revision: int) -> int:
        """See KeyStore."""
        found = self._entries.get(checked_name(name))
        if revision != (found.revision if found else 0):
            raise KeyConflict("the key has changed", metadata={"key": name})
        self._last += 1
        self._entries[name] = StoredKey(value, self._last)
        for watcher in self._watchers:
            watcher(name, value)
        return self._last

    async def destroy(self, name: str) -> None:
        """See KeyStore."""
        self._entries.pop(checked_name(name), None)

    async def list(self, prefix: str) -> AsyncGenerator[tuple[str, StoredKey], None]:
        """See KeyStore."""
        start = f"{checked_name(prefix)}."
        for name, entry in list(self._entries.items()):
            if name.startswith(start):
                yield name, entry

    async def scrub(self) -> None:
        """See KeyStore. Nothing is left here."""

    async def watch(self, callback: OnPut) -> None:
        """See KeyStore."""
        self._watchers.append(callback)
