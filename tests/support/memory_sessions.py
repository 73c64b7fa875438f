"""Sessions and their events in memory: just what a client sees of them."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator

from google.protobuf.message import Message

from mesh.call import Call
from mesh.cli.contracts import message_class
from mesh.errors import FailedPrecondition, NotFound, NotServing
from mesh.ids import id_from, new_id
from tests.support.memory_catalogues import page_of
from weft.events.v1 import events_pb2
from weft.models.v1 import models_pb2
from weft.state.v1 import events_pb2 as facts
from weft.state.v1 import session_pb2
from weft.state.v1 import session_service_pb2 as sessions
from weft.state.v1 import state_service_pb2 as state

EPOCH_SECONDS = 1_700_000_000


class MemorySessions:
    """`weft.state.v1.SessionService` and `StateService` over one list of events.

    `cuts` holds after how many events the next watches are cut off, the first first.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, session_pb2.Session] = {}
        self._events: list[events_pb2.RecordedEvent] = []
        self._grew = asyncio.Event()
        self.cuts: list[int] = []
        self.damaged: set[str] = set()
        self.log_problems: list[state.LogProblem] = []
        self.imports: list[sessions.ImportSessionRequest] = []

    def commit(self, session: str, *payloads: Message) -> None:
        """Adds a commit to the session's log: one position, a revision for each payload."""
        stream = "state." + ".".join(session.split("/")[1::2])
        position = self._events[-1].position + 2 if self._events else 1
        for payload in payloads:
            event = events_pb2.RecordedEvent(
                stream=stream,
                revision=sum(e.stream == stream for e in self._events) + 1,
                position=position,
                id=new_id(),
                type=payload.DESCRIPTOR.full_name,
            )
            event.payload.Pack(payload)
            event.time.FromSeconds(EPOCH_SECONDS + position)
            self._events.append(event)
        grew, self._grew = self._grew, asyncio.Event()
        grew.set()

    def last_event(self) -> events_pb2.RecordedEvent:
        """The last event of the log, to be changed."""
        return self._events[-1]

    async def create_session(
        self, request: sessions.CreateSessionRequest, _: Call
    ) -> sessions.CreateSessionResponse:
        if request.parent.endswith("/missing"):
            raise NotFound.of("agent", request.parent)
        by_request = id_from(request.parent, request.request_id) if request.request_id else new_id()
        name = f"{request.parent}/sessions/{request.session_id or by_request}"
        if name not in self._sessions:
            self._sessions[name] = session_pb2.Session(
                name=name, agent_revision=1, submit_policy=request.submit_policy
            )
            self.commit(name, facts.SessionCreated(session=name, agent_revision=1))
        return sessions.CreateSessionResponse(session=self._of(name))

    async def get_session(
        self, request: sessions.GetSessionRequest, _: Call
    ) -> sessions.GetSessionResponse:
        return sessions.GetSessionResponse(session=self._of(request.name))

    async def list_sessions(
        self, request: sessions.ListSessionsRequest, _: Call
    ) -> sessions.ListSessionsResponse:
        prefix = request.parent.removesuffix("-")
        found = [self._of(name) for name in self._sessions if name.startswith(prefix)]
        page, token = page_of(found[::-1], request.page_size, request.page_token)
        return sessions.ListSessionsResponse(sessions=page, next_page_token=token)

    async def fork_session(
        self, request: sessions.ForkSessionRequest, _: Call
    ) -> sessions.ForkSessionResponse:
        parent = self._of(request.name)
        name = f"{request.name.rsplit('/', 1)[0]}/{request.session_id or new_id()}"
        origin = session_pb2.ForkOrigin(
            session=parent.name, revision=request.revision or parent.revision
        )
        self._sessions[name] = session_pb2.Session(name=name, agent_revision=1, forked_from=origin)
        self.commit(name, facts.SessionForked(session=name, origin=origin))
        return sessions.ForkSessionResponse(session=self._of(name))

    async def get_state(self, request: state.GetStateRequest, _: Call) -> state.GetStateResponse:
        latest = self._of(request.name).revision
        revision = latest
        if request.WhichOneof("when") == "revision":
            revision = request.revision
        if request.WhichOneof("when") == "time":
            events = self._of_session(request.name)
            revision = sum(e.time.seconds <= request.time.seconds for e in events)
        if revision > latest:
            raise NotFound.of("session revision", f"{request.name}@{revision}")
        folded = session_pb2.SessionState(
            name=request.name,
            agent_revision=1,
            revision=revision,
            context=models_pb2.Conversation(
                messages=[models_pb2.Message(role=models_pb2.ROLE_USER, text="hello")]
            ),
        )
        digest = hashlib.sha256(f"{request.name}@{revision}".encode()).digest()
        return state.GetStateResponse(state=folded, state_hash=digest)

    async def list_events(
        self, request: state.ListEventsRequest, _: Call
    ) -> state.ListEventsResponse:
        self._of(request.parent)
        found = [e for e in self._of_session(request.parent) if e.revision > request.after_revision]
        page, token = page_of(found, request.page_size, request.page_token)
        return state.ListEventsResponse(events=page, next_page_token=token)

    async def watch_events(
        self, request: state.WatchEventsRequest, _: Call
    ) -> AsyncGenerator[state.WatchEventsResponse, None]:
        begin = len(self._events)
        if request.WhichOneof("start") == "after_position":
            begin = sum(e.position <= request.after_position for e in self._events)
        if request.WhichOneof("start") == "start_time":
            begin = sum(e.time.seconds < request.start_time.seconds for e in self._events)
        cut = self.cuts.pop(0) if self.cuts else None
        sent = 0
        while True:
            grew = self._grew
            for event in self._events[begin:]:
                if sent == cut:
                    raise NotServing("draining")
                begin += 1
                if not request.types or event.type in request.types:
                    yield state.WatchEventsResponse(event=event)
                    sent += 1
            await grew.wait()

    async def verify_replay(
        self, request: state.VerifyReplayRequest, _: Call
    ) -> state.VerifyReplayResponse:
        session = self._of(request.name)
        matches = request.name not in self.damaged
        return state.VerifyReplayResponse(
            matches=matches,
            revision=session.revision,
            event_count=session.revision,
            replayed_hash=b"\1" * 32,
            live_hash=b"\1" * 32 if matches else b"\2" * 32,
            problem="" if matches else "the live state's hash differs",
        )

    async def verify_log(
        self, request: state.VerifyLogRequest, _: Call
    ) -> AsyncGenerator[state.VerifyLogResponse, None]:
        yield state.VerifyLogResponse(
            stream_count=1,
            commit_count=2,
            problems=self.log_problems
            + [
                state.LogProblem(stream=name, problem="the hash chain breaks")
                for name in sorted(self.damaged)
            ],
        )
        yield state.VerifyLogResponse(stream_count=2, commit_count=5, erased_count=1, done=True)

    async def erase_session(
        self, request: sessions.EraseSessionRequest, _: Call
    ) -> sessions.EraseSessionResponse:
        self._of(request.name)
        forks = [n for n, s in self._sessions.items() if s.forked_from.session == request.name]
        if forks and not request.cascade:
            raise FailedPrecondition("a fork of it lives")
        return sessions.EraseSessionResponse(erased_sessions=[*forks, request.name])

    async def export_session(
        self, request: sessions.ExportSessionRequest, _: Call
    ) -> AsyncGenerator[sessions.ExportSessionResponse, None]:
        self._of(request.name)
        events = self._of_session(request.name)
        header = sessions.SessionHeader(
            format=1, source_session=request.name, event_count=len(events), agent_revision=1
        )
        yield sessions.ExportSessionResponse(record=sessions.SessionRecord(header=header))
        for event in events:
            yield sessions.ExportSessionResponse(record=sessions.SessionRecord(event=event))

    async def import_session(
        self, requests: AsyncIterator[sessions.ImportSessionRequest], _: Call
    ) -> sessions.ImportSessionResponse:
        received = [request async for request in requests]
        header = received[0].records[0].header
        if header.event_count != sum(len(request.records) for request in received) - 1:
            raise FailedPrecondition("that isn't all that was exported")
        self.imports.extend(received)
        name = f"{received[0].parent}/sessions/{received[0].session_id or new_id()}"
        self._sessions[name] = session_pb2.Session(name=name, agent_revision=1)
        for request in received:
            for record in request.records:
                if record.HasField("event"):
                    payload = message_class(record.event.type)
                    assert payload is not None
                    opened = payload()
                    assert record.event.payload.Unpack(opened)
                    self.commit(name, opened)
        return sessions.ImportSessionResponse(session=self._of(name))

    def _of(self, name: str) -> session_pb2.Session:
        if name not in self._sessions:
            raise NotFound.of("session", name)
        session = self._sessions[name]
        session.revision = len(self._of_session(name))
        return session

    def _of_session(self, name: str) -> list[events_pb2.RecordedEvent]:
        stream = "state." + ".".join(name.split("/")[1::2])
        return [event for event in self._events if event.stream == stream]
