"""Ends a stream from outside: at its deadline, or when its caller lost the right to it."""

import asyncio
from types import TracebackType
from typing import Any

from mesh.errors import WeftError


class Alarm:
    """Cancels the step of a stream that is under way when it rings, and any later one.

    Each step is a `with` block, which then raises the error that `ring` was given. One
    alarm serves all steps: an `asyncio.timeout` for each would cost more than most do.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._cancelled = False
        self._error: WeftError | None = None

    def ring(self, error: WeftError) -> None:
        """Ends the stream with `error`; only the first ring counts."""
        if self._error is not None:
            return
        self._error = error
        if self._task is not None:
            self._cancelled = True
            self._task.cancel()

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
