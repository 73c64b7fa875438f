"""What only the wire has: bytes, sizes, health, reflection, ports, draining."""

import asyncio
import gc
import json
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mesh import errors
from mesh.rpc import reflection as reflection_module
from mesh.rpc.channel import RemoteChannel
from mesh.rpc.pipeline import bind
from mesh.rpc.server import RpcServer
from mesh.rpc.settings import RpcSettings
from mesh.rpc.status import from_rpc_error
from tests.support.edge import pipeline
from tests.support.rpc_service import SmallService
from weft.agents.v1 import turn_service_pb2
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb
from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

GET = "/weft.vectors.v1.VectorService/GetCollection"
UPSERT = "/weft.vectors.v1.VectorService/UpsertDocuments"
RUN = "/weft.agents.v1.TurnService/RunTurn"
NAME = "tenants/default/collections/docs"
REQUEST = pb.GetCollectionRequest(name=NAME).SerializeToString()
TURN = turn_service_pb2.RunTurnRequest(
    session="tenants/default/agents/bot/sessions/s1", input="one wait"
).SerializeToString()
ROUNDS_MAX = 20
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def new_server(service: SmallService, **settings: Any) -> RpcServer:
    bounds = RpcSettings(**settings)
    around = pipeline(bounds)
    return RpcServer(bind(service.handlers, around, bounds), bounds, around)


def dialled(port: int) -> Any:
    """A channel without our client side, which sends and gives raw bytes."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}")


@pytest.fixture
def service() -> SmallService:
    return SmallService()


@pytest.fixture
async def server(service: SmallService) -> AsyncIterator[RpcServer]:
    server = new_server(service)
    yield server
    await server.stop()


@pytest.fixture
async def channel(server: RpcServer) -> AsyncIterator[Any]:
    port = await server.start("127.0.0.1", 0)
    async with dialled(port) as channel:
        yield channel


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x05ab", b"\x0a\x01\xff"])
async def test_bytes_that_do_not_parse_are_an_invalid_argument(channel: Any, data: bytes) -> None:
    error = await refusal(channel.unary_unary(GET)(data, timeout=5))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "weft.vectors.v1.GetCollectionRequest" in from_rpc_error(error).message


async def test_bytes_that_do_not_parse_are_refused_by_a_stream_too(
    channel: Any,
) -> None:
    error = await refusal(anext(aiter(channel.unary_stream(RUN)(b"\xff", timeout=5))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "path", ["/weft.vectors.v1.VectorService/Nothing", "/weft.nothing.v1.Nothing/Get"]
)
async def test_a_method_that_is_not_there_is_unimplemented(channel: Any, path: str) -> None:
    error = await refusal(channel.unary_unary(path)(b"", timeout=5))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_bound_is_refused(channel: Any) -> None:
    documents = [collections_pb2.Document(uri=f"{n}", text="a" * (1 << 20)) for n in range(5)]
    request = pb.UpsertDocumentsRequest(name=NAME, documents=documents).SerializeToString()
    error = await refusal(channel.unary_unary(UPSERT)(request, timeout=5))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_metadata_over_the_bound_is_refused(channel: Any) -> None:
    metadata = (("x-large", "a" * 20_000),)
    error = await refusal(channel.unary_unary(GET)(REQUEST, timeout=5, metadata=metadata))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_request_id_comes_back(channel: Any, service: SmallService) -> None:
    service.vectors.collections[NAME] = collections_pb2.Collection(name=NAME)
    metadata = (("x-request-id", "mine-1"),)
    call = channel.unary_unary(GET)(REQUEST, timeout=5, metadata=metadata)
    await call
    assert (await call.trailing_metadata())["x-request-id"] == "mine-1"
    error = await refusal(channel.unary_unary(GET)(b"", timeout=5, metadata=metadata))
    assert error.trailing_metadata()["x-request-id"] == "mine-1"


async def test_a_client_without_a_deadline_gets_one(channel: Any, service: SmallService) -> None:
    service.vectors.collections[NAME] = collections_pb2.Collection(name=NAME)
    await channel.unary_unary(GET)(REQUEST)
    assert 0 < service.vectors.calls[0].remaining_seconds() <= 5


READ_ONE_AND_HANG = f"""
import grpc, sys, time
channel = grpc.insecure_channel(sys.argv[1])
stream = channel.unary_stream({RUN!r})({TURN!r})
print(next(stream), flush=True)
time.sleep(60)
"""


async def test_a_client_that_dies_closes_the_stream(
    server: RpcServer, service: SmallService
) -> None:
    port = await server.start("127.0.0.1", 0)
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", READ_ONE_AND_HANG, f"127.0.0.1:{port}"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert client.stdout is not None
    assert await asyncio.wait_for(client.stdout.readline(), 20)
    assert not service.turns.closed.is_set()
    client.kill()
    await client.wait()
    await asyncio.wait_for(service.turns.closed.wait(), 5)


async def test_a_client_that_does_not_read_is_bound_by_the_deadline(
    service: SmallService,
) -> None:
    server = new_server(service, stream_deadline_seconds=0.3)
    port = await server.start("127.0.0.1", 0)
    words = turn_service_pb2.RunTurnRequest(
        session="tenants/default/agents/bot/sessions/s1", input="word " * 50_000
    )
    async with dialled(port) as channel:
        stream = channel.unary_stream(RUN)(words.SerializeToString())
        await anext(aiter(stream))
        await asyncio.wait_for(service.turns.closed.wait(), 10)
        assert len(service.turns.calls) < 50_000
        stream.cancel()
    await server.stop()


async def test_streams_over_the_bound_of_open_ones_are_told_when_to_try_again(
    service: SmallService,
) -> None:
    server = new_server(service, concurrent_streams_max=1)
    port = await server.start("127.0.0.1", 0)
    async with dialled(port) as channel:
        stream = channel.unary_stream(RUN)(TURN, timeout=5)
        await anext(aiter(stream))
        error = await refusal(anext(aiter(channel.unary_stream(RUN)(TURN, timeout=5))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert from_rpc_error(error).retry_seconds
        # A watcher keeps no call out.
        error = await refusal(channel.unary_unary(GET)(REQUEST, timeout=5))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        stream.cancel()
    await server.stop()


@pytest.fixture
def no_garbage_is_looked_for() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_is_looked_for")
async def test_calls_that_ended_keep_no_place_on_their_connection(service: SmallService) -> None:
    places = 32
    server = new_server(service, connection_streams_max=places)
    port = await server.start("127.0.0.1", 0)
    async with dialled(port) as channel:
        for _ in range(2 * places):
            error = await refusal(channel.unary_unary(GET)(REQUEST, timeout=5))
            assert error.code() is grpc.StatusCode.NOT_FOUND
            error = await refusal(channel.unary_unary(GET)(b"\xff\xff", timeout=5))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            stream = channel.unary_stream(RUN)(TURN, timeout=5)
            await anext(aiter(stream))
            stream.cancel()
    await server.stop()


async def test_a_client_that_tries_refused_calls_again_may(
    server: RpcServer, service: SmallService
) -> None:
    port = await server.start("127.0.0.1", 0)
    again = {
        "maxAttempts": 3,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.01s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["NOT_FOUND"],
    }
    configuration = {"methodConfig": [{"name": [{}], "retryPolicy": again}]}
    options = [("grpc.service_config", json.dumps(configuration))]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        get: Any = channel.unary_unary(GET)
        error = await refusal(get(REQUEST, timeout=5))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert len(service.vectors.calls) == 3


async def test_too_many_entries_of_metadata_are_an_invalid_argument(channel: Any) -> None:
    metadata = tuple((f"x-{number}", "") for number in range(70))
    error = await refusal(channel.unary_unary(GET)(REQUEST, timeout=5, metadata=metadata))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert from_rpc_error(error).violations[0].field == "metadata"


async def test_two_servers_do_not_share_a_port(server: RpcServer, service: SmallService) -> None:
    port = await server.start("127.0.0.1", 0)
    other = new_server(service)
    other_port = await other.start("127.0.0.1", port)
    assert other_port > port
    await other.stop()


@pytest.mark.parametrize("name", ["", "weft.vectors.v1.VectorService"])
async def test_health_is_told_overall_and_per_service(channel: Any, name: str) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    response = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
    assert response.status == SERVING


async def test_health_of_an_unknown_service_is_not_found(channel: Any) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    error = await refusal(health.Check(health_pb2.HealthCheckRequest(service="x"), timeout=5))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_drain_tells_health_and_lets_calls_end(
    channel: Any, server: RpcServer, service: SmallService
) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    watch = aiter(health.Watch(health_pb2.HealthCheckRequest(), timeout=10))
    assert (await anext(watch)).status == SERVING
    stream = channel.unary_stream(RUN)(TURN, timeout=10)
    await anext(aiter(stream))
    draining = asyncio.create_task(server.drain(notice_seconds=0.1, grace_seconds=0.2))
    assert (await anext(watch)).status == NOT_SERVING
    assert not service.turns.closed.is_set()
    await draining
    await asyncio.wait_for(service.turns.closed.wait(), 5)
    assert await stream.code() is not grpc.StatusCode.OK


async def test_what_comes_in_a_servers_last_moment_is_unavailable_to_ours(
    service: SmallService,
) -> None:
    """gRPC itself answers it with CANCELLED, which nobody may take for the caller's own word."""
    refused: list[errors.WeftError] = []
    foreign: list[str] = []

    async def calls(channel: RemoteChannel) -> None:
        stub: Any = VectorServiceStub(channel)  # type: ignore[call-overload]
        wanted = pb.SearchRequest(name=NAME, query="a")
        while True:
            try:
                await stub.Search(wanted)
            except errors.WeftError as error:
                refused.append(error)
                foreign.append(error.metadata.get("grpc_code", ""))
                return

    for _ in range(ROUNDS_MAX):
        server = new_server(service)
        channel = RemoteChannel(f"127.0.0.1:{await server.start('127.0.0.1', 0)}", RpcSettings())
        calling = [asyncio.create_task(calls(channel)) for _ in range(40)]
        await asyncio.sleep(0.1)
        await server.drain(notice_seconds=0, grace_seconds=5)
        await asyncio.wait_for(asyncio.gather(*calling), 10)
        await channel.close()
        if "CANCELLED" in foreign:
            break
    assert "CANCELLED" in foreign, "gRPC does better by now: this can go"
    assert {type(error) for error in refused} == {errors.Unavailable}


async def reflected(channel: Any, **fields: Any) -> Any:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(**fields)
    return await anext(aiter(stub.ServerReflectionInfo(iter([request]), timeout=5)))


async def test_reflection_lists_all_services(channel: Any) -> None:
    response = await reflected(channel, list_services="")
    assert {service.name for service in response.list_services_response.service} == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "weft.agents.v1.TurnService",
        "weft.vectors.v1.VectorService",
    }


@pytest.mark.parametrize(
    "symbol",
    [
        "weft.vectors.v1.VectorService",
        "weft.vectors.v1.VectorService.Search",
        "weft.vectors.v1.SearchRequest",
    ],
)
async def test_reflection_describes_services_and_messages_with_all_they_need(
    channel: Any, symbol: str
) -> None:
    response = await reflected(channel, file_containing_symbol=symbol)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(file)
        for file in response.file_descriptor_response.file_descriptor_proto
    ]
    names = {file.name for file in files}
    assert "weft/vectors/v1/vector_service.proto" in names
    assert {needed for file in files for needed in file.dependency} <= names


async def test_many_questions_on_one_stream_are_answered_more_slowly(
    channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflection_module, "PROMPT_MAX", 3)
    monkeypatch.setattr(reflection_module, "PAUSE_SECONDS", 60.0)
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")] * 5
    answers = aiter(stub.ServerReflectionInfo(iter(requests), timeout=1))
    for _ in range(3):
        await anext(answers)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await anext(answers)
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
