"""How a process reaches what others serve: its control plane, and its connection to the mesh."""

from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack

import grpc.aio

from mesh.control.nats_registry import COLLECTION
from mesh.control.xds.bootstrap import CertificateFiles
from mesh.control.xds.control_plane import ControlPlane
from mesh.control.xds.mesh_view import MeshView, RoutedService
from mesh.control.xds.placement import Placement
from mesh.rpc.channel import XdsChannel, mesh_connection
from mesh.rpc.retries import Losses
from mesh.runtime.lost_instances import LostInstances
from mesh.runtime.service import Mesh, ServiceEntry
from mesh.security.certificate_files import BUNDLE, CERTIFICATE, KEY
from mesh.security.identity import Sign


class Elsewhere:
    """What the rest of the catalogue is to the process of `mesh`, which serves `served` of it.
    The control plane is told what the registry knows.

    Where nothing is elsewhere, nothing is connected; the control plane is there for others.
    """

    def __init__(
        self, mesh: Mesh, catalogue: Sequence[ServiceEntry], served: Collection[ServiceEntry]
    ) -> None:
        self._mesh = mesh
        self._services = {c.full_name: each.name for each in catalogue for c in each.contracts}
        self._has_others = any(each not in served for each in catalogue)
        self._connection: grpc.aio.Channel | None = None
        self._stack = AsyncExitStack()
        view = MeshView(
            tuple(RoutedService(each.name, each.contracts) for each in catalogue if each.contracts),
            trust_domain=mesh.transport.trust_domain,
            plain_text=mesh.transport.plain_text,
        )
        self.losses = Losses()
        own = COLLECTION + mesh.instance
        self._lost = LostInstances(self.losses, lambda: self.control_plane.view, mesh.transport)
        self.control_plane = ControlPlane(view, mesh.transport, own=own, lost=self._lost.tell)
        self._placement = Placement(lambda: self.control_plane.view, mesh.settings.zone)

    async def start(self) -> None:
        """Connects, and follows the registry from now on. OSError or FailedPrecondition where
        the control plane has no place for its socket."""
        plane = self.control_plane
        self._stack.push_async_callback(self._lost.stop)
        self._stack.push_async_callback(plane.stop)
        if self._has_others:
            certificates = None
            folder = self._mesh.transport.folder
            if folder is not None:
                certificates = CertificateFiles(folder / CERTIFICATE, folder / KEY, folder / BUNDLE)
            await plane.serve_here(
                self._mesh.data_dir / "mesh",
                zone=self._mesh.settings.zone,
                certificates=certificates,
            )
            self._connection = mesh_connection(self._mesh.rpc_settings)
            self._stack.push_async_callback(self._connection.close)
        self._mesh.registry.on_change(self._tell)
        self._tell()

    async def stop(self) -> None:
        """Ends the connection, and what is under way on it."""
        await self._stack.aclose()

    def channel(self, caller: str, sign: Sign, *, relays: bool) -> XdsChannel | None:
        """By which the service `caller` calls what is elsewhere; None where nothing is."""
        if self._connection is None:
            return None
        return XdsChannel(
            self._connection,
            self._mesh.rpc_settings,
            caller=caller,
            sign=sign,
            relays=relays,
            losses=self.losses,
            placement=self._placement,
        )

    def is_served(self, contract: str) -> bool:
        """Whether an instance takes calls of the contract."""
        return bool(self._mesh.registry.serving(self._services.get(contract, contract)))

    def _tell(self) -> None:
        self.control_plane.set_instances(self._mesh.registry.instances())
