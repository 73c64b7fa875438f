"""A client that follows a turn over lost connections and restarts, as a user's would."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration

from mesh.ids import new_id
from tests.support.platform import Platform
from weft.agents.v1 import turn_pb2, turn_service_pb2

SECONDS = 30.0
"""Bound on following a turn."""
ENDS = frozenset(("completed", "failed", "cancelled"))


@dataclass
class TurnClient:
    """One request for a turn, and all events that came, over all its connections."""

    session: str
    input: str
    request_id: str = field(default_factory=new_id)
    cancel_on_disconnect: bool = False
    timeout_seconds: int = 60
    events: list[turn_pb2.TurnEvent] = field(default_factory=list)

    @property
    def request(self) -> turn_service_pb2.RunTurnRequest:
        """What it asks for, the same each time."""
        return turn_service_pb2.RunTurnRequest(
            session=self.session,
            input=self.input,
            request_id=self.request_id,
            timeout=Duration(seconds=self.timeout_seconds),
            cancel_on_disconnect=self.cancel_on_disconnect,
        )

    @property
    def turn(self) -> str:
        """The turn's name; empty until it is known to be accepted."""
        return self.events[0].accepted.turn if self.events else ""

    @property
    def kinds(self) -> list[str]:
        """What happened, without tokens."""
        return [kind for event in self.events if (kind := kind_of(event)) != "token"]

    @property
    def text(self) -> str:
        """All tokens of the last attempt at each step, as a person would see them; with
        `<gap>` before one that doesn't go on where the one before it ended."""
        steps: dict[int, tuple[int, str]] = {}
        for event in self.events:
            if event.HasField("token"):
                token = event.token
                attempt, text = steps.get(token.step, (-1, ""))
                if token.attempt > attempt:
                    attempt, text = token.attempt, ""
                gap = "" if token.text_offset == len(text) else "<gap>"
                steps[token.step] = (attempt, text + gap + token.text)
        return "".join(text for _, text in steps.values())

    @property
    def ended(self) -> bool:
        """Whether its last event was seen."""
        return bool(self.events) and kind_of(self.events[-1]) in ENDS

    async def follow(self, platform: Platform) -> AsyncGenerator[turn_pb2.TurnEvent, None]:
        """Goes on behind the last event that was seen; the same request again where none
        was. Ends when the turn does, or with AioRpcError when the connection is lost."""
        if not self.events:
            async for event in self._take(platform.turns.RunTurn(self.request, timeout=SECONDS)):
                yield event
        if not self.ended:
            watch = turn_service_pb2.WatchTurnRequest(name=self.turn, offset=self.events[-1].offset)
            async for event in self._take(platform.turns.WatchTurn(watch, timeout=SECONDS)):
                yield event

    async def _take(self, call: Any) -> AsyncGenerator[turn_pb2.TurnEvent, None]:
        try:
            async for response in call:
                for event in response.events:
                    self.events.append(event)
                    yield event
        finally:
            # Who leaves early closes the connection.
            call.cancel()

    async def run(self, platform: Platform) -> None:
        """Follows until the turn ends."""
        async for _ in self.follow(platform):
            continue

    async def until(self, platform: Platform, *kinds: str) -> turn_pb2.TurnEvent:
        """Follows until an event of one of these kinds was seen; then leaves."""
        async with aclosing(self.follow(platform)) as events:
            async for event in events:
                if kind_of(event) in kinds:
                    return event
        raise AssertionError(f"the turn ended without {kinds}: {self.kinds}")


def kind_of(event: turn_pb2.TurnEvent) -> str:
    """What happened, as the field's name."""
    return event.WhichOneof("event") or ""


async def events_of(
    platform: Platform, turn: str, offset: turn_pb2.TurnOffset | None = None
) -> list[turn_pb2.TurnEvent]:
    """What a watcher gets of a turn that has ended."""
    request = turn_service_pb2.WatchTurnRequest(name=turn, offset=offset)
    calls = platform.turns.WatchTurn(request, timeout=SECONDS)
    return [event async for response in calls for event in response.events]
