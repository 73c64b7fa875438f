"""Server reflection, under its present name and the one before it.

`grpc.reflection.v1` has the messages of `grpc.reflection.v1alpha`, field by field; some
clients ask for the one, some for the other, and some for the one after the other.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from mesh.call import Call
from mesh.rpc.methods import method_of
from mesh.rpc.open_methods import REFLECTION
from mesh.rpc.pipeline import Endpoint, Pipeline
from mesh.rpc.settings import RpcSettings

_ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"

PROMPT_MAX = 500
"""Questions of one stream that are answered as they come."""
PAUSE_SECONDS = 0.02
"""What each further one waits: a stream counts once for the rate of its caller."""


def reflection_endpoints(
    services: Iterable[str], pipeline: Pipeline, settings: RpcSettings
) -> dict[str, Endpoint]:
    """The endpoints, by path, at which clients with a valid credential ask for the services,
    given by full name, and their files."""
    spec = method_of(REFLECTION[0])
    pool: Any = _Files()
    names = [path.split("/")[1] for path in REFLECTION]
    servicer: Any = reflection.aio.ReflectionServicer([*services, *names], pool=pool)

    async def answer(requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        async for response in servicer.ServerReflectionInfo(_paced(requests), None):
            yield response

    endpoints = {}
    for path, name in zip(REFLECTION, names, strict=True):
        own = replace(spec, path=path, service=name)
        seconds = settings.stream_deadline_seconds
        endpoints[path] = Endpoint(own, pipeline.around(own, answer), seconds)
    return endpoints


async def _paced(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    asked = 0
    async for request in requests:
        asked += 1
        if asked > PROMPT_MAX:
            await asyncio.sleep(PAUSE_SECONDS)
        yield request


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
