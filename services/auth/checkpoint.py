"""What a directory knew at a position, kept in the store: the next process that starts
reads what came after it, and not the whole history of access."""

from google.protobuf.message import DecodeError

from mesh.errors import DataDamaged
from mesh.events.store import EventStore, StreamName
from services.auth.domain.names import AREA
from weft.auth.v1 import access_pb2
from weft.events.v1 import events_pb2

CHECKPOINT_COMMITS = 500
"""Commits of access after which another one is kept."""

_STREAM = StreamName(AREA, "_system", ("directory",))
_VERSION = 1


async def load_checkpoint(
    events: EventStore, last_position: int
) -> tuple[access_pb2.DirectoryState, int] | None:
    """What was kept, and the position that it stands at; None where there is nothing of
    use. `last_position` is the log's end: what claims to be behind it is of another log."""
    try:
        snapshot = await events.snapshot(_STREAM)
        if snapshot is None or snapshot.fold_version != _VERSION:
            return None
        if snapshot.position > last_position:
            return None
        return access_pb2.DirectoryState.FromString(snapshot.state), snapshot.position
    except (DataDamaged, DecodeError):
        # It only shortens what the log has from its start.
        return None


async def save_checkpoint(
    events: EventStore, state: access_pb2.DirectoryState, position: int
) -> None:
    """Keeps what is known at `position`. May raise EventStoreUnavailable, LimitExceeded."""
    snapshot = events_pb2.Snapshot(
        stream=str(_STREAM),
        revision=1,
        position=position,
        fold_version=_VERSION,
        state=state.SerializeToString(),
    )
    await events.save_snapshot(snapshot)
