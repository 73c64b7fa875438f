"""Serves what lives in this process over gRPC."""

from collections.abc import Mapping

from mesh.rpc.server import RpcServer
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
        """Listens on the port of the settings, or the next one that is free; with certificates
        on another one for Weft's own processes."""
        settings = self._mesh.settings
        mesh = self._mesh
        self._server = RpcServer(mesh.endpoints, mesh.rpc_settings, mesh.pipeline, mesh.transport)
        if mesh.transport.encrypted:
            number = self._server.listen_to_processes(settings.host, settings.mesh_port)
            mesh.announce("mesh", settings.mesh_port, number)
        port = await self._server.start(settings.host, settings.grpc_port)
        self._mesh.announce("grpc", settings.grpc_port, port)

    async def stop(self) -> None:
        """Drains."""
        if self._server is not None:
            settings = self._mesh.settings
            await self._server.drain(settings.notice_seconds, settings.grace_seconds)
