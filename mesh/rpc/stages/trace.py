"""Makes the call known to what runs inside it, and gives it its one span."""

from collections.abc import AsyncGenerator
from typing import Any

from mesh.call import Call, current_call
from mesh.rpc.methods import MethodSpec
from mesh.telemetry import traces


class InCall:
    """Runs each step of a generator with `current_call` set.

    A generator runs in the context of whoever asks for its next message, which may be
    another task at every step.
    """

    __slots__ = ("_call", "_messages")

    def __init__(self, call: Call, messages: AsyncGenerator[Any, None]) -> None:
        self._call = call
        self._messages = messages

    def __aiter__(self) -> "InCall":
        return self

    async def __anext__(self) -> Any:
        token = current_call.set(self._call)
        try:
            return await anext(self._messages)
        finally:
            current_call.reset(token)

    async def aclose(self) -> None:
        """Closes the generator."""
        token = current_call.set(self._call)
        try:
            await self._messages.aclose()
        finally:
            current_call.reset(token)


def open_span(spec: MethodSpec, call: Call) -> traces.Span:
    """Opens the span of a call. It becomes the call's `traceparent`, so that calls made and
    spans opened inside are its children."""
    span = traces.start_server_span(spec.service, spec.name, call.traceparent)
    span.set("weft.request_id", call.request_id)
    call.traceparent = span.traceparent
    return span
