"""Commits that nothing was decided for: they go behind whatever the stream has."""

from mesh.errors import Conflict
from mesh.events.store import CommitDraft, EventStore, HeadConflict, StreamName

CONFLICTS_MAX = 16
_FAR_NS = 2**63 - 1
"""A time that every commit is stored before."""


async def append_behind(store: EventStore, stream: StreamName, draft: CommitDraft) -> None:
    """Returns once the commit is stored. Whoever else writes to the stream may come first a few
    times; Conflict after that."""
    for _ in range(CONFLICTS_MAX):
        head = await store.head_at(stream, _FAR_NS)
        try:
            await store.append(stream, draft, head)
        except HeadConflict:
            continue
        return
    raise Conflict(f"{stream}: {CONFLICTS_MAX} other commits came first")
