"""The port of the object store, and the values that cross it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from mesh.errors import Conflict


@dataclass(frozen=True, slots=True)
class Version:
    """What an object is compared by when it is replaced; opaque."""

    text: str


ABSENT = Version("")
"""That of an object that isn't there."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a list; `modified_ns` is Unix time, by the store's clock."""

    key: str
    size_bytes: int
    modified_ns: int


class VersionConflict(Conflict):
    """The object isn't of the version that was named; nothing was stored."""


class ObjectStore(Protocol):
    """Keeps objects by key, parts of which have slashes between them. Every back end passes
    `tests/contract/test_object_store.py`.

    What is put is there whole or not at all, and stays once the method returned. All methods
    raise Unavailable where the store can't be reached or refuses Weft, and puts LimitExceeded
    where it is full.
    """

    @property
    def shared(self) -> bool:
        """Whether other processes may write to it."""
        ...

    async def open(self) -> None:
        """Makes it ready, and clears away what a killed process left half written."""
        ...

    async def put(self, key: str, data: bytes, version: Version) -> None:
        """Puts a small object in the place of the one of that version, which is destroyed;
        VersionConflict where there is another, as far as the store can tell."""
        ...

    async def upload(self, key: str, pieces: AsyncIterator[bytes]) -> None:
        """Puts an object of any size. Where `pieces` raises, nothing is stored, and that is
        raised."""
        ...

    async def get(self, key: str) -> tuple[bytes, Version] | None:
        """A small object, and its version; None where there is none."""
        ...

    async def read(self, key: str, start: int, length: int) -> memoryview | None:
        """A range of an object, less where it ends before; None where there is no object."""
        ...

    def list(self, folder: str) -> AsyncIterator[Sequence[Listed]]:
        """All objects below `folder`, in no order. Those that are put or deleted meanwhile may
        be missing or not."""
        ...

    async def page(self, folder: str, prefix: str, after: str, count: int) -> Sequence[str]:
        """At most `count` last parts of keys in the folder that begin with `prefix` and sort
        behind `after`, in that order."""
        ...

    async def delete(self, key: str) -> None:
        """Deletes an object; harmless where there is none. A crash may bring it back."""
        ...

    async def destroy(self, key: str) -> None:
        """Deletes a small object for good: it is overwritten, as far as the store can."""
        ...
