"""Ends a handler at its call's deadline."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from mesh.call import Call
from mesh.errors import DeadlineExceeded
from mesh.rpc.interceptors.alarm import Alarm
from mesh.rpc.methods import Handler, MethodSpec

_END = object()


class Deadline:
    """Cancels the handler when the deadline passes, and raises DeadlineExceeded.

    A stream is bound by it as a whole; each step gets what is left. It can also be ended
    by others, through `call.end`.
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
            alarm = Alarm()
            seconds = call.remaining_seconds()
            if seconds <= 0:
                raise _over()
            timer = asyncio.get_running_loop().call_later(seconds, alarm.ring, _over())
            call.end = alarm.ring
            try:
                async with aclosing(inner(request, call)) as messages:
                    while True:
                        with alarm:
                            message = await anext(messages, _END)
                        if message is _END:
                            return
                        yield message
            finally:
                timer.cancel()

        return limited


def _over() -> DeadlineExceeded:
    return DeadlineExceeded("the call's deadline passed")


def _limit(call: Call) -> asyncio.Timeout:
    seconds = call.remaining_seconds()
    if seconds <= 0:
        # A timeout can only end a handler where it waits; this one mustn't even begin.
        raise _over()
    return asyncio.timeout(seconds)


def _passed(limit: asyncio.Timeout, call: Call) -> Exception:
    if limit.expired():
        return _over()
    return TimeoutError(f"a timeout inside {call.method} that its handler didn't map")
