"""An HTTP/2 server that breaks calls off, as a proxy or a dying server does (RFC 9113)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
END_STREAM, ACKNOWLEDGED, END_HEADERS = 0x1, 0x1, 0x4
# Places of `:status` in HPACK's static table (RFC 7541, appendix A).
STATUS_200, STATUS_500 = b"\x88", b"\x8e"

End = Callable[[int], bytes]
"""Gives the bytes that end the stream of that number."""


def reset(error_code: int) -> End:
    """Resets the stream, with an error code of RFC 9113, section 7."""
    return lambda stream: _frame(RST_STREAM, 0, stream, error_code.to_bytes(4, "big"))


def without_status(http_status: bytes) -> End:
    """Ends the stream with HTTP's status, and none of gRPC's."""
    return lambda stream: _frame(HEADERS, END_STREAM | END_HEADERS, stream, http_status)


@asynccontextmanager
async def breaking_off(end: End) -> AsyncIterator[str]:
    """Takes each request whole and ends it so, until the block ends; gives the address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(len(PREFACE))
            writer.write(_frame(SETTINGS, 0, 0))
            while True:
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
                if kind == SETTINGS and not flags & ACKNOWLEDGED:
                    writer.write(_frame(SETTINGS, ACKNOWLEDGED, 0))
                elif kind == DATA and flags & END_STREAM:
                    writer.write(end(stream))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
    return head + stream.to_bytes(4, "big") + payload
