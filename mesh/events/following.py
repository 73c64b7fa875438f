"""Following the log in memory: each commit handed on, in order, for as long as it is wanted."""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from mesh.errors import EventStoreUnavailable, Internal, WeftError
from mesh.events.store import EventStore, Selection, StoredCommit

RETRY_SECONDS = 0.5

_log = structlog.get_logger(__name__)


class Following:
    """Hands each commit of a selection behind `position` to `apply`.

    Where the log can't be reached it waits, and goes on where it was. Where the log can't be
    read, or `apply` raises, it ends, and `failure` says why.
    """

    def __init__(
        self, events: EventStore, selection: Selection, apply: Callable[[StoredCommit], None]
    ) -> None:
        self.position = 0
        """Up to which all was applied."""
        self.failure: WeftError | None = None
        self._events = events
        self._selection = selection
        self._apply = apply
        self._moved = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follows from here on."""
        self._task = asyncio.create_task(self._follow(), name=f"following {self._selection.prefix}")

    async def stop(self) -> None:
        """Ends following; what was applied stays. Why it failed was logged by then."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def last_position(self) -> int:
        """Where the selection ends in the log by now. EventStoreUnavailable."""
        return await self._events.last_position(self._selection)

    async def catch_up(self, seconds_max: float) -> None:
        """Returns once all that is stored by now was applied. EventStoreUnavailable where that
        takes longer, and what ended the following."""
        target = await self.last_position()
        if not await self.reached(target, seconds_max):
            raise EventStoreUnavailable(
                f"reading the log of {self._selection.prefix} took too long"
            )
        if self.failure is not None:
            raise self.failure

    async def reached(self, position: int, seconds_max: float) -> bool:
        """Whether within that time all up to the position was applied, or it failed."""
        try:
            async with asyncio.timeout(seconds_max), self._moved:
                await self._moved.wait_for(lambda: self.position >= position or self.failure)
        except TimeoutError:
            return False
        return True

    async def _follow(self) -> None:
        try:
            while True:
                await self._follow_log()
                await asyncio.sleep(RETRY_SECONDS)
        except WeftError as error:
            _log.error("log_unreadable", of=self._selection.prefix, error=error.message)
            self.failure = error
        except Exception:  # noqa: BLE001 - nobody awaits this task: who waits for it is told
            _log.exception("log_not_followed", of=self._selection.prefix)
            self.failure = Internal(f"the log of {self._selection.prefix} isn't followed any more")
        async with self._moved:
            self._moved.notify_all()

    async def _follow_log(self) -> None:
        """Returns where following may go on."""
        with contextlib.suppress(EventStoreUnavailable):
            watch = self._events.watch(self._selection, self.position)
            async with contextlib.aclosing(watch) as commits:
                async for stored in commits:
                    self._apply(stored)
                    self.position = stored.position
                    async with self._moved:
                        self._moved.notify_all()
