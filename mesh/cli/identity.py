"""`weft whoami`, `weft token` and `weft auth`: who one is, and what proves it."""

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.credentials import key_notes
from mesh.cli.failures import CommandFailed, ExitCode, usage_error
from mesh.cli.names import short_name
from mesh.cli.output import Output, as_data, moment, note, printable, show_data, show_message

if TYPE_CHECKING:
    from weft.auth.v1 import auth_service_pb2
    from weft.auth.v1.auth_service_pb2_grpc import AuthServiceStub

auth = typer.Typer(help="The deployment's own keys, and tokens.", no_args_is_help=True)


_TOKEN_ID = re.compile(r"[a-z0-9-]{1,64}")


def add_identity(application: typer.Typer) -> None:
    """Adds `weft whoami`, `weft token` and `weft auth`."""
    command(application, "whoami", example="weft whoami")(show_caller)
    command(application, "token", example="weft token")(show_token)
    application.add_typer(auth, name="auth")


def show_caller(client: Client) -> None:
    """Shows who the server says that you are, and what you may do."""
    answer = who_am_i(client)
    found = client.credential
    fields = {
        "key": answer.principal,
        "tenant": answer.tenant.removeprefix("tenants/"),
        "grants": "\n".join(map(_grant, answer.grants)),
        "narrowed to": " ".join(answer.scopes),
        "expires": moment(answer.expire_time),
        "found": f"{found.label}, from {found.source}" if found is not None else "",
        "server": client.address.target,
    }
    show_message(client.output, answer, fields)


def who_am_i(client: Client) -> "auth_service_pb2.WhoAmIResponse":
    """What the server says of who calls. RpcError where it doesn't say."""
    from weft.auth.v1 import auth_service_pb2 as pb

    return client.call(_stub(client).WhoAmI, pb.WhoAmIRequest())


def show_token(client: Client) -> None:
    """Exchanges your key for a token that is valid for five minutes, and prints it.

    It is for clients that aren't `weft`, and your key stays with you:
    grpcurl -H "authorization: Bearer $(weft token)" ...
    """
    from weft.auth.v1 import auth_service_pb2 as pb

    found = client.credential
    if found is None:
        raise CommandFailed(
            "there is no key to exchange",
            exit_code=ExitCode.AUTHENTICATION,
            notes=key_notes(None, client.address.target),
        )
    request = pb.ExchangeTokenRequest(api_key=found.secret)
    answer = client.call(_stub(client).ExchangeToken, request)
    if client.output is not Output.TABLE:
        show_data(client.output, as_data(answer))
        return
    sys.stdout.write(printable(answer.token) + "\n")
    note(f"It expires at {moment(answer.expire_time)}.")


@command(auth, "jwks", example="weft auth jwks > jwks.json")
def show_jwks(client: Client) -> None:
    """Prints the public keys that tokens are checked with (RFC 7517), as JSON or YAML."""
    from weft.auth.v1 import auth_service_pb2 as pb

    answer = client.call(_stub(client).GetJwks, pb.GetJwksRequest())
    show_data(client.output, as_data(answer))


@command(auth, "rotate-signing-key", example="weft auth rotate-signing-key")
def rotate_signing_key(client: Client) -> None:
    """Makes another key to sign tokens with; tokens of the one before live on."""
    from weft.auth.v1 import auth_service_pb2 as pb

    answer = client.call(_stub(client).RotateSigningKey, pb.RotateSigningKeyRequest())
    show_message(client.output, answer, {"kid": answer.kid, "signs from": moment(answer.sign_time)})


@command(auth, "rotate-master-key", example="weft auth rotate-master-key")
def rotate_master_key(client: Client) -> None:
    """Makes another master key in the server's secrets folder; all that is stored stays."""
    from weft.auth.v1 import auth_service_pb2 as pb

    answer = client.call(_stub(client).RotateMasterKey, pb.RotateMasterKeyRequest())
    show_message(
        client.output, answer, {"key": answer.key_id, "wrapped": f"{answer.wrapped_count} keys"}
    )


@command(auth, "revoke-token", example="weft auth revoke-token 01j9x")
def revoke_token(
    client: Client,
    token_id: Annotated[
        str, typer.Argument(metavar="ID", help="The token's id, its claim jti; not the token.")
    ],
) -> None:
    """Revokes a token before it expires."""
    from weft.auth.v1 import auth_service_pb2 as pb

    if not _TOKEN_ID.fullmatch(token_id):
        # Not repeated: it may be the token itself.
        raise usage_error("that isn't a token's id", "It is the claim jti of the token.")
    request = pb.RevokeTokenRequest(parent=client.parent, token_id=token_id)
    client.call(_stub(client).RevokeToken, request)
    note("It is refused everywhere within 5 s.")


def _stub(client: Client) -> "AuthServiceStub":
    from weft.auth.v1.auth_service_pb2_grpc import AuthServiceStub

    stub: AuthServiceStub = client.stub(AuthServiceStub)
    return stub


def _grant(grant: "auth_service_pb2.Grant") -> str:
    platform = " and the platform" if grant.platform else ""
    return f"{short_name(grant.role)} on {grant.resource}{platform}"
