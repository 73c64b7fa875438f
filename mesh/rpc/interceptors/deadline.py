"""Ends a handler at its call's deadline."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from mesh.call import Call
from mesh.errors import DeadlineExceeded
from mesh.rpc.interceptors.alarm import Alarm, AlarmClock
from mesh.rpc.methods import Handler, MethodSpec

_END = object()


def _over() -> DeadlineExceeded:
    return DeadlineExceeded("the call's deadline passed")


_clock = AlarmClock(_over)


class Deadline:
    """Cancels the handler when the deadline passes, and raises DeadlineExceeded.

    A stream is bound by it as a whole; each step gets what is left. It can also be ended
    by others, through `call.end`, and so can a handler that reads a client's stream.
    """

    def unary(self, spec: MethodSpec, inner: Handler) -> Handler:
        async def limited(request: Any, call: Call) -> Any:
            alarm = Alarm()
            _clock.set(alarm, _seconds_left(call))
            if spec.client_streaming:
                call.end = alarm.ring
            try:
                with alarm:
                    return await inner(request, call)
            finally:
                alarm.off()

        return limited

    def stream(self, spec: MethodSpec, inner: Handler) -> Handler:
        async def limited(request: Any, call: Call) -> AsyncGenerator[Any, None]:
            alarm = Alarm()
            _clock.set(alarm, _seconds_left(call))
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
                alarm.off()

        return limited


def _seconds_left(call: Call) -> float:
    seconds = call.remaining_seconds()
    if seconds <= 0:
        # An alarm can only end a handler where it waits; this one mustn't even begin.
        raise _over()
    return seconds
