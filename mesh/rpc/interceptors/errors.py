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
    """Passes WeftErrors on; anything else becomes Internal, whose cause only the log has, and
    so does an answer of another type than the contract's.

    A cancellation passes on where this task is being cancelled. Where it isn't, the
    handler waited for something that was cancelled, and the caller gets Cancelled.
    """

    def unary(self, spec: MethodSpec, inner: Handler) -> Handler:
        response_class = spec.response_class

        async def guarded(request: Any, call: Call) -> Any:
            with _Guard(call):
                response = await inner(request, call)
                if response.__class__ is not response_class:
                    raise _wrong(spec, response)
                return response

        return guarded

    def stream(self, spec: MethodSpec, inner: Handler) -> Handler:
        response_class = spec.response_class

        async def guarded(request: Any, call: Call) -> AsyncGenerator[Any, None]:
            with _Guard(call):
                async with aclosing(inner(request, call)) as messages:
                    async for message in messages:
                        if message.__class__ is not response_class:
                            raise _wrong(spec, message)
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


def _wrong(spec: MethodSpec, response: object) -> TypeError:
    return TypeError(f"{spec.path} answered with {type(response).__name__}")


def _internal(error: Exception, call: Call) -> Internal:
    log.error("call failed", method=call.method, request_id=call.request_id, exc_info=error)
    return Internal(
        f"a fault of Weft's own; the log has it under request {call.request_id}",
        metadata={"request_id": call.request_id},
    )
