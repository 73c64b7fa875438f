"""Ends a handler from outside: at its deadline, or when its caller lost the right to it."""

import asyncio
import math
from collections.abc import Callable
from types import TracebackType
from typing import Any

from mesh.errors import WeftError

TICK_SECONDS = 0.005
"""How late a deadline may be noticed."""
AHEAD_SECONDS_MAX = 10.0
"""How far ahead a timer is set; a later alarm is entered again then."""


class Alarm:
    """Cancels the step of a handler that is under way when it rings, and any later one.

    Each step is a `with` block, which then raises the error that `ring` was given. One
    alarm serves all steps of a stream.
    """

    __slots__ = ("_cancelled", "_cancelling", "_error", "_task", "at", "entered")

    def __init__(self) -> None:
        self.at = 0.0
        self.entered: set[Alarm] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._cancelled = False
        self._error: WeftError | None = None

    def ring(self, error: WeftError) -> None:
        """Ends the handler with `error`; only the first ring counts."""
        if self._error is not None:
            return
        self._error = error
        if self._task is not None:
            self._cancelled = True
            self._task.cancel()

    def off(self) -> None:
        """Its clock rings it no more."""
        if self.entered is not None:
            self.entered.discard(self)

    def __enter__(self) -> None:
        if self._error is not None:
            raise self._error
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task else 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if not self._cancelled or task is None:
            return
        self._cancelled = False
        # As asyncio.timeout does: somebody else's cancellation goes before ours.
        if task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            assert self._error is not None
            raise self._error from None


class AlarmClock:
    """Rings alarms at their time, to within TICK_SECONDS. All that are due in one tick share
    a timer of the event loop: one for each call would cost as much as a layer does."""

    def __init__(self, error: Callable[[], WeftError]) -> None:
        self._error = error
        self._due: dict[tuple[int, int], set[Alarm]] = {}

    def set(self, alarm: Alarm, seconds: float) -> None:
        """Rings in so many seconds, unless the alarm was put `off` by then."""
        alarm.at = asyncio.get_running_loop().time() + seconds
        self._enter(alarm)

    def _enter(self, alarm: Alarm) -> None:
        loop = asyncio.get_running_loop()
        # Not further ahead, so that calls that have long ended leave nothing behind for long.
        at = min(alarm.at, loop.time() + AHEAD_SECONDS_MAX)
        tick = math.ceil(at / TICK_SECONDS)
        key = (id(loop), tick)
        alarms = self._due.get(key)
        if alarms is None:
            alarms = self._due[key] = set()
            loop.call_at(tick * TICK_SECONDS, self._ring, key)
        alarms.add(alarm)
        alarm.entered = alarms

    def _ring(self, key: tuple[int, int]) -> None:
        now = asyncio.get_running_loop().time()
        for alarm in self._due.pop(key, ()):
            if alarm.at > now + TICK_SECONDS:
                self._enter(alarm)
            else:
                alarm.ring(self._error())
