"""The ADS server over the wire, asked by a client that speaks the protocol by hand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from mesh.control.xds import ads as ads_module
from mesh.control.xds.ads import AdsServer
from mesh.control.xds.mesh_view import MeshView
from mesh.control.xds.messages import ADS_METHOD, ADS_SERVICE, CLUSTER_TYPE, ENDPOINT_TYPE
from mesh.control.xds.subscriptions import NAMES_MAX
from mesh.errors import FailedPrecondition
from tests.support.eventually import eventually
from tests.support.xds_mesh import SERVICES, instance_at
from weft.xds.v1 import core_pb2, discovery_pb2, endpoint_pb2

QUIET_SECONDS = 0.2


class Stream:
    """One stream of ADS."""

    def __init__(self, channel: grpc.aio.Channel, zone: str) -> None:
        self.call: Any = channel.stream_stream(
            f"/{ADS_SERVICE}/{ADS_METHOD}",
            request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
        )(timeout=30)
        self._node: core_pb2.Node | None = core_pb2.Node(
            id="by-hand", locality=core_pb2.Locality(zone=zone)
        )

    async def ask(self, kind: str, *names: str, **fields: Any) -> None:
        node, self._node = self._node, None
        await self.call.write(
            discovery_pb2.DiscoveryRequest(node=node, type_url=kind, resource_names=names, **fields)
        )

    async def told(self) -> discovery_pb2.DiscoveryResponse:
        response: discovery_pb2.DiscoveryResponse = await self.call.read()
        return response

    async def ports(self) -> dict[int, int]:
        """The next response's endpoints of one cluster: priorities by port."""
        [resource] = (await self.told()).resources
        return {
            endpoint.endpoint.address.socket_address.port_value: zone.priority
            for zone in endpoint_pb2.ClusterLoadAssignment.FromString(resource.value).endpoints
            for endpoint in zone.lb_endpoints
        }

    async def nothing(self) -> bool:
        """Whether it is told nothing for a while; the stream is over then."""
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                await self.told()
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def serving(ads: AdsServer) -> AsyncIterator[grpc.aio.Channel]:
    port = await ads.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await ads.stop()


@pytest.fixture
async def ads() -> AsyncIterator[AdsServer]:
    server = AdsServer(streams_max=2)
    yield server
    await server.stop()


def view(*ports: int, zone: str = "east") -> MeshView:
    instances = (instance_at(f"at-{port}", f"127.0.0.1:{port}", zone=zone) for port in ports)
    return MeshView(SERVICES, tuple(instances))


async def test_a_client_is_held_until_something_is_known(ads: AdsServer) -> None:
    async with serving(ads) as channel:
        stream = Stream(channel, "east")
        await stream.ask(ENDPOINT_TYPE, "vectors")
        told = asyncio.create_task(stream.ports())
        await eventually(lambda: ads.streams == 1)
        assert not told.done()
        ads.set(view(1, 2))
        assert await told == {1: 0, 2: 0}


async def test_each_client_is_told_as_its_zone_sees_it(ads: AdsServer) -> None:
    async with serving(ads) as channel:
        mesh = MeshView(SERVICES, (*view(1).instances, *view(2, zone="west").instances))
        ads.set(mesh)
        for zone, priorities in (("east", {1: 0, 2: 1}), ("west", {1: 1, 2: 0})):
            stream = Stream(channel, zone)
            await stream.ask(ENDPOINT_TYPE, "vectors")
            assert await stream.ports() == priorities


async def test_what_changes_in_a_moment_is_told_at_once(ads: AdsServer) -> None:
    ads.set(view(1))
    async with serving(ads) as channel:
        stream = Stream(channel, "east")
        await stream.ask(ENDPOINT_TYPE, "vectors")
        assert await stream.ports() == {1: 0}
        for number in range(2, 102):
            ads.set(view(number))
        assert await stream.ports() == {101: 0}
        assert await stream.nothing()


async def test_a_refusal_is_logged_and_nothing_told_until_a_change(ads: AdsServer) -> None:
    ads.set(view(1))
    async with serving(ads) as channel:
        stream = Stream(channel, "east")
        await stream.ask(CLUSTER_TYPE, "vectors")
        told = await stream.told()
        with capture_logs() as lines:
            await stream.ask(
                CLUSTER_TYPE,
                "vectors",
                response_nonce=told.nonce,
                error_detail=discovery_pb2.Status(code=3, message="no such policy" + "x" * 1000),
            )
            await stream.ask(ENDPOINT_TYPE, "vectors")
            # The answer to what was asked later shows that the refusal was read.
            assert (await stream.told()).type_url == ENDPOINT_TYPE
        [line] = [line for line in lines if line["event"] == "xds_refused"]
        assert line["node"] == "by-hand"
        assert line["type"] == "Cluster"
        assert line["version"] == told.version_info
        assert line["message"].startswith("no such policy")
        assert len(line["message"]) <= 500
        assert await stream.nothing()


async def test_streams_and_names_are_bounded(ads: AdsServer) -> None:
    ads.set(view(1))
    async with serving(ads) as channel:
        streams = [Stream(channel, "east") for _ in range(2)]
        for stream in streams:
            await stream.ask(ENDPOINT_TYPE, "vectors")
            assert await stream.ports() == {1: 0}
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await Stream(channel, "east").told()
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await streams[0].ask(ENDPOINT_TYPE, *map(str, range(NAMES_MAX + 1)))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await streams[0].told()
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        streams[1].call.cancel()
        await eventually(lambda: ads.streams == 0)
        # What was free again is taken again.
        stream = Stream(channel, "east")
        await stream.ask(ENDPOINT_TYPE, "vectors")
        assert await stream.ports() == {1: 0}


async def test_the_process_itself_is_never_one_too_many(ads: AdsServer, tmp_path: Path) -> None:
    ads.set(view(1))
    async with serving(ads) as channel:
        streams = [Stream(channel, "east") for _ in range(2)]
        for stream in streams:
            await stream.ask(ENDPOINT_TYPE, "vectors")
            assert await stream.ports() == {1: 0}
        await ads.start(f"unix:{tmp_path}/ads.sock")
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/ads.sock") as own:
            for _ in range(2):
                stream = Stream(own, "east")
                await stream.ask(ENDPOINT_TYPE, "vectors")
                assert await stream.ports() == {1: 0}


async def test_who_says_nothing_is_let_go(ads: AdsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ads_module, "REQUEST_SECONDS_MAX", 0.1)
    ads.set(view(1))
    async with serving(ads) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await Stream(channel, "east").told()
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        await eventually(lambda: ads.streams == 0)


async def test_what_does_not_parse_is_an_invalid_argument(ads: AdsServer) -> None:
    ads.set(view(1))
    async with serving(ads) as channel:
        call: Any = channel.stream_stream(f"/{ADS_SERVICE}/{ADS_METHOD}")()
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_who_cannot_be_told_is_told_to_the_log_once(ads: AdsServer) -> None:
    mesh = MeshView(SERVICES, (instance_at("far", "10.1.2.3:1"),))
    async with serving(ads) as channel:
        with capture_logs() as lines:
            for _ in range(2):
                ads.set(mesh)
                stream = Stream(channel, "")
                await stream.ask(CLUSTER_TYPE, "vectors")
                await stream.told()
                stream.call.cancel()
        told = [line for line in lines if line["event"] == "xds_instances_left_out"]
        assert [line["count"] for line in told] == [1]


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "10.0.0.1:0"])
async def test_plain_text_is_for_loopback(ads: AdsServer, address: str) -> None:
    with pytest.raises(ValueError, match="credentials"):
        await ads.start(address)


async def test_an_address_that_is_taken_is_refused(ads: AdsServer) -> None:
    async with AsyncExitStack() as stack:
        port = await ads.start("127.0.0.1:0")
        another = AdsServer()
        stack.push_async_callback(another.stop)
        with pytest.raises(FailedPrecondition):
            await another.start(f"127.0.0.1:{port}")
