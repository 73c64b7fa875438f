"""Parses requests that came over the wire, once it is known who sends them.

A few bytes can make many messages: parsing costs far more memory than receiving, and
whom nobody knows is refused before it.
"""

from collections.abc import AsyncIterator
from typing import Any

from mesh.call import Call
from mesh.rpc.methods import Handler, MethodSpec


class Decode:
    """Hands on a message, or MALFORMED, where a request is still bytes. Calls within the
    process bring messages."""

    def unary(self, spec: MethodSpec, inner: Handler) -> Handler:
        def decoded(request: Any, call: Call) -> Any:
            return inner(spec.decode(request) if type(request) is bytes else request, call)

        async def parsed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
            async for request in requests:
                yield spec.decode(request) if type(request) is bytes else request

        def decoded_stream(requests: AsyncIterator[Any], call: Call) -> Any:
            return inner(parsed(requests), call)

        return decoded_stream if spec.client_streaming else decoded

    stream = unary
