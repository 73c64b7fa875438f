"""A process that owns an embedded nats-server, to be killed by a test.

    python -m tests.support.nats_owner DATA_DIR PORT

Prints one JSON line with url, folder of the seeds and the server's pid once it serves, or with
`error`; ends when its standard input does.
"""

import asyncio
import json
import sys
from pathlib import Path

from mesh.errors import WeftError
from mesh.ids import new_id
from mesh.runtime.data_dir import DataDirectory
from mesh.runtime.nats_server import EmbeddedNats
from tests.support.nats import UNBOUND_USERS


async def main(data_dir: Path, port: int) -> None:
    with DataDirectory(data_dir, new_id()) as directory:
        server = EmbeddedNats(directory.path, UNBOUND_USERS, port=port)
        endpoint = await server.start()
        line = {"url": endpoint.url, "folder": str(endpoint.folder), "pid": server.pid}
        print(json.dumps(line), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await server.stop()


if __name__ == "__main__":
    try:
        asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
    except WeftError as error:
        print(json.dumps({"error": error.message}), flush=True)
