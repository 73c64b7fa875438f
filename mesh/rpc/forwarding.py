"""Implements contracts by calling them where they are served."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from mesh.call import Call
from mesh.errors import PermissionDenied
from mesh.rpc.local import StubChannel
from mesh.rpc.methods import Handler, methods_of


def forwarded(contract: ServiceDescriptor, channel: StubChannel) -> object:
    """An implementation of the contract that makes each call anew through `channel`, with the
    caller's principal, deadline and trace. What is answered there is answered here.

    Only calls from outside are made anew. Whoever has an identity calls who answers: else the
    identity would be signed again here, and so never end. PermissionDenied.
    """
    handlers: dict[str, Handler] = {}
    for spec in methods_of(contract):
        kind = _stream if spec.server_streaming else _unary
        handlers[spec.attribute] = kind(channel.callable_of(spec.path))
    return SimpleNamespace(**handlers)


def _unary(remote: Callable[..., Any]) -> Handler:
    async def handler(request: Any, call: Call) -> Any:
        _check_from_outside(call)
        return await remote(request)

    return handler


def _stream(remote: Callable[..., Any]) -> Handler:
    async def handler(request: Any, call: Call) -> AsyncGenerator[Any, None]:
        _check_from_outside(call)
        async with aclosing(remote(request)) as messages:
            async for message in messages:
                yield message

    return handler


def _check_from_outside(call: Call) -> None:
    if call.caller or call.relayed_by:
        raise PermissionDenied("this process hands on calls from outside only")
