"""Asks a gRPC server for the description of a service.

The protocol is `grpc.reflection.v1` (grpc/grpc, doc/server-reflection.md), of which
`v1alpha` has the same messages; servers offer either or both. Each question is a call of
its own, with one request and one response: on the wire that is a short stream, and unlike
a long one it tells reliably why it failed.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2

from mesh.errors import FailedPrecondition, LimitExceeded, NotFound, ToolUnavailable
from services.tools.grpc_credentials import NOT_TRUSTED, is_not_trusted

_PATHS = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    for version in ("v1", "v1alpha")
)
_Method: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]"
_Request = reflection_pb2.ServerReflectionRequest
_Response = reflection_pb2.ServerReflectionResponse


@dataclass(frozen=True, slots=True)
class ReflectionBounds:
    """What a server may take and send to describe a service."""

    seconds: float
    files_max: int
    bytes_max: int

    def check(self, files: int, size: int) -> None:
        """LimitExceeded where that is more than it may be."""
        if files > self.files_max or size > self.bytes_max:
            raise LimitExceeded(
                f"a method may be described by at most {self.files_max} files "
                f"of {self.bytes_max} bytes together"
            )


class _Unknown(Exception):
    """The server doesn't know the symbol or the file."""


async def describe_service(
    channel: grpc.aio.Channel,
    address: str,
    service: str,
    bounds: ReflectionBounds,
    metadata: Sequence[tuple[str, str]] = (),
) -> descriptor_pb2.FileDescriptorSet:
    """The files that describe `service`, each after those that it imports. `metadata` goes
    with each question.

    Raises NotFound where the server doesn't know the service, FailedPrecondition where
    it offers no reflection or describes itself in a way that can't be understood,
    ToolUnavailable where it can't be reached in time, LimitExceeded past `bounds`.
    """
    deadline = time.monotonic() + bounds.seconds
    for path in _PATHS:
        method: _Method = channel.unary_unary(
            path,
            request_serializer=_Request.SerializeToString,
            response_deserializer=_Response.FromString,
        )
        try:
            return await _Files(method, bounds, deadline, metadata).of_service(service)
        except grpc.aio.AioRpcError as error:
            if is_not_trusted(error):
                raise ToolUnavailable(f"the server at {address} {NOT_TRUSTED}") from None
            _raise_unless_unimplemented(error.code(), address)
        except _Unknown:
            raise NotFound(
                f"the server at {address} has no service {service}", metadata={"resource": service}
            ) from None
        except DecodeError as error:
            raise FailedPrecondition(
                f"the server at {address} describes itself in no way that can be read"
            ) from error
    raise FailedPrecondition(
        f"the server at {address} doesn't offer gRPC reflection; switch it on to use its methods"
    )


def build_pool(files: descriptor_pb2.FileDescriptorSet) -> Any:
    """A DescriptorPool of these files alone; FailedPrecondition where they don't fit
    together. Its published types know none of its methods, hence Any."""
    pool: Any = descriptor_pool.DescriptorPool()
    try:
        for file in files.file:
            pool.Add(file)
    except TypeError as error:
        raise FailedPrecondition("the server's description of itself is broken") from error
    return pool


def _raise_unless_unimplemented(code: grpc.StatusCode, address: str) -> None:
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        raise ToolUnavailable(f"no gRPC server answers at {address}")
    if code is not grpc.StatusCode.UNIMPLEMENTED:
        raise FailedPrecondition(f"the server at {address} refused to describe itself: {code.name}")


class _Files:
    """The files that the questions have brought so far."""

    def __init__(
        self,
        method: _Method,
        bounds: ReflectionBounds,
        deadline: float,
        metadata: Sequence[tuple[str, str]],
    ) -> None:
        self._method = method
        self._metadata = list(metadata)
        self._bounds = bounds
        self._deadline = deadline
        self._bytes = 0
        self._files: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    async def of_service(self, service: str) -> descriptor_pb2.FileDescriptorSet:
        first = await self._ask(_Request(file_containing_symbol=service))
        missing = [name for file in first for name in file.dependency]
        while missing:
            name = missing.pop()
            if name not in self._files:
                for file in await self._named(name):
                    missing.extend(file.dependency)
        seen: set[str] = set()
        ordered = [file for name in self._files for file in self._in_order(name, seen)]
        return descriptor_pb2.FileDescriptorSet(file=ordered)

    async def _named(self, name: str) -> list[descriptor_pb2.FileDescriptorProto]:
        try:
            return await self._ask(_Request(file_by_filename=name))
        except _Unknown:
            # Some servers don't describe the files that every protobuf library brings.
            own = descriptor_pb2.FileDescriptorProto()
            known: Any = descriptor_pool
            try:
                known.Default().FindFileByName(name).CopyToProto(own)
            except KeyError:
                raise FailedPrecondition(f"the server doesn't describe {name[:256]}") from None
            self._files[name] = own
            return [own]

    async def _ask(self, request: _Request) -> list[descriptor_pb2.FileDescriptorProto]:
        """The files that the server sends, of which not all need be new."""
        # None where the answer can't be parsed: grpc logs it and says no more.
        response: _Response | None = await self._method(
            request, timeout=self._deadline - time.monotonic(), metadata=self._metadata
        )
        if response is None:
            raise DecodeError("no answer of gRPC reflection")
        if response.HasField("error_response"):
            raise _Unknown
        new = []
        for data in response.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            if file.name not in self._files:
                self._bytes += len(data)
                self._files[file.name] = file
                new.append(file)
        self._bounds.check(len(self._files), self._bytes)
        return new

    def _in_order(self, name: str, seen: set[str]) -> Iterator[descriptor_pb2.FileDescriptorProto]:
        """The file behind those that it imports, without those that were `seen`."""
        if name in seen or name not in self._files:
            return
        seen.add(name)
        for dependency in self._files[name].dependency:
            yield from self._in_order(dependency, seen)
        yield self._files[name]
