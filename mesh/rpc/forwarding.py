"""Implements contracts by calling them where they are served."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from mesh.call import Call
from mesh.rpc.local import StubChannel
from mesh.rpc.methods import Handler, methods_of


def forwarded(contract: ServiceDescriptor, channel: StubChannel) -> object:
    """An implementation of the contract that makes each call anew through `channel`, with the
    caller's principal, deadline and trace. What is answered there is answered here."""
    handlers: dict[str, Handler] = {}
    for spec in methods_of(contract):
        kind = _stream if spec.server_streaming else _unary
        handlers[spec.attribute] = kind(channel.callable_of(spec.path))
    return SimpleNamespace(**handlers)


def _unary(remote: Callable[..., Any]) -> Handler:
    async def handler(request: Any, call: Call) -> Any:
        return await remote(request)

    return handler


def _stream(remote: Callable[..., Any]) -> Handler:
    async def handler(request: Any, call: Call) -> AsyncGenerator[Any, None]:
        async with aclosing(remote(request)) as messages:
            async for message in messages:
                yield message

    return handler
