"""`weft fn`: functions, and running them."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.attaching import Stream, reattached
from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import CommandFailed, usage_error
from mesh.cli.inputs import read_argument, read_bytes
from mesh.cli.names import FUNCTION, check_id, resource_name, short_name
from mesh.cli.output import (
    Output,
    as_data,
    moment,
    note,
    one_line,
    printable,
    show_data,
    show_item,
    show_list,
    show_message,
)
from mesh.cli.pages import LIMIT, Limit, fetch

if TYPE_CHECKING:
    from weft.functions.v1 import functions_pb2
    from weft.functions.v1.function_service_pb2_grpc import FunctionServiceStub

functions = typer.Typer(help="Deploy, invoke and list functions.", no_args_is_help=True)

INVOKE_SECONDS = 330.0
"""Deadline of an invocation where no --timeout is given: the longest that a function may take,
and some time to wait for its turn."""

FunctionArgument = Annotated[
    str, typer.Argument(metavar="FUNCTION", help="The function: an id or a full name.")
]


@command(functions, "deploy", example="weft fn deploy double ./double.py")
def deploy_function(
    client: Client,
    function: Annotated[str, typer.Argument(metavar="FUNCTION", help="The function's id.")],
    file: Annotated[str, typer.Argument(help="Its Python source; - is stdin.")],
    entry_point: Annotated[
        str, typer.Option(metavar="NAME", help="What in it is called; else `handler`.")
    ] = "",
    description: Annotated[str, typer.Option(help="What it does.")] = "",
    seconds: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="How long it may take; else 10 s.", min=0.001),
    ] = None,
    cpu: Annotated[
        int, typer.Option(metavar="SECONDS", help="Processor time; 0 is 10 s.", min=0)
    ] = 0,
    memory: Annotated[int, typer.Option(metavar="MIB", help="Memory; 0 is 256.", min=0)] = 0,
    threads: Annotated[int, typer.Option(help="Threads; 0 is 16.", min=0)] = 0,
    scratch: Annotated[
        int, typer.Option(metavar="MIB", help="Files in its folder; 0 is 16.", min=0)
    ] = 0,
) -> None:
    """Deploys Python source as a new version, which is invoked from here on.

    It is loaded in the sandbox first. It has the standard library, no network, and a folder
    that is empty when an invocation begins and gone when it ends.
    """
    from weft.functions.v1 import function_service_pb2 as pb
    from weft.functions.v1 import functions_pb2

    limits = functions_pb2.FunctionLimits(
        cpu_seconds=cpu, memory_bytes=memory << 20, threads=threads, scratch_bytes=scratch << 20
    )
    if seconds is not None:
        limits.timeout.FromMilliseconds(round(seconds * 1000))
    request = pb.DeployFunctionRequest(
        parent=client.parent,
        function_id=check_id(function, "FUNCTION"),
        source=_source(file),
        entry_point=entry_point,
        description=description,
        limits=limits,
    )
    _show(client, client.call(_stub(client).DeployFunction, request).function)


@command(functions, "invoke", example="weft fn invoke double -d 21")
def invoke_function(
    client: Client,
    function: FunctionArgument,
    data: Annotated[
        str, typer.Option("-d", "--data", help="Its arguments, as JSON; @FILE or - read them.")
    ] = "null",
    version: Annotated[int, typer.Option(help="Which version; 0 is the present one.", min=0)] = 0,
) -> None:
    """Invokes a function and prints what it returns, as JSON. Exits 1 where it failed."""
    from mesh.ids import new_id
    from weft.functions.v1 import function_service_pb2 as pb
    from weft.functions.v1 import functions_pb2

    request = pb.InvokeFunctionRequest(
        name=resource_name(function, FUNCTION, client),
        version=version,
        arguments_json=read_argument(data),
        idempotency_key=f"cli/{new_id()}",
    )
    answer = client.call(_stub(client).InvokeFunction, request, INVOKE_SECONDS)
    if client.output is not Output.TABLE:
        show_data(client.output, as_data(answer))
    elif not answer.HasField("error"):
        sys.stdout.write(printable(answer.result_json) + "\n")
    if answer.HasField("error"):
        kind = functions_pb2.FunctionErrorKind.Name(answer.error.kind)
        word = kind.removeprefix("FUNCTION_ERROR_KIND_").lower()
        trace = f"\n{answer.error.trace}" if answer.error.trace else ""
        told = printable(f"{answer.error.message}{trace}".rstrip())
        raise CommandFailed(f"the function failed ({word}): {told}")


@command(functions, "list", example="weft fn list")
def list_functions(client: Client, limit: Limit = LIMIT) -> None:
    """Lists functions by id."""
    from weft.functions.v1 import function_service_pb2 as pb

    request = pb.ListFunctionsRequest(parent=client.parent)
    found = fetch(client, _stub(client).ListFunctions, request, lambda page: page.functions, limit)
    columns = {
        "function": lambda f: short_name(f.name),
        "version": lambda f: f.version,
        "deployed": lambda f: moment(f.versions[0].create_time),
        "bytes": lambda f: f.versions[0].source_bytes,
        "description": lambda f: one_line(f.description),
    }
    show_list(client.output, found, columns)


@command(functions, "show", example="weft fn show double")
def show_function(
    client: Client,
    function: FunctionArgument,
    source: Annotated[bool, typer.Option("--source", help="Print its source instead.")] = False,
    version: Annotated[
        int, typer.Option(help="Of which version, with --source; 0 is the present one.", min=0)
    ] = 0,
) -> None:
    """Shows a function with its versions, or its source."""
    from weft.functions.v1 import function_service_pb2 as pb

    request = pb.GetFunctionRequest(
        name=resource_name(function, FUNCTION, client), with_source=source, version=version
    )
    answer = client.call(_stub(client).GetFunction, request)
    if source and client.output is Output.TABLE:
        sys.stdout.write(printable(answer.source))
    elif source:
        show_data(client.output, as_data(answer))
    else:
        _show(client, answer.function)


@command(functions, "rollback", example="weft fn rollback double 1")
def roll_back_function(
    client: Client,
    function: FunctionArgument,
    version: Annotated[int, typer.Argument(help="The version that is to be invoked.", min=1)],
) -> None:
    """Has another version than the last one be invoked."""
    from weft.functions.v1 import function_service_pb2 as pb

    name = resource_name(function, FUNCTION, client)
    request = pb.RollBackFunctionRequest(name=name, version=version)
    _show(client, client.call(_stub(client).RollBackFunction, request).function)


@command(functions, "logs", example="weft fn logs double --follow")
def show_logs(
    client: Client,
    function: FunctionArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what it prints from here on.")
    ] = False,
    of_one: Annotated[
        str, typer.Option("--invocation", metavar="ID", help="Of this invocation only.")
    ] = "",
    limit: Limit = LIMIT,
) -> None:
    """Prints what a function printed, oldest first."""
    from weft.functions.v1 import function_service_pb2 as pb

    name = resource_name(function, FUNCTION, client)
    stub = _stub(client)
    request = pb.ListFunctionLogsRequest(name=name, invocation=of_one)
    entries = fetch(client, stub.ListFunctionLogs, request, lambda page: page.entries, limit)
    last = 0
    for entry in entries:
        last = entry.sequence
        _show_entry(client, entry)
    if not follow:
        return
    watching = pb.WatchFunctionLogsRequest(name=name, after_sequence=last)

    def open_stream(seconds: float) -> "Stream[pb.WatchFunctionLogsResponse]":
        return _stub(client).WatchFunctionLogs(watching, timeout=seconds)

    for answer in reattached(client, open_stream):
        for entry in answer.entries:
            watching.after_sequence = entry.sequence
            if of_one in ("", entry.invocation):
                _show_entry(client, entry)


@command(functions, "delete", example="weft fn delete double")
def delete_function(client: Client, function: FunctionArgument) -> None:
    """Deletes a function with its log."""
    from weft.functions.v1 import function_service_pb2 as pb

    name = resource_name(function, FUNCTION, client)
    client.call(_stub(client).DeleteFunction, pb.DeleteFunctionRequest(name=name))
    note(f"deleted function {short_name(name)}")


def _source(file: str) -> str:
    try:
        return read_bytes(file).decode()
    except UnicodeDecodeError as error:
        raise usage_error(f"{file} isn't text in UTF-8") from error


def _stub(client: Client) -> "FunctionServiceStub":
    from weft.functions.v1.function_service_pb2_grpc import FunctionServiceStub

    stub: FunctionServiceStub = client.stub(FunctionServiceStub)
    return stub


def _show(client: Client, function: "functions_pb2.Function") -> None:
    present = next(each for each in function.versions if each.version == function.version)
    limits = present.limits
    fields = {
        "function": short_name(function.name),
        "version": function.version,
        "versions": ", ".join(str(each.version) for each in function.versions),
        "description": function.description,
        "sha256": present.sha256.hex(),
        "calls": present.entry_point,
        "deployed": moment(present.create_time),
        "limits": f"{limits.timeout.ToMilliseconds() / 1000:g} s, {limits.cpu_seconds} s of CPU, "
        f"{limits.memory_bytes >> 20} MiB, {limits.threads} threads, "
        f"{limits.scratch_bytes >> 20} MiB of files",
        "etag": function.etag,
    }
    show_message(client.output, function, fields)


def _show_entry(client: Client, entry: "functions_pb2.FunctionLogEntry") -> None:
    if client.output is not Output.TABLE:
        show_item(client.output, entry)
        return
    sys.stdout.write(printable(entry.text))
    if not entry.text.endswith("\n"):
        sys.stdout.write("\n")
    sys.stdout.flush()
