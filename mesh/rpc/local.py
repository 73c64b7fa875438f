"""The channel to handlers in the same process.

Messages are passed by reference: a handler doesn't change the request, and the caller
doesn't change the response; both copy first. A call is made through the same pipeline
as over the wire and raises the same errors, without a task or a copy of its own.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mesh.errors import Unimplemented
from mesh.rpc.pipeline import Endpoint
from mesh.rpc.propagation import Metadata, outgoing_call


class StubChannel:
    """What a generated stub needs of a channel; subclasses say what a method is.

    A unary method is awaited: `await stub.GetAgent(request, timeout=2)`. A streaming one
    is an async generator: `async for event in stub.RunTurn(request)`; who stops early
    closes it (`contextlib.aclosing`), or the handler learns of it only later.
    """

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> Callable[..., Any]:
        return self.callable_of(method)

    unary_stream = stream_unary = stream_stream = unary_unary

    def callable_of(self, method: str) -> Callable[..., Any]:
        """The function behind the stub's attribute, for `/package.Service/Method`."""
        raise LookupError(method)


class LocalChannel(StubChannel):
    """Reaches the endpoints that it is given, which may still grow."""

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self._endpoints = endpoints

    def callable_of(self, method: str) -> Callable[..., Any]:
        endpoints = self._endpoints

        def call(
            request: Any, *, timeout: float | None = None, metadata: Metadata | None = None
        ) -> Any:
            endpoint = endpoints.get(method)
            if endpoint is None:
                raise Unimplemented("this process doesn't offer the method")
            return call_endpoint(endpoint, request, timeout, metadata)

        return call


def call_endpoint(
    endpoint: Endpoint,
    request: Any,
    timeout: float | None,
    metadata: Iterable[tuple[str, str | bytes]] | None,
    *,
    validated: bool = False,
    caller: str = "",
) -> Any:
    """Starts a call of a handler in this process: an awaitable, or an async generator."""
    call = outgoing_call(endpoint.spec.path, endpoint.deadline_seconds, timeout, metadata, caller)
    call.validated = validated
    return endpoint.invoke(request, call)
