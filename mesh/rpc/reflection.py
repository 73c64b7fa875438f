"""Server reflection, under its present name and the one before it.

`grpc.reflection.v1` has the messages of `grpc.reflection.v1alpha`, field by field; some
clients ask for the one, some for the other, and some for the one after the other.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from mesh.errors import WeftError
from mesh.rpc.propagation import AUTHORIZATION_KEY, incoming_call
from mesh.rpc.status import code_of
from mesh.security.authenticator import Authenticator

_ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"
_METHOD = "ServerReflectionInfo"
SECONDS_MAX = 60.0
"""Longest time that a client's questions may take."""
STREAMS_MAX = 64
SERVICES = (f"{_ALPHA}.ServerReflection", f"{_V1}.ServerReflection")


def add_reflection(
    services: Iterable[str], server: grpc.aio.Server, authenticator: Authenticator
) -> None:
    """Lets clients with a valid credential ask `server` for its services, given by full
    name, and their files."""
    pool: Any = _Files()
    servicer: Any = reflection.aio.ReflectionServicer([*services, *SERVICES], pool=pool)

    open_streams = asyncio.Semaphore(STREAMS_MAX)

    async def answer(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        if open_streams.locked():
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many ask at once")
        async with open_streams:
            async for response in answered(requests, context):
                yield response

    async def answered(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        call = incoming_call(
            _METHOD,
            SECONDS_MAX,
            context.time_remaining(),
            context.invocation_metadata(),
            context.peer(),
            SECONDS_MAX,
        )
        try:
            authenticator.authenticate(call.metadata.get(AUTHORIZATION_KEY, ""))
            async with asyncio.timeout(call.remaining_seconds()):
                async for response in servicer.ServerReflectionInfo(requests, context):
                    yield response
        except WeftError as error:
            await context.abort(code_of(error), error.message)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the call's deadline passed")

    handler = grpc.stream_stream_rpc_method_handler(
        answer,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, {_METHOD: handler}) for name in SERVICES]
    )


_pools: Any = descriptor_pool  # its functions have no types


class _Files:
    """The default pool, and what a client may ask for that it doesn't find: the file of
    a method, and that of `grpc.reflection.v1` itself."""

    def __init__(self) -> None:
        self._pool = _pools.Default()
        self._own = _pools.DescriptorPool()
        self._own.Add(_v1_file())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileByName(self, name: str) -> Any:  # noqa: N802 - the pool's name
        """As of the pool; KeyError where there is none."""
        try:
            return self._pool.FindFileByName(name)
        except KeyError:
            return self._own.FindFileByName(name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802
        """As of the pool, also for a method's full name; KeyError where there is none."""
        for pool in (self._pool, self._own):
            for find in (pool.FindFileContainingSymbol, partial(_file_of_method, pool)):
                try:
                    return find(symbol)
                except KeyError:
                    continue
        raise KeyError(symbol)


def _file_of_method(pool: Any, name: str) -> Any:
    return pool.FindMethodByName(name).containing_service.file


def _v1_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    file.ParseFromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    file.name = file.name.replace("v1alpha", "v1")
    file.package = _V1
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(_ALPHA, _V1)
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(_ALPHA, _V1)
        method.output_type = method.output_type.replace(_ALPHA, _V1)
    return file
