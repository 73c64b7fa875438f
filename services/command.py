"""The command `weft`: the client's commands, and those that serve."""

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli.application import application, run
from mesh.cli.demo import add_demo
from mesh.cli.failures import from_weft_error, usage_error
from mesh.cli.output import Output
from mesh.errors import WeftError

if TYPE_CHECKING:
    from mesh.runtime.host import Host


def run_command() -> None:
    """Runs the command line and exits."""
    app = application()
    app.command()(up)
    add_demo(app)
    run(app)


def up(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder to keep everything in; .weft where it isn't said."),
    ] = None,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Keep everything in a folder that is deleted.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(help="gRPC port; the next free one when it's in use.")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port of /healthz, /readyz and /metrics.")
    ] = None,
    accept_loss: Annotated[
        bool,
        typer.Option("--accept-loss", help="Start on an event log that lost its end or a part."),
    ] = False,
    output: Annotated[
        Output, typer.Option("-o", "--output", help="Form of what is printed.")
    ] = Output.TABLE,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error; logs go to stderr.")
    ] = None,
) -> None:
    """Start the platform in this process, with its own nats-server.

    NATS_URL points it at NATS servers that are there already. Ends, after a drain, at
    SIGTERM or Ctrl-C.

    Example: weft up --data-dir ./weft-data
    """
    flags = {
        "data_dir": data_dir,
        "grpc_port": port,
        "http_port": http_port,
        "accept_loss": accept_loss or None,
        "log_level": log_level,
    }
    with _folder(ephemeral, data_dir) as folder:
        given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
        if folder is not None:
            given["data_dir"] = folder
        try:
            # What is deleted with its data needs no master key that outlives them.
            secrets_dir = folder / "secrets" if folder is not None else None
            _install_event_loop().run(_serve(given, secrets_dir, output))
        except WeftError as error:
            raise from_weft_error(error) from error


@contextlib.contextmanager
def _folder(ephemeral: bool, data_dir: Path | None) -> Iterator[Path | None]:
    if not ephemeral:
        yield None
        return
    if data_dir is not None:
        raise usage_error("--ephemeral and --data-dir exclude each other")
    with tempfile.TemporaryDirectory(prefix="weft-") as folder:
        yield Path(folder)


def _install_event_loop() -> asyncio.Runner:
    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


async def _serve(given: dict[str, Any], secrets_dir: Path | None, output: Output) -> None:
    # Imported here, so that `weft --help` doesn't load the services.
    from mesh.runtime.host import Host
    from mesh.runtime.settings import RuntimeSettings
    from mesh.security.settings import SecuritySettings
    from mesh.telemetry.logs import configure_logs
    from services.catalog import CATALOGUE

    settings = RuntimeSettings(**given)
    security = SecuritySettings(secrets_dir=secrets_dir) if secrets_dir else SecuritySettings()
    configure_logs(settings.log_level)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with Host(CATALOGUE, settings, security) as host:
        _announce(host, output)
        await stopping.wait()
        for number in (signal.SIGINT, signal.SIGTERM):
            # A second signal ends the process at once.
            loop.remove_signal_handler(number)
        print("weft: draining", file=sys.stderr)


def _announce(host: "Host", output: Output) -> None:
    grpc, http = host.addresses["grpc"], host.addresses["http"]
    if output is not Output.TABLE:
        record = {**host.addresses, "instance": host.instance, "notes": host.notes}
        print(json.dumps(record), flush=True)
        return
    for note in host.notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"Weft is up. Data: {host.data_dir}\n"
        f"  gRPC     {grpc}\n"
        f"  health   http://{http}/readyz   metrics http://{http}/metrics\n"
        f"  NATS     {host.addresses['nats']}\n"
        "Try:\n"
        f"  weft --address {grpc} model list\n"
        f"  grpcurl -plaintext {grpc} list\n"
        f'  grpcurl -plaintext -d \'{{"parent": "tenants/default"}}\' {grpc}'
        " weft.tools.v1.ToolService/ListTools\n"
        "  buf curl --protocol grpc --http2-prior-knowledge"
        f' -d \'{{"parent": "tenants/default"}}\''
        f" http://{grpc}/weft.agents.v1.AgentService/ListAgents\n"
        "Ctrl-C stops it.",
        flush=True,
    )
