"""Connections end after a while, so that clients spread; calls don't notice."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest

from mesh.rpc.pipeline import bind
from mesh.rpc.server import RpcServer, server_options
from mesh.rpc.settings import RpcSettings
from mesh.sockets import bind_first_free
from tests.support.edge import pipeline
from tests.support.keyed import bearer
from weft.state.v1 import state_service_pb2
from weft.state.v1.state_service_pb2_grpc import StateServiceStub
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb
from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

METADATA = (bearer("key"),)
NAME = "tenants/acme/collections/docs"
CALLS_MAX = 4_000


class Gateway:
    """Answers with its name, and tells of nothing in a stream for as long as it may."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def get_collection(self, request: Any, call: Any) -> Any:
        return pb.GetCollectionResponse(collection=collections_pb2.Collection(name=self._name))

    async def watch_events(self, request: Any, call: Any) -> AsyncGenerator[Any, None]:
        while True:
            yield state_service_pb2.WatchEventsResponse()
            await asyncio.sleep(0.02)


@pytest.fixture
async def gateways() -> AsyncIterator[tuple[int, list[Gateway]]]:
    """Two gateways behind one port, as behind a balancer, whose connections are young."""
    settings = RpcSettings(connection_age_seconds=0.2, connection_grace_seconds=0.3)
    with bind_first_free("127.0.0.1", 0) as probe:
        port: int = probe.getsockname()[1]
    made = [Gateway("one"), Gateway("two")]
    async with AsyncExitStack() as stack:
        for gateway in made:
            around = pipeline(settings)
            contracts = ("weft.vectors.v1.VectorService", "weft.state.v1.StateService")
            endpoints = bind(dict.fromkeys(contracts, gateway), around, settings)
            server = RpcServer(endpoints, settings, around, shares=True)
            await server.start("127.0.0.1", 0, port)
            stack.push_async_callback(server.stop)
        yield port, made


async def test_a_client_comes_to_every_gateway_and_no_call_fails(
    gateways: tuple[int, list[Gateway]],
) -> None:
    answered: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateways[0]}") as channel:
        stub: Any = VectorServiceStub(channel)
        for _ in range(CALLS_MAX):
            call = stub.GetCollection(pb.GetCollectionRequest(name=NAME), metadata=METADATA)
            answered[(await call).collection.name] += 1
            if len(answered) == 2:
                return
            await asyncio.sleep(0.005)
    raise AssertionError(f"one connection for all calls: {answered}")


async def test_a_stream_outlives_its_connections_age_and_then_ends_as_unavailable(
    gateways: tuple[int, list[Gateway]],
) -> None:
    loop = asyncio.get_running_loop()
    request = state_service_pb2.WatchEventsRequest(name="tenants/acme")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateways[0]}") as channel:
        stub: Any = StateServiceStub(channel)
        began = loop.time()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for _ in stub.WatchEvents(request, metadata=METADATA, timeout=20):
                pass
        # A tenth of the age is gRPC's jitter.
        assert loop.time() - began > 0.9 * 0.2 + 0.3
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


def test_connections_may_stay_for_ever() -> None:
    options = dict(server_options(RpcSettings(connection_age_seconds=0)))
    assert "grpc.max_connection_age_ms" not in options
