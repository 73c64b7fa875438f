"""Sealing a blob's bytes in segments, so that a range is opened without what is around it.

Each blob has a key of its own that seals nothing else, so that a segment's number is its
nonce (the construction STREAM of Hoang, Reyhanitabar, Rogaway and Vizár, CRYPTO 2015). Number
and whether it is the last are part of nonce and associated data, the blob's name and etag of
the latter: no segment opens in another place, and none can be left out at the end.
"""

from collections.abc import Iterable, Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh.errors import DataDamaged
from mesh.security.aead import TAG_BYTES, bound
from services.blobs.domain.names import DataObject

PIECE_BYTES_MAX = 1 << 20
"""What is given of a range at once."""
SEGMENT_BYTES = 256 * 1024
"""Plain bytes of a segment: what is read and opened for one byte. 0.006 % are tags."""


class Segments:
    """Seals and opens the segments of one blob."""

    def __init__(self, of: DataObject, data_key: bytes, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._aead = AESGCM(data_key)
        self._place = bound((str(of.key), of.etag))
        self._plain_bytes = segment_bytes
        self._stored_bytes = segment_bytes + TAG_BYTES

    def seal(self, number: int, plain: bytes | memoryview, *, last: bool) -> bytes:
        """The segment of that number, from 0; all but the last have `segment_bytes`."""
        nonce = _nonce(number, last)
        return self._aead.encrypt(nonce, plain, self._place + nonce)

    def open(self, number: int, stored: bytes | memoryview, *, last: bool) -> bytes:
        """The plain bytes; DataDamaged where they aren't that segment's."""
        nonce = _nonce(number, last)
        try:
            return self._aead.decrypt(nonce, stored, self._place + nonce)
        except (InvalidTag, ValueError):
            raise DataDamaged("a blob's bytes were changed, or moved from their place") from None

    def count(self, size_bytes: int) -> int:
        """How many a blob of that size has; an empty one has one."""
        return max(1, -(-size_bytes // self._plain_bytes))

    def windows(
        self, size_bytes: int, offset: int, length: int, segments_max: int
    ) -> Iterator["Window"]:
        """What is to be read, window by window, for a range of a blob of that size."""
        if not length:
            return
        count = self.count(size_bytes)
        stored_size = size_bytes + count * TAG_BYTES
        first, end = offset // self._plain_bytes, (offset + length - 1) // self._plain_bytes + 1
        for begin in range(first, end, segments_max):
            until = min(begin + segments_max, end)
            plain_begin = begin * self._plain_bytes
            yield Window(
                number=begin,
                start=begin * self._stored_bytes,
                length=min(until * self._stored_bytes, stored_size) - begin * self._stored_bytes,
                has_last=until == count,
                skip=max(0, offset - plain_begin),
                until=min(offset + length, until * self._plain_bytes) - plain_begin,
            )

    def open_window(self, window: "Window", stored: bytes | memoryview) -> list[bytes]:
        """The plain bytes of a window, those that are wanted. DataDamaged where `stored`
        isn't what lies there."""
        view = memoryview(stored)
        if len(view) != window.length:
            raise DataDamaged("a blob's bytes end too early")
        size = self._stored_bytes
        parts = [view[start : start + size] for start in range(0, len(view), size)]
        plain = [
            self.open(window.number + place, part, last=window.has_last and place == len(parts) - 1)
            for place, part in enumerate(parts)
        ]
        return list(_joined(_cut(plain, window.skip, window.until)))


class Window:
    """Segments that are read at once: where they lie (`start`, `length`, in stored bytes), and
    which of their plain bytes are wanted (`skip`, `until`)."""

    __slots__ = ("has_last", "length", "number", "skip", "start", "until")

    def __init__(
        self, *, number: int, start: int, length: int, has_last: bool, skip: int, until: int
    ) -> None:
        self.number = number
        self.start = start
        self.length = length
        self.has_last = has_last
        self.skip = skip
        self.until = until


def _cut(parts: Iterable[bytes], skip: int, until: int) -> Iterator[bytes]:
    begin = 0
    for part in parts:
        piece = part[max(0, skip - begin) : max(0, until - begin)]
        begin += len(part)
        if piece:
            yield piece


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Several segments in one piece: each message costs more than its bytes."""
    parts: list[bytes] = []
    size = 0
    for piece in pieces:
        if size + len(piece) > PIECE_BYTES_MAX:
            yield b"".join(parts)
            parts, size = [], 0
        parts.append(piece)
        size += len(piece)
    if parts:
        yield b"".join(parts)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
