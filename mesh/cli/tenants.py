"""`weft tenant`: tenants, of which none sees anything of another."""

from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.names import check_id, tenant_name
from mesh.cli.output import moment, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch
from mesh.cli.secret_output import ToFile, show_once

if TYPE_CHECKING:
    from weft.auth.v1 import access_pb2
    from weft.auth.v1.tenant_service_pb2_grpc import TenantServiceStub

tenants = typer.Typer(help="Make and list tenants, rotate their keys.", no_args_is_help=True)

ROTATE_SECONDS = 600.0
"""Deadline of wrapping all of a tenant's data keys anew."""

TenantArgument = Annotated[
    str, typer.Argument(metavar="[TENANT]", help="The tenant; the key's own otherwise.")
]


@command(tenants, "create", example="weft tenant create acme --name 'Acme Ltd' --to acme.key")
def create_tenant(
    client: Client,
    tenant_id: Annotated[str, typer.Argument(metavar="ID", help="The tenant's id.")],
    display_name: Annotated[str, typer.Option("--name", help="What people call it.")] = "",
    to: ToFile = None,
) -> None:
    """Makes a tenant with an administrator, and prints that one's key, this once."""
    from weft.auth.v1 import tenant_service_pb2 as pb

    request = pb.CreateTenantRequest(tenant_id=check_id(tenant_id, "ID"), display_name=display_name)
    create = _stub(client).CreateTenant
    show_once(
        client.output,
        lambda: client.call(create, request),
        "api_key_secret",
        to,
        lambda answer: _show(client, answer.tenant),
    )


@command(tenants, "list", example="weft tenant list")
def list_tenants(client: Client, limit: Limit = LIMIT) -> None:
    """Lists all tenants of the deployment, by id."""
    from weft.auth.v1 import tenant_service_pb2 as pb

    method, request = _stub(client).ListTenants, pb.ListTenantsRequest()
    found = fetch(client, method, request, lambda page: page.tenants, limit)
    columns = {
        "tenant": _id,
        "name": lambda t: t.display_name,
        "created": lambda t: moment(t.create_time),
    }
    show_list(client.output, found, columns)


@command(tenants, "show", example="weft tenant show acme")
def show_tenant(client: Client, tenant_id: TenantArgument = "") -> None:
    """Shows a tenant."""
    from weft.auth.v1 import tenant_service_pb2 as pb

    request = pb.GetTenantRequest(name=_name(client, tenant_id))
    _show(client, client.call(_stub(client).GetTenant, request).tenant)


@command(tenants, "rotate-key", example="weft tenant rotate-key acme")
def rotate_tenant_key(client: Client, tenant_id: TenantArgument = "") -> None:
    """Makes another key that a tenant's data keys are wrapped with.

    What is stored stays readable, and nothing stops meanwhile.
    """
    from weft.auth.v1 import tenant_service_pb2 as pb

    request = pb.RotateTenantKeyRequest(name=_name(client, tenant_id))
    answer = client.call(_stub(client).RotateTenantKey, request, ROTATE_SECONDS)
    fields = {"key": answer.key_id, "data keys": answer.data_key_count}
    show_message(client.output, answer, fields)


def _stub(client: Client) -> "TenantServiceStub":
    from weft.auth.v1.tenant_service_pb2_grpc import TenantServiceStub

    stub: TenantServiceStub = client.stub(TenantServiceStub)
    return stub


def _name(client: Client, tenant_id: str) -> str:
    return tenant_name(tenant_id) if tenant_id else client.parent


def _id(tenant: "access_pb2.Tenant") -> str:
    return tenant.name.removeprefix("tenants/")


def _show(client: Client, tenant: "access_pb2.Tenant") -> None:
    fields = {
        "tenant": _id(tenant),
        "name": tenant.display_name,
        "created": moment(tenant.create_time),
    }
    show_message(client.output, tenant, fields)
