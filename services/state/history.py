"""The RPCs that read what sessions were and are."""

import contextlib
from collections.abc import AsyncIterator

from mesh.call import Call
from mesh.errors import DataDamaged, DataErased, InvalidArgument, NotFound
from mesh.events.aggregate import Loaded, Repository
from mesh.events.head_ledger import HeadLedger
from mesh.events.store import Selection, StreamName
from mesh.rpc.pages import read_page_number, write_page_token
from services.state import domain
from services.state.existing import existing
from services.state.log_check import LogCheck
from services.state.records import recorded
from weft.state.v1 import session_pb2, state_service_pb2

PAGE_SIZE = 100
UNTOLD_AREAS = ("auth.", "exports.")
PAGE_BYTES_MAX = 2_000_000
"""A page ends before it has more: gRPC's clients read 4 MiB where they aren't told else."""
Events = AsyncIterator[state_service_pb2.WatchEventsResponse]


class StateHistory:
    """`weft.state.v1.StateService`."""

    def __init__(self, repository: Repository[session_pb2.SessionState], heads: HeadLedger) -> None:
        self._repository = repository
        self._heads = heads

    async def get_state(
        self, request: state_service_pb2.GetStateRequest, call: Call
    ) -> state_service_pb2.GetStateResponse:
        """The state now, at a revision, or at a time."""
        stream = domain.session_stream(request.name)
        revision = request.revision if request.HasField("revision") else None
        if request.HasField("time"):
            head = await self._repository.store.head_at(stream, request.time.ToNanoseconds())
            if head.revision == 0:
                raise NotFound(
                    f"session {request.name} wasn't there at that time",
                    metadata={"resource": request.name},
                )
            revision = head.revision
        state = (await self._existing(request.name, until_revision=revision)).state
        return state_service_pb2.GetStateResponse(state=state, state_hash=domain.state_hash(state))

    async def list_events(
        self, request: state_service_pb2.ListEventsRequest, call: Call
    ) -> state_service_pb2.ListEventsResponse:
        """A page of the session's own events; a fork's begin with SessionForked."""
        revision = (await self._existing(request.parent)).head.revision
        stream = domain.session_stream(request.parent)
        last = read_page_number(request.page_token, request.parent, revision)
        after = max(request.after_revision, last or 0)
        size = request.page_size or PAGE_SIZE
        types = frozenset(request.types)
        response = state_service_pb2.ListEventsResponse()
        room_bytes = PAGE_BYTES_MAX
        async for page in self._repository.store.read(stream):
            for event in recorded(page, types):
                if event.revision <= after:
                    continue
                room_bytes -= event.ByteSize()
                if response.events and (len(response.events) == size or room_bytes < 0):
                    token = write_page_token(str(response.events[-1].revision), request.parent)
                    response.next_page_token = token
                    return response
                response.events.append(event)
        return response

    async def watch_events(
        self, request: state_service_pb2.WatchEventsRequest, call: Call
    ) -> Events:
        """Events of the past that were asked for, then those that come."""
        selection = _selection(request.name)
        await self._refuse_unknown(request.name)
        after_revision = 0
        match request.WhichOneof("start"):
            case "after_position":
                position: int | None = request.after_position
            case "after_revision":
                if "/sessions/" not in request.name:
                    raise InvalidArgument.of("after_revision", "needs the name of one session")
                position, after_revision = 0, request.after_revision
            case "start_time":
                position = await self._repository.store.position_at(
                    request.start_time.ToNanoseconds()
                )
            case _:
                position = None
        types = frozenset(request.types)
        async for stored in self._repository.store.watch(selection, position):
            if stored.commit.stream.startswith(UNTOLD_AREAS):
                # Who may do what, and who took a session along, is told by the audit, to
                # those who may see that.
                continue
            for event in recorded([stored], types):
                if event.revision > after_revision:
                    yield state_service_pb2.WatchEventsResponse(event=event)

    async def _refuse_unknown(self, name: str) -> None:
        """Raises NotFound where nothing was ever stored of the agent, or the session isn't
        there."""
        parts = name.split("/")[1::2]
        if len(parts) == 1:
            return
        if len(parts) == 3:
            await existing(self._repository, name)
        elif not await self._repository.store.last_position(
            Selection(".".join(["agents", *parts]))
        ):
            raise NotFound.of("agent", name)

    async def verify_replay(
        self, request: state_service_pb2.VerifyReplayRequest, call: Call
    ) -> state_service_pb2.VerifyReplayResponse:
        """Folds again and compares."""
        stream = domain.session_stream(request.name)
        response = state_service_pb2.VerifyReplayResponse()
        try:
            await existing(self._repository, request.name)
            live = await self._live(stream)
            revision = live.head.revision
            replayed = await self._repository.load(stream, until_revision=revision, snapshots=False)
            resumed = await self._repository.load(stream, until_revision=revision)
        except DataDamaged as error:
            response.problem = error.message
            return response
        response.revision = response.event_count = revision
        response.replayed_hash = domain.state_hash(replayed.state)
        response.live_hash = domain.state_hash(live.state)
        if resumed.snapshot_revision:
            response.snapshot_revision = resumed.snapshot_revision
            response.snapshot_hash = domain.state_hash(resumed.state)
        response.problem = _problem(response)
        response.matches = not response.problem
        return response

    async def verify_log(
        self, request: state_service_pb2.VerifyLogRequest, call: Call
    ) -> AsyncIterator[state_service_pb2.VerifyLogResponse]:
        """Looks through the tenant's log."""
        tenant = request.parent.split("/")[1]
        check = LogCheck(self._repository.store, self._heads, tenant)
        async with contextlib.aclosing(check.run()) as responses:
            async for response in responses:
                yield response

    async def _live(self, stream: StreamName) -> Loaded[session_pb2.SessionState]:
        """What this process works with, caught up with the log."""
        aggregate = self._repository.open(stream)
        await aggregate.load()
        return await aggregate.acknowledged()

    async def _existing(
        self, name: str, until_revision: int | None = None
    ) -> Loaded[session_pb2.SessionState]:
        # What it was before it was erased isn't told either, nor what an import has so far.
        await existing(self._repository, name)
        stream = domain.session_stream(name)
        try:
            loaded = await self._repository.load(stream, until_revision=until_revision)
        except DataErased:
            raise
        except NotFound as error:
            raise NotFound(
                f"session {name} has no revision {until_revision}",
                metadata={"resource": name, **error.metadata},
            ) from error
        domain.refuse_absent(loaded.state)
        return loaded


def _selection(name: str) -> Selection:
    """The streams of a tenant, of an agent's sessions, or one session's."""
    parts = name.split("/")
    if len(parts) == 2:
        return Selection.of_tenant(parts[1])
    return Selection(".".join(["state", *parts[1::2]]))


def _problem(response: state_service_pb2.VerifyReplayResponse) -> str:
    problems = []
    if response.live_hash != response.replayed_hash:
        problems.append("the live state differs from the replayed one")
    if response.snapshot_hash and response.snapshot_hash != response.replayed_hash:
        problems.append(
            f"the state from the snapshot at revision {response.snapshot_revision} differs"
        )
    return "; ".join(problems)
