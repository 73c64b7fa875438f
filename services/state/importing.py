"""A session made of an export.

All of it is read, checked and folded before anything is stored. What is stored begins with
SessionImported, which says how many facts follow: until they are there, the session is
there for nobody, and one that stays so is swept.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.call import Call
from mesh.clock import NANOSECONDS, Clock
from mesh.errors import AlreadyExists, InvalidArgument, LimitExceeded
from mesh.events.aggregate import Repository
from mesh.events.fold import Place
from mesh.events.store import IMPORTED, START, CommitDraft, HeadConflict, NewEvent
from mesh.ids import new_id
from mesh.rpc.tenancy import tenant_of
from mesh.rpc.validation import violations_of
from services.state import domain
from services.state.exporting import FORMAT
from services.state.revisions import Revisions
from services.state.settings import StateSettings
from weft.events.v1 import events_pb2 as envelope_pb2
from weft.state.v1 import session_pb2, session_service_pb2

COMMIT_EVENTS_MAX = 512
COMMIT_BYTES_MAX = 500_000
"""A commit of more is parted: with what surrounds the payloads it must stay below the
bounds of the store, 1,024 events and 900 kB."""

Requests = AsyncIterator[session_service_pb2.ImportSessionRequest]
_FACTS = {fact.DESCRIPTOR.full_name: fact for fact in domain.SESSION_FOLD.events}
_VIOLATIONS = {name: violations_of(fact.DESCRIPTOR) for name, fact in _FACTS.items()}
_FIRST_REVISION = 2
"""Of an imported fact: SessionImported is the first."""


@dataclass
class _Commit:
    """Facts that are stored together, in bytes."""

    time: Timestamp
    request_id: str
    facts: list[tuple[str, bytes]] = field(default_factory=list)
    size_bytes: int = 0


@dataclass
class _Incoming:
    """What came so far of an import, checked and folded."""

    session: str
    agent_revision: int
    settings: StateSettings
    state: session_pb2.SessionState = field(default_factory=session_pb2.SessionState)
    header: session_service_pb2.SessionHeader | None = None
    commits: list[_Commit] = field(default_factory=list)
    event_count: int = 0
    size_bytes: int = 0
    _commit_key: tuple[object, ...] = ()

    def take(self, record: session_service_pb2.SessionRecord) -> None:
        """The next record. InvalidArgument names it where it isn't what may come next."""
        kind = record.WhichOneof("record")
        if self.header is None:
            if kind != "header":
                raise InvalidArgument.of("records", "the first record must be the header")
            self._begin(record.header)
        elif kind != "event":
            raise self._refused("isn't an event")
        else:
            self._take_event(record.event)

    def finish(self, now_ns: int) -> None:
        """Says that all came. Turns that are open are ended, as nobody works on them."""
        if self.header is None:
            raise InvalidArgument.of("records", "there is no header")
        if self.event_count != self.header.event_count:
            raise InvalidArgument.of(
                "records",
                f"they end after {self.event_count} of {self.header.event_count} events",
            )
        time = Timestamp()
        time.FromNanoseconds(now_ns)
        self._commit_key = ()
        for fact in domain.abandon_open_turns(self.state):
            self._add(fact, time, "", ("abandoned",))
        if self.state.ByteSize() > self.settings.import_state_bytes_max:
            raise LimitExceeded(
                "an imported session's state is at most"
                f" {self.settings.import_state_bytes_max} bytes"
            )

    def _begin(self, header: session_service_pb2.SessionHeader) -> None:
        if header.format != FORMAT:
            raise InvalidArgument.of(
                "records[0].header.format", f"is {header.format}; this server reads {FORMAT}"
            )
        if not header.event_count:
            raise InvalidArgument.of("records[0].header.event_count", "must be at least 1")
        if header.event_count > self.settings.import_events_max:
            raise LimitExceeded(f"an import has at most {self.settings.import_events_max} events")
        self.header = header

    def _take_event(self, event: envelope_pb2.RecordedEvent) -> None:
        assert self.header is not None
        if self.event_count == self.header.event_count:
            raise self._refused(f"is one more than the {self.header.event_count} of the header")
        if event.revision != self.event_count + 1:
            raise self._refused(f"has revision {event.revision}, not {self.event_count + 1}")
        self.size_bytes += event.ByteSize()
        if self.size_bytes > self.settings.import_bytes_max:
            raise LimitExceeded(f"an import has at most {self.settings.import_bytes_max} bytes")
        fact = self._fact(event)
        if problem := domain.check_follows(self.state, fact):
            raise self._refused(f"({event.type}) {problem}")
        fact = domain.renamed(fact, self.session, self.agent_revision)
        key = (event.stream, event.position, event.time.seconds, event.time.nanos)
        self._add(fact, event.time, event.request_id, key)

    def _fact(self, event: envelope_pb2.RecordedEvent) -> Message:
        known = _FACTS.get(event.type)
        if known is None:
            raise self._refused(f"is of the type {event.type!r}, which isn't a session's")
        if event.payload.type_url.rpartition("/")[2] != event.type:
            raise self._refused(f"says that it is a {event.type}, and holds another type")
        try:
            fact = known.FromString(event.payload.value)
        except DecodeError:
            raise self._refused(f"doesn't parse as a {event.type}") from None
        violations = _VIOLATIONS[event.type](fact)
        if violations:
            text = "; ".join(f"{each.field}: {each.description}" for each in violations)
            raise self._refused(f"({event.type}) {text}")
        fact.DiscardUnknownFields()  # type: ignore[attr-defined]
        return fact

    def _add(
        self, fact: Message, time: Timestamp, request_id: str, key: tuple[object, ...]
    ) -> None:
        place = Place(_FIRST_REVISION + self.event_count, time)
        self.state = domain.evolve(self.state, fact, place)
        self.event_count += 1
        data = fact.SerializeToString()
        last = self.commits[-1] if self.commits else None
        if (
            last is None
            or key != self._commit_key
            or len(last.facts) >= COMMIT_EVENTS_MAX
            or last.size_bytes + len(data) > COMMIT_BYTES_MAX
        ):
            last = _Commit(time, request_id)
            self.commits.append(last)
            self._commit_key = key
        last.facts.append((fact.DESCRIPTOR.full_name, data))
        last.size_bytes += len(data)

    def _refused(self, what: str) -> InvalidArgument:
        return InvalidArgument.of("records", f"record {self.event_count + 1} {what}")


class Imports:
    """Imports that come in, a few at one time, and no more than half of them of one tenant."""

    def __init__(
        self,
        repository: Repository[session_pb2.SessionState],
        revisions: Revisions,
        settings: StateSettings,
        clock: Clock,
    ) -> None:
        self._repository = repository
        self._revisions = revisions
        self._settings = settings
        self._clock = clock
        self._coming: Counter[str] = Counter()

    async def run(self, requests: Requests, call: Call) -> str:
        """Makes the session that the requests bring; returns its name.

        Raises InvalidArgument, naming the record, where they aren't an export; LimitExceeded
        past the published bounds; AlreadyExists; NotFound without the agent. Nothing is
        stored then.
        """
        parts = aiter(requests)
        # Who sends nothing keeps nobody out: a slot is taken with the first part.
        first = await self._next(parts)
        if first is None:
            raise InvalidArgument.of("records", "there are none")
        with self._slot(tenant_of(first.parent) or ""):
            incoming = await self._read(first, parts)
            await self._store(incoming, call)
        return incoming.session

    @contextmanager
    def _slot(self, tenant: str) -> Iterator[None]:
        slots = self._settings.imports_at_once_max
        coming = self._coming.total()
        if coming >= slots or self._coming[tenant] >= max(1, slots // 2):
            raise LimitExceeded(f"{coming} imports come in already; try again", retry_seconds=1.0)
        self._coming[tenant] += 1
        try:
            yield
        finally:
            self._coming[tenant] -= 1
            if not self._coming[tenant]:
                del self._coming[tenant]

    async def _read(
        self, first: session_service_pb2.ImportSessionRequest, parts: Requests
    ) -> _Incoming:
        incoming = await self._begin(first)
        await _take(incoming, first)
        while (request := await self._next(parts)) is not None:
            if request.parent != first.parent:
                raise InvalidArgument.of("parent", "must be the same in all parts")
            if request.session_id or request.agent_revision:
                raise InvalidArgument.of("session_id", "is told in the first part only")
            await _take(incoming, request)
        incoming.finish(self._clock.now_ns())
        return incoming

    async def _next(self, parts: Requests) -> session_service_pb2.ImportSessionRequest | None:
        seconds = self._settings.import_part_seconds_max
        try:
            async with asyncio.timeout(seconds):
                return await anext(parts, None)
        except TimeoutError:
            raise LimitExceeded(
                f"the next part of an import must come within {seconds:g} s"
            ) from None

    async def _begin(self, request: session_service_pb2.ImportSessionRequest) -> _Incoming:
        name = f"{request.parent}/sessions/{request.session_id or new_id()}"
        revision = await self._revisions.of_new(name, request.agent_revision)
        return _Incoming(name, revision, self._settings)

    async def _store(self, incoming: _Incoming, call: Call) -> None:
        assert incoming.header is not None
        stream = domain.session_stream(incoming.session)
        command = domain.BeginImport(
            incoming.session, incoming.header.source_session, incoming.event_count
        )
        first = domain.decide(session_pb2.SessionState(), command)
        draft = CommitDraft(
            [NewEvent(fact) for fact in first],
            self._clock.now_ns(),
            call.actor,
            call.request_id,
            traceparent=call.traceparent,
        )
        store = self._repository.store
        try:
            head = await store.append(stream, draft, START)
        except HeadConflict:
            raise _taken(incoming.session) from None
        for commit in incoming.commits:
            head = await store.append(stream, _draft(commit, call), head)
        self._repository.forget(stream)


async def _take(incoming: _Incoming, request: session_service_pb2.ImportSessionRequest) -> None:
    for number, record in enumerate(request.records):
        incoming.take(record)
        if number % 64 == 63:
            # Folding is work for the event loop that others wait for.
            await asyncio.sleep(0)


def _draft(commit: _Commit, call: Call) -> CommitDraft:
    """Who imports it answers for what it says; when it was is as the export has it."""
    return CommitDraft(
        [NewEvent(_FACTS[name].FromString(data)) for name, data in commit.facts],
        commit.time.seconds * NANOSECONDS + commit.time.nanos,
        call.actor,
        commit.request_id,
        causation_id=IMPORTED,
        traceparent=call.traceparent,
    )


def _taken(session: str) -> AlreadyExists:
    return AlreadyExists(f"session {session} is there", metadata={"resource": session})
