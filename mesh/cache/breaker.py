"""Leaving alone what doesn't work, and looking now and then whether it does again."""

from collections.abc import Callable

import structlog

FAILURES_MAX = 3
PAUSE_SECONDS_MIN = 1.0
PAUSE_SECONDS_MAX = 30.0

_log = structlog.get_logger(__name__)


class Breaker:
    """After three failures in a row it is open: nobody asks. After a second it is tried, once;
    each time that fails the pause doubles, up to 30 s. `name` is what the log calls it."""

    def __init__(self, name: str, now: Callable[[], float]) -> None:
        self._name = name
        self._now = now
        self._failures = 0
        self._pause = PAUSE_SECONDS_MIN
        self._until = 0.0

    @property
    def open(self) -> bool:
        """Whether nobody asks."""
        return self._failures >= FAILURES_MAX

    def succeeded(self) -> None:
        """What was asked was answered. One that was asked before it opened says nothing."""
        if not self.open:
            self._failures = 0

    def failed(self, reason: str) -> None:
        """What was asked wasn't answered; `reason` is for the log."""
        if self.open:
            return
        self._failures += 1
        if self.open:
            self._until = self._now() + self._pause
            _log.warning("cache_level_off", part=self._name, reason=reason)

    def is_due(self) -> bool:
        """Whether to try now; `tried` must be told how it went."""
        now = self._now()
        if now < self._until:
            return False
        self._until = now + self._pause
        return True

    def tried(self, *, works: bool) -> None:
        """How it went."""
        if works:
            self._failures, self._pause = 0, PAUSE_SECONDS_MIN
            _log.info("cache_level_back", part=self._name)
        else:
            self._pause = min(2 * self._pause, PAUSE_SECONDS_MAX)
            self._until = self._now() + self._pause
