"""Refuses requests that don't parse or break the bounds of their fields."""

from collections.abc import AsyncIterator
from typing import Any

from mesh.call import Call
from mesh.errors import InvalidArgument
from mesh.rpc.methods import MALFORMED, Handler, MethodSpec


class Validate:
    """Raises InvalidArgument with what is wrong with the request.

    Requests of a client's stream are checked as they come.
    """

    def unary(self, spec: MethodSpec, inner: Handler) -> Handler:
        return self._wrapped(spec, inner)

    def stream(self, spec: MethodSpec, inner: Handler) -> Handler:
        return self._wrapped(spec, inner)

    def _wrapped(self, spec: MethodSpec, inner: Handler) -> Handler:
        async def checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
            async for request in requests:
                _check(spec, request)
                yield request

        # Neither is a coroutine or generator itself: what `inner` returns is passed on,
        # so that this layer costs a stream's messages nothing.
        def validated(request: Any, call: Call) -> Any:
            if not call.validated:
                _check(spec, request)
            return inner(request, call)

        def validated_stream(requests: AsyncIterator[Any], call: Call) -> Any:
            return inner(checked(requests), call)

        return validated_stream if spec.client_streaming else validated


def _check(spec: MethodSpec, request: Any) -> None:
    if request is MALFORMED:
        name = spec.request_class.DESCRIPTOR.full_name
        raise InvalidArgument.of("request", f"its bytes aren't a {name}")
    violations = spec.violations(request)
    if violations:
        text = "; ".join(f"{item.field}: {item.description}" for item in violations)
        raise InvalidArgument(text, violations=violations)
