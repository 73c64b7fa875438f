"""Lets only Weft's own errors out of a handler."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Any

import structlog

from mesh.call import Call
from mesh.errors import Cancelled, Internal, WeftError
from mesh.rpc.methods import Handler, MethodSpec

log = structlog.get_logger()


class Errors:
    """Passes WeftErrors on; anything else becomes Internal, whose cause only the log has.

    A cancellation passes on where this task is being cancelled. Where it isn't, the
    handler waited for something that was cancelled, and the caller gets Cancelled.
    """

    def unary(self, spec: MethodSpec, inner: Handler) -> Handler:
        async def guarded(request: Any, call: Call) -> Any:
            with _Guard(call):
                return await inner(request, call)

        return guarded

    def stream(self, spec: MethodSpec, inner: Handler) -> Handler:
        async def guarded(request: Any, call: Call) -> AsyncGenerator[Any, None]:
            with _Guard(call):
                async with aclosing(inner(request, call)) as messages:
                    async for message in messages:
                        yield message

        return guarded


class _Guard:
    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, WeftError):
            return
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                raise Cancelled("something that the call waited for was cancelled") from None
        elif isinstance(error, Exception):
            raise _internal(error, self._call) from None


def _internal(error: Exception, call: Call) -> Internal:
    log.error("call failed", method=call.method, request_id=call.request_id, exc_info=error)
    return Internal(
        f"a fault of Weft's own; the log has it under request {call.request_id}",
        metadata={"request_id": call.request_id},
    )
