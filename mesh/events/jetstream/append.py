"""Storing a message exactly once, also when the answer got lost."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mesh.errors import EventStoreUnavailable, Internal, LimitExceeded
from mesh.events.jetstream.assets import EVENTS
from mesh.events.jetstream.connection import (
    PAUSE_SECONDS,
    Connection,
    NoReply,
    NotSent,
    answer_of,
)
from mesh.events.jetstream.history import from_leader
from mesh.events.store import HeadConflict

_WRONG_LAST_SEQUENCE = 10071
_ANOTHER_IN_FLIGHT = 10164
# No memory, storage or account quota left, message too large, store failed.
_FULL = frozenset({10002, 10023, 10028, 10047, 10054, 10077})


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long storing one message may take: in all, and for one attempt."""

    append_seconds_max: float = 5.0
    attempt_seconds: float = 1.0


DEFAULT_BOUNDS = Bounds()


class _Refused(Exception):
    """JetStream has another last sequence than was expected; `code` says which kind."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Publisher:
    """Publishes to JetStream and tells what became of it.

    Each message has an id of its own, used again only to send the same bytes again, so
    JetStream stores it once. Both methods raise LimitExceeded when the store is full, and
    EventStoreUnavailable when the bounds are spent: then it may be stored or not. `stream`
    is the one that `append` looks into to settle what became of a message.
    """

    def __init__(
        self,
        connection: Connection,
        bounds: Bounds,
        disk_full: Callable[[], bool] = lambda: False,
        *,
        stream: str = EVENTS,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._bounds = bounds
        self._disk_full = disk_full

    async def publish(self, subject: str, data: bytes, headers: Mapping[str, str]) -> int:
        """Stores a message behind whatever its stream holds; returns its position."""
        tagged = {**headers, "Nats-Msg-Id": secrets.token_hex(16)}
        return await self._settled(subject, data, tagged, None)

    async def append(
        self, subject: str, data: bytes, headers: Mapping[str, str], expected: int
    ) -> int:
        """Stores a commit and returns its position. HeadConflict unless `expected` is the
        position of the subject's last message, 0 where it has none."""
        tagged = {
            **headers,
            "Nats-Msg-Id": secrets.token_hex(16),
            "Nats-Expected-Last-Subject-Sequence": str(expected),
        }
        return await self._settled(subject, data, tagged, expected)

    async def _settled(
        self, subject: str, data: bytes, headers: Mapping[str, str], expected: int | None
    ) -> int:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._bounds.append_seconds_max
        while True:
            try:
                return await self._attempt(subject, data, headers, deadline - loop.time())
            except _Refused as refused:
                position = await self._settle(subject, headers["Nats-Msg-Id"], expected, refused)
                if position is not None:
                    return position
            except (NotSent, NoReply):
                # Either way the same bytes may go again: id and expectation make it once.
                pass
            if loop.time() + PAUSE_SECONDS >= deadline:
                # Without room NATS doesn't answer: what was sent may be stored or not.
                full = self._connection.connected and self._disk_full()
                fault = "the disk of the event store is full"
                raise EventStoreUnavailable(fault if full else "the event store can't be reached")
            await asyncio.sleep(PAUSE_SECONDS)

    async def _attempt(
        self, subject: str, data: bytes, headers: Mapping[str, str], seconds: float
    ) -> int:
        timeout = min(self._bounds.attempt_seconds, max(seconds, PAUSE_SECONDS))
        reply = await self._connection.request(subject, data, headers, timeout=timeout)
        answer = answer_of(reply)
        error = answer.get("error")
        if error is None:
            return int(answer["seq"])
        code = int(error.get("err_code", 0))
        if code in (_WRONG_LAST_SEQUENCE, _ANOTHER_IN_FLIGHT):
            raise _Refused(code)
        if code in _FULL:
            raise LimitExceeded("the event store is full", metadata={"code": str(code)})
        if error.get("code") == 503:
            raise NotSent("JetStream isn't ready")
        raise Internal("JetStream refuses a message", metadata={"code": str(code)})

    async def _settle(
        self, subject: str, message_id: str, expected: int | None, refused: _Refused
    ) -> int | None:
        """Position of our message if an earlier attempt stored it after all; None while
        that is open. HeadConflict if another message took its place.

        A stream without replicas looks at the expected sequence before the id, so our own
        stored message is refused like anybody's. What decides is the first message behind
        `expected`, read from the leader.
        """
        behind = (expected or 0) + 1
        try:
            first = await from_leader(
                self._connection,
                self._stream,
                {"seq": behind, "next_by_subj": subject},
                timeout=self._bounds.attempt_seconds,
            )
        except (NotSent, NoReply):
            return None
        if first is None and refused.code == _ANOTHER_IN_FLIGHT:
            return None
        if first is not None and first.message_id == message_id:
            return first.position
        raise HeadConflict("the stream has changed", metadata={"subject": subject})
