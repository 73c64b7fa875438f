"""What happens in a turn, for those who watch it in this process."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.agents.events import ENDS, TurnEvent, TurnTranslator, behind
from weft.agents.v1 import turn_pb2

GATHER_SECONDS = 0.001
"""How long watchers aren't told of facts that neither are a token nor end the turn."""
TOGETHER_MAX = 64
"""Most events of one message, as the contract has it."""
TOGETHER_BYTES_MAX = 2_000_000
"""Most bytes of several: gRPC's clients receive 4 MiB where they aren't told else."""
AHEAD_MAX = 256
"""Most tokens kept of a step whose beginning isn't known here yet."""


class TurnFeed:
    """The turn's events so far, and those that come. Its length is bounded by the
    turn's own bounds on steps and tokens. `users` counts who needs it; `filling` reads
    the past of a turn that was there before the feed."""

    def __init__(self, session: str, turn: str) -> None:
        self.turn = turn
        self.translator = TurnTranslator(session, turn)
        self.users = 0
        self.filling: asyncio.Task[None] | None = None
        self.ended = False
        self._events: list[TurnEvent] = []
        self._closed = False
        self._revision = 0
        self._held: list[tuple[int, Timestamp, Message]] | None = None
        self._ahead: list[TurnEvent] = []
        self._wake: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def place(self) -> tuple[int, int]:
        """The step whose tokens would come now, and the attempt at it."""
        return self.translator.step, self.translator.attempt

    def fact(self, revision: int, time: Timestamp, fact: Message) -> None:
        """Publishes what a stored fact led to. A fact that came before, or that is of
        another turn, leads to nothing."""
        if self._held is not None:
            self._held.append((revision, time, fact))
        elif revision > self._revision:
            self._revision = revision
            self._publish(self.translator.fact(revision, time, fact))
            ahead, self._ahead = self._ahead, []
            for event in ahead:
                self.remote_token(event)

    def hold(self) -> None:
        """Keeps the facts that come now until `release`: what came before is read first."""
        self._held = []

    def release(self, past: list[tuple[int, Timestamp, Message]]) -> None:
        """Publishes the past, then what was held."""
        held, self._held = self._held or [], None
        for revision, time, fact in (*past, *held):
            self.fact(revision, time, fact)

    def token(self, text: str, time: Timestamp) -> TurnEvent:
        """Publishes what the model wrote here."""
        event = self.translator.token(text, time)
        self._publish([event])
        return event

    def remote_token(self, event: TurnEvent) -> None:
        """Publishes what the model wrote in another process, if it goes on where we are.
        Tokens and facts come by ways of their own: what is ahead of the facts waits for
        them, and what is missed comes with the end of the step."""
        translator = self.translator
        place = event.offset.revision, event.offset.part
        if self.ended or place < translator.behind:
            return
        if place > translator.behind:
            if len(self._ahead) < AHEAD_MAX:
                self._ahead.append(event)
        elif event.token.text_offset == translator.text_length:
            self._publish([translator.token(event.token.text, event.time)])

    def close(self) -> None:
        """This process stops: nothing more comes here."""
        self._closed = True
        self._notify()

    def drop(self) -> None:
        """Nothing of the turn is shown any more, and nothing of it is held."""
        self._events = []
        self.close()

    async def follow(
        self, offset: turn_pb2.TurnOffset, until: Callable[[], bool]
    ) -> AsyncGenerator[list[TurnEvent], None]:
        """Events behind `offset`, those that are there already together, until the turn
        ended, `until` says so when all there is was sent, or this process stops."""
        index = 0
        while True:
            while index < len(self._events):
                some = _together(self._events[index : index + TOGETHER_MAX])
                index += len(some)
                unseen = [event for one in some if (event := behind(offset, one)) is not None]
                if unseen:
                    yield unseen
            if self.ended or self._closed or until():
                return
            waiter = asyncio.get_running_loop().create_future()
            self._wake.append(waiter)
            await waiter

    def _publish(self, events: list[TurnEvent]) -> None:
        if events:
            self._events += events
            self.ended = self.ended or events[-1].WhichOneof("event") in ENDS
        if self.ended or (events and events[-1].HasField("token")):
            self._notify()
        elif self._wake and self._timer is None:
            # What the turn does next comes before telling of what it did, and is often
            # told with it. Facts that aren't shown may still change whether it waits.
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(GATHER_SECONDS, self._notify)

    def _notify(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiters, self._wake = self._wake, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def _together(events: list[TurnEvent]) -> list[TurnEvent]:
    """The first of them that fit in one message; at least one."""
    if len(events) == 1:
        return events
    size_bytes = 0
    for count, event in enumerate(events):
        size_bytes += event.ByteSize()
        if count and size_bytes > TOGETHER_BYTES_MAX:
            return events[:count]
    return events
