"""One method behind Weft's whole edge, or behind none: `python -m tests.benchmarks.edge_server
bare|edge`. Prints its address and, of the edge, a credential.

The handler is the same; the bare one is served by grpc.aio with the contract's own parsers.
"""

import asyncio
import sys
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
NAME = "tenants/acme/collections/docs"
REQUEST = pb.GetCollectionRequest(name=NAME).SerializeToString()


class Vectors:
    """The handler."""

    response = pb.GetCollectionResponse(collection=collections_pb2.Collection(name=NAME))

    async def get_collection(self, request: Any, call: Any) -> Any:
        return self.response


class Bare(grpc.GenericRpcHandler):
    """The handler without an edge."""

    def __init__(self) -> None:
        self._handler = grpc.unary_unary_rpc_method_handler(
            Vectors().get_collection,
            request_deserializer=pb.GetCollectionRequest.FromString,
            response_serializer=pb.GetCollectionResponse.SerializeToString,
        )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handler if handler_call_details.method == PATH else None


async def serve(kind: str) -> None:
    """Serves until it is ended."""
    if kind == "bare":
        bare = grpc.aio.server()
        bare.add_generic_rpc_handlers((Bare(),))
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
