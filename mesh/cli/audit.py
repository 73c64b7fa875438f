"""`weft audit`: who did what, and when."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import usage_error
from mesh.cli.inputs import parse_since
from mesh.cli.names import API_KEY, resource_name, resource_pattern
from mesh.cli.output import Output, moment, printable, show_item
from mesh.cli.pages import LIMIT, Limit, each

if TYPE_CHECKING:
    from weft.auth.v1 import audit_service_pb2


def add_audit(application: typer.Typer) -> None:
    """Adds `weft audit`."""
    command(application, "audit", example="weft audit --since 2h --actor ci -o json")(audit)


def audit(
    client: Client,
    since: Annotated[
        str, typer.Option(help="From this time on (RFC 3339), or that long ago: 90s, 2d.")
    ] = "24h",
    until: Annotated[
        str | None, typer.Option(help="Only before this time, or that long ago.")
    ] = None,
    from_start: Annotated[bool, typer.Option("--all", help="From the first entry on.")] = False,
    actor: Annotated[str | None, typer.Option(help="Only what this key did.")] = None,
    resource: Annotated[
        str, typer.Option(help="Only what happened to this and all below: agents/bot, agents/*.")
    ] = "",
    limit: Limit = LIMIT,
) -> None:
    """Lists what was done in the tenant, oldest first, and calls that were refused.

    Each entry is one commit of the log: who, to what, which facts. With -o json it is one
    JSON document a line.
    """
    from weft.auth.v1 import audit_service_pb2 as pb
    from weft.auth.v1.audit_service_pb2_grpc import AuditServiceStub

    request = pb.ListAuditEntriesRequest()
    if not from_start:
        request.start_time.FromDatetime(parse_since(since))
    if until is not None:
        request.end_time.FromDatetime(parse_since(until))
        if (
            not from_start
            and request.end_time.ToNanoseconds() <= request.start_time.ToNanoseconds()
        ):
            raise usage_error("--until is before --since")
    request.parent = client.parent
    request.actor = resource_name(actor, API_KEY, client) if actor else ""
    request.resource = resource_pattern(resource, client)
    method = client.stub(AuditServiceStub).ListAuditEntries
    for entry in each(client, method, request, lambda page: page.entries, limit):
        if client.output is Output.TABLE:
            sys.stdout.write(printable(_row(entry)) + "\n")
        else:
            show_item(client.output, entry)


def _row(entry: "audit_service_pb2.AuditEntry") -> str:
    actions = " ".join(action.rsplit(".", 1)[-1] for action in entry.actions)
    return f"{moment(entry.time)}  {entry.actor}  {entry.resource}  {actions}"
