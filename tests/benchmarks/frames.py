"""A client that replays one gRPC call as ready-made HTTP/2 frames (RFC 9113), so that the
server is what limits: it costs some 15 us a call, where gRPC's own Python client costs as
much as the server."""

import asyncio
import struct
import time
from collections.abc import Mapping
from typing import cast

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WINDOW = 2**30


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field, literal and never indexed (RFC 7541, 6.2.3), without Huffman code."""

    def text(part: bytes) -> bytes:
        if len(part) < 127:
            return bytes([len(part)]) + part
        rest = len(part) - 127
        encoded = [127]
        while rest >= 128:
            encoded.append(rest % 128 + 128)
            rest //= 128
        return bytes([*encoded, rest]) + part

    return b"\x10" + text(name.encode()) + text(value.encode())


class Replay(asyncio.Protocol):
    """Keeps `in_flight` calls under way until `count` were answered."""

    def __init__(self, headers: bytes, message: bytes, count: int, in_flight: int) -> None:
        self._headers = headers
        self._body = b"\0" + struct.pack(">I", len(message)) + message
        self._left = count
        self._in_flight = in_flight
        self._stream = 1
        self._buffer = b""
        self._open: set[int] = set()
        self._answered: set[int] = set()
        self.failed = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        settings = struct.pack(">HI", 4, WINDOW)
        wide = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW))
        calls = [self._call() for _ in range(self._in_flight)]
        self._transport.write(b"".join([PREFACE, frame(SETTINGS, 0, 0, settings), wide, *calls]))

    def data_received(self, data: bytes) -> None:
        buffer, position, answers = self._buffer + data, 0, []
        while len(buffer) - position >= 9:
            size = int.from_bytes(buffer[position : position + 3], "big")
            if len(buffer) - position < 9 + size:
                break
            kind, flags = buffer[position + 3], buffer[position + 4]
            stream = int.from_bytes(buffer[position + 5 : position + 9], "big")
            payload = buffer[position + 9 : position + 9 + size]
            position += 9 + size
            if kind == DATA:
                self._answered.add(stream)
            elif kind == HEADERS and flags & END_STREAM:
                self._ended(stream)
                if self._left > 0:
                    answers.append(self._call())
            elif kind == SETTINGS and not flags & ACK:
                answers.append(frame(SETTINGS, ACK, 0, b""))
            elif kind == PING and not flags & ACK:
                answers.append(frame(PING, ACK, 0, payload))
            elif kind == GOAWAY:
                self._end(ConnectionError("the server went away"))
        self._buffer = buffer[position:]
        if answers:
            self._transport.write(b"".join(answers))
        if not self._open and self._left <= 0:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or ConnectionError("the connection was closed"))

    def _ended(self, stream: int) -> None:
        self._open.discard(stream)
        # An error has no message.
        if stream not in self._answered:
            self.failed += 1
        self._answered.discard(stream)

    def _call(self) -> bytes:
        stream, self._stream = self._stream, self._stream + 2
        self._left -= 1
        self._open.add(stream)
        return frame(HEADERS, END_HEADERS, stream, self._headers) + frame(
            DATA, END_STREAM, stream, self._body
        )

    def _end(self, error: Exception | None) -> None:
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)


async def calls_per_second(
    address: str,
    path: str,
    message: bytes,
    metadata: Mapping[str, str],
    *,
    count: int,
    in_flight: int,
) -> float:
    """How many calls of `path` a second the server at `host:port` answers. AssertionError
    where one fails."""
    host, _, port = address.rpartition(":")
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": address,
        "te": "trailers",
        "content-type": "application/grpc",
        "grpc-timeout": "5S",
        **metadata,
    }
    headers = b"".join(literal(name, value) for name, value in fields.items())
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    transport, replay = await loop.create_connection(
        lambda: Replay(headers, message, count, in_flight), host, int(port)
    )
    await asyncio.wait_for(replay.done, 60)
    seconds = time.perf_counter() - started
    transport.close()
    assert not replay.failed, f"{replay.failed} calls failed"
    return count / seconds
