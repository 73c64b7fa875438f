"""`weft session erase`, `export` and `import`: sessions that leave, and come."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.inputs import Yes, confirm
from mesh.cli.names import AGENT, SESSION, check_id, resource_name, short_name
from mesh.cli.output import Output, as_data, note, printable, show_data
from mesh.cli.private_files import private_file
from mesh.cli.session_records import batches, record_line, whole_session
from mesh.cli.sessions import SessionArgument, sessions, show_session_message

if TYPE_CHECKING:
    from weft.state.v1.session_service_pb2_grpc import SessionServiceStub

__all__ = ["sessions"]

TRANSFER_SECONDS = 3_600.0
"""Deadline of an export or import where no --timeout is given."""

ERASE_SECONDS = 120.0


@command(sessions, "erase", example="weft session erase librarian/talk --cascade --yes")
def erase_session(
    client: Client,
    session: SessionArgument,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Erase its forks too, and theirs.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Erases what a session holds, for good: its key is destroyed.

    That it was, and by whom it was erased, stays in the log. Refused while a fork of it
    lives, unless --cascade.
    """
    from weft.state.v1 import session_service_pb2 as pb

    name = resource_name(session, SESSION, client)
    forks = " and all of its forks" if cascade else ""
    confirm(f"Erase session {short_name(name)}{forks} for good?", yes)
    request = pb.EraseSessionRequest(name=name, cascade=cascade)
    answer = client.call(_stub(client).EraseSession, request, ERASE_SECONDS)
    if client.output is not Output.TABLE:
        show_data(client.output, as_data(answer))
        return
    for erased in answer.erased_sessions:
        sys.stdout.write(printable(f"erased {short_name(erased)}") + "\n")


@command(sessions, "export", example="weft session export librarian/talk --to talk.ndjson")
def export_session(
    client: Client,
    session: SessionArgument,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="Write it to a file that only you can read."),
    ] = None,
) -> None:
    """Writes a session as `weft session import` takes it, in the clear.

    One JSON document a line, whatever -o says: a header, then the session's events.
    """
    name = resource_name(session, SESSION, client)
    if to is None:
        _export(client, name, sys.stdout.write)
        return
    with private_file(to) as file:
        _export(client, name, file.write)
    note(f"wrote session {short_name(name)} to {to}")


@command(sessions, "import", example="weft session import librarian talk.ndjson --id copy")
def import_session(
    client: Client,
    agent: Annotated[str, typer.Argument(help="The agent: an id or a full name.")],
    file: Annotated[str, typer.Argument(help="An exported session; - is stdin.")] = "-",
    session_id: Annotated[
        str, typer.Option("--id", help="The session's id; made by the server otherwise.")
    ] = "",
    agent_revision: Annotated[
        int, typer.Option(help="Revision of the agent to pin; 0 is its latest.", min=0)
    ] = 0,
) -> None:
    """Makes a new session of an exported one, sealed anew."""
    from weft.state.v1 import session_service_pb2 as pb

    first = pb.ImportSessionRequest(
        session_id=check_id(session_id, "--id") if session_id else "",
        agent_revision=agent_revision,
        parent=resource_name(agent, AGENT, client),
    )
    method = _stub(client).ImportSession
    with whole_session(file) as lines:
        timeout = client.remaining_seconds(TRANSFER_SECONDS)
        answer = method(batches(lines, first), timeout=timeout)
    show_session_message(client, answer.session)


def _export(client: Client, name: str, write: Callable[[str], object]) -> None:
    from mesh.cli.contracts import load_contracts
    from weft.state.v1 import session_service_pb2 as pb

    load_contracts()
    method = _stub(client).ExportSession
    timeout = client.remaining_seconds(TRANSFER_SECONDS)
    for answer in method(pb.ExportSessionRequest(name=name), timeout=timeout):
        write(record_line(answer.record))


def _stub(client: Client) -> "SessionServiceStub":
    from weft.state.v1.session_service_pb2_grpc import SessionServiceStub

    stub: SessionServiceStub = client.stub(SessionServiceStub)
    return stub
