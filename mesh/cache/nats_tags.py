"""The log of invalidations on a JetStream stream: one message per tag, the last, kept for as
long as a value may be, on `weft.cache.<tenant>.<tag>`.

What is republished is heard at once; a message that got lost shows by its position, and is
looked for every five seconds too. Who is out of touch with NATS uses nothing that has tags
until it has caught up.
"""

import asyncio
import contextlib
from hashlib import blake2b
from typing import Any

import structlog
from nats.aio.subscription import Subscription

from mesh.cache.entries import EPOCH_BYTES, TAG_BYTES
from mesh.cache.tags import TAGS_KEPT, Invalidations, OnInvalidated
from mesh.errors import EventStoreUnavailable
from mesh.events.jetstream.assets import CACHE, CACHE_PREFIX, LIVE_CACHE_PREFIX
from mesh.events.jetstream.connection import (
    PAUSE_SECONDS,
    READ_ATTEMPT_SECONDS,
    Connection,
    NoReply,
    answer_of,
    retried,
)
from mesh.events.jetstream.fast_client import StoredMessage

LOOK_SECONDS = 5.0
"""How often the stream is looked at, whatever was heard."""
INVALIDATE_SECONDS_MAX = 5.0
HEARD_SECONDS_MAX = 1.0
"""How long an invalidation waits until this process has heard all up to it."""

_PAGE_MESSAGES = 1_000
_PAGES_MAX = 2 * TAGS_KEPT // _PAGE_MESSAGES
_FAILURE_PAUSE_SECONDS = 0.5

_log = structlog.get_logger(__name__)


class NatsTags:
    """See the module, and the port `mesh.cache.tags.Tags`."""

    def __init__(self, connection: Connection) -> None:
        self.known = Invalidations()
        self._connection = connection
        self._callbacks: list[OnInvalidated] = []
        self._caught_up_in = -1
        self._missing = asyncio.Event()
        self._moved = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    @property
    def in_touch(self) -> bool:
        """See Tags. What was said while there was no connection was missed."""
        connection = self._connection
        return connection.connected and self._caught_up_in == connection.reconnects

    def on_invalidated(self, callback: OnInvalidated) -> None:
        """See Tags."""
        self._callbacks.append(callback)

    async def start(self) -> None:
        """See Tags."""
        self._connection.on_reconnect(self._wake)
        self._following = asyncio.create_task(self._follow(), name="cache tags")

    async def stop(self) -> None:
        """Ends following."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following})

    async def invalidate(self, tenant: str, tag: bytes) -> None:
        """See Tags."""
        subject = f"{CACHE_PREFIX}.{tenant}.{tag.hex()}"

        async def send() -> int:
            reply = await self._connection.request(subject, timeout=READ_ATTEMPT_SECONDS)
            answer = answer_of(reply)
            if not answer.get("seq"):
                raise NoReply("an invalidation wasn't stored")
            return int(answer["seq"])

        position = await retried(send, INVALIDATE_SECONDS_MAX)
        self._hear(tag, position)
        # Else what is made right after this would count as made before.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARD_SECONDS_MAX):
                while self.known.mark.position < position:
                    self._moved.clear()
                    await self._moved.wait()

    async def _wake(self) -> None:
        self._missing.set()

    async def _follow(self) -> None:
        live: Subscription | None = None
        try:
            while True:
                reconnects = self._connection.reconnects
                self._missing.clear()
                try:
                    if live is None:
                        subject = f"{LIVE_CACHE_PREFIX}.>"
                        live = await self._connection.follow_stored(subject, self._on_live)
                    await self._catch_up()
                except EventStoreUnavailable as error:
                    if self._caught_up_in >= 0:
                        _log.warning("cache_tags_wait", error=error.message)
                    self._caught_up_in = -1
                    await asyncio.sleep(_FAILURE_PAUSE_SECONDS)
                    continue
                self._caught_up_in = reconnects
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._missing.wait()
        finally:
            if live is not None and self._connection.connected:
                await live.unsubscribe()

    def _on_live(self, message: StoredMessage) -> None:
        self._take(message)
        if message.position > self.known.mark.position + 1:
            self._missing.set()
        else:
            self._reach(message.position)

    async def _catch_up(self) -> None:
        """Reads what the stream has behind what is known."""
        information = await self._information()
        self._check_epoch(information)
        state = information["state"]
        end = int(state["last_seq"])
        if int(state["messages"]) >= TAGS_KEPT:
            # Those before the first may have been dropped for want of room.
            self.known.floor = max(self.known.floor, int(state["first_seq"]) - 1)
        for _ in range(_PAGES_MAX):
            if self.known.mark.position >= end or not state["messages"]:
                break
            await self._read_page()
        else:
            raise NoReply("the stream of invalidations isn't whole yet")
        self._reach(end)

    async def _read_page(self) -> None:
        request = {
            "batch": _PAGE_MESSAGES,
            "seq": self.known.mark.position + 1,
            "next_by_subj": f"{CACHE_PREFIX}.>",
        }
        page = await self._connection.direct_get(CACHE, request)
        if not page.messages:
            # A follower that lags behind.
            await asyncio.sleep(PAUSE_SECONDS)
        for message in page.messages:
            self._take(message)
            self._reach(message.position)

    async def _information(self) -> dict[str, Any]:
        answer = await self._connection.api(f"STREAM.INFO.{CACHE}", {})
        if "error" in answer:
            raise NoReply("the stream of invalidations isn't ready")
        return answer

    def _check_epoch(self, information: dict[str, Any]) -> None:
        """Positions of a stream that was made anew say nothing of those before."""
        created = str(information["created"]).encode()
        epoch = blake2b(created, digest_size=EPOCH_BYTES).digest()
        if self.known.mark.epoch != epoch:
            self.known = Invalidations(epoch)

    def _take(self, message: StoredMessage) -> None:
        try:
            tag = bytes.fromhex(message.subject.rpartition(".")[2])
        except ValueError:
            return
        if len(tag) == TAG_BYTES:
            self._hear(tag, message.position)

    def _hear(self, tag: bytes, position: int) -> None:
        if self.known.heard(tag, position):
            for callback in self._callbacks:
                callback(tag, position)

    def _reach(self, position: int) -> None:
        self.known.reached(position)
        self._moved.set()
