"""Ends a handler at its call's deadline."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Any

from mesh.call import Call
from mesh.errors import DeadlineExceeded
from mesh.rpc.methods import Handler, MethodSpec


class Deadline:
    """Cancels the handler when the deadline passes, and raises DeadlineExceeded.

    A stream is bound by it as a whole; each step gets what is left.
    """

    def unary(self, spec: MethodSpec, inner: Handler) -> Handler:
        async def limited(request: Any, call: Call) -> Any:
            limit = _limit(call)
            try:
                async with limit:
                    return await inner(request, call)
            except TimeoutError:
                raise _passed(limit, call) from None

        return limited

    def stream(self, spec: MethodSpec, inner: Handler) -> Handler:
        async def limited(request: Any, call: Call) -> AsyncGenerator[Any, None]:
            alarm = _Alarm(call)
            try:
                async with aclosing(inner(request, call)) as messages:
                    while True:
                        with alarm:
                            message = await anext(messages, _END)
                        if message is _END:
                            return
                        yield message
            finally:
                alarm.stop()

        return limited


_END = object()


class _Alarm:
    """Cancels the step under way when the deadline passes, and any later one.

    One timer serves all steps of a stream: an `asyncio.timeout` for each would cost more
    than most steps do.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._cancelled = False
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(call.remaining_seconds(), self._ring)

    def stop(self) -> None:
        """The stream ended."""
        self._timer.cancel()

    def __enter__(self) -> None:
        if self._call.remaining_seconds() <= 0:
            raise DeadlineExceeded("the call's deadline passed")
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
            raise DeadlineExceeded("the call's deadline passed") from None

    def _ring(self) -> None:
        if self._task is not None:
            self._cancelled = True
            self._task.cancel()


def _limit(call: Call) -> asyncio.Timeout:
    seconds = call.remaining_seconds()
    if seconds <= 0:
        # A timeout can only end a handler where it waits; this one mustn't even begin.
        raise DeadlineExceeded("the call's deadline passed")
    return asyncio.timeout(seconds)


def _passed(limit: asyncio.Timeout, call: Call) -> Exception:
    if limit.expired():
        return DeadlineExceeded("the call's deadline passed")
    return TimeoutError(f"a timeout inside {call.method} that its handler didn't map")
