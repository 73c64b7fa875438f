"""Makes the call known to what runs inside it, and gives it its one span."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from mesh.call import Call, current_call
from mesh.rpc.methods import Handler, MethodSpec
from mesh.rpc.status import code_of
from mesh.telemetry import traces


class Trace:
    """Sets `current_call` for the handler, and opens a span where tracing is on.

    The span becomes the call's `traceparent`, so that calls made and spans opened
    inside are its children.
    """

    def unary(self, spec: MethodSpec, inner: Handler) -> Handler:
        async def traced(request: Any, call: Call) -> Any:
            span = _opened(spec, call) if traces.active() else None
            token = current_call.set(call)
            try:
                response = await inner(request, call)
            except BaseException as error:
                _close(span, error)
                raise
            finally:
                current_call.reset(token)
            _close(span, None)
            return response

        return traced

    def stream(self, spec: MethodSpec, inner: Handler) -> Handler:
        async def traced(request: Any, call: Call) -> AsyncGenerator[Any, None]:
            span = _opened(spec, call) if traces.active() else None
            try:
                async with aclosing(_InCall(call, inner(request, call))) as messages:
                    async for message in messages:
                        yield message
            except BaseException as error:
                _close(span, error)
                raise
            _close(span, None)

        return traced


class _InCall:
    """Runs each step of a generator with `current_call` set.

    A generator runs in the context of whoever asks for its next message, which may be
    another task at every step.
    """

    __slots__ = ("_call", "_messages")

    def __init__(self, call: Call, messages: AsyncGenerator[Any, None]) -> None:
        self._call = call
        self._messages = messages

    def __aiter__(self) -> "_InCall":
        return self

    async def __anext__(self) -> Any:
        token = current_call.set(self._call)
        try:
            return await anext(self._messages)
        finally:
            current_call.reset(token)

    async def aclose(self) -> None:
        token = current_call.set(self._call)
        try:
            await self._messages.aclose()
        finally:
            current_call.reset(token)


def _opened(spec: MethodSpec, call: Call) -> traces.Span:
    span = traces.start_server_span(spec.service, spec.name, call.traceparent)
    span.set("weft.request_id", call.request_id)
    call.traceparent = span.traceparent
    return span


def _close(span: traces.Span | None, error: BaseException | None) -> None:
    if span is not None:
        code = code_of(error).name if error is not None else "OK"
        span.end(code, failed=error is not None)
