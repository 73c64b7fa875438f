"""One search for a value, for all who wait for it."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from mesh.cache.entries import Mark

T = TypeVar("T")


class Flight(Generic[T]):
    """A task for several who wait, and may give up one by one: it is cancelled with the last.
    `mark` says which invalidations were known when it began, and `deadline`, on the monotonic
    clock, until when whoever began it has time."""

    def __init__(
        self,
        work: Coroutine[Any, Any, T],
        mark: Mark,
        tags: tuple[bytes, ...] = (),
        deadline: float = math.inf,
    ) -> None:
        self.mark = mark
        self.tags = tags
        self.deadline = deadline
        self._waiting = 0
        self._task: asyncio.Task[T] | None = asyncio.create_task(work, name="cache flight")
        self._task.add_done_callback(_noted)

    @property
    def over(self) -> bool:
        """Whether it can't be joined any more."""
        return self._task is None

    def on_landing(self, callback: Callable[[], None]) -> None:
        """Calls back once it is over."""
        if self._task is not None:
            self._task.add_done_callback(lambda _: callback())

    async def wait(self) -> T:
        """What the work returns or raises. Who is cancelled here takes nobody along."""
        assert self._task is not None, "over"
        self._waiting += 1
        try:
            return await asyncio.shield(self._task)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._end()

    async def cancel(self) -> None:
        """Ends the work, whoever waits."""
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    def _end(self) -> None:
        # Else an error and the frames that it knows, which know this, would keep each other.
        task, self._task = self._task, None
        if task is not None:
            task.cancel()


def _noted(task: asyncio.Task[Any]) -> None:
    """An error that nobody waits for any more isn't asyncio's to report."""
    if not task.cancelled():
        task.exception()
