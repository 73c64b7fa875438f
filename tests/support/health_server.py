"""Servers of `grpc.health.v1` alone, and instances that stand for them."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from weft.control.v1.instances_pb2 import Instance

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def instances(**targets: str) -> list[Instance]:
    return [
        Instance(name=name, target=target, services=["state"]) for name, target in targets.items()
    ]


class Health(health.aio.HealthServicer):
    """Fails the next checks, if it is told to."""

    failing = 0
    checked = 0

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        self.checked += 1
        if self.failing:
            self.failing -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return await super().Check(request, context)


class Server:
    """A server of `grpc.health.v1` alone; it keeps its port."""

    def __init__(self) -> None:
        self.port = 0
        self.said = Health()
        self._server: grpc.aio.Server | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self.said, self._server)
        self.port = self._server.add_insecure_port(self.target)
        await self._server.start()
        await self.said.set("", SERVING)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    await made.start()
    yield made
    await made.stop()
