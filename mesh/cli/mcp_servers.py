"""`weft tool ...-mcp`: servers that speak the Model Context Protocol."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import usage_error
from mesh.cli.named_values import named_values
from mesh.cli.names import MCP_SERVER, check_id, resource_name, short_name
from mesh.cli.output import moment, note, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch
from mesh.cli.tools import (
    EffectChoice,
    RequiresApproval,
    Scope,
    Timeout,
    Trusted,
    effect_of,
    tools,
)

if TYPE_CHECKING:
    from weft.tools.v1 import mcp_servers_pb2
    from weft.tools.v1.mcp_server_service_pb2_grpc import McpServerServiceStub

__all__ = ["tools"]

ADD_SECONDS = 60.0
"""Deadline of adding or refreshing a server, which may have to start."""

ServerArgument = Annotated[
    str, typer.Argument(metavar="SERVER", help="The MCP server: an id or a full name.")
]


@command(
    tools,
    "add-mcp",
    example="weft tool add-mcp docs --url https://mcp.example.com/mcp"
    " --secret-header authorization=@token.txt",
)
def add_mcp_server(
    client: Client,
    server_id: Annotated[
        str, typer.Argument(metavar="ID", help="The server's id; ids of its tools begin with it.")
    ],
    program: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND",
            help="Behind `--`, what Weft starts where there is no --url, if its operator lets it.",
        ),
    ] = None,
    url: Annotated[str, typer.Option(help="The server's URL, for streamable HTTP.")] = "",
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header of each request.")
    ] = None,
    secret_header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=@FILE", help="A header that is kept sealed; - reads stdin."),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable of COMMAND.")
    ] = None,
    secret_env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=@FILE", help="A variable that is kept sealed; - reads stdin."),
    ] = None,
    effect: Annotated[
        EffectChoice, typer.Option(help="What running a tool a second time does to the world.")
    ] = EffectChoice.IRREVERSIBLE,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOOL=WHAT",
            help="For one tool, by its name there: an effect, `approval` or `exclude`.",
        ),
    ] = None,
    requires_approval: RequiresApproval = False,
    trusted: Trusted = False,
    scope: Scope = None,
    timeout: Timeout = None,
) -> None:
    """Adds an MCP server, and makes what it lists tools.

    What it says of its tools' effects are hints: say it by --effect and --rule.
    A server of that id is replaced.
    """
    from weft.tools.v1 import mcp_server_service_pb2 as pb
    from weft.tools.v1 import mcp_servers_pb2, tools_pb2

    if bool(url) == bool(program):
        raise usage_error("say either --url URL or -- COMMAND", "One of them reaches the server.")
    request = pb.AddMcpServerRequest(
        parent=client.parent,
        server_id=check_id(server_id, "ID"),
        effect=effect_of(effect),
        rules=_rules(rule or []),
        requires_approval=requires_approval,
        trust=tools_pb2.TRUST_TRUSTED if trusted else tools_pb2.TRUST_UNTRUSTED,
        required_scopes=scope,
    )
    if url:
        if env or secret_env:
            raise usage_error("--env and --secret-env are for a COMMAND")
        headers = named_values(header or [], secret_header or [], "--header", "--secret-header")
        request.http.CopyFrom(mcp_servers_pb2.McpHttp(url=url, headers=headers))
    else:
        if header or secret_header:
            raise usage_error("--header and --secret-header are for a --url")
        variables = named_values(env or [], secret_env or [], "--env", "--secret-env")
        path, *arguments = program or []
        request.stdio.CopyFrom(
            mcp_servers_pb2.McpStdio(command=path, arguments=arguments, environment=variables)
        )
    if timeout is not None:
        request.timeout.FromMilliseconds(round(timeout * 1000))
    _show(client, client.call(_stub(client).AddMcpServer, request, ADD_SECONDS).server)


@command(tools, "list-mcp", example="weft tool list-mcp")
def list_mcp_servers(client: Client, limit: Limit = LIMIT) -> None:
    """Lists MCP servers, with how the server that answers is connected to them."""
    from weft.tools.v1 import mcp_server_service_pb2 as pb

    request = pb.ListMcpServersRequest(parent=client.parent)
    found = fetch(client, _stub(client).ListMcpServers, request, lambda page: page.servers, limit)
    columns = {
        "server": lambda s: short_name(s.name),
        "reached by": _reached_by,
        "state": lambda s: _state(s.status),
        "reason": lambda s: s.status.reason,
    }
    show_list(client.output, found, columns)


@command(tools, "show-mcp", example="weft tool show-mcp docs")
def show_mcp_server(client: Client, server: ServerArgument) -> None:
    """Shows an MCP server with its tools, and how the server that answers is connected to it."""
    from weft.tools.v1 import mcp_server_service_pb2 as pb

    request = pb.GetMcpServerRequest(name=resource_name(server, MCP_SERVER, client))
    _show(client, client.call(_stub(client).GetMcpServer, request).server)


@command(tools, "refresh-mcp", example="weft tool refresh-mcp docs")
def refresh_mcp_server(client: Client, server: ServerArgument) -> None:
    """Reads anew what an MCP server lists."""
    from weft.tools.v1 import mcp_server_service_pb2 as pb

    request = pb.RefreshMcpServerRequest(name=resource_name(server, MCP_SERVER, client))
    _show(client, client.call(_stub(client).RefreshMcpServer, request, ADD_SECONDS).server)


@command(tools, "delete-mcp", example="weft tool delete-mcp docs")
def delete_mcp_server(client: Client, server: ServerArgument) -> None:
    """Takes an MCP server away with its tools, and ends its process."""
    from weft.tools.v1 import mcp_server_service_pb2 as pb

    name = resource_name(server, MCP_SERVER, client)
    client.call(_stub(client).DeleteMcpServer, pb.DeleteMcpServerRequest(name=name))
    note(f"deleted MCP server {short_name(name)}")


def _rules(texts: Sequence[str]) -> "list[mcp_servers_pb2.McpToolRule]":
    from weft.tools.v1 import mcp_servers_pb2

    rules: dict[str, mcp_servers_pb2.McpToolRule] = {}
    effects = {each.value: each for each in EffectChoice}
    for text in texts:
        tool, _, what = text.rpartition("=")
        if not tool or what not in (*effects, "approval", "exclude"):
            raise usage_error(
                f"--rule: {text!r} is no rule",
                f"Write TOOL=WHAT, where WHAT is {', '.join(effects)}, approval or exclude.",
            )
        rule = rules.setdefault(tool, mcp_servers_pb2.McpToolRule(tool=tool))
        if what in effects:
            rule.effect = effect_of(effects[what])
        rule.requires_approval |= what == "approval"
        rule.excluded |= what == "exclude"
    return list(rules.values())


def _stub(client: Client) -> "McpServerServiceStub":
    from weft.tools.v1.mcp_server_service_pb2_grpc import McpServerServiceStub

    stub: McpServerServiceStub = client.stub(McpServerServiceStub)
    return stub


def _state(status: "mcp_servers_pb2.McpServerStatus") -> str:
    from weft.tools.v1 import mcp_servers_pb2

    return mcp_servers_pb2.McpServerState.Name(status.state).removeprefix("MCP_SERVER_STATE_")


def _reached_by(server: "mcp_servers_pb2.McpServer") -> str:
    if server.HasField("http"):
        return server.http.url
    return " ".join([server.stdio.command, *server.stdio.arguments])


def _show(client: Client, server: "mcp_servers_pb2.McpServer") -> None:
    status = server.status
    named = [*server.http.headers, *server.stdio.environment]
    fields = {
        "server": short_name(server.name),
        "reached by": _reached_by(server),
        "with": ", ".join(
            f"{each.name} (sealed)" if each.is_secret else f"{each.name}={each.value}"
            for each in named
        ),
        "state": _state(status),
        "reason": status.reason,
        "retry": moment(status.retry_time),
        "instance": status.instance,
        "calls itself": status.server_title,
        "protocol": status.protocol_version,
        "scopes": ", ".join(server.required_scopes),
        "approval": "needed" if server.requires_approval else "",
        "tools": ", ".join(short_name(tool) for tool in server.tools),
        "left out": "; ".join(f"{each.tool}: {each.reason}" for each in server.omitted),
        "listed": moment(server.list_time),
        "added": moment(server.create_time),
    }
    show_message(client.output, server, fields)
