"""One method behind Weft's whole edge, or behind none: `python -m tests.benchmarks.edge_server
bare|busy|edge`. Prints its address.

The handler is the same; the bare one is served by grpc.aio with the contract's own parsers.
The busy one is bare, and computes for BUSY_SECONDS in each call: what that costs tells what
a microsecond costs on this machine.
"""

import asyncio
import sys
from time import perf_counter
from typing import Any

import grpc
import grpc.aio
import uvloop

from mesh.rpc.pipeline import bind
from mesh.rpc.server import RpcServer
from mesh.rpc.settings import RpcSettings
from tests.support.edge import Doorkeeper, administrator, pipeline
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb

PATH = "/weft.vectors.v1.VectorService/GetCollection"
BUSY_SECONDS = 5e-6
NAME = "tenants/acme/collections/docs"
REQUEST = pb.GetCollectionRequest(name=NAME).SerializeToString()


class Vectors:
    """The handler."""

    response = pb.GetCollectionResponse(collection=collections_pb2.Collection(name=NAME))

    async def get_collection(self, request: Any, call: Any) -> Any:
        return self.response


class BusyVectors(Vectors):
    """The handler, which computes first."""

    async def get_collection(self, request: Any, call: Any) -> Any:
        until = perf_counter() + BUSY_SECONDS
        while perf_counter() < until:
            pass
        return self.response


class Bare(grpc.GenericRpcHandler):
    """The handler without an edge."""

    def __init__(self, vectors: Vectors) -> None:
        self._handler = grpc.unary_unary_rpc_method_handler(
            vectors.get_collection,
            request_deserializer=pb.GetCollectionRequest.FromString,
            response_serializer=pb.GetCollectionResponse.SerializeToString,
        )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handler if handler_call_details.method == PATH else None


async def serve(kind: str) -> None:
    """Serves until it is ended."""
    if kind != "edge":
        bare = grpc.aio.server()
        vectors = BusyVectors() if kind == "busy" else Vectors()
        bare.add_generic_rpc_handlers((Bare(vectors),))
        port = bare.add_insecure_port("127.0.0.1:0")
        await bare.start()
    else:
        settings = RpcSettings()
        handlers = {"weft.vectors.v1.VectorService": Vectors()}
        around = pipeline(settings, Doorkeeper(key=administrator("acme")))
        server = RpcServer(bind(handlers, around, settings), settings, around)
        port = await server.start("127.0.0.1", 0)
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
