"""`python -m tests.benchmarks.mesh_clients PORT STREAMS CLUSTERS...`: clients of a control plane.

They speak ADS by hand, without gRPC's xDS client, which would dial all endpoints. Prints a
line whenever each of them was told something: the monotonic clock, in seconds.
"""

import asyncio
import sys
import time
from typing import Any

import grpc.aio

from mesh.control.xds.messages import ADS_METHOD, ADS_SERVICE, ENDPOINT_TYPE
from tests.support.processes import end_with_parent
from weft.xds.v1 import core_pb2, discovery_pb2

ROUNDS_MAX = 10_000


async def opened(channel: grpc.aio.Channel, zone: str, clusters: list[str]) -> Any:
    stream: Any = channel.stream_stream(
        f"/{ADS_SERVICE}/{ADS_METHOD}",
        request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
        response_deserializer=None,
    )(timeout=600)
    node = core_pb2.Node(id="benchmark", locality=core_pb2.Locality(zone=zone))
    await stream.write(
        discovery_pb2.DiscoveryRequest(node=node, type_url=ENDPOINT_TYPE, resource_names=clusters)
    )
    return stream


async def main(port: str, count: int, clusters: list[str]) -> None:
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(count)
    ]
    streams = [
        await opened(channel, f"z{number % 3}", clusters) for number, channel in enumerate(channels)
    ]
    for _ in range(ROUNDS_MAX):
        await asyncio.gather(*(stream.read() for stream in streams))
        print(time.monotonic(), flush=True)


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
