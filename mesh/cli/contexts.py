"""`weft context`: servers, keys and tenants under names."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mesh.cli.access import Named
from mesh.cli.address import DEFAULT_ADDRESS, DEFAULT_DATA_DIR, read_running_server
from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.context_file import (
    Context,
    Contexts,
    check_name,
    contexts_path,
    read_contexts,
    write_contexts,
)
from mesh.cli.credentials import API_KEY_VARIABLE, TOKEN_LENGTH_MAX, Credential, api_key
from mesh.cli.failures import usage_error
from mesh.cli.names import tenant_name
from mesh.cli.output import Output, note, show_data, show_rows

contexts = typer.Typer(help="Keep servers and keys under names.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The context's name.")]


@command(contexts, "add", example="weft context add prod --address weft.example:50051")
def add_context(
    client: Client,
    name: NameArgument,
    from_environment: Annotated[
        bool, typer.Option("--from-environment", help=f"Take the key from {API_KEY_VARIABLE}.")
    ] = False,
) -> None:
    """Keeps a server and a key for it, in place of a context of that name.

    The key is asked for without being shown, or read from stdin where that is no
    terminal; no option takes it, since everybody on the machine sees those. The server is
    that of --address or --data-dir, else the one that runs here. The first context
    becomes the current one.
    """
    check_name(name)
    stored = read_contexts()
    made = replace(_server(client.named), api_key=_key(from_environment))
    by_name = {**stored.by_name, name: made}
    write_contexts(Contexts(stored.current or name, by_name))
    note(f"kept context {name} in {contexts_path()}")


@command(contexts, "use", example="weft context use prod")
def use_context(client: Client, name: NameArgument) -> None:
    """Makes a context the one that is used where no server is named."""
    stored = read_contexts()
    stored.get(name)
    write_contexts(replace(stored, current=name))
    note(f"the current context is {name}")


@command(contexts, "list", example="weft context list")
def list_contexts(client: Client) -> None:
    """Lists contexts by name; of their keys only the ids."""
    stored = read_contexts()
    entries = [_shown(name, stored) for name in sorted(stored.by_name)]
    if client.output is not Output.TABLE:
        show_data(client.output, entries)
        return
    header = ["context", "current", "address", "data_dir", "tenant", "key"]
    show_rows(header, [[_cell(entry[column]) for column in header] for entry in entries])


@command(contexts, "show", example="weft context show prod")
def show_context(
    client: Client,
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="The context's name; the current one otherwise.")
    ] = "",
) -> None:
    """Shows a context; of its key only the id."""
    stored = read_contexts()
    chosen = name or stored.current
    if not chosen:
        raise usage_error("there is no current context", "`weft context use NAME` makes it one.")
    stored.get(chosen)
    entry = _shown(chosen, stored)
    if client.output is not Output.TABLE:
        show_data(client.output, entry)
        return
    show_rows(None, [[column, _cell(value)] for column, value in entry.items() if value])


@command(contexts, "remove", example="weft context remove prod")
def remove_context(client: Client, name: NameArgument) -> None:
    """Removes a context with its key; the key itself stays valid."""
    stored = read_contexts()
    stored.get(name)
    by_name = {other: context for other, context in stored.by_name.items() if other != name}
    write_contexts(Contexts("" if stored.current == name else stored.current, by_name))
    note(f"removed context {name}; `weft key revoke` revokes a key")


def _server(named: Named) -> Context:
    """A context always names a server, so that its key goes to no other."""
    tenant = tenant_name(named.tenant).removeprefix("tenants/") if named.tenant else ""
    roots = str(named.ca_file.absolute()) if named.ca_file is not None else ""
    folder = named.data_dir
    if folder is None and not named.address and read_running_server(Path(DEFAULT_DATA_DIR)):
        folder = Path(DEFAULT_DATA_DIR)
    if folder is not None and not named.address:
        return Context(data_dir=str(folder.absolute()), tenant=tenant, ca_file=roots)
    return Context(address=named.address or DEFAULT_ADDRESS, tenant=tenant, ca_file=roots)


def _key(from_environment: bool) -> str:
    if from_environment:
        return api_key(os.environ.get(API_KEY_VARIABLE, ""), API_KEY_VARIABLE)
    if sys.stdin.isatty():
        import getpass

        return api_key(getpass.getpass("API key (not shown): ", sys.stderr), "the answer")
    return api_key(sys.stdin.readline(TOKEN_LENGTH_MAX), "stdin")


def _shown(name: str, stored: Contexts) -> dict[str, Any]:
    context = stored.by_name[name]
    return {
        "context": name,
        "current": name == stored.current,
        "address": context.address,
        "data_dir": context.data_dir,
        "tenant": context.tenant,
        "ca_file": context.ca_file,
        "key": Credential(context.api_key, "").label if context.api_key else "",
    }


def _cell(value: object) -> str:
    return "yes" if value is True else str(value or "")
