"""`python -m tests.support.xds_in_process FOLDER TARGET...`: a process that is its own control
plane. Calls its backends through the mesh, and prints who answered, as JSON."""

import asyncio
import json
import os
import sys
from pathlib import Path

from mesh.control.xds.control_plane import ControlPlane
from mesh.control.xds.mesh_view import MeshView
from mesh.rpc.channel import XdsChannel, mesh_connection
from mesh.rpc.settings import RpcSettings
from mesh.rpc.transport import PLAIN
from tests.support.processes import end_with_parent
from tests.support.xds_client import COLLECTIONS, answered_by
from tests.support.xds_mesh import SERVICES, instance_at

CALLS = 40


async def main(folder: Path, targets: list[str]) -> None:
    plane = ControlPlane(MeshView(SERVICES), PLAIN, own="in-process")
    await plane.serve_here(folder, zone="here")
    connection = mesh_connection(RpcSettings())
    channel = XdsChannel(connection, RpcSettings())
    calls = [
        asyncio.create_task(answered_by(channel, COLLECTIONS, "tenants/t/collections/c"))
        for _ in range(CALLS)
    ]
    # They are held until the control plane knows something.
    await asyncio.sleep(0)
    plane.set_instances(
        instance_at(str(number), target, zone="here") for number, target in enumerate(targets)
    )
    answers = await asyncio.gather(*calls)
    print(json.dumps({"answers": answers, "sockets": os.listdir(folder)}), flush=True)
    await connection.close()
    await plane.stop()


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
