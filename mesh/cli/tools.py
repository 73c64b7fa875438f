"""`weft tool`: what agents may call."""

import re
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import CommandFailed, usage_error
from mesh.cli.inputs import read_argument, read_bytes, read_file
from mesh.cli.named_values import named_values
from mesh.cli.names import FUNCTION, TOOL, check_id, resource_name, short_name
from mesh.cli.output import (
    Output,
    as_data,
    moment,
    note,
    one_line,
    printable,
    show_data,
    show_list,
    show_message,
)
from mesh.cli.pages import LIMIT, Limit, fetch
from mesh.cli.transcript import source_lines

if TYPE_CHECKING:
    from weft.options.v1 import options_pb2
    from weft.tools.v1 import tool_service_pb2, tools_pb2
    from weft.tools.v1.tool_service_pb2_grpc import ToolServiceStub

tools = typer.Typer(help="List, call, add and delete tools.", no_args_is_help=True)

TOOL_CALL_SECONDS = 120.0
"""Deadline of a tool's call where no --timeout is given."""

_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*/[A-Za-z_][A-Za-z0-9_]*")
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

ToolArgument = Annotated[
    str, typer.Argument(metavar="TOOL", help="The tool: an id or a full name.")
]

RequiresApproval = Annotated[
    bool, typer.Option("--requires-approval", help="A person must approve each call.")
]
Trusted = Annotated[
    bool, typer.Option("--trusted", help="Nobody but the tenant has a say in what it answers.")
]
Scope = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PERMISSION", help="What whoever asks for a turn must have for it; repeatable."
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="How long a call may take.", min=0.001, max=3600),
]
CacheSeconds = Annotated[
    float | None,
    typer.Option(
        "--cache",
        metavar="SECONDS",
        help="How long a result is given again for the same arguments; with --effect read.",
        min=0.001,
        max=604_800,
    ),
]


class EffectChoice(StrEnum):
    """What running a tool a second time does to the world."""

    READ = "read"
    IDEMPOTENT = "idempotent"
    IRREVERSIBLE = "irreversible"


@command(tools, "list", example="weft tool list")
def list_tools(client: Client, limit: Limit = LIMIT) -> None:
    """Lists tools, built-in ones first."""
    from weft.tools.v1 import tool_service_pb2 as pb

    request = pb.ListToolsRequest(parent=client.parent)
    found = fetch(client, _stub(client).ListTools, request, lambda page: page.tools, limit)
    columns = {
        "tool": lambda t: short_name(t.name),
        "kind": lambda t: t.WhichOneof("kind") or "",
        "effect": lambda t: _effect(t.effect),
        "approval": lambda t: "needed" if t.requires_approval else "",
        "description": lambda t: one_line(t.description),
    }
    show_list(client.output, found, columns)


@command(tools, "show", example="weft tool show calculator")
def show_tool(client: Client, tool: ToolArgument) -> None:
    """Shows a tool with the JSON Schema of its arguments."""
    from weft.tools.v1 import tool_service_pb2 as pb

    request = pb.GetToolRequest(name=resource_name(tool, TOOL, client))
    _show(client, client.call(_stub(client).GetTool, request).tool)


@command(tools, "call", example="""weft tool call calculator -d '{"expression": "6*7"}'""")
def call_tool(
    client: Client,
    tool: ToolArgument,
    data: Annotated[
        str, typer.Option("-d", "--data", help="Arguments, a JSON object; @FILE or - read it.")
    ] = "{}",
) -> None:
    """Calls a tool and prints its result. Exits 1 where the tool failed."""
    from mesh.ids import new_id
    from weft.tools.v1 import tool_service_pb2 as pb

    request = pb.InvokeToolRequest(
        name=resource_name(tool, TOOL, client),
        arguments_json=read_argument(data),
        idempotency_key=f"cli/{new_id()}",
    )
    answer = client.call(_stub(client).InvokeTool, request, TOOL_CALL_SECONDS)
    if client.output is not Output.TABLE:
        show_data(client.output, as_data(answer))
    elif not answer.is_error:
        sys.stdout.write("\n".join([printable(answer.content), *source_lines(answer.sources)]))
        sys.stdout.write("\n")
    if answer.is_error:
        raise CommandFailed(f"the tool failed: {answer.content}")


@command(
    tools,
    "add-grpc",
    example="weft tool add-grpc localhost:9000 acme.v1.Weather/GetForecast --effect read",
)
def add_grpc_tool(
    client: Client,
    server: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="The method's server, as HOST:PORT.")
    ],
    method: Annotated[str, typer.Argument(metavar="SERVICE/METHOD", help="The method.")],
    effect: Annotated[
        EffectChoice, typer.Option(help="What running it a second time does to the world.")
    ],
    tool_id: Annotated[
        str, typer.Option("--id", help="The tool's id; made of the method's name otherwise.")
    ] = "",
    description: Annotated[
        str, typer.Option(help="What it does, for the model; else the method's own comment.")
    ] = "",
    requires_approval: RequiresApproval = False,
    trusted: Trusted = False,
    scope: Scope = None,
    timeout: Timeout = None,
    cache: CacheSeconds = None,
    descriptors: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="A FileDescriptorSet that describes the method, as of"
            " `protoc --include_imports --descriptor_set_out`; - is stdin.",
        ),
    ] = "",
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Metadata of each call.")
    ] = None,
    secret_metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=@FILE", help="Metadata that is kept sealed; - reads stdin."),
    ] = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="Use TLS, with the system's authorities.")
    ] = False,
    tls_ca: Annotated[
        str, typer.Option(metavar="FILE", help="Use TLS, with these authorities (PEM).")
    ] = "",
    tls_certificate: Annotated[
        str, typer.Option(metavar="FILE", help="Certificate that Weft shows (PEM).")
    ] = "",
    tls_key: Annotated[
        str, typer.Option(metavar="FILE", help="The key of that certificate (PEM); kept sealed.")
    ] = "",
    tls_name: Annotated[
        str, typer.Option(metavar="NAME", help="The name that the server's certificate must have.")
    ] = "",
) -> None:
    """Makes a method of a gRPC server a tool; the server must offer reflection, or --descriptors
    its description.

    What a client streams is an array of requests, `{"requests": [...]}`; what the server streams
    becomes an array. A tool of that id is replaced.
    """
    from weft.tools.v1 import tool_service_pb2 as pb
    from weft.tools.v1 import tools_pb2

    if not _METHOD.fullmatch(method):
        raise usage_error(f"{method!r} is no method", "Write package.Service/Method.")
    request = pb.RegisterToolRequest(
        parent=client.parent,
        tool_id=check_id(tool_id, "--id") if tool_id else _id_of(method),
        grpc=tools_pb2.GrpcTool(
            address=server,
            method=method,
            metadata=named_values(
                *(metadata or [], secret_metadata or [], "--metadata", "--secret-metadata")
            ),
        ),
        effect=effect_of(effect),
        description=description,
        requires_approval=requires_approval,
        trust=tools_pb2.TRUST_TRUSTED if trusted else tools_pb2.TRUST_UNTRUSTED,
        required_scopes=scope,
    )
    if tls or tls_ca or tls_certificate or tls_key or tls_name:
        request.grpc.tls.CopyFrom(
            tools_pb2.GrpcTls(
                authority_certificates=read_file(tls_ca) if tls_ca else "",
                certificate=read_file(tls_certificate) if tls_certificate else "",
                private_key=read_file(tls_key) if tls_key else "",
                server_name=tls_name,
            )
        )
    if descriptors:
        _describe(request.grpc, descriptors)
    _set_times(request, timeout, cache)
    _show(client, client.call(_stub(client).RegisterTool, request).tool)


@command(
    tools,
    "add-function",
    example="weft tool add-function double --effect read --schema @double.schema.json",
)
def add_function_tool(
    client: Client,
    function: Annotated[
        str, typer.Argument(metavar="FUNCTION", help="The function: an id or a full name.")
    ],
    effect: Annotated[
        EffectChoice, typer.Option(help="What running it a second time does to the world.")
    ],
    schema: Annotated[
        str,
        typer.Option(
            help="JSON Schema of its arguments, an object's, of at most 65,536 characters and 64"
            " levels; @FILE or - read it. Patterns in it are the function's to check."
        ),
    ] = "",
    version: Annotated[
        int, typer.Option(help="Which version; 0 is whichever is the present one.", min=0)
    ] = 0,
    tool_id: Annotated[
        str, typer.Option("--id", help="The tool's id; the function's otherwise.")
    ] = "",
    description: Annotated[
        str, typer.Option(help="What it does, for the model; else the function's own.")
    ] = "",
    requires_approval: RequiresApproval = False,
    trusted: Trusted = False,
    scope: Scope = None,
    timeout: Timeout = None,
    cache: CacheSeconds = None,
) -> None:
    """Makes a function a tool. A tool of that id is replaced."""
    from weft.tools.v1 import tool_service_pb2 as pb
    from weft.tools.v1 import tools_pb2

    name = resource_name(function, FUNCTION, client)
    request = pb.RegisterToolRequest(
        parent=client.parent,
        tool_id=check_id(tool_id, "--id") if tool_id else name.rpartition("/")[2],
        function=tools_pb2.FunctionTool(name=name, version=version),
        parameters_json_schema=read_argument(schema) if schema else "",
        effect=effect_of(effect),
        description=description,
        requires_approval=requires_approval,
        trust=tools_pb2.TRUST_TRUSTED if trusted else tools_pb2.TRUST_UNTRUSTED,
        required_scopes=scope,
    )
    _set_times(request, timeout, cache)
    _show(client, client.call(_stub(client).RegisterTool, request).tool)


@command(tools, "delete", example="weft tool delete get-forecast")
def delete_tool(client: Client, tool: ToolArgument) -> None:
    """Takes a registered tool away."""
    from weft.tools.v1 import tool_service_pb2 as pb

    name = resource_name(tool, TOOL, client)
    client.call(_stub(client).DeleteTool, pb.DeleteToolRequest(name=name))
    note(f"deleted tool {short_name(name)}")


def _stub(client: Client) -> "ToolServiceStub":
    from weft.tools.v1.tool_service_pb2_grpc import ToolServiceStub

    stub: ToolServiceStub = client.stub(ToolServiceStub)
    return stub


def _id_of(method: str) -> str:
    """The id that a method's tool gets: `get-forecast` of `acme.v1.Weather/GetForecast`."""
    name = method.rsplit("/", 1)[1].replace("_", "-")
    return _WORD_START.sub("-", name).lower().strip("-")[:63]


def _set_times(
    request: "tool_service_pb2.RegisterToolRequest", timeout: float | None, cache: float | None
) -> None:
    if timeout is not None:
        request.timeout.FromMilliseconds(round(timeout * 1000))
    if cache is not None:
        request.cache_ttl.FromMilliseconds(round(cache * 1000))


def _describe(tool: "tools_pb2.GrpcTool", path: str) -> None:
    from google.protobuf.message import DecodeError

    try:
        tool.descriptors.ParseFromString(read_bytes(path))
    except DecodeError:
        raise usage_error(f"{path} holds no FileDescriptorSet") from None


def effect_of(choice: EffectChoice) -> "options_pb2.Effect.ValueType":
    """The effect that was chosen."""
    from weft.options.v1 import options_pb2

    return options_pb2.Effect.Value(f"EFFECT_{choice.name}")


def _effect(effect: "options_pb2.Effect.ValueType") -> str:
    from weft.options.v1 import options_pb2

    return options_pb2.Effect.Name(effect).removeprefix("EFFECT_").lower()


def _trust(trust: "tools_pb2.Trust.ValueType") -> str:
    from weft.tools.v1 import tools_pb2

    # What was registered before there was trust is taken for untrusted.
    named = trust or tools_pb2.TRUST_UNTRUSTED
    return tools_pb2.Trust.Name(named).removeprefix("TRUST_").lower().replace("_", " ")


def _show(client: Client, tool: "tools_pb2.Tool") -> None:
    fields = {
        "tool": short_name(tool.name),
        "kind": tool.WhichOneof("kind") or "",
        "address": tool.grpc.address,
        "method": tool.grpc.method,
        "security": "TLS" if tool.grpc.HasField("tls") else "",
        "metadata": ", ".join(
            f"{each.name} (sealed)" if each.is_secret else f"{each.name}={each.value}"
            for each in tool.grpc.metadata
        ),
        "server": short_name(tool.mcp.server) if tool.HasField("mcp") else "",
        "there called": tool.mcp.tool,
        "function": short_name(tool.function.name) if tool.HasField("function") else "",
        "effect": _effect(tool.effect),
        "trust": _trust(tool.trust),
        "scopes": ", ".join(tool.required_scopes),
        "approval": "needed" if tool.requires_approval else "",
        "timeout": f"{tool.timeout.ToTimedelta().total_seconds():g} s",
        "cached": f"{tool.cache_ttl.ToTimedelta().total_seconds():g} s"
        if tool.HasField("cache_ttl")
        else "",
        "description": tool.description,
        "schema": tool.parameters_json_schema,
        "created": moment(tool.create_time),
    }
    show_message(client.output, tool, fields)
