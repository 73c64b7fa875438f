"""`weft call`: any method of the server, with JSON in and out."""

import difflib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.attaching import STREAM_SECONDS
from mesh.cli.command import command
from mesh.cli.connection import CALL_SECONDS, Client
from mesh.cli.contracts import load_contracts
from mesh.cli.failures import CommandFailed, ExitCode, is_unimplemented, usage_error
from mesh.cli.inputs import read_argument
from mesh.cli.output import Output, as_data, show_data, show_item
from mesh.cli.reflection import describe_service, list_services

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
    from google.protobuf.message import Message


def add_call(application: typer.Typer) -> None:
    """Adds `weft call`."""
    command(
        application,
        "call",
        example="""weft call ModelService/ListModels -d '{"parent": "tenants/default"}'""",
    )(call)


def call(
    client: Client,
    method: Annotated[
        str | None,
        typer.Argument(metavar="SERVICE/METHOD", help="The method; lists all where none is named."),
    ] = None,
    data: Annotated[
        str, typer.Option("-d", "--data", help="The request in ProtoJSON; @FILE or - read it.")
    ] = "{}",
) -> None:
    """Calls any method of the server and prints the answer as JSON.

    The method is package.Service/Method, or Service/Method for Weft's own. Methods that
    Weft's contracts don't have are looked up by the server's reflection. A streaming
    answer is one line of JSON for each message.
    """
    if method is None:
        _show_methods(client)
        return
    descriptor = _find_method(client, method)
    if descriptor.client_streaming:
        raise usage_error(f"{method} takes a stream of requests; only one request can be sent")
    _call(client, descriptor, _parse_request(descriptor, read_argument(data)))


def _call(client: Client, method: "MethodDescriptor", request: "Message") -> None:
    from google.protobuf import message_factory

    path = f"/{method.containing_service.full_name}/{method.name}"
    parse = message_factory.GetMessageClass(method.output_type).FromString
    if not method.server_streaming:
        unary = client.channel.unary_unary(path, type(request).SerializeToString, parse)
        answer = unary(request, timeout=client.remaining_seconds(CALL_SECONDS))
        show_data(client.output, as_data(answer))
        return
    stream = client.channel.unary_stream(path, type(request).SerializeToString, parse)
    output = Output.YAML if client.output is Output.YAML else Output.JSON
    for message in stream(request, timeout=client.remaining_seconds(STREAM_SECONDS)):
        show_item(output, message)


def _parse_request(method: "MethodDescriptor", text: str) -> "Message":
    from google.protobuf import json_format, message_factory

    request = message_factory.GetMessageClass(method.input_type)()
    try:
        return json_format.Parse(text, request)
    except json_format.ParseError as error:
        fields = ", ".join(field.name for field in method.input_type.fields)
        raise usage_error(
            f"the request is no {method.input_type.name}: {error}", f"Its fields: {fields}."
        ) from error


def _find_method(client: Client, text: str) -> "MethodDescriptor":
    service_name, slash, method_name = text.strip("/").replace(":", "/").rpartition("/")
    if not slash:
        raise usage_error(f"{text!r} is no method", "Write package.Service/Method.")
    service = _find_service(client, service_name)
    method: MethodDescriptor | None = service.methods_by_name.get(method_name)
    if method is None:
        names = [known.name for known in service.methods]
        close = difflib.get_close_matches(method_name, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise CommandFailed(
            f"{service.full_name} has no method {method_name}{hint}",
            exit_code=ExitCode.NOT_FOUND,
            notes=[f"It has {', '.join(names)}."],
        )
    return method


def _find_service(client: Client, name: str) -> "ServiceDescriptor":
    import grpc

    for service in load_contracts():
        if name in (service.full_name, service.name):
            return service
    try:
        described = describe_service(client, name)
    except grpc.RpcError as error:
        if not is_unimplemented(error):
            raise
        described = None
    if described is None:
        raise CommandFailed(
            f"the server has no service {name}",
            exit_code=ExitCode.NOT_FOUND,
            notes=["`weft call` lists services and methods."],
        )
    return described


def _show_methods(client: Client) -> None:
    methods = [
        f"{service.full_name}/{method.name}"
        for service in _services(client)
        for method in service.methods
    ]
    if client.output is Output.TABLE:
        sys.stdout.write("".join(f"{method}\n" for method in methods))
    else:
        show_data(client.output, methods)


def _services(client: Client) -> "list[ServiceDescriptor]":
    """The server's services; those of Weft's contracts where it has no reflection."""
    import grpc

    known = {service.full_name: service for service in load_contracts()}
    try:
        names = list_services(client)
    except grpc.RpcError as error:
        if is_unimplemented(error):
            return list(known.values())
        raise
    found = (known.get(name) or describe_service(client, name) for name in names)
    return [service for service in found if service is not None]
