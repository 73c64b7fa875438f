"""The control plane of one process: its own xDS clients ask it over a unix socket.

So no control-plane process can fail for all. Each process knows the registry anyway.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import grpc

from mesh.control.health_checks import HealthChecks
from mesh.control.xds.ads import AdsServer
from mesh.control.xds.bootstrap import CertificateFiles, bootstrap, install
from mesh.control.xds.endpoints import members_of
from mesh.control.xds.mesh_view import MeshView, Portion, RoutedService
from mesh.private_files import make_private_folder
from weft.control.v1 import instances_pb2

SOCKET_PATH_BYTES_MAX = 107
"""Bound on the path of a unix socket, without its final zero (unix(7))."""


class ControlPlane:
    """Tells this process's xDS clients what `set_instances` and `set_splits` said last, with
    the health that it checks itself.

    `node` is the id of this process's run and `zone` where it runs. The socket lies in
    `folder`, which is made for its owner only. With a `trust_domain` the mesh is mutual TLS,
    by `certificates`; `credentials` are for the checks of health.
    """

    def __init__(
        self,
        services: Iterable[RoutedService],
        *,
        folder: Path,
        node: str,
        zone: str = "",
        trust_domain: str = "",
        certificates: CertificateFiles | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._folder = folder
        self._node = node
        self._zone = zone
        self._certificates = certificates
        self._loaded = False
        self._stack = ExitStack()
        self._ads = AdsServer()
        self._checks = HealthChecks(self._set_unhealthy, credentials=credentials)
        self._view = MeshView(tuple(services), trust_domain=trust_domain)

    async def start(self) -> None:
        """Serves, and has gRPC's clients of this process ask here: it must not have made an
        xDS channel before. They are held until the first `set_instances`.

        Raises OSError, FailedPrecondition where the socket can't be made.
        """
        address = f"unix:{quote(str(self._socket_path()))}"
        await self._ads.start(address)
        install(
            bootstrap([address], node=self._node, zone=self._zone, certificates=self._certificates)
        )

    def set_instances(self, instances: Iterable[instances_pb2.Instance]) -> None:
        """Replaces what is known of the mesh's instances; they are copied. Their load doesn't
        matter here: clients hear of it from the instances themselves."""
        copies = tuple(map(_without_load, instances))
        if self._loaded and copies == self._view.instances:
            return
        self._loaded = True
        self._set(replace(self._view, instances=copies))
        members, _ = members_of(self._view)
        self._checks.set({each.instance.name: each.instance.target for each in members})

    def set_splits(self, splits: Mapping[str, tuple[Portion, ...]]) -> None:
        """Replaces the splits, by service."""
        self._set(replace(self._view, splits=dict(splits)))

    async def stop(self) -> None:
        """Ends checking and serving; clients go on with what they know."""
        await self._checks.stop()
        await self._ads.stop()
        self._stack.close()

    def _set_unhealthy(self, unhealthy: frozenset[str]) -> None:
        self._set(replace(self._view, unhealthy=unhealthy))

    def _set(self, view: MeshView) -> None:
        self._view = view
        if self._loaded:
            self._ads.set(view)

    def _socket_path(self) -> Path:
        """In our folder, else, where that is too deep for a socket, in a private one."""
        make_private_folder(self._folder)
        # Who can reach the socket learns where everything runs.
        self._folder.chmod(0o700)
        path = self._folder.absolute() / "ads.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
            path.unlink(missing_ok=True)
            return path
        parent = os.environ.get("XDG_RUNTIME_DIR")
        folder = tempfile.TemporaryDirectory(prefix="weft-", dir=parent)
        return Path(self._stack.enter_context(folder)) / "ads.sock"


def _without_load(instance: instances_pb2.Instance) -> instances_pb2.Instance:
    copy = instances_pb2.Instance()
    copy.CopyFrom(instance)
    copy.ClearField("load")
    return copy
