"""The RPCs of sessions."""

from collections.abc import AsyncIterator

from mesh.call import Call
from mesh.errors import (
    AlreadyExists,
    Conflict,
    DataErased,
    LimitExceeded,
    NotFound,
    RequestIdReused,
)
from mesh.events.aggregate import FORK_DEPTH_MAX, Repository
from mesh.events.lineage import fork_depth
from mesh.events.store import Selection
from mesh.ids import id_from, new_id
from mesh.rpc.pages import read_page_number, write_page_token
from mesh.runtime.requests import request_hash
from services.state import domain
from services.state.erasing import Erasures
from services.state.existing import existing
from services.state.exporting import export, note_export
from services.state.importing import Imports
from services.state.read_model import SessionsReadModel
from services.state.revisions import Revisions
from weft.state.v1 import events_pb2, session_pb2, session_service_pb2

PAGE_SIZE = 100
POSITION_MAX = 2**63 - 1
"""What SQLite holds in an integer."""


class Sessions:
    """`weft.state.v1.SessionService`."""

    def __init__(
        self,
        repository: Repository[session_pb2.SessionState],
        read_model: SessionsReadModel,
        revisions: Revisions,
        erasures: Erasures,
        imports: Imports,
    ) -> None:
        self._repository = repository
        self._read_model = read_model
        self._revisions = revisions
        self._erasures = erasures
        self._imports = imports

    async def create_session(
        self, request: session_service_pb2.CreateSessionRequest, call: Call
    ) -> session_service_pb2.CreateSessionResponse:
        """Makes a session pinned to a revision of its agent."""
        name = _new_name(request.parent, request.session_id, request.request_id)
        digest = request_hash(request)
        known = await self._made_before(name, digest, request.request_id)
        if known is not None:
            return session_service_pb2.CreateSessionResponse(session=known)
        revision = await self._revisions.of_new(name, request.agent_revision)
        policy = request.submit_policy or session_pb2.SUBMIT_POLICY_REJECT
        command = domain.CreateSession(name, revision, policy, digest)
        made = await self._make(command, request.request_id)
        return session_service_pb2.CreateSessionResponse(session=made)

    async def get_session(
        self, request: session_service_pb2.GetSessionRequest, call: Call
    ) -> session_service_pb2.GetSessionResponse:
        """The session, now."""
        state = await self._existing(request.name)
        return session_service_pb2.GetSessionResponse(session=_session(state))

    async def list_sessions(
        self, request: session_service_pb2.ListSessionsRequest, call: Call
    ) -> session_service_pb2.ListSessionsResponse:
        """A page of sessions, newest first."""
        _, tenant, _, agent = request.parent.split("/")
        size = request.page_size or PAGE_SIZE
        before = read_page_number(request.page_token, request.parent, POSITION_MAX)
        rows = await self._read_model.sessions(tenant, agent, before, size + 1)
        if not rows and agent != "-":
            await self._refuse_unknown_agent(request.parent, tenant, agent)
        response = session_service_pb2.ListSessionsResponse(sessions=[s for _, s in rows[:size]])
        if len(rows) > size:
            token = write_page_token(str(rows[size - 1][0]), request.parent)
            response.next_page_token = token
        return response

    async def fork_session(
        self, request: session_service_pb2.ForkSessionRequest, call: Call
    ) -> session_service_pb2.ForkSessionResponse:
        """Makes a session of another one's events, up to a revision."""
        agent = request.name.rsplit("/sessions/", 1)[0]
        name = _new_name(agent, request.session_id, request.request_id)
        digest = request_hash(request)
        known = await self._made_before(name, digest, request.request_id)
        if known is not None:
            return session_service_pb2.ForkSessionResponse(session=known)
        state = await self._existing(request.name)
        revision = request.revision or state.revision
        if revision > state.revision:
            raise NotFound(
                f"session {request.name} is at revision {state.revision}, before {revision}",
                metadata={"resource": request.name, "revision": str(state.revision)},
            )
        forked = await fork_depth(self._repository, domain.session_stream(request.name))
        if forked == FORK_DEPTH_MAX:
            # It would be stored, and nobody could read it.
            raise LimitExceeded(f"a session is forked at most {FORK_DEPTH_MAX} times in a row")
        origin = session_pb2.ForkOrigin(session=request.name, revision=revision)
        base = await self._repository.load(
            domain.session_stream(request.name), until_revision=revision
        )
        command = domain.ForkSession(name, origin, base.state, digest)
        made = await self._make(command, request.request_id)
        return session_service_pb2.ForkSessionResponse(session=made)

    async def erase_session(
        self, request: session_service_pb2.EraseSessionRequest, call: Call
    ) -> session_service_pb2.EraseSessionResponse:
        """Erases the session, and its forks where that is asked for."""
        erased = await self._erasures.erase(request)
        return session_service_pb2.EraseSessionResponse(erased_sessions=erased)

    async def export_session(
        self, request: session_service_pb2.ExportSessionRequest, call: Call
    ) -> AsyncIterator[session_service_pb2.ExportSessionResponse]:
        """The session's records, opened; the audit trail has it that they were told."""
        state = session_pb2.SessionState()
        # A copy: others go on with the session meanwhile.
        state.CopyFrom(await self._existing(request.name))
        await note_export(self._repository, state, call)
        async for record in export(self._repository, state):
            yield session_service_pb2.ExportSessionResponse(record=record)

    async def import_session(
        self, requests: AsyncIterator[session_service_pb2.ImportSessionRequest], call: Call
    ) -> session_service_pb2.ImportSessionResponse:
        """Makes a session of records."""
        name = await self._imports.run(requests, call)
        state = await self._existing(name)
        return session_service_pb2.ImportSessionResponse(session=_session(state))

    async def _refuse_unknown_agent(self, name: str, tenant: str, agent: str) -> None:
        """Raises NotFound where there never was such an agent."""
        if not await self._repository.store.last_position(Selection(f"agents.{tenant}.{agent}")):
            raise NotFound.of("agent", name)

    async def _existing(self, name: str) -> session_pb2.SessionState:
        return await existing(self._repository, name)

    async def _make(
        self, command: domain.CreateSession | domain.ForkSession, request_id: str
    ) -> session_pb2.Session:
        """The session, once it is stored. Raises what `_made_before` and `decide` do."""
        aggregate = self._repository.open(domain.session_stream(command.session))
        try:
            await aggregate.execute(
                lambda state: domain.decide(state, command), request_id=request_id
            )
        except (AlreadyExists, Conflict):
            # The same request may have come twice at once, and the other attempt was faster.
            known = await self._made_before(command.session, command.request_hash, request_id)
            if known is None:
                raise
            return known
        if isinstance(command, domain.ForkSession):
            # Before its state is read, which needs the origin's events.
            await self._erasures.follow_origin(command.session, command.origin.session)
        return _session(await aggregate.ready())

    async def _made_before(
        self, name: str, digest: bytes, request_id: str
    ) -> session_pb2.Session | None:
        """The session of that name, if this very request made it.

        Raises RequestIdReused or AlreadyExists where another one did.
        """
        stream = domain.session_stream(name)
        taken = AlreadyExists(f"session {name} is there", metadata={"resource": name})
        try:
            state = await self._repository.open(stream).load()
        except DataErased:
            raise _gone(name) from None
        if state.erased:
            raise _gone(name)
        if state.import_remaining_count:
            raise taken
        if not state.revision:
            return None
        async for page in self._repository.store.read(stream, until_revision=1):
            first = page[0].commit
            made = self._repository.fold.open(first.events[0])
            if not isinstance(made, events_pb2.SessionCreated | events_pb2.SessionForked):
                break
            if made.request_hash == digest and request_id and first.request_id == request_id:
                return _session(state)
            if request_id and first.request_id == request_id:
                raise RequestIdReused(f"request_id {request_id} came before with another body")
        raise taken


def _gone(name: str) -> AlreadyExists:
    return AlreadyExists(
        f"session {name} was erased, and its name isn't given again", metadata={"resource": name}
    )


def _new_name(agent: str, session_id: str, request_id: str) -> str:
    """The same request must find what its first attempt made, so the id follows from it."""
    made = id_from(agent, request_id) if request_id else new_id()
    return f"{agent}/sessions/{session_id or made}"


def _session(state: session_pb2.SessionState) -> session_pb2.Session:
    session = session_pb2.Session(
        name=state.name,
        agent_revision=state.agent_revision,
        revision=state.revision,
        submit_policy=state.submit_policy,
        create_time=state.create_time,
        update_time=state.update_time,
        turn_count=state.turn_count,
        active_turn=state.active_turn.id,
    )
    if state.HasField("forked_from"):
        session.forked_from.CopyFrom(state.forked_from)
    return session
