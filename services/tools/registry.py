"""Registered tools in the event store: loading one, deciding on it, appending."""

from dataclasses import dataclass

from mesh.call import Call
from mesh.clock import Clock
from mesh.errors import Conflict
from mesh.events.store import (
    START,
    CommitDraft,
    EventStore,
    Head,
    HeadConflict,
    NewEvent,
    StreamName,
)
from services.tools.domain import (
    AnsweredRequest,
    Command,
    ToolState,
    answered,
    decide,
    evolve,
    evolve_commit,
)

ATTEMPTS_MAX = 8
"""Times that a command is decided when other commits keep coming first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command: its answer, and the state with the revision it stands at."""

    request: AnsweredRequest
    state: ToolState
    revision: int


class ToolRegistry:
    """Writes the streams of tools."""

    def __init__(self, events: EventStore, clock: Clock) -> None:
        self._events = events
        self._clock = clock

    async def load(self, stream: StreamName) -> tuple[ToolState, Head]:
        """The tool's state with every commit that is stored, and its head."""
        state, head = ToolState(), START
        async for page in self._events.read(stream):
            for stored in page:
                state = evolve_commit(state, stored.commit)
                head = stored.head
        return state, head

    async def execute(
        self, stream: StreamName, command: Command, request_id: str, call: Call
    ) -> Outcome:
        """Decides and appends, or finds the answer that the request got before.

        Raises what `decide` raises, RequestIdReused, Conflict after ATTEMPTS_MAX losses,
        and EventStoreUnavailable: then repeat it with the same request_id.
        """
        for _ in range(ATTEMPTS_MAX):
            state, head = await self.load(stream)
            earlier = answered(state, request_id, command.digest)
            if earlier is not None:
                return Outcome(earlier, state, head.revision)
            facts = decide(state, command)
            draft = CommitDraft(
                events=[NewEvent(fact) for fact in facts],
                time_ns=self._clock.now_ns(),
                actor=call.actor,
                request_id=request_id,
                traceparent=call.traceparent,
            )
            try:
                head = await self._events.append(stream, draft, head)
            except HeadConflict:
                continue
            for fact in facts:
                state = evolve(state, fact, request_id)
            return Outcome(state.requests[-1], state, head.revision)
        raise Conflict(f"{stream}: {ATTEMPTS_MAX} other commits came first")
