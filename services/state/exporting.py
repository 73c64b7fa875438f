"""A session as records that an import takes, and who was told them."""

from collections.abc import AsyncIterator

from mesh.call import Call
from mesh.events.aggregate import Repository
from mesh.events.appending import append_behind
from mesh.events.lineage import lineage
from mesh.events.store import CommitDraft, NewEvent
from services.state import domain
from services.state.records import recorded
from weft.state.v1 import events_pb2, export_events_pb2, session_pb2, session_service_pb2

FORMAT = 1
_IMPORTED = events_pb2.SessionImported.DESCRIPTOR.full_name


async def note_export(
    repository: Repository[session_pb2.SessionState],
    state: session_pb2.SessionState,
    call: Call,
) -> None:
    """Stores for the audit trail who exports what `state` holds; before any of it is told, so
    that nothing is told where this can't be stored."""
    fact = export_events_pb2.SessionExported(session=state.name, revision=state.revision)
    draft = CommitDraft(
        [NewEvent(fact)],
        repository.clock.now_ns(),
        call.actor,
        call.request_id,
        traceparent=call.traceparent,
    )
    await append_behind(repository.store, domain.exports_stream(state.name), draft)


async def export(
    repository: Repository[session_pb2.SessionState], state: session_pb2.SessionState
) -> AsyncIterator[session_service_pb2.SessionRecord]:
    """The header, then the events that `state` holds, oldest first:
    those that a fork continues are among them, and what says that it was imported isn't.

    Raises DataErased where it is erased meanwhile.
    """
    parts = await lineage(repository, domain.session_stream(state.name), state.revision)
    count = 0
    for stream, revision in parts:
        async for page in repository.store.read(stream, until_revision=1):
            count += revision - (page[0].commit.events[0].type == _IMPORTED)
    header = session_service_pb2.SessionHeader(
        format=FORMAT,
        source_session=state.name,
        event_count=count,
        agent_revision=state.agent_revision,
    )
    yield session_service_pb2.SessionRecord(header=header)
    number = 0
    for stream, revision in parts:
        async for page in repository.store.read(stream, until_revision=revision):
            for stored in page:
                stored.refuse_erased()
                for event in recorded([stored]):
                    if event.type != _IMPORTED and event.revision <= revision:
                        number += 1
                        event.revision = number
                        yield session_service_pb2.SessionRecord(event=event)
