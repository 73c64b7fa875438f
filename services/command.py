"""The command `weft`: the client's commands, and those that serve."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli.application import application, run
from mesh.cli.bus_credentials import add_credentials
from mesh.cli.demo import add_demo
from mesh.cli.failures import from_weft_error, usage_error
from mesh.cli.output import Output
from mesh.errors import WeftError

if TYPE_CHECKING:
    from mesh.runtime.host import Host
    from mesh.runtime.nats_users import BusUser
    from services.first_key import FirstKey


def run_command() -> None:
    """Runs the command line and exits."""
    app = application()
    app.command()(up)
    add_demo(app)
    add_credentials(app, _bus_users)
    run(app)


def _bus_users() -> "Sequence[BusUser]":
    from mesh.runtime.nats_users import bus_users
    from services.catalog import CATALOGUE

    return bus_users(CATALOGUE)


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
    new_admin_key: Annotated[
        str | None,
        typer.Option(
            metavar="TENANT",
            help="Make another administrator's key in this tenant, where all are lost.",
        ),
    ] = None,
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
            _install_event_loop().run(_serve(given, secrets_dir, output, new_admin_key))
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


async def _serve(
    given: dict[str, Any], secrets_dir: Path | None, output: Output, new_admin_key: str | None
) -> None:
    # Imported here, so that `weft --help` doesn't load the services.
    from mesh.runtime.garbage import collect_seldom
    from mesh.runtime.host import Host
    from mesh.runtime.settings import RuntimeSettings
    from mesh.security.settings import SecuritySettings
    from mesh.telemetry.logs import configure_logs
    from services.catalog import CATALOGUE, access
    from services.first_key import admitted

    # What is written from here on is nobody else's business.
    os.umask(0o077)
    settings = RuntimeSettings(**given)
    security = SecuritySettings(secrets_dir=secrets_dir) if secrets_dir else SecuritySettings()
    configure_logs(settings.log_level)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with Host(CATALOGUE, settings, access, security) as host:
        first_key = await admitted(host, another=new_admin_key)
        collect_seldom()
        _announce(host, output, first_key)
        await stopping.wait()
        for number in (signal.SIGINT, signal.SIGTERM):
            # A second signal ends the process at once.
            loop.remove_signal_handler(number)
        print("weft: draining", file=sys.stderr)


def _announce(host: "Host", output: Output, first_key: "FirstKey | None") -> None:
    grpc, http = host.addresses["grpc"], host.addresses["http"]
    if output is not Output.TABLE:
        record: dict[str, Any] = {**host.addresses, "cluster": host.cluster}
        record |= {"instance": host.instance, "notes": host.notes}
        if first_key is not None:
            record["api_key"] = first_key.text
        print(json.dumps(record), flush=True)
        return
    if first_key is not None:
        print(
            f"The administrator's API key, shown this once:\n\n  {first_key.text}\n\n"
            + (
                f"It is also in {first_key.file}, where `weft` finds it.\n"
                if first_key.file
                else ""
            )
        )
    for note in host.notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"Weft is up. Data: {host.data_dir}\n"
        f"  gRPC     {grpc}\n"
        f"  health   http://{http}/readyz   metrics http://{http}/metrics\n"
        f"  NATS     {host.addresses['nats']}\n"
        "Try:\n"
        f"  weft --address {grpc} whoami\n"
        f"  export TOKEN=$(weft --address {grpc} token)  # for other clients, five minutes\n"
        f"  grpcurl -expand-headers -H 'authorization: Bearer ${{TOKEN}}' -plaintext {grpc} list\n"
        f"  grpcurl -expand-headers -H 'authorization: Bearer ${{TOKEN}}' -plaintext"
        f' -d \'{{"parent": "tenants/default"}}\' {grpc}'
        " weft.tools.v1.ToolService/ListTools\n"
        "Ctrl-C stops it.",
        flush=True,
    )
