"""Finding a session that callers may see."""

from mesh.errors import DataErased, NotFound
from mesh.events.aggregate import Repository
from services.state import domain
from weft.state.v1 import session_pb2


async def existing(
    repository: Repository[session_pb2.SessionState], name: str
) -> session_pb2.SessionState:
    """The session's state, now. NotFound where it isn't there, DataErased where it was
    erased."""
    try:
        state = await repository.open(domain.session_stream(name)).load()
    except DataErased:
        raise DataErased(f"session {name} was erased", metadata={"resource": name}) from None
    domain.refuse_absent(state)
    if not state.revision:
        raise NotFound.of("session", name)
    return state
