"""Bytes on their way into the object store: counted, hashed, sealed and handed on."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import structlog

from mesh.errors import Cancelled, InvalidArgument, LimitExceeded
from services.blobs.objects import ABSENT, ObjectStore
from services.blobs.segments import SEGMENT_BYTES, Segments
from services.blobs.settings import PART_BYTES

PIECE_SEGMENTS = 4
"""Segments that are sealed, and handed on, at once."""
QUEUED_MAX = 2
END_SECONDS = 30.0
"""How long the store may take to clear away an upload that is given up."""
_log = structlog.get_logger(__name__)


class Upload:
    """The bytes of one blob. `write` them, then `finish`, or `abandon` them: then nothing of
    them stays. What is small goes to the store at once, more of it while it comes.

    LimitExceeded for more than `size_max` bytes, or where the store is full.
    """

    def __init__(
        self, objects: ObjectStore, object_key: str, segments: Segments, size_max: int
    ) -> None:
        self.size_bytes = 0
        self._objects = objects
        self._object_key = object_key
        self._segments = segments
        self._size_max = size_max
        self._sha256 = hashlib.sha256()
        self._plain = bytearray()
        self._number = 0
        self._sealed: list[bytes] = []
        self._sealed_bytes = 0
        self._pieces: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(QUEUED_MAX)
        self._storing: asyncio.Task[None] | None = None

    @property
    def sha256(self) -> bytes:
        """Of what was written."""
        return self._sha256.digest()

    async def write(self, data: bytes) -> None:
        """The next bytes, of a message's size at most."""
        self.size_bytes += len(data)
        if self.size_bytes > self._size_max:
            raise LimitExceeded(f"a blob has at most {self._size_max} bytes")
        self._plain += data
        # The last segment is known for the last once no more bytes come.
        if len(self._plain) > PIECE_SEGMENTS * SEGMENT_BYTES:
            await self._seal(last=False)

    async def finish(self) -> None:
        """Returns once all is stored."""
        await self._seal(last=True)
        if self._storing is None:
            await self._objects.put(self._object_key, b"".join(self._sealed), ABSENT)
            return
        await self._hand_on(self._sealed)
        await self._offer(None)
        await self._storing

    async def abandon(self, error: BaseException) -> None:
        """Nothing of it stays; `error` is why."""
        storing = self._storing
        if storing is None:
            return
        while not self._pieces.empty():
            self._pieces.get_nowait()
        given = error if isinstance(error, Exception) else Cancelled("the upload was given up")
        self._pieces.put_nowait(given)
        done, _ = await asyncio.wait({storing}, timeout=END_SECONDS)
        if not done:
            storing.cancel()
        elif storing.exception() is not given:
            _log.debug("upload_failed", error=type(storing.exception()).__name__)

    async def _seal(self, *, last: bool) -> None:
        # At least one byte stays for the last segment.
        whole = (len(self._plain) - 1) // SEGMENT_BYTES * SEGMENT_BYTES
        plain = bytes(self._plain) if last else bytes(self._plain[:whole])
        del self._plain[: len(plain)]
        sealed = await asyncio.to_thread(self._sealed_segments, plain, last)
        self._sealed.append(sealed)
        self._sealed_bytes += len(sealed)
        if self._sealed_bytes > PART_BYTES or self._storing is not None:
            if self._storing is None:
                self._storing = asyncio.create_task(
                    self._objects.upload(self._object_key, self._queued()), name="blob upload"
                )
            if not last:
                pieces, self._sealed = self._sealed, []
                await self._hand_on(pieces)

    def _sealed_segments(self, plain: bytes, last: bool) -> bytes:
        self._sha256.update(plain)
        view = memoryview(plain)
        starts = range(0, len(plain) or 1, SEGMENT_BYTES)
        sealed = []
        for start in starts:
            is_last = last and start == starts[-1]
            segment = view[start : start + SEGMENT_BYTES]
            sealed.append(self._segments.seal(self._number, segment, last=is_last))
            self._number += 1
        return b"".join(sealed)

    async def _hand_on(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            await self._offer(piece)

    async def _offer(self, piece: bytes | None) -> None:
        assert self._storing is not None
        if self._pieces.full():
            putting = asyncio.ensure_future(self._pieces.put(piece))
            try:
                await asyncio.wait({putting, self._storing}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                putting.cancel()
            if putting.done() and not putting.cancelled():
                return
        else:
            self._pieces.put_nowait(piece)
        if self._storing.done():
            # It failed: before the end there is no other way to be done.
            await self._storing

    async def _queued(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece


def refuse_other_bytes(upload: Upload, size_bytes: int | None, sha256: bytes) -> None:
    """InvalidArgument where other bytes came than were said to come."""
    if size_bytes is not None and upload.size_bytes != size_bytes:
        raise InvalidArgument.of(
            "header.size_bytes", f"is {size_bytes}, but {upload.size_bytes} bytes came"
        )
    if sha256 and upload.sha256 != sha256:
        raise InvalidArgument.of("header.sha256", "isn't that of the bytes that came")
