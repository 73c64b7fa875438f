"""A bare grpc.aio server in a process of its own: `python -m tests.benchmarks.echo_server`.

Prints its address; answers every call of `/echo` with the bytes of the request.
"""

import asyncio
from typing import Any

import grpc
import grpc.aio
import uvloop

PATH = "/bench.Echo/Echo"


class Echo(grpc.GenericRpcHandler):
    """The one method."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def echo(request: bytes, context: Any) -> bytes:
            return request

        if handler_call_details.method != PATH:
            return None
        return grpc.unary_unary_rpc_method_handler(echo)


async def serve() -> None:
    """Serves until it is ended."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve())
