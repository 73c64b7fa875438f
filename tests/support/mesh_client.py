"""`python -m tests.support.mesh_client`: a client of the mesh that has nothing of Weft's but the
contracts, and finds it by GRPC_XDS_BOOTSTRAP.

The first line on its stdin is an API key. It calls all the time from then on, and answers each
further line with what came of it since the last one, as JSON.
"""

import asyncio
import json
import sys
from collections import Counter
from typing import Any

import grpc
import grpc.aio
import grpc.experimental

from tests.support.processes import end_with_parent
from weft.tools.v1 import tool_service_pb2
from weft.tools.v1.tool_service_pb2_grpc import ToolServiceStub
from weft.vectors.v1 import vector_service_pb2
from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

TENANT = "tenants/default"
PAUSE_SECONDS = 0.01
CALL_SECONDS_MAX = 10.0


async def main() -> None:
    loop = asyncio.get_running_loop()
    key = (await loop.run_in_executor(None, sys.stdin.readline)).strip()
    experimental: Any = grpc.experimental
    plain = experimental.insecure_channel_credentials()
    channel = grpc.aio.secure_channel("xds:///weft", grpc.xds_channel_credentials(plain))
    bearer = (("authorization", f"Bearer {key}"),)
    list_tools = ToolServiceStub(channel).ListTools
    list_collections = VectorServiceStub(channel).ListCollections
    counted: Counter[str] = Counter()

    async def call() -> None:
        tools = tool_service_pb2.ListToolsRequest(parent=TENANT)
        collections = vector_service_pb2.ListCollectionsRequest(parent=TENANT)
        try:
            await list_tools(tools, metadata=bearer, timeout=CALL_SECONDS_MAX)
            await list_collections(collections, metadata=bearer, timeout=CALL_SECONDS_MAX)
        except grpc.aio.AioRpcError as error:
            counted[f"{error.code().name}: {error.details()}"] += 1
        else:
            counted["answered"] += 1

    async def call_always() -> None:
        while True:
            await asyncio.gather(call(), asyncio.sleep(PAUSE_SECONDS))

    calling = asyncio.create_task(call_always())
    while await loop.run_in_executor(None, sys.stdin.readline):
        assert not calling.done()
        print(json.dumps(counted), flush=True)
        counted.clear()


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(main())
