"""Following the log of access: what is new, and whether nothing can have been missed."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from mesh.clock import Clock
from mesh.errors import EventStoreUnavailable, Internal, WeftError
from mesh.events.store import EventStore, Selection, StoredCommit
from services.auth.domain.names import AREA
from services.auth.settings import AuthSettings

RETRY_SECONDS = 0.5
ACCESS = Selection(AREA)

CAUGHT_UP_SECONDS = 0.5

_log = structlog.get_logger(__name__)


class Following:
    """Hands each commit behind `position` to `apply`, and knows until when what was applied
    may be trusted.

    A silent log and one that can't be reached look the same to who waits, so the log is
    asked for its end every `contact_interval_seconds`; `tend` runs after each answer, and
    again the next time where it raises.
    """

    def __init__(
        self,
        events: EventStore,
        apply: Callable[[StoredCommit], None],
        tend: Callable[[], Awaitable[None]],
        clock: Clock,
        settings: AuthSettings,
    ) -> None:
        self.position = 0
        self.trusted_until = 0.0
        """On the monotonic clock, in seconds."""
        self.failure: WeftError | None = None
        self._events = events
        self._apply = apply
        self._tend = tend
        self._clock = clock
        self._settings = settings
        self._moved = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Returns once all that is stored by now was applied. Raises EventStoreUnavailable,
        and what `apply` raises."""
        self._tasks.append(asyncio.create_task(self._follow()))
        asked = self._clock.monotonic()
        target = await self._events.last_position(ACCESS)
        if not await self._reached(target, self._settings.catch_up_seconds):
            raise EventStoreUnavailable("reading who may do what took too long")
        if self.failure is not None:
            raise self.failure
        self._trust(asked)
        self._tasks.append(asyncio.create_task(self._keep_in_touch()))

    async def catch_up(self) -> None:
        """Applies what is stored by now, unless that takes too long."""
        with contextlib.suppress(TimeoutError, EventStoreUnavailable):
            async with asyncio.timeout(CAUGHT_UP_SECONDS):
                target = await self._events.last_position(ACCESS)
            await self._reached(target, CAUGHT_UP_SECONDS)

    async def stop(self) -> None:
        """Ends following. Why it failed was logged by then."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _follow(self) -> None:
        try:
            await self._follow_log()
        except WeftError as error:
            _log.error("access_log_unreadable", error=error.message)
            self.failure = error
        except Exception:  # noqa: BLE001 - nobody awaits this task: who waits for it is told
            _log.exception("access_log_not_followed")
            self.failure = Internal("the log of access isn't followed any more")
        async with self._moved:
            self._moved.notify_all()

    async def _follow_log(self) -> None:
        while True:
            try:
                async with contextlib.aclosing(
                    self._events.watch(ACCESS, self.position)
                ) as commits:
                    async for stored in commits:
                        self._apply(stored)
                        self.position = stored.position
                        async with self._moved:
                            self._moved.notify_all()
            except EventStoreUnavailable:
                await asyncio.sleep(RETRY_SECONDS)

    async def _keep_in_touch(self) -> None:
        interval = self._settings.contact_interval_seconds
        while True:
            await asyncio.sleep(interval)
            asked = self._clock.monotonic()
            try:
                target = await self._events.last_position(ACCESS)
                if await self._reached(target, interval):
                    self._trust(asked)
                await self._tend()
            except WeftError as error:
                _log.warning("access_log_not_tended", error=error.message)
            except Exception:  # noqa: BLE001 - an end of it would end all trust, and silently
                _log.exception("access_log_not_tended")

    def _trust(self, asked: float) -> None:
        self.trusted_until = asked + self._settings.stale_seconds_max

    async def _reached(self, position: int, seconds: float) -> bool:
        """Whether what is stored up to there was applied within that time."""
        try:
            async with asyncio.timeout(seconds), self._moved:
                await self._moved.wait_for(lambda: self.position >= position or self.failure)
        except TimeoutError:
            return False
        return True
