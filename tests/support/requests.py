"""Requests made from the bounds that contracts state, and calls of any method."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from mesh.rpc.methods import MethodSpec
from mesh.rpc.status import is_send_failed
from weft.options.v1 import options_pb2

CALL_SECONDS = 20.0
ATTEMPTS_MAX = 10
TEXTS = ("x1", "agents.get", "agents.*", "text", "builtin/extractive", "{}", "instances/x1")
"""One of them matches every pattern that a required field has."""


def bounds_of(field: FieldDescriptor) -> options_pb2.FieldBounds:
    """The bounds of a field."""
    extensions: Any = field.GetOptions()
    bounds: options_pb2.FieldBounds = extensions.Extensions[options_pb2.bounds]
    return bounds


def filled(spec: MethodSpec, tenant: str) -> Any:
    """A request of the method with all that is required, and every resource that it may
    name, in the tenant of that id."""
    request = spec.request_class()
    _fill(request, tenant)
    return request


def _fill(message: Any, tenant: str) -> None:
    for field in message.DESCRIPTOR.fields:
        bounds = bounds_of(field)
        if bounds.resource or bounds.resource_pattern:
            name = resource_name(bounds, tenant)
            if field.is_repeated:
                getattr(message, field.name).append(name)
            else:
                setattr(message, field.name, name)
        elif bounds.required or field.name == "records":
            _fill_required(message, field, bounds, tenant)


def _fill_required(
    message: Any, field: FieldDescriptor, bounds: options_pb2.FieldBounds, tenant: str
) -> None:
    if field.message_type is not None:
        inner = getattr(message, field.name)
        inner = inner.add() if field.is_repeated else inner
        inner.SetInParent()
        _fill(inner, tenant)
        return
    if field.type == FieldDescriptor.TYPE_STRING:
        value: Any = next(
            text for text in TEXTS if not bounds.pattern or re.fullmatch(bounds.pattern, text)
        )
    elif field.enum_type is not None:
        value = max(field.enum_type.values_by_number)
    elif field.type == FieldDescriptor.TYPE_BYTES:
        value = b"x"
    else:
        value = max(1, bounds.minimum)
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def resource_name(bounds: options_pb2.FieldBounds, tenant: str) -> str:
    """A name that the bounds allow, in the tenant."""
    if bounds.resource_pattern:
        return f"tenants/{tenant}/agents/x1"
    collection, _, *rest = bounds.resource.split("|")[0].split("/")
    return "/".join([collection, tenant, *("x1" if part == "*" else part for part in rest)])


def resource_fields(message_type: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all fields of a message type that name resources."""
    for field in message_type.fields:
        bounds = bounds_of(field)
        inner = field.message_type
        if bounds.resource or bounds.resource_pattern:
            yield (*path, field.name)
        elif inner is not None and inner.full_name.startswith("weft.") and len(path) < 4:
            yield from resource_fields(inner, (*path, field.name))


def field_at(message_type: Any, path: Sequence[str]) -> FieldDescriptor:
    """The field at a path."""
    for part in path[:-1]:
        message_type = message_type.fields_by_name[part].message_type
    found: FieldDescriptor = message_type.fields_by_name[path[-1]]
    return found


def put(message: Any, path: Sequence[str], value: str) -> None:
    """Sets the field at a path; the first entry of lists on the way."""
    for part in path[:-1]:
        inner = getattr(message, part)
        if hasattr(inner, "add"):
            inner = inner[0] if inner else inner.add()
        else:
            inner.SetInParent()
        message = inner
    if hasattr(getattr(message, path[-1]), "append"):
        del getattr(message, path[-1])[:]
        if value:
            getattr(message, path[-1]).append(value)
    else:
        setattr(message, path[-1], value)


async def outcome(
    channel: grpc.aio.Channel,
    spec: MethodSpec,
    request: Message | bytes,
    metadata: Sequence[tuple[str, str | bytes]] = (),
    seconds: float = CALL_SECONDS,
) -> grpc.StatusCode:
    """How a call ends; of a stream, OK with its first message. Made again where grpc.aio ends a
    stream by itself: the server refused it before the client's message was sent, and what it
    said isn't told."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    method: Any = kinds[spec.client_streaming, spec.server_streaming](spec.path)
    for _ in range(ATTEMPTS_MAX):
        sent: Any = iter([data]) if spec.client_streaming else data
        call = method(sent, metadata=tuple(metadata), timeout=seconds)
        try:
            if spec.server_streaming:
                async for _message in call:
                    break
                call.cancel()
            else:
                await call
        except grpc.aio.AioRpcError as error:
            if not (spec.client_streaming and is_send_failed(error)):
                return error.code()
        else:
            return grpc.StatusCode.OK
    raise AssertionError(f"{spec.path}: no message of {ATTEMPTS_MAX} calls could be sent")
