"""How commands are declared: the options that all of them share, and what every one of
them does about its connection."""

import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from mesh.cli.access import Named
from mesh.cli.connection import Client
from mesh.cli.output import Output

P = ParamSpec("P")

_ADDRESS = "The server, as HOST:PORT; otherwise that of the data folder's server, else the default."
_DATA_DIR = "Folder whose running server is meant."
_TENANT = "Tenant that names are in; the key's own otherwise."
_CONTEXT = "Server, key and tenant by a name that `weft context add` gave them."
_INSECURE = "Send the key to another machine although nothing encrypts it on its way."
_CA_FILE = "File with the roots of the server's certificate (bundle.pem): the connection is TLS."
_OUTPUT = "Form of the data on stdout; streams are one JSON document a line."
_TIMEOUT = "Longest time that the command may take."
_PANEL = "Connection and output"


@dataclass(frozen=True, slots=True)
class SharedOptions:
    """Options that may stand before the command or after it; None where one wasn't given."""

    address: str | None = None
    data_dir: Path | None = None
    tenant: str | None = None
    context: str | None = None
    insecure: bool | None = None
    ca_file: Path | None = None
    output: Output | None = None
    timeout: float | None = None

    def over(self, earlier: "SharedOptions") -> "SharedOptions":
        """These options, and those given earlier where these weren't given.

        A context names a server, and so does an address or a data folder: the one that is
        given here takes the place of the other one given there.
        """
        if self.context:
            earlier = replace(earlier, address=None, data_dir=None)
        elif self.address or self.data_dir:
            earlier = replace(earlier, context=None)
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(earlier, **given)

    def client(self) -> Client:
        """The connection that they describe."""
        server = (self.address, self.data_dir, self.tenant, self.context)
        named = Named(*server, self.insecure, self.ca_file)
        output = self.output or Output.TABLE
        return Client(named.access, output, timeout_seconds=self.timeout, named=named)


def _shared_parameters(*, before_command: bool) -> list[inspect.Parameter]:
    """The shared options as parameters. The environment is read before the command only,
    so that it never wins over an option that was typed."""

    def option(name: str, kind: Any, flags: tuple[str, ...], **info: Any) -> inspect.Parameter:
        if not before_command:
            info.pop("envvar", None)
            info["rich_help_panel"] = _PANEL
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, typer.Option(*flags, **info)],
        )

    return [
        option("address", str, ("--address",), help=_ADDRESS, envvar="WEFT_ADDRESS"),
        option("data_dir", Path, ("--data-dir",), help=_DATA_DIR, envvar="WEFT_DATA_DIR"),
        option("tenant", str, ("--tenant",), help=_TENANT, envvar="WEFT_TENANT"),
        option("context", str, ("--context",), help=_CONTEXT, envvar="WEFT_CONTEXT"),
        option("insecure", bool, ("--insecure",), help=_INSECURE, envvar="WEFT_INSECURE"),
        option("ca_file", Path, ("--ca-file",), help=_CA_FILE, envvar="WEFT_CA_FILE"),
        option("output", Output, ("-o", "--output"), help=_OUTPUT),
        option("timeout", float, ("--timeout",), help=_TIMEOUT, metavar="SECONDS", min=0.001),
    ]


def with_shared_options(callback: Callable[[typer.Context], None]) -> Callable[..., None]:
    """The application's callback with the shared options, kept for the command."""

    def invoke(invocation: typer.Context, **given: Any) -> None:
        shared = {field.name: given.pop(field.name) for field in fields(SharedOptions)}
        typed, set_ = SharedOptions(), SharedOptions()
        for name, value in shared.items():
            source = invocation.get_parameter_source(name)
            if source is not None and source.name == "ENVIRONMENT":
                set_ = replace(set_, **{name: value})
            else:
                typed = replace(typed, **{name: value})
        invocation.obj = typed.over(set_)
        callback(invocation, **given)

    return _signed(invoke, callback, _shared_parameters(before_command=True))


def command(
    group: typer.Typer, name: str, *, example: str
) -> Callable[[Callable[Concatenate[Client, P], None]], Callable[Concatenate[Client, P], None]]:
    """Registers a function as a command of `group`.

    Its docstring is the help, `example` stands below it, its first parameter gets the
    connection, and its other parameters are the command line's. The shared options are
    added, save those whose name the function takes for itself.
    """

    def register(
        function: Callable[Concatenate[Client, P], None],
    ) -> Callable[Concatenate[Client, P], None]:
        own = inspect.signature(function).parameters
        shared = [p for p in _shared_parameters(before_command=False) if p.name not in own]

        def invoke(invocation: typer.Context, **given: Any) -> None:
            typed = SharedOptions(**{option.name: given.pop(option.name) for option in shared})
            earlier = invocation.find_root().obj or SharedOptions()
            with typed.over(earlier).client() as client:
                try:
                    function(client, **given)  # type: ignore[call-arg]
                except BrokenPipeError:
                    silence_stdout()
                    raise typer.Exit from None

        invocable = _signed(invoke, function, shared)
        group.command(name, epilog=f"Example: {example}")(invocable)
        return function

    return register


def silence_stdout() -> None:
    """Sends what is still to be written to nowhere: the reader of the pipe has left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _signed(
    invoke: Callable[..., None], function: Callable[..., None], shared: list[inspect.Parameter]
) -> Callable[..., None]:
    """`invoke` with the signature that typer is to read: the function's parameters but
    its first, then the shared options."""
    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    invocation = inspect.Parameter(
        "invocation", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    parameters = [invocation, *keyword_only, *shared]
    signature = inspect.Signature(parameters)
    invoke.__name__ = function.__name__
    invoke.__doc__ = function.__doc__
    invoke.__annotations__ = {p.name: p.annotation for p in parameters}
    invoke.__signature__ = signature  # type: ignore[attr-defined]
    return invoke
