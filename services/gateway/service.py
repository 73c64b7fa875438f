"""Serves what lives in this process over gRPC."""

from collections.abc import Mapping

from mesh.rpc.server import RpcServer
from mesh.runtime.registration import target_of
from mesh.runtime.service import Mesh


class GatewayService:
    """The gRPC edge. It is started last, when all that it serves is ready, and stopped
    first, so that no call meets a service that has ended."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._server: RpcServer | None = None

    @property
    def handlers(self) -> Mapping[str, object]:
        """It has no contract of its own."""
        return {}

    async def start(self) -> None:
        """Listens on the port of the settings, or the next one that is free."""
        settings = self._mesh.settings
        mesh = self._mesh
        self._server = RpcServer(mesh.endpoints, mesh.rpc_settings, mesh.pipeline)
        port = await self._server.start(settings.host, settings.grpc_port)
        mesh.announce("grpc", settings.grpc_port, port)
        await mesh.registry.register(target_of(settings, port))

    async def stop(self) -> None:
        """Drains: others learn of it, by health and by the registry, before it takes less."""
        if self._server is not None:
            settings = self._mesh.settings
            await self._server.refuse()
            await self._mesh.registry.drain()
            await self._server.drain(settings.notice_seconds, settings.grace_seconds)
