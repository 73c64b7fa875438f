"""Tags: what is invalidated together, and how all processes learn of it.

Invalidations are a log, and an entry knows up to where the log was known before its value
was made. So it is too old where one of its tags was invalidated behind that, in whichever
process it was made or lies, and whichever came first: the invalidation or the value.
"""

from collections.abc import Callable, Collection
from typing import Protocol

from mesh.cache.entries import EPOCH_BYTES, Entry, Mark
from mesh.events.jetstream.assets import CACHE_TAGS_MAX

TAGS_KEPT = CACHE_TAGS_MAX
"""Most tags of which it is remembered when they were invalidated."""

OnInvalidated = Callable[[bytes, int], None]
"""Told a tag and the position at which it was invalidated."""


class Invalidations:
    """What is known of the log of invalidations; pure."""

    def __init__(self, epoch: bytes = b"\0" * EPOCH_BYTES) -> None:
        self.mark = Mark(epoch, 0)
        self.floor = 0
        """What was made before is too old: tags invalidated up to here are forgotten."""
        self._last: dict[bytes, int] = {}

    def heard(self, tag: bytes, position: int) -> bool:
        """Notes an invalidation; whether it is news. `mark` moves on by `reached`."""
        if position <= self._last.get(tag, 0):
            return False
        # What was invalidated last is last, and forgotten last.
        self._last.pop(tag, None)
        self._last[tag] = position
        if len(self._last) > TAGS_KEPT:
            oldest = next(iter(self._last))
            self.floor = max(self.floor, self._last.pop(oldest))
        return True

    def reached(self, position: int) -> None:
        """All up to `position` is known."""
        if position > self.mark.position:
            self.mark = Mark(self.mark.epoch, position)

    def is_fresh(self, mark: Mark, tags: Collection[bytes]) -> bool:
        """Whether none of the tags was invalidated after what `mark` says."""
        if not tags:
            return True
        if mark.epoch != self.mark.epoch or mark.position < self.floor:
            return False
        return all(self._last.get(tag, 0) <= mark.position for tag in tags)

    def items(self) -> list[tuple[bytes, int]]:
        """The tags with the positions at which they were last invalidated."""
        return list(self._last.items())


class Tags(Protocol):
    """The port of the log of invalidations."""

    @property
    def in_touch(self) -> bool:
        """Whether others' invalidations are heard of; what has tags isn't used else."""
        ...

    @property
    def known(self) -> Invalidations: ...

    def on_invalidated(self, callback: OnInvalidated) -> None:
        """Calls back with each invalidation, this process's own too."""
        ...

    async def start(self) -> None:
        """Begins to follow; waits for nothing."""
        ...

    async def stop(self) -> None: ...

    async def invalidate(self, tenant: str, tag: bytes) -> None:
        """Returns once it is stored, and known in this process. EventStoreUnavailable where
        it can't be stored."""
        ...


class MemoryTags:
    """The log of invalidations of one process alone."""

    def __init__(self) -> None:
        self.known = Invalidations()
        self._callbacks: list[OnInvalidated] = []

    @property
    def in_touch(self) -> bool:
        """There is nobody else."""
        return True

    def on_invalidated(self, callback: OnInvalidated) -> None:
        """See Tags."""
        self._callbacks.append(callback)

    async def start(self) -> None:
        """Nothing to follow."""

    async def stop(self) -> None:
        """Nothing to end."""

    async def invalidate(self, tenant: str, tag: bytes) -> None:
        """See Tags."""
        position = self.known.mark.position + 1
        self.known.heard(tag, position)
        self.known.reached(position)
        for callback in self._callbacks:
            callback(tag, position)


def is_usable(tags: Tags, entry: Entry) -> bool:
    """Whether the entry may be given, as far as its tags go."""
    return not entry.tags or (tags.in_touch and tags.known.is_fresh(entry.mark, entry.tags))
