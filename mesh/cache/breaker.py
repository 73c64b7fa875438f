"""Leaving alone what doesn't work, and looking now and then whether it does again."""

from collections.abc import Callable

import structlog

FAILURES_MAX = 3
PAUSE_SECONDS_MIN = 1.0
PAUSE_SECONDS_MAX = 30.0

_log = structlog.get_logger(__name__)


class Breaker:
    """After three failures in a row nothing is asked for a second, then one asks; each time
    that fails the pause doubles, up to 30 s. `name` is what the log calls it."""

    def __init__(self, name: str, now: Callable[[], float]) -> None:
        self._name = name
        self._now = now
        self._failures = 0
        self._pause = PAUSE_SECONDS_MIN
        self._until = 0.0

    @property
    def closed(self) -> bool:
        """Whether all may ask."""
        return self._failures < FAILURES_MAX

    def allows(self) -> bool:
        """Whether to ask now; who may must say how it went."""
        if self.closed:
            return True
        now = self._now()
        if now < self._until:
            return False
        # One asks; the others wait for what it says, or for the next pause.
        self._until = now + self._pause
        return True

    def succeeded(self) -> None:
        """It works."""
        if not self.closed:
            _log.info("cache_level_back", level=self._name)
        self._failures = 0
        self._pause = PAUSE_SECONDS_MIN

    def failed(self, reason: str) -> None:
        """It doesn't; `reason` is for the log."""
        if self._failures == FAILURES_MAX - 1:
            _log.warning("cache_level_off", level=self._name, reason=reason)
        elif not self.closed:
            self._pause = min(2 * self._pause, PAUSE_SECONDS_MAX)
        self._failures = min(self._failures + 1, FAILURES_MAX)
        self._until = self._now() + self._pause
