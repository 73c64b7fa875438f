"""What a caller sees of a handler: the same in this process and over gRPC."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from mesh import errors
from mesh.call import Call, current_call
from mesh.clock import SYSTEM
from mesh.errors import FieldViolation
from mesh.rpc import channel as channel_module
from mesh.rpc.channel import MeshChannel, RemoteChannel
from mesh.rpc.forwarding import forwarded
from mesh.rpc.local import LocalChannel, StubChannel
from mesh.rpc.methods import service_of
from mesh.rpc.pipeline import Endpoint, bind
from mesh.rpc.server import RpcServer
from mesh.rpc.settings import RpcSettings
from tests.support.edge import pipeline
from tests.support.rpc_service import SmallService
from weft.agents.v1 import turn_service_pb2
from weft.agents.v1.turn_service_pb2_grpc import TurnServiceStub
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb
from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

NAME = "tenants/default/collections/docs"
SESSION = "tenants/default/agents/bot/sessions/s1"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SETTINGS = RpcSettings()
# gRPC sends timeouts in steps that grow with their length.
WIRE_ROUNDING_SECONDS = 0.1


class Path:
    """A way to the handlers of a small service, with its metrics."""

    def __init__(self, channel: StubChannel, service: SmallService, registry: CollectorRegistry):
        self.service = service
        self.registry = registry
        self.vectors: Any = VectorServiceStub(channel)  # type: ignore[call-overload]
        self.turns: Any = TurnServiceStub(channel)  # type: ignore[call-overload]

    def ended(self, method: str, code: str) -> float:
        labels = {"service": "weft.vectors.v1.VectorService", "method": method, "code": code}
        return self.registry.get_sample_value("weft_rpc_calls_total", labels) or 0

    async def create(self) -> None:
        await self.vectors.CreateCollection(
            pb.CreateCollectionRequest(
                parent="tenants/default", collection_id="docs", description="papers"
            )
        )


def bound(service: SmallService, registry: CollectorRegistry) -> dict[str, Endpoint]:
    return bind(service.handlers, pipeline(SETTINGS, registry=registry), SETTINGS)


@pytest.fixture(params=["local", "wire"])
async def path(request: pytest.FixtureRequest) -> AsyncIterator[Path]:
    service, registry = SmallService(), CollectorRegistry()
    endpoints = bound(service, registry)
    if request.param == "local":
        yield Path(LocalChannel(endpoints), service, registry)
        return
    server = RpcServer(endpoints, SETTINGS, pipeline(SETTINGS))
    channel = RemoteChannel(f"127.0.0.1:{await server.start('127.0.0.1', 0)}", SETTINGS)
    yield Path(channel, service, registry)
    await channel.close()
    await server.stop()


def turn(words: str) -> turn_service_pb2.RunTurnRequest:
    return turn_service_pb2.RunTurnRequest(session=SESSION, input=words)


async def read(stream: Any, take: Callable[[str], object]) -> None:
    async for response in stream:
        take(response.events[0].token.text)


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never became so")


def query(words: str) -> pb.SearchRequest:
    return pb.SearchRequest(name=NAME, query=words)


async def test_a_call_is_answered(path: Path) -> None:
    await path.create()
    response = await path.vectors.GetCollection(pb.GetCollectionRequest(name=NAME))
    assert response.collection.description == "papers"
    assert path.ended("GetCollection", "OK") == 1


async def test_a_stream_is_answered_in_order(path: Path) -> None:
    words = [response.events[0].token.text async for response in path.turns.RunTurn(turn("a b c"))]
    assert words == ["a", "b", "c"]


async def test_an_error_keeps_class_text_and_metadata(path: Path) -> None:
    await path.create()
    with pytest.raises(errors.AlreadyExists) as raised:
        await path.create()
    assert raised.value.message == f"{NAME} is there"
    assert raised.value.metadata == {"resource": NAME}
    assert path.ended("CreateCollection", "ALREADY_EXISTS") == 1


async def test_an_error_ends_a_stream_after_what_was_sent(path: Path) -> None:
    words: list[str] = []
    with pytest.raises(errors.TurnInProgress) as raised:
        await read(path.turns.RunTurn(turn("one busy two")), words.append)
    assert words == ["one"]
    assert raised.value.retry_seconds == 2


async def test_what_is_wrong_with_a_request_is_said_by_field(path: Path) -> None:
    documents = [collections_pb2.Document(uri="a"), collections_pb2.Document(media_type=77)]  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgument) as raised:
        await path.vectors.UpsertDocuments(
            pb.UpsertDocumentsRequest(name="docs", documents=documents)
        )
    assert raised.value.violations == (
        FieldViolation("name", "must be named tenants/*/collections/*"),
        FieldViolation("documents[1].uri", "is required"),
        FieldViolation(
            "documents[1].media_type", "must be a known value of weft.vectors.v1.MediaType"
        ),
    )


async def test_a_stream_refuses_a_bad_request_before_its_handler_runs(path: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match="input"):
        await anext(path.turns.RunTurn(turn("")))
    assert path.service.turns.calls == []


async def test_a_method_that_the_handler_lacks_is_unimplemented(path: Path) -> None:
    with pytest.raises(errors.Unimplemented):
        await path.vectors.ListCollections(pb.ListCollectionsRequest(parent="tenants/default"))
    with pytest.raises(errors.Unimplemented):
        await anext(
            path.turns.WatchTurn(turn_service_pb2.WatchTurnRequest(name=f"{SESSION}/turns/t1"))
        )


@pytest.mark.parametrize("words", ["fault", "inner timeout"])
async def test_a_fault_is_told_by_its_id_only(path: Path, words: str) -> None:
    with capture_logs() as lines, pytest.raises(errors.Internal) as raised:
        await path.vectors.Search(query(words))
    request_id = raised.value.metadata["request_id"]
    assert request_id in raised.value.message
    assert "hunter2" not in raised.value.message
    assert [line["request_id"] for line in lines] == [request_id]
    assert isinstance(lines[0]["exc_info"], Exception)


async def test_a_fault_in_a_stream_is_told_by_its_id_only(path: Path) -> None:
    with capture_logs() as lines, pytest.raises(errors.Internal) as raised:
        await read(path.turns.RunTurn(turn("one fault")), str)
    assert lines[0]["request_id"] == raised.value.metadata["request_id"]


async def test_a_cancellation_inside_the_handler_is_an_error_and_cancels_nobody(
    path: Path,
) -> None:
    with pytest.raises(errors.Cancelled):
        await path.vectors.Search(query("cancelled inside"))


async def test_a_handler_ends_at_the_deadline(path: Path) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        await path.vectors.Search(query("slow"), timeout=0.1)


async def test_a_stream_ends_at_the_deadline(path: Path) -> None:
    words: list[str] = []
    with pytest.raises(errors.DeadlineExceeded):
        await read(path.turns.RunTurn(turn("one wait two"), timeout=0.2), words.append)
    assert words == ["one"]
    await asyncio.wait_for(path.service.turns.closed.wait(), 5)


async def test_a_deadline_that_passed_lets_no_handler_run(path: Path) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        await path.vectors.GetCollection(pb.GetCollectionRequest(name=NAME), timeout=-1)


async def test_calls_without_a_deadline_get_the_default_of_their_kind(path: Path) -> None:
    await path.create()
    await path.vectors.GetCollection(pb.GetCollectionRequest(name=NAME))
    (call,) = path.service.vectors.calls
    assert 4 < call.remaining_seconds() < 5 + WIRE_ROUNDING_SECONDS


async def test_a_call_inside_a_call_inherits_deadline_id_and_trace(path: Path) -> None:
    await path.create()
    outer = Call("/outer", SYSTEM.monotonic() + 2, "outer-1", traceparent=TRACEPARENT)
    token = current_call.set(outer)
    try:
        await path.vectors.GetCollection(pb.GetCollectionRequest(name=NAME), timeout=60)
    finally:
        current_call.reset(token)
    (call,) = path.service.vectors.calls
    assert call.request_id == "outer-1"
    assert call.traceparent == TRACEPARENT
    assert 0 < call.remaining_seconds() < 2 + WIRE_ROUNDING_SECONDS
    assert call.method == "/weft.vectors.v1.VectorService/GetCollection"


async def test_the_callers_metadata_reaches_the_handler(path: Path) -> None:
    await path.create()
    await path.vectors.GetCollection(
        pb.GetCollectionRequest(name=NAME),
        metadata=(("x-request-id", "mine-1"), ("traceparent", TRACEPARENT), ("x-color", "red")),
    )
    (call,) = path.service.vectors.calls
    assert (call.request_id, call.traceparent) == ("mine-1", TRACEPARENT)
    assert call.metadata["x-color"] == "red"


@pytest.mark.parametrize(
    "metadata",
    [
        (("x-request-id", "two words"), ("traceparent", "00-0-0-0")),
        (("x-request-id", "a" * 129), ("traceparent", TRACEPARENT.replace("00-0a", "ff-0a"))),
        (("x-request-id", "{}"), ("traceparent", f"00-{'0' * 32}-{'1' * 16}-01")),
    ],
)
async def test_unsafe_ids_are_replaced(path: Path, metadata: tuple[tuple[str, str], ...]) -> None:
    await path.create()
    await path.vectors.GetCollection(pb.GetCollectionRequest(name=NAME), metadata=metadata)
    (call,) = path.service.vectors.calls
    assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", call.request_id)
    assert call.traceparent == ""


async def test_the_call_is_known_at_every_step_of_a_stream(path: Path) -> None:
    stream = path.turns.RunTurn(turn("a b c"))
    # Each step in a task, and so in a context, of its own.
    for _ in range(3):
        await asyncio.create_task(anext(stream))
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    seen = path.service.turns.calls
    assert len(seen) == 4
    assert {call.request_id if call else "" for call in seen} == {seen[0].request_id}  # type: ignore[union-attr]
    assert current_call.get() is None


async def test_a_reader_that_stops_closes_the_handler(path: Path) -> None:
    async with aclosing(path.turns.RunTurn(turn("one wait"))) as stream:
        await anext(stream)
    await asyncio.wait_for(path.service.turns.closed.wait(), 5)
    assert path.service.turns.calls[-1] is not None


async def test_a_caller_that_is_cancelled_cancels_the_handler(path: Path) -> None:
    reading = asyncio.create_task(anext(path.turns.RunTurn(turn("wait"))))
    await eventually(lambda: bool(path.service.turns.calls))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.wait_for(path.service.turns.closed.wait(), 5)


async def test_calls_in_flight_are_counted(path: Path) -> None:
    labels = {"service": "weft.agents.v1.TurnService", "method": "RunTurn"}
    async with aclosing(path.turns.RunTurn(turn("one wait"))) as stream:
        await anext(stream)
        assert path.registry.get_sample_value("weft_rpc_in_flight", labels) == 1
    await asyncio.wait_for(path.service.turns.closed.wait(), 5)
    await eventually(lambda: path.registry.get_sample_value("weft_rpc_in_flight", labels) == 0)
    assert path.registry.get_sample_value("weft_rpc_duration_seconds_count", labels) == 1


async def test_the_nearest_handler_is_taken_and_else_the_server_that_is_named() -> None:
    here, there = SmallService(), SmallService()
    server = RpcServer(bound(there, CollectorRegistry()), SETTINGS, pipeline(SETTINGS))
    target = f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
    local = bind(
        {"weft.vectors.v1.VectorService": here.vectors},
        pipeline(SETTINGS),
        SETTINGS,
    )
    elsewhere = RemoteChannel(target, SETTINGS)
    channel = MeshChannel(local, elsewhere, lambda contract: True, SETTINGS)
    path = Path(channel, here, CollectorRegistry())
    await path.create()
    assert list(here.vectors.collections) == [NAME]
    assert not there.vectors.collections
    words = [response.events[0].token.text async for response in path.turns.RunTurn(turn("a"))]
    assert words == ["a"]
    assert there.turns.calls
    assert not here.turns.calls
    await elsewhere.close()
    await server.stop()


@pytest.mark.parametrize("connected", [False, True])
async def test_a_service_that_nobody_serves_is_not_serving(
    connected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "SERVED_SECONDS", 0.1)
    elsewhere = RemoteChannel("127.0.0.1:1", SETTINGS) if connected else None
    channel = MeshChannel({}, elsewhere, lambda contract: False, SETTINGS)
    path = Path(channel, SmallService(), CollectorRegistry())
    with pytest.raises(errors.NotServing, match=r"weft\.vectors\.v1\.VectorService"):
        await path.create()
    with pytest.raises(errors.NotServing, match=r"weft\.agents\.v1\.TurnService"):
        await anext(path.turns.RunTurn(turn("a")))


@pytest.mark.parametrize("timeout", [None, 2.0])
async def test_a_caller_hears_that_nobody_serves_it_before_its_deadline(
    timeout: float | None,
) -> None:
    settings = RpcSettings(read_deadline_seconds=2.0)
    elsewhere = RemoteChannel("127.0.0.1:1", settings)

    def is_served(contract: str) -> bool:
        # As in a process that is busy: it doesn't come to look whenever it wants to.
        time.sleep(0.1)
        return False

    channel = MeshChannel({}, elsewhere, is_served, settings)
    contract = service_of("weft.vectors.v1.VectorService")
    gateway = bind({contract.full_name: forwarded(contract, channel)}, pipeline(settings), settings)
    server = RpcServer(gateway, settings, pipeline(settings))
    target = f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
    async with grpc.aio.insecure_channel(target) as wire:
        stub: Any = VectorServiceStub(wire)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Search(query("a"), timeout=timeout)
    await server.stop()
    await elsewhere.close()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert raised.value.details() == "nobody serves weft.vectors.v1.VectorService"


async def test_a_local_channel_refuses_what_is_not_here() -> None:
    path = Path(LocalChannel({}), SmallService(), CollectorRegistry())
    with pytest.raises(errors.Unimplemented):
        await path.create()


async def test_a_server_that_is_gone_is_unavailable() -> None:
    channel = RemoteChannel("127.0.0.1:1", SETTINGS)
    path = Path(channel, SmallService(), CollectorRegistry())
    with pytest.raises(errors.Unavailable):
        await path.create()
    await channel.close()


async def test_an_xds_target_is_not_dialled_in_the_clear() -> None:
    with pytest.raises(ValueError, match="xds"):
        RemoteChannel("xds:///weft", SETTINGS)


async def test_an_answer_that_does_not_parse_is_an_error() -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        return b"\xff\xff\xff"

    handler: Any = grpc.unary_unary_rpc_method_handler(answer)
    service = "weft.vectors.v1.VectorService"
    server = grpc.aio.server()
    methods = grpc.method_handlers_generic_handler(service, {"CreateCollection": handler})
    server.add_generic_rpc_handlers((methods,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = RemoteChannel(f"127.0.0.1:{port}", SETTINGS)
    with pytest.raises(errors.Unavailable, match="can't be read"):
        await Path(channel, SmallService(), CollectorRegistry()).create()
    await channel.close()
    await server.stop(None)
