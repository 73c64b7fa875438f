"""`weft up` with the scripted model: `python -m tests.support.serve --data-dir FOLDER`.

It is the same host and catalogue, with one entry built differently, on free ports. It
writes its addresses where `weft up` does, prints one line of JSON once it is ready, and
drains at SIGTERM. `NATS_URL`, `WEFT_*` and `WEFT_FAILPOINTS` work as for `weft up`. At
SIGUSR1 it takes the failpoints in FOLDER's sibling `<name>.failpoints`, and says so.

With `--split` each service has a process of its own, with `--processes` there are replicas of
the whole, as `weft up --processes` starts them; with `--serves` it is one of those, as
`weft serve` is.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import uvloop

from mesh import failpoints
from mesh.runtime.garbage import collect_seldom
from mesh.runtime.host import Host
from mesh.runtime.service import ServiceEntry
from mesh.runtime.settings import RuntimeSettings
from mesh.runtime.supervisor import Supervisor
from mesh.telemetry.logs import configure_logs
from services.catalog import CATALOGUE, access, splits
from services.first_key import admitted
from tests.support.processes import end_with_parent
from tests.support.scripted_models import ScriptedModels

SCRIPTED_CATALOGUE = tuple(
    replace(entry, build=lambda mesh: ScriptedModels()) if entry.name == "models" else entry
    for entry in CATALOGUE
)


SPLIT = [
    ["auth", "control"],
    ["blobs", "functions", "models", "tools", "vectors"],
    ["state"],
    ["scheduler"],
    ["agents"],
    ["gateway"],
]
"""The services that share a process, each in one that needs none of the others."""


async def serve(
    data_dir: Path, catalogue: Sequence[ServiceEntry], serves: Sequence[str] = (), port: int = 0
) -> None:
    """Serves until SIGTERM."""
    settings = RuntimeSettings(
        data_dir=data_dir, grpc_port=port, http_port=0, nats_port=0, xds_port=0
    )
    configure_logs(settings.log_level)
    loop = asyncio.get_running_loop()

    def arm() -> None:
        failpoints.arm(data_dir.with_name(f"{data_dir.name}.failpoints").read_text())
        print("armed", flush=True)

    loop.add_signal_handler(signal.SIGUSR1, arm)
    stopping = stopping_event()
    async with Host(catalogue, settings, access, splits=splits, serves=serves) as host:
        await admitted(host, serves)
        collect_seldom()
        said = {**host.addresses, "instance": host.instance, "cluster": host.cluster}
        print(json.dumps({**said, "notes": host.notes}), flush=True)
        await stopping.wait()


def replicas(count: int) -> list[list[str]]:
    """The services of so many replicas, as those of `weft up --processes`."""
    whole = [entry.name for entry in CATALOGUE]
    replica = [entry.name for entry in CATALOGUE if not entry.single]
    return [whole, *[replica] * (count - 1)]


async def serve_in_parts(
    data_dir: Path, options: Sequence[str], groups: Sequence[Sequence[str]]
) -> None:
    """Runs the parts until SIGTERM."""
    settings = RuntimeSettings(data_dir=data_dir, grpc_port=0, http_port=0, nats_port=0, xds_port=0)
    configure_logs(settings.log_level)
    stopping = stopping_event()
    command = (sys.executable, "-m", "tests.support.serve", *options, "--serves")
    async with Supervisor(CATALOGUE, settings, groups, command) as parts:
        agents = next(part for part in parts.parts if "agents" in part.services)
        said = {"instance": agents.said["instance"], "cluster": parts.first["cluster"]}
        print(json.dumps({**parts.addresses, **said}), flush=True)
        await stopping.wait()


def stopping_event() -> asyncio.Event:
    """Set at SIGTERM and Ctrl-C."""
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


if __name__ == "__main__":
    end_with_parent()
    os.environ.setdefault("WEFT_BLOBS_HTTP_PORT", "0")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument(
        "--configured-models",
        action="store_true",
        help="the models service as it is, instead of the scripted model",
    )
    parser.add_argument("--split", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--serves", nargs="+", default=())
    parser.add_argument("--port", type=int, default=0)
    # What a supervisor gives its parts, and is so here by itself.
    parser.add_argument("--http-port")
    parser.add_argument("-o")
    parser.add_argument("--log-level")
    arguments = parser.parse_args()
    if arguments.split or arguments.processes > 1:
        options = ["--configured-models"] if arguments.configured_models else []
        groups = SPLIT if arguments.split else replicas(arguments.processes)
        uvloop.run(serve_in_parts(arguments.data_dir, options, groups))
    else:
        catalogue = CATALOGUE if arguments.configured_models else SCRIPTED_CATALOGUE
        uvloop.run(serve(arguments.data_dir, catalogue, arguments.serves, arguments.port))
