"""`weft verify`: whether the log still is what was written."""

import sys
import time
from typing import TYPE_CHECKING

import typer

from mesh.cli.attaching import STREAM_SECONDS
from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import CommandFailed
from mesh.cli.output import Output, note, printable, show_item

if TYPE_CHECKING:
    from weft.state.v1 import state_service_pb2

PROGRESS_SECONDS = 2.0
"""Time between two lines that say how far it got."""


def add_verify(application: typer.Typer) -> None:
    """Adds `weft verify`."""
    command(application, "verify", example="weft verify --tenant acme")(verify)


def verify(client: Client) -> None:
    """Checks the hash chains of all that the tenant has in the log, and that it opens.

    Lists what doesn't hold and exits 1 where there is any; how far it got goes to stderr.
    With -o json each message is one JSON document a line.
    """
    from weft.state.v1 import state_service_pb2 as pb
    from weft.state.v1.state_service_pb2_grpc import StateServiceStub

    request = pb.VerifyLogRequest(parent=client.parent)
    method = client.stub(StateServiceStub).VerifyLog
    problems, shown, last = 0, time.monotonic(), None
    for last in method(request, timeout=client.remaining_seconds(STREAM_SECONDS)):
        problems += len(last.problems)
        _show(client.output, last)
        if time.monotonic() - shown >= PROGRESS_SECONDS and not last.done:
            shown = time.monotonic()
            note(f"checked {_extent(last)}")
    if last is None or not last.done:
        raise CommandFailed("the server left before all was checked")
    note(f"checked {_extent(last)}")
    if problems:
        raise CommandFailed(f"the log doesn't hold: {problems} problems")
    if client.output is Output.TABLE:
        sys.stdout.write("all holds\n")


def _show(output: Output, answer: "state_service_pb2.VerifyLogResponse") -> None:
    if output is not Output.TABLE:
        show_item(output, answer)
        return
    for found in answer.problems:
        sys.stdout.write(printable(f"{found.stream}  {found.problem}") + "\n")
    sys.stdout.flush()


def _extent(answer: "state_service_pb2.VerifyLogResponse") -> str:
    erased = f", {answer.erased_count} of them erased" if answer.erased_count else ""
    return f"{answer.stream_count} aggregates{erased}, {answer.commit_count} commits"
