"""How payloads are written inside a commit: the codec port, and the codecs by name."""

from collections.abc import Callable
from typing import Protocol

from mesh.errors import DataDamaged

NEVER = 2**63 - 1
"""A position that no log reaches."""


class PayloadSeal(Protocol):
    """Turns the payloads of one stream into stored bytes and back, with one key.

    `revision` (the event's own) and `event_type` bind the stored bytes to their place,
    beside the stream and the key.
    """

    @property
    def key_id(self) -> str:
        """Stands in every commit that it wrote; empty where it needs no key."""
        ...

    def seal(self, revision: int, event_type: str, plain: bytes) -> bytes:
        """The bytes to store."""
        ...

    def open(self, revision: int, event_type: str, stored: bytes) -> bytes:
        """The plain bytes; DataDamaged where `stored` isn't what `seal` made for this place."""
        ...


class PayloadCodec(Protocol):
    """Finds the seal of a stream: once per commit, since its key may lie elsewhere.

    Both coroutines raise DataErased once the stream's keys were erased, and may raise
    EventStoreUnavailable.
    """

    @property
    def name(self) -> str:
        """Stands in every commit that this codec wrote; at most 32 characters."""
        ...

    async def to_write(self, stream: str) -> PayloadSeal:
        """What seals the stream's next commit."""
        ...

    async def to_read(self, stream: str, key_id: str) -> PayloadSeal:
        """What opens those of the stream's commits that have this key id; DataDamaged where
        there is no such key."""
        ...

    def at_hand(self, stream: str, key_id: str) -> PayloadSeal | None:
        """As `to_read`, where that needs no waiting; else None."""
        ...

    def on_erased(self, callback: Callable[[str], None]) -> None:
        """Calls back with each stream whose keys are erased from now on."""
        ...


class PlainSeal:
    """Leaves payloads as they are."""

    key_id = ""

    def seal(self, revision: int, event_type: str, plain: bytes) -> bytes:
        """`plain` itself."""
        return plain

    def open(self, revision: int, event_type: str, stored: bytes) -> bytes:
        """`stored` itself."""
        return stored


_PLAIN_SEAL = PlainSeal()


class PlainCodec:
    """Stores payloads as they are."""

    name = "plain"

    async def to_write(self, stream: str) -> PayloadSeal:
        """The same for every stream."""
        return _PLAIN_SEAL

    async def to_read(self, stream: str, key_id: str) -> PayloadSeal:
        """The same for every stream."""
        return _PLAIN_SEAL

    def at_hand(self, stream: str, key_id: str) -> PayloadSeal | None:
        """The same for every stream."""
        return _PLAIN_SEAL

    def on_erased(self, callback: Callable[[str], None]) -> None:
        """There are no keys."""


class Codecs:
    """The codec that writes, and all that may have written what is read. What must outlive
    its stream's key is written with `clear`.

    Behind the position `sealed_after` nothing else in the clear is read: else whoever can
    write to the log's files could put anything into it.
    """

    def __init__(
        self, writing: PayloadCodec, *reading: PayloadCodec, sealed_after: int = NEVER
    ) -> None:
        self.writing = writing
        self.sealed_after = sealed_after
        self.clear = PlainCodec()
        self._by_name = {codec.name: codec for codec in (self.clear, *reading, writing)}

    def named(self, name: str) -> PayloadCodec:
        """The codec of that name; DataDamaged where there is none."""
        codec = self._by_name.get(name)
        if codec is None:
            raise DataDamaged(f"no codec named {name!r}", metadata={"codec": name})
        return codec


PLAIN = Codecs(PlainCodec())
"""Codecs of a store whose payloads aren't sealed."""
