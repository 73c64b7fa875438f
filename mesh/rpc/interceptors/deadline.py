"""Ends a handler at its call's deadline."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
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
            async with aclosing(inner(request, call)) as messages:
                while True:
                    limit = _limit(call)
                    try:
                        async with limit:
                            message = await anext(messages)
                    except StopAsyncIteration:
                        return
                    except TimeoutError:
                        raise _passed(limit, call) from None
                    yield message

        return limited


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
