"""The end of the log: one subscription per process, handed on to any number of watchers."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog

from mesh.errors import EventStoreUnavailable
from mesh.events.jetstream.assets import LIVE_PREFIX
from mesh.events.jetstream.connection import Connection
from mesh.events.jetstream.fast_client import StoredMessage
from mesh.events.jetstream.history import History
from mesh.events.store import EVERYTHING, SUBJECT_PREFIX, Selection

FEED_COMMITS_MAX = 1024
FEED_BYTES_MAX = 8_000_000
SILENCE_SECONDS = 1.0
"""After so long without a message the log is asked whether one got lost."""

_log = structlog.get_logger(__name__)


class Feed:
    """What one watcher hasn't taken yet, of what came behind the position `since`.

    A watcher that is too slow loses what waits and gets a later `since`; what lies
    between it reads from the history.
    """

    def __init__(self, tail: "LogTail") -> None:
        self.since = tail.position
        self._tail = tail
        self._waiting: deque[StoredMessage] = deque()
        self._waiting_bytes = 0
        self._lagging = False
        self._ready = asyncio.Event()

    def offer(self, message: StoredMessage) -> None:
        """Adds the message, or gives up all that waits where it would be too much."""
        if self._lagging:
            return
        self._waiting.append(message)
        self._waiting_bytes += len(message.data)
        if len(self._waiting) > FEED_COMMITS_MAX or self._waiting_bytes > FEED_BYTES_MAX:
            self._lagging = True
            self._clear()
        self._ready.set()

    async def take(self) -> list[StoredMessage]:
        """What came since the last call, once there is something. Empty when `since` has
        moved. EventStoreUnavailable once the tail is closed."""
        await self._ready.wait()
        if self._tail.closed:
            raise EventStoreUnavailable("the event store is closed")
        self._ready.clear()
        if self._lagging:
            self._lagging = False
            self.since = self._tail.position
        messages = list(self._waiting)
        self._clear()
        return messages

    def wake(self) -> None:
        """Lets `take` look whether the tail is closed."""
        self._ready.set()

    def _clear(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0


class LogTail:
    """Hands on each commit behind `position` once and in order.

    What JetStream republishes is a doorbell that may get lost and mostly the commit
    itself: positions have no gaps in the store, so a message that is the next one is
    handed on, and where one is missing the history has it.
    """

    def __init__(self, connection: Connection, history: History) -> None:
        self.position = 0
        self.closed = False
        self._connection = connection
        self._history = history
        self._feeds: dict[str, set[Feed]] = defaultdict(set)
        self._lock = asyncio.Lock()
        self._heard = False
        self._missing = asyncio.Event()
        # What comes while the history is read; what doesn't fit, the history has.
        self._early: deque[StoredMessage] = deque(maxlen=FEED_COMMITS_MAX)
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Follows the log from its present end; EventStoreUnavailable while NATS is away."""
        async with self._lock:
            live = await self._connection.follow_stored(f"{LIVE_PREFIX}.>", self._on_live)
            try:
                self.position = await self._history.last_position()
            except EventStoreUnavailable:
                await live.unsubscribe()
                raise
        self._take_early()
        self._connection.on_reconnect(self._check)
        self._looking = asyncio.create_task(self._look())

    async def close(self) -> None:
        """Ends all watches."""
        self.closed = True
        for feeds in self._feeds.values():
            for feed in feeds:
                feed.wake()
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking

    @contextmanager
    def follow(self, selection: Selection) -> Iterator[Feed]:
        """A feed of the selected streams."""
        feed = Feed(self)
        self._feeds[selection.prefix].add(feed)
        try:
            yield feed
        finally:
            self._feeds[selection.prefix].discard(feed)
            if not self._feeds[selection.prefix]:
                del self._feeds[selection.prefix]

    def _on_live(self, message: StoredMessage) -> None:
        self._heard = True
        if message.position <= self.position:
            return
        if self._lock.locked():
            self._early.append(message)
        elif message.position == self.position + 1:
            self._hand_on(message)
        else:
            self._missing.set()

    async def _look(self) -> None:
        """Catches up where a message is missing, or none came for a while."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(SILENCE_SECONDS):
                    await self._missing.wait()
            if self._missing.is_set() or not self._heard:
                self._missing.clear()
                await self._check()
            self._heard = False

    async def _check(self) -> None:
        async with self._lock:
            await self._catch_up()
        self._take_early()

    def _take_early(self) -> None:
        while self._early and not self._lock.locked():
            self._on_live(self._early.popleft())

    async def _catch_up(self) -> None:
        try:
            async for page in self._history.pages(EVERYTHING.subjects[0], self.position):
                for message in page:
                    self._hand_on(message)
        except EventStoreUnavailable as error:
            # Nothing is lost by it: the next message or second of silence tries again.
            _log.warning("event_tail_waits", position=self.position, error=error.message)

    def _hand_on(self, message: StoredMessage) -> None:
        self.position = message.position
        prefix = ""
        self._offer(prefix, message)
        tokens = message.subject.removeprefix(f"{SUBJECT_PREFIX}.").split(".")
        if len(tokens) > 1:
            self._offer(f"*.{tokens[1]}", message)
        for token in tokens:
            prefix = f"{prefix}.{token}" if prefix else token
            self._offer(prefix, message)

    def _offer(self, prefix: str, message: StoredMessage) -> None:
        for feed in self._feeds.get(prefix, ()):
            feed.offer(message)
