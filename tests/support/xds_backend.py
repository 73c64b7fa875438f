"""`python -m tests.support.xds_backend NAME PORT COST`: answers three methods with its NAME.

It says of its load what it would be, did each call cost COST seconds of a processor.
`GetCollection` of vectors, `GetSession` of state, `ListTools` of tools, and health. Each call
takes a few milliseconds, so that some are always under way. Prints its address, then serves
until it is told to end (SIGTERM: it stops taking calls, and finishes those that it has).
"""

import asyncio
import signal
import sys
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from mesh.rpc.load_report import LoadReport
from mesh.rpc.server import server_options
from mesh.rpc.settings import RpcSettings
from tests.support.processes import end_with_parent
from weft.state.v1 import session_pb2, session_service_pb2
from weft.tools.v1 import tool_service_pb2, tools_pb2
from weft.vectors.v1 import collections_pb2, vector_service_pb2

CALL_SECONDS = 0.005
GRACE_SECONDS = 5.0


class Load:
    """What it says of its load."""

    def __init__(self, call_cpu_seconds: float) -> None:
        self.calls = 0
        self._report = LoadReport(
            lambda: (self.calls, 0), cpu_seconds=lambda: self.calls * call_cpu_seconds
        )

    def answered(self) -> Sequence[tuple[str, bytes]]:
        """Counts an answer, and gives what to send with it."""
        self.calls += 1
        return self._report.trailing()


def handlers(name: str, load: Load) -> dict[str, Any]:
    """By service; what a call gets is who answered it."""
    collection = vector_service_pb2.GetCollectionResponse(
        collection=collections_pb2.Collection(name=name)
    )
    session = session_service_pb2.GetSessionResponse(session=session_pb2.Session(name=name))
    tools = tool_service_pb2.ListToolsResponse(tools=[tools_pb2.Tool(name=name)])
    return {
        "weft.vectors.v1.VectorService": {"GetCollection": answering(collection, load)},
        "weft.state.v1.SessionService": {"GetSession": answering(session, load)},
        "weft.tools.v1.ToolService": {"ListTools": answering(tools, load)},
    }


def answering(response: Any, load: Load) -> Any:
    data = response.SerializeToString()

    async def answer(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(CALL_SECONDS)
        context.set_trailing_metadata(load.answered())
        return bytes(data)

    return grpc.unary_unary_rpc_method_handler(answer)


async def main(name: str, port: int, call_cpu_seconds: float) -> None:
    server = grpc.aio.server(options=server_options(RpcSettings()))
    for service, methods in handlers(name, Load(call_cpu_seconds)).items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    healthy = health.aio.HealthServicer()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"127.0.0.1:{bound}", flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await server.stop(GRACE_SECONDS)


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
