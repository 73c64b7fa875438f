"""The command `weft`: the client's commands, and those that serve."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli.application import application, run
from mesh.cli.bus_credentials import add_credentials
from mesh.cli.ca import add_ca
from mesh.cli.demo import add_demo
from mesh.cli.failures import from_weft_error, usage_error
from mesh.cli.output import Output
from mesh.errors import FailedPrecondition, WeftError

if TYPE_CHECKING:
    from mesh.runtime.nats_users import BusUser


Port = Annotated[int | None, typer.Option(help="gRPC port; the next free one when it's in use.")]
HttpPort = Annotated[int | None, typer.Option(help="Port of /healthz, /readyz and /metrics.")]
Form = Annotated[Output, typer.Option("-o", "--output", help="Form of what is printed.")]
NewAdminKey = Annotated[
    str | None,
    typer.Option(
        metavar="TENANT",
        help="Make another administrator's key in this tenant, where all are lost.",
    ),
]
LogLevel = Annotated[
    str | None, typer.Option(help="debug, info, warning or error; logs go to stderr.")
]


def run_command() -> None:
    """Runs the command line and exits."""
    app = application()
    app.command()(up)
    app.command()(serve)
    add_demo(app)
    add_credentials(app, _bus_users)
    add_ca(app, _service_names)
    run(app)


def _bus_users() -> "Sequence[BusUser]":
    from mesh.runtime.nats_users import bus_users
    from services.catalog import CATALOGUE

    return bus_users(CATALOGUE)


def _service_names() -> Sequence[str]:
    from services.catalog import CATALOGUE

    return [entry.name for entry in CATALOGUE]


def up(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder to keep everything in; .weft where it isn't said."),
    ] = None,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Keep everything in a folder that is deleted.")
    ] = False,
    port: Port = None,
    http_port: HttpPort = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1, max=64, help="Run so many replicas, which share the port; 1 is this process."
        ),
    ] = 1,
    accept_loss: Annotated[
        bool,
        typer.Option("--accept-loss", help="Start on an event log that lost its end or a part."),
    ] = False,
    new_admin_key: NewAdminKey = None,
    output: Form = Output.TABLE,
    log_level: LogLevel = None,
) -> None:
    """Start the platform in this process, with its own nats-server.

    NATS_URL points it at NATS servers that are there already. With --processes this process
    runs no service: it starts the replicas, and starts those again that die. Ends, after a
    drain, at SIGTERM or Ctrl-C.

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
        if folder is not None:
            flags["data_dir"] = folder
        # What is deleted with its data needs no master key that outlives them.
        secrets_dir = folder / "secrets" if folder is not None else None
        if processes == 1:
            _run(_serve(_given(flags), secrets_dir, output, new_admin_key))
        elif new_admin_key is not None:
            raise usage_error("--new-admin-key needs a start without --processes")
        else:
            _run(_supervise(_given(flags), secrets_dir, output, processes))


def serve(
    services: Annotated[
        list[str], typer.Argument(metavar="SERVICE...", help="Services to run in this process.")
    ],
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of this process alone; .weft where it isn't said."),
    ] = None,
    port: Port = None,
    http_port: HttpPort = None,
    new_admin_key: NewAdminKey = None,
    output: Form = Output.TABLE,
    log_level: LogLevel = None,
) -> None:
    """Run some services of a deployment in this process; other processes run the rest.

    They meet on the NATS servers that NATS_URL names, and find each other there. A process
    with the service gateway takes every call, and hands on those that others answer; the one
    with auth makes the first administrator's key. Ends, after a drain, at SIGTERM or Ctrl-C.

    Example: NATS_URL=nats://127.0.0.1:4222 weft serve scheduler state --data-dir ./part
    """
    flags = {
        "data_dir": data_dir,
        "grpc_port": port,
        "http_port": http_port,
        "log_level": log_level,
    }
    if new_admin_key is not None and "auth" not in services:
        raise usage_error("--new-admin-key needs auth among the services")
    _run(_serve(_given(flags), None, output, new_admin_key, services))


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _run(serving: Coroutine[Any, Any, None]) -> None:
    try:
        _install_event_loop().run(serving)
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
    given: dict[str, Any],
    secrets_dir: Path | None,
    output: Output,
    new_admin_key: str | None = None,
    serves: Sequence[str] = (),
) -> None:
    # Imported here, so that `weft --help` doesn't load the services.
    from mesh.runtime.garbage import collect_seldom
    from mesh.runtime.host import Host
    from mesh.runtime.settings import RuntimeSettings
    from mesh.security.settings import SecuritySettings
    from mesh.telemetry.logs import configure_logs
    from services.catalog import CATALOGUE, access, splits
    from services.first_key import admitted

    # What is written from here on is nobody else's business.
    os.umask(0o077)
    settings = RuntimeSettings(**given)
    unknown = sorted(set(serves) - {entry.name for entry in CATALOGUE})
    if unknown:
        known = ", ".join(sorted(entry.name for entry in CATALOGUE))
        raise usage_error(f"there is no service {unknown[0]}; there are {known}")
    if serves and not settings.nats_url:
        raise FailedPrecondition("NATS_URL isn't set: the parts of a deployment meet there")
    security = SecuritySettings(secrets_dir=secrets_dir) if secrets_dir else SecuritySettings()
    configure_logs(settings.log_level)
    stopping = _stopping()
    async with Host(CATALOGUE, settings, access, security, splits=splits, serves=serves) as host:
        first_key = await admitted(host, serves, another=new_admin_key)
        collect_seldom()
        said: dict[str, Any] = {**host.addresses, "cluster": host.cluster}
        said |= {"instance": host.instance, "notes": host.notes}
        if host.transport.bundle_file is not None:
            said["ca_file"] = str(host.transport.bundle_file)
        if first_key is not None:
            said["api_key"] = first_key.text
            if first_key.file is not None:
                said["api_key_file"] = str(first_key.file)
        clients = not serves or "gateway" in serves
        _announce(said, host.data_dir, output, clients=clients)
        await _stopped(stopping)


async def _supervise(
    given: dict[str, Any], secrets_dir: Path | None, output: Output, processes: int
) -> None:
    from mesh.runtime.settings import RuntimeSettings
    from mesh.runtime.supervisor import Supervisor
    from mesh.telemetry.logs import configure_logs
    from services.catalog import CATALOGUE

    os.umask(0o077)
    settings = RuntimeSettings(**given)
    configure_logs(settings.log_level)
    stopping = _stopping()
    whole = [entry.name for entry in CATALOGUE]
    replica = [entry.name for entry in CATALOGUE if not entry.single]
    groups = [whole, *[replica] * (processes - 1)]
    # Not what lies in the present folder under that name (-P).
    command = (sys.executable, "-P", "-m", "services", "serve")
    async with Supervisor(CATALOGUE, settings, groups, command, secrets_dir=secrets_dir) as parts:
        keys = ("cluster", "api_key", "api_key_file", "ca_file", "xds")
        said = {key: parts.first[key] for key in keys if key in parts.first}
        said |= {**parts.addresses, "notes": [*parts.notes, *parts.first["notes"]]}
        said["processes"] = [
            {"pid": part.child.pid, "instance": part.said["instance"], "http": part.said["http"]}
            for part in parts.parts
            if part.child is not None
        ]
        _announce(said, settings.data_dir, output)
        await _stopped(stopping)


def _stopping() -> asyncio.Event:
    """Set at SIGTERM and Ctrl-C."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    return stopping


async def _stopped(stopping: asyncio.Event) -> None:
    await stopping.wait()
    for number in (signal.SIGINT, signal.SIGTERM):
        # A second signal ends the process at once.
        asyncio.get_running_loop().remove_signal_handler(number)
    print("weft: draining", file=sys.stderr)


def _announce(
    said: Mapping[str, Any], data_dir: Path, output: Output, *, clients: bool = True
) -> None:
    """Says where Weft is, and the first key where it was made; and what `clients` may try."""
    if output is not Output.TABLE:
        print(json.dumps(said), flush=True)
        return
    grpc, http, key = said["grpc"], said["http"], said.get("api_key")
    if key is not None:
        file = said.get("api_key_file")
        print(
            f"The administrator's API key, shown this once:\n\n  {key}\n\n"
            + (f"It is also in {file}, where `weft` finds it.\n" if file else "")
        )
    for note in said["notes"]:
        print(f"note: {note}", file=sys.stderr)
    parts = "".join(
        f"  process  {part['pid']}, metrics http://{part['http']}/metrics\n"
        for part in said.get("processes", ())
    )
    ca_file = said.get("ca_file")
    mesh = f"  mesh     {said['mesh']}\n" if "mesh" in said else ""
    mesh += f"  xDS      {said['xds']}\n" if "xds" in said else ""
    how = f"-cacert {ca_file}" if ca_file is not None else "-plaintext"
    grpcurl = f"grpcurl -expand-headers -H 'authorization: Bearer ${{TOKEN}}' {how}"
    weft = f"weft --address {grpc}" + (f" --ca-file {ca_file}" if ca_file is not None else "")
    print(
        f"Weft is up. Data: {data_dir}\n"
        f"  gRPC     {grpc}\n"
        f"{mesh}"
        f"  health   http://{http}/readyz   metrics http://{http}/metrics\n"
        f"  NATS     {said['nats']}\n"
        f"{parts}",
        end="",
    )
    if clients:
        print(
            "Try:\n"
            f"  {weft} whoami\n"
            f"  export TOKEN=$({weft} token)  # for other clients, five minutes\n"
            f"  {grpcurl} {grpc} list\n"
            f'  {grpcurl} -d \'{{"parent": "tenants/default"}}\' {grpc}'
            " weft.tools.v1.ToolService/ListTools"
        )
    else:
        print("It is a part of a deployment: clients come to one with gateway.")
    print("Ctrl-C stops it.", flush=True)
