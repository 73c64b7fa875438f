"""Gathers what a model writes into few messages: the first at once, then by time."""

import asyncio

from google.protobuf.timestamp_pb2 import Timestamp

from mesh.clock import Clock
from mesh.events.store import StreamName
from mesh.events.tokens import TokenStream
from services.agents.events import TurnEvent
from services.agents.feed import TurnFeed
from services.agents.settings import AgentsSettings

BATCH_LENGTH_MAX = 512


class TokenBatch:
    """Publishes the tokens of one turn: to its feed, and a little later, for watchers in
    other processes, to the token stream."""

    def __init__(
        self,
        feed: TurnFeed,
        tokens: TokenStream,
        stream: StreamName,
        clock: Clock,
        settings: AgentsSettings,
    ) -> None:
        self._feed = feed
        self._tokens = tokens
        self._stream = stream
        self._clock = clock
        self._wait_seconds = settings.token_flush_seconds
        self._texts: list[str] = []
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._place = (0, 0)
        self._unsent: TurnEvent | None = None
        self._sending: asyncio.TimerHandle | None = None

    def begin(self, step: int, attempt: int) -> None:
        """A step begins: its first token isn't delayed."""
        self._place = (step, attempt)
        self._due = 0.0

    def end(self) -> None:
        """The step's answer ended, or was cut off: what is gathered isn't held back. What
        wasn't sent to other processes yet comes there with the fact that is next."""
        self._publish()
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        self._unsent = None

    async def add(self, text: str) -> None:
        """Takes what the model wrote next."""
        if not text:
            return
        self._texts.append(text)
        now = self._clock.monotonic()
        if now >= self._due or sum(map(len, self._texts)) >= BATCH_LENGTH_MAX:
            await self.flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._due - now, self._publish)

    async def flush(self) -> None:
        """Publishes what is gathered, and lets those who watch have it."""
        if self._texts:
            self._publish()
            await asyncio.sleep(0)

    def _publish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        text = "".join(self._texts)
        self._texts.clear()
        if not text or self._feed.place != self._place:
            # Whoever took the turn over begins the step anew: this isn't part of it.
            return
        self._due = self._clock.monotonic() + self._wait_seconds
        time = Timestamp()
        time.FromNanoseconds(self._clock.now_ns())
        self._send_soon(self._feed.token(text, time))

    def _send_soon(self, event: TurnEvent) -> None:
        if self._unsent is not None:
            self._unsent.token.text += event.token.text
            self._unsent.offset.CopyFrom(event.offset)
            return
        self._unsent = TurnEvent()
        self._unsent.CopyFrom(event)
        loop = asyncio.get_running_loop()
        self._sending = loop.call_later(self._wait_seconds, self._send)

    def _send(self) -> None:
        self._sending = None
        if self._unsent is not None:
            data = self._unsent.SerializeToString()
            self._tokens.publish(self._stream, self._feed.turn, data)
            self._unsent = None
