"""Methods of the contracts, read from their descriptors."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from mesh.call import Call
from mesh.errors import FieldViolation
from mesh.rpc.validation import violations_of
from weft.options.v1 import options_pb2

Handler = Callable[[Any, Call], Any]
"""Answers a request: a coroutine function for a unary method, else an async generator
function. A client's stream is an async iterator in the request's place."""

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Malformed:
    """Stands for a request whose bytes don't parse, until the pipeline refuses it.

    Whatever reads a request before it was validated must refuse this first.
    """


MALFORMED = Malformed()


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One method of a contract.

    `path` is `/package.Service/Method`; `attribute` is the name of the handler's
    method, in snake case. `idempotency` is a value of
    `google.protobuf.MethodOptions.IdempotencyLevel`.
    """

    path: str
    service: str
    name: str
    attribute: str
    request_class: type[Message]
    response_class: type[Message]
    client_streaming: bool
    server_streaming: bool
    policy: options_pb2.MethodPolicy
    idempotency: int
    violations: Callable[[Message], list[FieldViolation]]

    def decode(self, data: bytes) -> Message | Malformed:
        """The request in `data`; MALFORMED where it isn't one."""
        try:
            return self.request_class.FromString(data)
        except DecodeError:
            return MALFORMED


def service_of(full_name: str) -> ServiceDescriptor:
    """The contract of that full name; its generated module must have been imported.

    Raises LookupError where there is none.
    """
    pool: Any = descriptor_pool
    found: ServiceDescriptor = pool.Default().FindServiceByName(full_name)
    return found


@cache
def methods_of(service: ServiceDescriptor) -> tuple[MethodSpec, ...]:
    """The methods of a contract, in the order in which it declares them."""
    return tuple(_spec(method) for method in service.methods)


@cache
def method_of(path: str) -> MethodSpec:
    """The method at `/package.Service/Method`; LookupError where there is none."""
    service, _, name = path.removeprefix("/").partition("/")
    for spec in methods_of(service_of(service)):
        if spec.name == name:
            return spec
    raise LookupError(path)


def snake_case(name: str) -> str:
    """`GetAgent` as `get_agent`, `ListHTTPRoutes` as `list_http_routes`."""
    return _WORD_START.sub("_", name).lower()


def _spec(method: MethodDescriptor) -> MethodSpec:
    options: Any = method.GetOptions()
    service = method.containing_service.full_name
    return MethodSpec(
        path=f"/{service}/{method.name}",
        service=service,
        name=method.name,
        attribute=snake_case(method.name),
        request_class=message_factory.GetMessageClass(method.input_type),
        response_class=message_factory.GetMessageClass(method.output_type),
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
        policy=options.Extensions[options_pb2.policy],
        idempotency=options.idempotency_level,
        violations=violations_of(method.input_type),
    )
