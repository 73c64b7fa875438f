"""What a hop costs: one method behind Weft's whole pipeline, called by a stub as services do, in
the same process, over a unix socket, TCP, mutual TLS, and through the mesh by gRPC's xDS client
with its control plane in the caller's process."""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

from mesh.control.xds.control_plane import ControlPlane
from mesh.control.xds.mesh_view import MeshView
from mesh.rpc.channel import RemoteChannel, XdsChannel, mesh_connection
from mesh.rpc.local import LocalChannel, StubChannel
from mesh.rpc.pipeline import bind
from mesh.rpc.settings import RpcSettings
from mesh.rpc.transport import PLAIN
from tests.benchmarks.edge_server import NAME
from tests.benchmarks.hop_server import HANDLERS
from tests.benchmarks.measure import alternate, median_ms, per_second
from tests.benchmarks.results import Baseline, Result
from tests.support.certificates import authority, transport
from tests.support.edge import pipeline
from tests.support.processes import line_of, running
from tests.support.xds_mesh import SERVICES, instance_at
from weft.vectors.v1 import vector_service_pb2 as pb
from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

ROUNDS = 7
CALLS = 300
AT_ONCE = 16
REQUEST = pb.GetCollectionRequest(name=NAME)


class Way:
    """A way to the handler."""

    def __init__(self, channel: StubChannel) -> None:
        stub: Any = VectorServiceStub(channel)  # type: ignore[call-overload]
        self._call = stub.GetCollection

    async def call(self) -> None:
        """One call."""
        await self._call(REQUEST, timeout=10)

    async def one_ms(self) -> float:
        """One call after the other."""
        return await median_ms(self.call, CALLS)

    async def many_per_second(self) -> float:
        """Sixteen at once."""
        return await per_second([self.call] * AT_ONCE, CALLS)


async def run() -> list[Result]:
    """The results of the rounds."""
    settings = RpcSettings()
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ca = authority(folder / "ca")
        certificates = ca.issue("host").folder
        process = await stack.enter_async_context(
            running("tests.benchmarks.hop_server", folder / "socket", certificates)
        )
        targets = json.loads(await line_of(process))
        plane = ControlPlane(MeshView(SERVICES), PLAIN)
        await plane.serve_here(folder / "mesh", zone="")
        stack.push_async_callback(plane.stop)
        plane.set_instances([instance_at("one", targets["TCP"])])
        connection = mesh_connection(settings)
        stack.push_async_callback(connection.close)
        ways: dict[str, StubChannel] = {
            "in process": LocalChannel(bind(HANDLERS, pipeline(settings), settings)),
            "xDS": XdsChannel(connection, settings),
        }
        for name, target in targets.items():
            over = transport(ca, "host") if name == "mTLS" else PLAIN
            channel = RemoteChannel(target, settings, transport=over, service="vectors")
            stack.push_async_callback(channel.close)
            ways[name] = channel
        measured = {name: Way(channel) for name, channel in ways.items()}
        variants = {
            f"{name} {what}": getattr(way, f"{what}_{unit}")
            for name, way in measured.items()
            for what, unit in (("one", "ms"), ("many", "per_second"))
        }
        await alternate(1, variants)
        values = await alternate(ROUNDS, variants)
    results = []
    for name in ways:
        for what, title, unit in (("one", "p50", "ms"), ("many", f"{AT_ONCE} at once", "/s")):
            baseline = Baseline(f"{unit}, TCP", values[f"TCP {what}"])
            results.append(
                Result(
                    f"hop, {name}, {title}",
                    unit,
                    values[f"{name} {what}"],
                    None if name == "TCP" else baseline,
                )
            )
    return results
