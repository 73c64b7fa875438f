"""Functions in the event store: loading one, deciding on it, appending; and their sources."""

from collections import OrderedDict
from dataclasses import dataclass

from mesh.call import Call
from mesh.clock import Clock
from mesh.errors import Conflict, DataDamaged
from mesh.events.store import (
    START,
    CommitDraft,
    EventStore,
    Head,
    HeadConflict,
    NewEvent,
    StreamName,
)
from services.functions.domain import (
    Command,
    FunctionState,
    answered,
    decide,
    evolve,
    evolve_commit,
    source_stream,
)
from weft.functions.v1 import events_pb2

ATTEMPTS_MAX = 8
"""Times that a command is decided when other commits keep coming first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command: the state, with the revision it stands at."""

    state: FunctionState
    revision: int


class FunctionRegistry:
    """Writes the streams of functions, and keeps the last sources that were read."""

    def __init__(self, events: EventStore, clock: Clock, *, sources_max: int) -> None:
        self._events = events
        self._clock = clock
        self._sources: OrderedDict[StreamName, str] = OrderedDict()
        self._sources_max = sources_max

    async def load(self, stream: StreamName) -> tuple[FunctionState, Head]:
        """The function's state with every commit that is stored, and its head."""
        state, head = FunctionState(), START
        async for page in self._events.read(stream):
            for stored in page:
                stored.refuse_erased()
                state = evolve_commit(state, stored.commit)
                head = stored.head
        return state, head

    async def execute(
        self, stream: StreamName, command: Command, request_id: str, call: Call
    ) -> Outcome:
        """Decides and appends, unless the request was answered before.

        Raises what `decide` raises, RequestIdReused, Conflict after ATTEMPTS_MAX losses,
        and EventStoreUnavailable: then repeat it with the same request_id.
        """
        for _ in range(ATTEMPTS_MAX):
            state, head = await self.load(stream)
            if answered(state, request_id, command.digest):
                return Outcome(state, head.revision)
            facts = decide(state, command)
            draft = self._draft([NewEvent(fact) for fact in facts], request_id, call)
            try:
                head = await self._events.append(stream, draft, head)
            except HeadConflict:
                continue
            for fact in facts:
                state = evolve(state, stream, fact, request_id)
            return Outcome(state, head.revision)
        raise Conflict(f"{stream}: {ATTEMPTS_MAX} other commits came first")

    async def store_source(self, name: str, sha256: bytes, source: str, call: Call) -> None:
        """Returns once the source is stored; one that is there isn't stored again."""
        stream = source_stream(name, sha256)
        fact = NewEvent(events_pb2.SourceStored(source=source))
        try:
            await self._events.append(stream, self._draft([fact], call.request_id, call), START)
        except HeadConflict:
            return

    async def source(self, name: str, sha256: bytes) -> str:
        """The source that has this hash. DataDamaged where it isn't there."""
        stream = source_stream(name, sha256)
        known = self._sources.get(stream)
        if known is None:
            known = await self._read_source(stream)
            self._sources[stream] = known
            while len(self._sources) > self._sources_max:
                self._sources.popitem(last=False)
        self._sources.move_to_end(stream)
        return known

    async def _read_source(self, stream: StreamName) -> str:
        async for page in self._events.read(stream):
            page[0].refuse_erased()
            payload = page[0].commit.events[0].payload
            return events_pb2.SourceStored.FromString(payload.value).source
        raise DataDamaged(f"{stream} has no source")

    def _draft(self, events: list[NewEvent], request_id: str, call: Call) -> CommitDraft:
        return CommitDraft(
            events=events,
            time_ns=self._clock.now_ns(),
            actor=call.actor,
            request_id=request_id,
            traceparent=call.traceparent,
        )
