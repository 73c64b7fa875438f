"""One method behind Weft's whole pipeline, to be reached on several ways:
`python -m tests.benchmarks.hop_server SOCKET CERTIFICATES`. Prints where, as JSON."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import uvloop

from mesh.rpc.pipeline import bind
from mesh.rpc.server import RpcServer
from mesh.rpc.settings import RpcSettings
from mesh.rpc.transport import PLAIN, Transport
from mesh.security.certificate_files import CertificateFiles
from tests.benchmarks.edge_server import Vectors
from tests.support.edge import pipeline
from tests.support.processes import end_with_parent

HOST = "127.0.0.1"
HANDLERS: dict[str, Any] = {"weft.vectors.v1.VectorService": Vectors()}


async def serve(socket: str, certificates: Path) -> None:
    """Serves until it is ended."""
    settings = RpcSettings()
    around = pipeline(settings)
    endpoints = bind(HANDLERS, around, settings)
    plain = RpcServer(endpoints, settings, around)
    # No deployment listens there: it has the port for the same price, as this shows.
    PLAIN.listen(plain._server, f"unix:{socket}", processes=False)
    encrypted = RpcServer(
        endpoints, settings, around, transport=Transport(CertificateFiles(certificates))
    )
    ports = {"mTLS": encrypted.listen_to_processes(HOST, 0), "TCP": await plain.start(HOST, 0)}
    await encrypted.start(HOST, 0)
    where = {way: f"{HOST}:{port}" for way, port in ports.items()}
    print(json.dumps({**where, "unix socket": f"unix:{socket}"}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    end_with_parent()
    uvloop.run(serve(sys.argv[1], Path(sys.argv[2])))
