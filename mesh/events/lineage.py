"""Which streams a stream goes on from."""

from typing import Any

from mesh.errors import DataDamaged
from mesh.events.aggregate import FORK_DEPTH_MAX, Repository
from mesh.events.store import StreamName

Part = tuple[StreamName, int]
"""A stream, and the last of its revisions that counts."""


async def lineage(
    repository: Repository[Any], stream: StreamName, until_revision: int
) -> list[Part]:
    """The streams whose events the state at that revision holds, the oldest first.

    DataErased where one of them was erased, DataDamaged where they are too many to load.
    """
    parts, origin = await _parts(repository, (stream, until_revision))
    if origin is not None:
        raise DataDamaged(f"{stream} was forked more than {FORK_DEPTH_MAX} times in a row")
    return parts[::-1]


async def fork_depth(repository: Repository[Any], stream: StreamName) -> int:
    """How many streams in a row it goes on from: 0 where it is no fork, and counted up to
    FORK_DEPTH_MAX, beyond which none can be loaded. DataErased as `lineage`."""
    parts, _ = await _parts(repository, (stream, 1))
    return len(parts) - 1


async def _parts(repository: Repository[Any], newest: Part) -> tuple[list[Part], Part | None]:
    """The streams in a row, and the one after the last that may count."""
    parts: list[Part] = []
    origin: Part | None = newest
    while origin is not None and len(parts) <= FORK_DEPTH_MAX:
        parts.append(origin)
        origin = None
        async for page in repository.store.read(parts[-1][0], until_revision=1):
            origin = repository.origin(page[0])
    return parts, origin
