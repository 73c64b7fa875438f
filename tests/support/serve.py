"""`weft up` with the scripted model: `python -m tests.support.serve --data-dir FOLDER`.

It is the same host and catalogue, with one entry built differently, on free ports. It
writes its addresses where `weft up` does, prints one line of JSON once it is ready, and
drains at SIGTERM. `NATS_URL`, `WEFT_*` and `WEFT_FAILPOINTS` work as for `weft up`. At
SIGUSR1 it takes the failpoints in FOLDER's sibling `<name>.failpoints`, and says so.
"""

import argparse
import asyncio
import json
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import uvloop

from mesh import failpoints
from mesh.runtime.garbage import collect_seldom
from mesh.runtime.host import Host
from mesh.runtime.service import ServiceEntry
from mesh.runtime.settings import RuntimeSettings
from mesh.telemetry.logs import configure_logs
from services.catalog import CATALOGUE, access
from services.first_key import admitted
from tests.support.processes import end_with_parent
from tests.support.scripted_models import ScriptedModels

SCRIPTED_CATALOGUE = tuple(
    replace(entry, build=lambda mesh: ScriptedModels()) if entry.name == "models" else entry
    for entry in CATALOGUE
)


async def serve(data_dir: Path, catalogue: Sequence[ServiceEntry] = SCRIPTED_CATALOGUE) -> None:
    """Serves until SIGTERM."""
    settings = RuntimeSettings(data_dir=data_dir, grpc_port=0, http_port=0, nats_port=0)
    configure_logs(settings.log_level)
    loop = asyncio.get_running_loop()

    def arm() -> None:
        failpoints.arm(data_dir.with_name(f"{data_dir.name}.failpoints").read_text())
        print("armed", flush=True)

    loop.add_signal_handler(signal.SIGUSR1, arm)
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with Host(catalogue, settings, access) as host:
        await admitted(host)
        collect_seldom()
        said = {**host.addresses, "instance": host.instance, "cluster": host.cluster}
        print(json.dumps(said), flush=True)
        await stopping.wait()


if __name__ == "__main__":
    end_with_parent()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument(
        "--configured-models",
        action="store_true",
        help="the models service as it is, instead of the scripted model",
    )
    arguments = parser.parse_args()
    uvloop.run(
        serve(
            arguments.data_dir,
            CATALOGUE if arguments.configured_models else SCRIPTED_CATALOGUE,
        )
    )
