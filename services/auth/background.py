"""Facts that are noted in a call's passing, and committed beside it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from mesh.errors import WeftError

_DOUBLINGS_MAX = 6

_log = structlog.get_logger(__name__)


class Background:
    """Runs `flush` once something was noted, and then at most once per `interval_seconds`.

    What it raises of WeftError is logged and waits for the next time, which comes later each
    time that it fails: a process whose user of NATS may not write it never will.
    """

    def __init__(
        self, name: str, flush: Callable[[], Awaitable[None]], interval_seconds: float
    ) -> None:
        self._name = name
        self._flush = flush
        self._interval_seconds = interval_seconds
        self._noted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From here on it flushes. Not to be called within a call: its facts are Weft's own."""
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """There is something to flush."""
        self._noted.set()

    async def stop(self) -> None:
        """Flushes once more what was noted, and ends."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        if self._noted.is_set():
            await self._flush_once()

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._noted.wait()
            failures = 0 if await self._flush_once() else min(failures + 1, _DOUBLINGS_MAX)
            await asyncio.sleep(self._interval_seconds * 2**failures)

    async def _flush_once(self) -> bool:
        """Whether all that was noted is committed."""
        self._noted.clear()
        try:
            await self._flush()
            return True
        except WeftError as error:
            _log.warning("facts_not_noted", what=self._name, error=error.message)
            self._noted.set()
            return False
        except BaseException:
            # A stop in the middle: whatever wasn't flushed is flushed at the end.
            self._noted.set()
            raise
