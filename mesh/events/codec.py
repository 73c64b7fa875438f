"""How payloads are written inside a commit: the codec port, and the codecs by name."""

from typing import Protocol

from mesh.errors import DataDamaged


class PayloadCodec(Protocol):
    """Turns a payload's plain bytes into stored ones and back.

    `stream`, `revision` (the event's own) and `event_type` bind the stored bytes to
    their place: a codec that seals takes them as associated data.
    """

    @property
    def name(self) -> str:
        """Stands in every commit that this codec wrote; at most 32 characters."""
        ...

    def seal(self, stream: str, revision: int, event_type: str, plain: bytes) -> bytes:
        """The bytes to store."""
        ...

    def open(self, stream: str, revision: int, event_type: str, stored: bytes) -> bytes:
        """The plain bytes; DataDamaged where `stored` isn't what `seal` made for this place."""
        ...


class PlainCodec:
    """Stores payloads as they are."""

    name = "plain"

    def seal(self, stream: str, revision: int, event_type: str, plain: bytes) -> bytes:
        """`plain` itself."""
        return plain

    def open(self, stream: str, revision: int, event_type: str, stored: bytes) -> bytes:
        """`stored` itself."""
        return stored


class Codecs:
    """The codec that writes, and all that may have written what is read."""

    def __init__(self, writing: PayloadCodec, *reading: PayloadCodec) -> None:
        self.writing = writing
        self._by_name = {codec.name: codec for codec in (*reading, writing)}

    def named(self, name: str) -> PayloadCodec:
        """The codec of that name; DataDamaged where there is none."""
        codec = self._by_name.get(name)
        if codec is None:
            raise DataDamaged(f"no codec named {name!r}", metadata={"codec": name})
        return codec


PLAIN = Codecs(PlainCodec())
"""Codecs of a store whose payloads aren't sealed."""
