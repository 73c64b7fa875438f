"""One search for a value, for all who wait for it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from mesh.cache.entries import Mark

T = TypeVar("T")


class Flight(Generic[T]):
    """A task for several who wait, and may give up one by one: it is cancelled with the last.
    `mark` says which invalidations were known when it began."""

    def __init__(
        self, work: Coroutine[Any, Any, T], mark: Mark, tags: tuple[bytes, ...] = ()
    ) -> None:
        self.mark = mark
        self.tags = tags
        self.task = asyncio.create_task(work, name="cache flight")
        self.abandoned = False
        """Nobody waits any more: it is being cancelled."""
        self._waiting = 0
        self.task.add_done_callback(_noted)

    async def wait(self) -> T:
        """What the work returns or raises. Who is cancelled here takes nobody along."""
        self._waiting += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self._waiting -= 1
            if not self._waiting and not self.task.done():
                self.abandoned = True
                self.task.cancel()


def _noted(task: asyncio.Task[Any]) -> None:
    """An error that nobody waits for any more isn't asyncio's to report."""
    if not task.cancelled():
        task.exception()
