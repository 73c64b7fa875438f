"""Following the log of access, and whether nothing can have been missed."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from mesh.clock import Clock
from mesh.errors import EventStoreUnavailable, WeftError
from mesh.events.following import Following
from mesh.events.store import EventStore, Selection, StoredCommit
from services.auth.domain.names import AREA
from services.auth.settings import AuthSettings

ACCESS = Selection(AREA)

CAUGHT_UP_SECONDS = 0.5

_log = structlog.get_logger(__name__)


class AccessFollowing:
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
        self.trusted_until = 0.0
        """On the monotonic clock, in seconds."""
        self._log = Following(events, ACCESS, apply)
        self._tend = tend
        self._clock = clock
        self._settings = settings
        self._task: asyncio.Task[None] | None = None

    @property
    def position(self) -> int:
        """Up to which all was applied."""
        return self._log.position

    @property
    def failure(self) -> WeftError | None:
        """Why it isn't followed any more."""
        return self._log.failure

    async def start(self, position: int = 0) -> None:
        """Follows what is behind the position; returns once all that is stored by now was
        applied. Raises EventStoreUnavailable, and what `apply` raises."""
        self._log.position = position
        self._log.start()
        asked = self._clock.monotonic()
        await self._log.catch_up(self._settings.catch_up_seconds)
        self._trust(asked)
        self._task = asyncio.create_task(self._keep_in_touch(), name="in touch with access")

    async def catch_up(self) -> None:
        """Applies what is stored by now, unless that takes too long."""
        with contextlib.suppress(TimeoutError, EventStoreUnavailable):
            async with asyncio.timeout(CAUGHT_UP_SECONDS):
                target = await self._log.last_position()
            await self._log.reached(target, CAUGHT_UP_SECONDS)

    async def stop(self) -> None:
        """Ends following. Why it failed was logged by then."""
        await self._log.stop()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep_in_touch(self) -> None:
        interval = self._settings.contact_interval_seconds
        while True:
            await asyncio.sleep(interval)
            asked = self._clock.monotonic()
            try:
                target = await self._log.last_position()
                if await self._log.reached(target, interval):
                    self._trust(asked)
                await self._tend()
            except WeftError as error:
                _log.warning("access_log_not_tended", error=error.message)
            except Exception:  # noqa: BLE001 - an end of it would end all trust, and silently
                _log.exception("access_log_not_tended")

    def _trust(self, asked: float) -> None:
        self.trusted_until = asked + self._settings.stale_seconds_max
