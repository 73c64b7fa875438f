"""`python -m tests.support.xds_control_plane PORT`: a control plane in a process of its own.

Prints its port. Each line on its stdin is a list of instances in JSON, which it serves from
then on; it answers with how many there are. Before the first line it knows nothing.
"""

import asyncio
import json
import sys

from google.protobuf import json_format

from mesh.control.xds.ads import AdsServer
from mesh.control.xds.mesh_view import MeshView
from tests.support.processes import end_with_parent
from tests.support.xds_mesh import SERVICES
from weft.control.v1 import instances_pb2


async def main(port: int) -> None:
    ads = AdsServer()
    print(await ads.start(f"127.0.0.1:{port}"), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        instances = [
            json_format.ParseDict(each, instances_pb2.Instance()) for each in json.loads(line)
        ]
        ads.set(MeshView(SERVICES, tuple(instances)))
        print(len(instances), flush=True)


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(main(int(sys.argv[1])))
