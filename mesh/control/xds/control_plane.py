"""The control plane of one process: its own xDS clients ask it over a unix socket, and those
of other languages at a port, where the process serves them.

So no control-plane process can fail for all. Each process knows the registry anyway.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import grpc

from mesh.control.health_checks import Dialling, HealthChecks
from mesh.control.xds.ads import AdsServer
from mesh.control.xds.bootstrap import CertificateFiles, bootstrap, install
from mesh.control.xds.endpoints import members_of
from mesh.control.xds.mesh_view import MeshView, Portion
from mesh.private_files import make_private_folder
from weft.control.v1.instances_pb2 import INSTANCE_STATE_SERVING, Instance

ANNOUNCED_SECONDS = 0.3
"""How long clients know of versions before calls go there: some take new routes a moment
before the clusters that these name."""
KEPT_SECONDS = 5.0
"""How long they know of those before, whose calls may still be on their way."""
SOCKET_PATH_BYTES_MAX = 107
"""Bound on the path of a unix socket, without its final zero (unix(7))."""


class ControlPlane:
    """Tells xDS clients what `set_instances` and `set_splits` said last, with the health that
    it checks itself, of all instances but the one of the name `own`, as `dialling` reaches
    them. `empty` is what is known at first: the services, and how connections are secured.
    `lost` is called with instances that are found to hang, or are gone and took calls.

    Clients are held until the first `set_instances`. Made, called and stopped in one event
    loop.
    """

    def __init__(
        self,
        empty: MeshView,
        dialling: Dialling,
        *,
        own: str = "",
        lost: Callable[[Sequence[Instance]], None] = lambda instances: None,
    ) -> None:
        self._own = own
        self._lost = lost
        self._loaded = False
        self._wanted: dict[str, tuple[Portion, ...]] = {}
        self._announcing: asyncio.TimerHandle | None = None
        self._forgetting: asyncio.TimerHandle | None = None
        self._stack = ExitStack()
        self._ads = AdsServer()
        self._checks = HealthChecks(self._set_unhealthy, dialling)
        self._view = empty

    @property
    def view(self) -> MeshView:
        """What is known by now."""
        return self._view

    async def serve_here(
        self, folder: Path, *, zone: str, certificates: CertificateFiles | None = None
    ) -> None:
        """Has gRPC's clients of this process, which runs in `zone`, ask here: it must not have
        made an xDS channel before. The socket lies in `folder`, which is made for its owner
        only; `certificates` are what the clients prove themselves with.

        Raises OSError, FailedPrecondition where the socket can't be made.
        """
        address = f"unix:{quote(str(self._socket_path(folder)))}"
        await self._ads.start(address)
        install(bootstrap([address], node=self._own, zone=zone, certificates=certificates))

    async def serve(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Serves clients of other processes at an IP address with a port, by mutual TLS where
        connections are; returns the port. FailedPrecondition where it can't be had."""
        return await self._ads.start(address, credentials, plain_text=self._view.plain_text)

    def set_instances(self, instances: Iterable[Instance]) -> None:
        """Replaces what is known of the mesh's instances; they are copied. Their load doesn't
        matter here: clients hear of it from the instances themselves."""
        copies = tuple(map(_without_load, instances))
        if self._loaded and copies == self._view.instances:
            return
        self._loaded = True
        there = {each.name for each in copies}
        serving = (each for each in self._view.instances if each.state == INSTANCE_STATE_SERVING)
        gone = [each for each in serving if each.name not in there]
        self._set(replace(self._view, instances=copies))
        if gone:
            self._lost(gone)
        members, _ = members_of(self._view)
        self._checks.set(each.instance for each in members if each.instance.name != self._own)

    def set_splits(self, splits: Mapping[str, tuple[Portion, ...]]) -> None:
        """Replaces the splits, by service. Clients get to know the versions first, and
        ANNOUNCED_SECONDS later send them calls."""
        self._wanted = dict(splits)
        if not self._loaded:
            self._set(replace(self._view, splits=self._wanted))
        elif self._announcing is None:
            self._announce()

    def _announce(self) -> None:
        before, coming = self._view.splits, self._wanted
        changed = [
            service
            for service in before.keys() | coming.keys()
            if before.get(service) != coming.get(service)
        ]
        if not changed:
            return
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._set(replace(self._view, kept={each: coming.get(each, ()) for each in changed}))
        kept = {each: before.get(each, ()) for each in changed}
        loop = asyncio.get_running_loop()
        self._announcing = loop.call_later(ANNOUNCED_SECONDS, self._split, coming, kept)

    def _split(
        self, splits: dict[str, tuple[Portion, ...]], kept: dict[str, tuple[Portion, ...]]
    ) -> None:
        self._announcing = None
        self._set(replace(self._view, splits=splits, kept=kept))
        loop = asyncio.get_running_loop()
        self._forgetting = loop.call_later(KEPT_SECONDS, self._forget)
        # What was wanted meanwhile.
        self._announce()

    def _forget(self) -> None:
        self._set(replace(self._view, kept={}))

    async def stop(self) -> None:
        """Ends checking and serving; clients go on with what they know."""
        for timer in (self._announcing, self._forgetting):
            if timer is not None:
                timer.cancel()
        await self._checks.stop()
        await self._ads.stop()
        self._stack.close()

    def _set_unhealthy(self, unhealthy: frozenset[str]) -> None:
        new = unhealthy - self._view.unhealthy
        self._set(replace(self._view, unhealthy=unhealthy))
        found = [each for each in self._view.instances if each.name in new]
        if found:
            self._lost(found)

    def _set(self, view: MeshView) -> None:
        self._view = view
        if self._loaded:
            self._ads.set(view)

    def _socket_path(self, folder: Path) -> Path:
        """In our folder, else, where that is too deep for a socket, in a private one."""
        make_private_folder(folder)
        # Who can reach the socket learns where everything runs.
        folder.chmod(0o700)
        path = folder.absolute() / "ads.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
            path.unlink(missing_ok=True)
            return path
        parent = os.environ.get("XDG_RUNTIME_DIR")
        shorter = tempfile.TemporaryDirectory(prefix="weft-", dir=parent)
        return Path(self._stack.enter_context(shorter)) / "ads.sock"


def _without_load(instance: Instance) -> Instance:
    copy = Instance()
    copy.CopyFrom(instance)
    copy.ClearField("load")
    return copy
