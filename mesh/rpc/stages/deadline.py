"""Ends a handler from outside: at its deadline, or when its caller lost the right to it."""

import asyncio
import math
from time import monotonic
from types import TracebackType
from typing import Any

from mesh.call import Call
from mesh.errors import DeadlineExceeded, WeftError

TICK_SECONDS = 0.005
"""How late a deadline may be noticed."""


class Alarm:
    """Cancels the step of a handler that is under way when it rings, and any later one.

    Each step is a `with` block, which then raises the error that `ring` was given. One
    alarm serves all steps of a stream.
    """

    __slots__ = ("_armed", "_cancelled", "_cancelling", "_error", "_task", "at")

    def __init__(self, at: float, armed: "set[Alarm]") -> None:
        self.at = at
        self._armed = armed
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
        """Its deadline rings it no more."""
        self._armed.discard(self)

    def __enter__(self) -> None:
        if self._error is not None:
            raise self._error
        self._task = task = asyncio.current_task()
        self._cancelling = task.cancelling() if task is not None else 0

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


class Deadlines:
    """Rings alarms at the deadline of their call, to within TICK_SECONDS; for one event loop.

    All share one timer, that of the earliest: most calls end long before their deadline,
    and a timer for each would cost as much as all that is done for them here.
    """

    def __init__(self) -> None:
        self._armed: set[Alarm] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf

    def alarm(self, call: Call) -> Alarm:
        """An alarm for the deadline of `call`, until it is put `off`. Raises
        DeadlineExceeded where that passed: an alarm can only end a handler where it waits,
        and this one mustn't even begin."""
        seconds = call.remaining_seconds()
        if seconds <= 0:
            raise passed()
        at = monotonic() + seconds
        alarm = Alarm(at, self._armed)
        self._armed.add(alarm)
        if at < self._next:
            self._wait(at, seconds)
        return alarm

    def _wait(self, at: float, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = at
        # Those that follow within a tick ring with it.
        self._timer = asyncio.get_running_loop().call_later(seconds + TICK_SECONDS, self._ring)

    def _ring(self) -> None:
        now = monotonic()
        for alarm in [each for each in self._armed if each.at <= now]:
            alarm.off()
            alarm.ring(passed())
        self._timer, self._next = None, math.inf
        if self._armed:
            at = min(alarm.at for alarm in self._armed)
            self._wait(at, at - now)


def passed() -> DeadlineExceeded:
    """What a call ends with at its deadline."""
    return DeadlineExceeded("the call's deadline passed")
