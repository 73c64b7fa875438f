"""What a server says of its own services (gRPC server reflection, v1alpha)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mesh.cli.connection import CALL_SECONDS, Client

if TYPE_CHECKING:
    from google.protobuf import descriptor_pb2
    from google.protobuf.descriptor import ServiceDescriptor
    from grpc_reflection.v1alpha import reflection_pb2

FILES_MAX = 2_000
"""Most files that a service may be described by."""


def list_services(client: Client) -> list[str]:
    """Full names of the server's services. RpcError (UNIMPLEMENTED) without reflection."""
    from grpc_reflection.v1alpha import reflection_pb2 as pb

    answer = _ask(client, pb.ServerReflectionRequest(list_services=""))
    return sorted(service.name for service in answer.list_services_response.service)


def describe_service(client: Client, service: str) -> "ServiceDescriptor | None":
    """The service by its full name, with all its types; None where the server has none."""
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha import reflection_pb2 as pb

    found = _files(_ask(client, pb.ServerReflectionRequest(file_containing_symbol=service)))
    files = {file.name: file for file in found}
    missing = _missing(files)
    while missing and len(files) < FILES_MAX:
        answer = _ask(client, pb.ServerReflectionRequest(file_by_filename=missing[0]))
        before = len(files)
        files.update((file.name, file) for file in _files(answer))
        if len(files) == before:
            return None
        missing = _missing(files)
    pool = DescriptorPool()
    for file in files.values():
        pool.Add(file)  # type: ignore[no-untyped-call]
    try:
        found_service: ServiceDescriptor = pool.FindServiceByName(service)  # type: ignore[no-untyped-call]
    except KeyError:
        return None
    return found_service


def _ask(
    client: Client, request: "reflection_pb2.ServerReflectionRequest"
) -> "reflection_pb2.ServerReflectionResponse":
    from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

    stub: ServerReflectionStub = client.stub(ServerReflectionStub)
    timeout = client.remaining_seconds(CALL_SECONDS)
    answers = stub.ServerReflectionInfo(iter([request]), timeout=timeout)  # type: ignore[operator]
    answer: reflection_pb2.ServerReflectionResponse = next(iter(answers))
    return answer


def _files(
    answer: "reflection_pb2.ServerReflectionResponse",
) -> "Iterator[descriptor_pb2.FileDescriptorProto]":
    from google.protobuf import descriptor_pb2

    for data in answer.file_descriptor_response.file_descriptor_proto:
        yield descriptor_pb2.FileDescriptorProto.FromString(data)


def _missing(files: "dict[str, descriptor_pb2.FileDescriptorProto]") -> list[str]:
    needed = {name for file in files.values() for name in file.dependency}
    return sorted(needed - files.keys())
