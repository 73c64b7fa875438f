"""`weft key`: what people and programs prove themselves with."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.inputs import Yes, confirm, parse_span
from mesh.cli.names import API_KEY, ROLE, check_id, resource_name, resource_pattern, short_name
from mesh.cli.output import moment, note, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch
from mesh.cli.secret_output import ToFile, show_once

if TYPE_CHECKING:
    from weft.auth.v1 import access_pb2
    from weft.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

keys = typer.Typer(help="Make, list, rotate and revoke API keys.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The key: an id or a full name.")]


@command(
    keys, "create", example="weft key create ci --role developer --ttl 30d --to ~/.weft-ci.key"
)
def create_key(
    client: Client,
    key: Annotated[
        str, typer.Argument(metavar="[ID]", help="The key's id; made by the server otherwise.")
    ] = "",
    role: Annotated[list[str] | None, typer.Option(help="A role that it gets; repeatable.")] = None,
    resource: Annotated[
        str, typer.Option(help="What those roles hold for: agents/*; the whole tenant otherwise.")
    ] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="A permission that it is narrowed to: agents.get, agents.*; repeatable."),
    ] = None,
    ttl: Annotated[str, typer.Option(help="How long it is valid: 12h, 30d; else for good.")] = "",
    display_name: Annotated[str, typer.Option("--name", help="What people call it.")] = "",
    to: ToFile = None,
) -> None:
    """Makes an API key and prints its secret, this once.

    Without a role it may do nothing yet: `weft role bind` gives it one later.
    """
    from weft.auth.v1 import api_key_service_pb2 as pb

    request = pb.CreateApiKeyRequest(
        api_key_id=check_id(key, "ID") if key else "",
        display_name=display_name,
        scopes=scope or [],
        ttl=parse_span(ttl, "--ttl") if ttl else None,
        parent=client.parent,
        roles=[resource_name(text, ROLE, client) for text in role or []],
        resource=resource_pattern(resource, client),
    )
    create = _stub(client).CreateApiKey
    show_once(
        client.output,
        lambda: client.call(create, request),
        "secret",
        to,
        lambda answer: _show(client, answer.api_key),
    )


@command(keys, "list", example="weft key list")
def list_keys(client: Client, limit: Limit = LIMIT) -> None:
    """Lists API keys, oldest first; never their secrets."""
    from weft.auth.v1 import api_key_service_pb2 as pb

    request = pb.ListApiKeysRequest(parent=client.parent)
    found = fetch(client, _stub(client).ListApiKeys, request, lambda page: page.api_keys, limit)
    columns = {
        "key": lambda k: short_name(k.name),
        "name": lambda k: k.display_name,
        "state": _state,
        "scopes": lambda k: " ".join(k.scopes),
        "created": lambda k: moment(k.create_time),
        "expires": lambda k: moment(k.expire_time),
        "last used": lambda k: moment(k.last_used_time),
    }
    show_list(client.output, found, columns)


@command(keys, "show", example="weft key show ci")
def show_key(client: Client, key: KeyArgument) -> None:
    """Shows an API key, and which of its secrets are valid until when."""
    from weft.auth.v1 import api_key_service_pb2 as pb

    request = pb.GetApiKeyRequest(name=resource_name(key, API_KEY, client))
    _show(client, client.call(_stub(client).GetApiKey, request).api_key)


@command(keys, "rotate", example="weft key rotate ci --overlap 1h --to ~/.weft-ci.key")
def rotate_key(
    client: Client,
    key: KeyArgument,
    overlap: Annotated[
        str, typer.Option(help="How long the secrets before stay valid: 0s, 1h, 1d.")
    ] = "1d",
    to: ToFile = None,
) -> None:
    """Gives an API key another secret and prints it, this once."""
    from weft.auth.v1 import api_key_service_pb2 as pb

    span = parse_span(overlap, "--overlap")
    request = pb.RotateApiKeyRequest(name=resource_name(key, API_KEY, client), overlap=span)
    rotate = _stub(client).RotateApiKey
    show_once(
        client.output,
        lambda: client.call(rotate, request),
        "secret",
        to,
        lambda answer: _show(client, answer.api_key),
    )


@command(keys, "revoke", example="weft key revoke ci --yes")
def revoke_key(client: Client, key: KeyArgument, yes: Yes = False) -> None:
    """Revokes an API key with all its secrets and tokens, for good."""
    from weft.auth.v1 import api_key_service_pb2 as pb

    name = resource_name(key, API_KEY, client)
    confirm(f"Revoke key {short_name(name)} for good?", yes)
    answer = client.call(_stub(client).RevokeApiKey, pb.RevokeApiKeyRequest(name=name))
    note("It is refused everywhere within 5 s.")
    _show(client, answer.api_key)


def _stub(client: Client) -> "ApiKeyServiceStub":
    from weft.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

    stub: ApiKeyServiceStub = client.stub(ApiKeyServiceStub)
    return stub


def _state(key: "access_pb2.ApiKey") -> str:
    if key.HasField("revoke_time"):
        return "revoked"
    if key.HasField("expire_time") and key.expire_time.ToDatetime(UTC) <= datetime.now(UTC):
        return "expired"
    return "active"


def _secret_line(secret: "access_pb2.ApiKeySecret") -> str:
    until = moment(secret.expire_time)
    return f"weft_{secret.id}_… made {moment(secret.create_time)}" + (
        f", valid until {until}" if until else ""
    )


def _show(client: Client, key: "access_pb2.ApiKey") -> None:
    fields = {
        "key": short_name(key.name),
        "name": key.display_name,
        "state": _state(key),
        "scopes": " ".join(key.scopes),
        "secrets": "\n".join(_secret_line(secret) for secret in key.secrets),
        "created": moment(key.create_time),
        "by": key.creator,
        "expires": moment(key.expire_time),
        "last used": moment(key.last_used_time),
        "revoked": moment(key.revoke_time),
    }
    show_message(client.output, key, fields)
