"""A NATS client that is quick where Weft needs it to be, and lives through what ends nats-py's.

nats-py takes every header apart, one by one, and sends every message through a queue to
another task, which would be half of a long load and a tenth of a turn; this is the narrowest
place to step in before that. It steps into private names of nats-py 2.16.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import nats.errors
import structlog
from nats.aio.client import PING_PROTO, Client
from nats.protocol.parser import PERMISSIONS_ERR

from weft.events.v1 import events_pb2

_STATUS_LINE = b"NATS/1.0 "

_log = structlog.get_logger(__name__)


class StoredMessage(NamedTuple):
    """A message of a stream; `position` is its sequence there. `commit` is what `data`
    parses to, where it was parsed already; `headers` are there where they were read."""

    position: int
    subject: str
    data: bytes
    commit: events_pb2.Commit | None = None
    headers: bytes = b""


class Reply(NamedTuple):
    """A reply. `status` is what NATS itself answers with, such as 404; None otherwise."""

    data: bytes
    status: str | None
    headers: bytes


@dataclass(frozen=True, slots=True)
class Expected:
    """Somebody waits for `reply` to what was sent to `subject`. Of a batch, `take` gets the data
    and headers of each message before it."""

    subject: str
    reply: asyncio.Future[Reply]
    take: Callable[[bytes, bytes], None] | None


class FastClient(Client):
    """A client that gives replies to those who wait for them, by their subject, and stored
    messages that are republished to those who follow, by their subscription."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: dict[bytes, Expected] = {}
        self.followers: dict[int, Callable[[StoredMessage], None]] = {}
        self._taking: set[asyncio.Future[bool]] = set()

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        follower = self.followers.get(sid)
        if follower is not None:
            try:
                message = stored_message(data, headers)
            except ValueError:
                # Not JetStream's: whoever published it must not end our reading.
                _log.warning("a live message without its position was dropped")
                return
            follower(message)
            return
        expected = self.expected.get(subject)
        if expected is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        found = headers or b""
        status = found[9:12].decode() if found.startswith(_STATUS_LINE) else None
        if expected.take is not None and status is None:
            expected.take(data, found)
        elif not expected.reply.done():
            expected.reply.set_result(Reply(data, status, found))

    async def _process_err(self, err_msg: str) -> None:
        # nats-py closes for good over most of what a server says before it cuts a
        # connection, such as that its user has a new key since the last reload.
        if PERMISSIONS_ERR in err_msg:
            await super()._process_err(err_msg)
        else:
            await self._process_op_err(nats.errors.Error(f"nats: {err_msg}"))

    def _connect_command(self) -> bytes:
        # nats-py signs with the seed that the file holds now, but names the first one's key.
        if self._nkeys_seed is not None:
            self._setup_nkeys_connect()
        return super()._connect_command()

    async def taken(self, seconds: float) -> None:
        """Returns once the server has all that was sent; TimeoutError after `seconds`, or where
        the connection breaks. In place of `flush`, whose `wait_for` can lose a cancellation
        (Python 3.11)."""
        if not self.is_connected:
            raise TimeoutError
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._taking.add(pong)
        try:
            async with asyncio.timeout(seconds):
                await self._send_ping(pong)
                await pong
        finally:
            self._taking.discard(pong)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # nats-py writes a ping at once, past what waits to be sent: its answer would come before
        # the server has, say, the subscription that it is to confirm.
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    def stop_waiting(self) -> None:
        """The connection broke: what waits in `taken` ends, and no ping of it goes out over the
        next one, which would answer one too many."""
        for pong in self._taking:
            if not pong.done():
                pong.set_exception(TimeoutError())
        pings = self._pending.count(PING_PROTO)
        self._pending = [each for each in self._pending if each != PING_PROTO]
        self._pending_data_size -= pings * len(PING_PROTO)

    async def _process_pong(self) -> None:
        # nats-py ends its read loop for good over a flush that nobody waits for any more.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        if self._flusher_task is None or self._flusher_task.done():
            # It ended because the connection broke, which the read loop hears a moment later:
            # what is pending goes out over the next one. nats-py would write it here, and
            # raise whatever a connection that is gone has to say.
            flushed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            flushed.set_result(None)
            return flushed
        return await super()._flush_pending(force_flush)

    async def _send_publish(
        self,
        subject: str,
        reply: str,
        payload: bytes,
        payload_size: int,
        headers: dict[str, str] | None,
    ) -> None:
        if headers is None:
            await super()._send_publish(subject, reply, payload, payload_size, None)
            return
        # Names and values are our own and hold no line breaks: see `Connection.publish`.
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = f"NATS/1.0\r\n{lines}\r\n".encode()
        sizes = f"{len(head)} {len(head) + payload_size}"
        command = f"HPUB {subject} {reply} {sizes}\r\n".encode()
        await self._send_command(b"".join((command, head, payload, b"\r\n")))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()


def stored_message(data: bytes, headers: bytes) -> StoredMessage:
    position = int(header(headers, b"\r\nNats-Sequence: "))
    subject = header(headers, b"\r\nNats-Subject: ").decode()
    return StoredMessage(position, subject, data, headers=headers)


def header(headers: bytes, name: bytes) -> bytes:
    """Value of the header; of several the last, which is the server's own. Empty where
    there is none."""
    start = headers.rfind(name)
    if start < 0:
        return b""
    start += len(name)
    return headers[start : headers.index(b"\r\n", start)]
