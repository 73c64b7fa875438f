"""States of snapshots that are too large for one message: they lie in parts beside them.

A part's subject keeps as many messages as that of the snapshots, so parts go as the snapshots
go that name them: what there is of them is bounded, and nobody needs leave to delete.
"""

from functools import partial

from mesh.events.blobs import hashed
from mesh.events.jetstream.append import Publisher
from mesh.events.jetstream.assets import SNAPSHOT_PREFIX, SNAPSHOTS
from mesh.events.jetstream.connection import Connection, retried
from mesh.events.jetstream.erase import erase_subject
from weft.events.v1 import events_pb2

PART_BYTES_MAX = 256 * 1024


class SnapshotParts:
    """The parts of all streams' snapshots. All methods may raise EventStoreUnavailable."""

    def __init__(self, connection: Connection, publisher: Publisher) -> None:
        self._connection = connection
        self._publisher = publisher

    async def put(self, stream: str, state: bytes) -> events_pb2.SnapshotParts:
        """Keeps a state of the stream."""
        parts = events_pb2.SnapshotParts(sha256=(await hashed(state)).digest())
        for number, start in enumerate(range(0, len(state), PART_BYTES_MAX)):
            part = state[start : start + PART_BYTES_MAX]
            position = await self._publisher.publish(_subject(stream, number), part, {})
            parts.positions.append(position)
        return parts

    async def get(self, stream: str, parts: events_pb2.SnapshotParts) -> bytes | None:
        """The state; None where parts are gone, as those of old snapshots are."""
        found: list[bytes] = []
        for number, position in enumerate(parts.positions):
            request = {"batch": 1, "seq": position, "next_by_subj": _subject(stream, number)}
            batch = await retried(partial(self._connection.direct_get, SNAPSHOTS, request))
            if not batch.messages or batch.messages[0].position != position:
                return None
            found.append(batch.messages[0].data)
        state = b"".join(found)
        return state if (await hashed(state)).digest() == parts.sha256 else None

    async def erase(self, stream: str) -> None:
        """Overwrites and deletes all parts of the stream's snapshots."""
        await erase_subject(self._connection, SNAPSHOTS, f"{SNAPSHOT_PREFIX}.{stream}._part.>")


def _subject(stream: str, number: int) -> str:
    # No stream's name has such a word.
    return f"{SNAPSHOT_PREFIX}.{stream}._part.{number}"
