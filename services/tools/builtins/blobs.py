"""The built-in `blob-read` and `blob-write`, and results that are kept as blobs."""

import codecs
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration

from mesh.errors import (
    AlreadyExists,
    Conflict,
    InvalidArgument,
    LimitExceeded,
    NotFound,
)
from services.tools.results import ToolResult, failed
from weft.blobs.v1 import blob_service_pb2 as pb
from weft.blobs.v1 import blobs_pb2

if TYPE_CHECKING:
    from weft.blobs.v1.blob_service_pb2_grpc import BlobServiceAsyncStub

PIECE_BYTES = 16_384
PIECE_BYTES_MAX = 32_768
TEXT_LENGTH_MAX = 200_000
DATA_BYTES_MAX = 524_288
"""Of one message; well below what a message may have."""
TEXT_TYPE = "text/plain; charset=utf-8"
CONTINUATION = range(0x80, 0xC0)


class BlobTools:
    """Reads and writes a tenant's blobs for models, by a stub of the blobs."""

    def __init__(self, blobs: "BlobServiceAsyncStub", length_max: int) -> None:
        self._blobs = blobs
        # What is shown of a piece is never too long for a result itself.
        self._piece_bytes_max = min(PIECE_BYTES_MAX, length_max // 2)

    async def read(
        self, name: str, arguments: Mapping[str, Any], timeout_seconds: float
    ) -> ToolResult:
        """A piece of the blob, as text, without the halves of characters at its ends. Raises
        Unavailable."""
        offset = int(arguments.get("offset", 0))
        length = min(int(arguments.get("length", PIECE_BYTES)), self._piece_bytes_max)
        request = pb.GetBlobRequest(name=name, offset=offset, length_bytes=length)
        data, blob = bytearray(), blobs_pb2.Blob()
        try:
            stream: Any = self._blobs.GetBlob(request, timeout=timeout_seconds)
            async with aclosing(stream) as parts:
                async for part in parts:
                    if part.HasField("blob"):
                        blob = part.blob
                    data += part.data
        except (NotFound, InvalidArgument, Conflict) as error:
            return failed(error.message)
        return _piece(blob, offset, bytes(data))

    async def write(
        self,
        name: str,
        arguments: Mapping[str, Any],
        session: str,
        key: str,
        timeout_seconds: float,
    ) -> ToolResult:
        """Puts the text: where the blob isn't there yet, or is the session's own. Raises
        Unavailable."""
        header = pb.PutBlobHeader(
            content_type=arguments.get("content_type", TEXT_TYPE), source=session
        )
        if key:
            header.request_id = hashlib.sha256(key.encode()).hexdigest()
        try:
            present = await self._stat(name, timeout_seconds)
            if present is not None and session and present.source == session:
                header.if_match = present.etag
            else:
                header.if_absent = True
            put = await self._put(name, header, arguments["text"].encode(), timeout_seconds)
        except AlreadyExists:
            return failed("there is a blob of that id, which this conversation didn't write")
        except (Conflict, InvalidArgument, LimitExceeded, NotFound) as error:
            return failed(error.message)
        shown = {"blob": name.rpartition("/")[2], "size_bytes": put.size_bytes}
        return ToolResult(json.dumps(shown))

    async def keep(
        self, tenant: str, result: str, session: str, key: str, seconds: tuple[float, int]
    ) -> blobs_pb2.Blob:
        """Puts a whole result, under an id that the same call's has each time. `seconds` are
        how long that may take, and how long it stays. Raises what PutBlob raises."""
        digest = hashlib.sha256(key.encode()).hexdigest()[:40]
        header = pb.PutBlobHeader(
            content_type=TEXT_TYPE, source=session, ttl=Duration(seconds=seconds[1])
        )
        name = f"tenants/{tenant}/blobs/result-{digest}"
        return await self._put(name, header, result.encode(), seconds[0])

    async def _stat(self, name: str, timeout_seconds: float) -> blobs_pb2.Blob | None:
        try:
            found = await self._blobs.StatBlob(
                pb.StatBlobRequest(name=name), timeout=timeout_seconds
            )
        except NotFound:
            return None
        return found.blob

    async def _put(
        self, name: str, header: pb.PutBlobHeader, data: bytes, timeout_seconds: float
    ) -> blobs_pb2.Blob:
        header.size_bytes = len(data)

        async def requests() -> AsyncIterator[pb.PutBlobRequest]:
            for start in range(0, max(1, len(data)), DATA_BYTES_MAX):
                yield pb.PutBlobRequest(
                    name=name,
                    header=header if start == 0 else None,
                    data=data[start : start + DATA_BYTES_MAX],
                    last=start + DATA_BYTES_MAX >= len(data),
                )

        response = await self._blobs.PutBlob(requests(), timeout=timeout_seconds)
        return response.blob


def _piece(blob: blobs_pb2.Blob, offset: int, data: bytes) -> ToolResult:
    """The bytes from `offset` on as text; the rest of a character at the beginning is the last
    piece's, one that isn't whole at the end is the next one's."""
    begun = 0
    while offset and begun < min(3, len(data)) and data[begun] in CONTINUATION:
        begun += 1
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(data[begun:])
    except UnicodeDecodeError:
        return failed(f"the blob isn't text; it is said to be {blob.content_type}")
    end = offset + len(data) - len(decoder.getstate()[0])
    onward = f"the next piece begins at {end}" if end < blob.size_bytes else "that is its end"
    head = f"[bytes {offset + begun} to {end} of {blob.size_bytes}; {onward}]"
    return ToolResult(f"{head}\n{text}")
