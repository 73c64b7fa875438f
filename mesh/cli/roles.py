"""`weft role`: who may do what."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import CommandFailed, ExitCode, usage_error
from mesh.cli.names import (
    API_KEY,
    ROLE,
    ROLE_BINDING,
    check_id,
    resource_name,
    resource_pattern,
    short_name,
)
from mesh.cli.output import (
    Output,
    as_data,
    moment,
    note,
    printable,
    show_data,
    show_list,
    show_message,
)
from mesh.cli.pages import LIMIT, Limit, each, fetch

if TYPE_CHECKING:
    from weft.auth.v1 import access_pb2
    from weft.auth.v1.role_service_pb2_grpc import RoleServiceStub

roles = typer.Typer(help="Make roles, give them to keys, and check them.", no_args_is_help=True)

ROLES_MAX = 10_000

RoleArgument = Annotated[
    str, typer.Argument(metavar="ROLE", help="The role: an id or a full name.")
]
RoleName = Annotated[str | None, typer.Option("--name", help="What people call it.")]
Resource = Annotated[
    str, typer.Option(help="For which resources: agents/*; the whole tenant otherwise.")
]


@command(roles, "list", example="weft role list")
def list_roles(client: Client, limit: Limit = LIMIT) -> None:
    """Lists roles: those that come with Weft, then those of the tenant."""
    from weft.auth.v1 import role_service_pb2 as pb

    request = pb.ListRolesRequest(parent=client.parent)
    found = fetch(client, _stub(client).ListRoles, request, lambda page: page.roles, limit)
    columns = {
        "role": lambda r: short_name(r.name),
        "built in": lambda r: "yes" if r.built_in else "",
        "name": lambda r: r.display_name,
        "permissions": lambda r: " ".join(r.permissions),
    }
    show_list(client.output, found, columns)


@command(roles, "show", example="weft role show developer -o json")
def show_role(client: Client, role: RoleArgument) -> None:
    """Shows a role and its permissions."""
    _show(client, _find(client, resource_name(role, ROLE, client)))


@command(roles, "create", example="weft role create reader --permission agents.get")
def create_role(
    client: Client,
    role: Annotated[str, typer.Argument(metavar="ID", help="The role's id.")],
    permission: Annotated[
        list[str], typer.Option(help="What it gives: agents.get, agents.*; repeatable.")
    ],
    display_name: RoleName = None,
) -> None:
    """Makes a role. Nobody can give what they don't have themselves."""
    from weft.auth.v1 import role_service_pb2 as pb

    request = pb.CreateRoleRequest(
        role_id=check_id(role, "ID"),
        parent=client.parent,
        display_name=display_name or "",
        permissions=permission,
    )
    _show(client, client.call(_stub(client).CreateRole, request).role)


@command(roles, "update", example="weft role update reader --add agents.list")
def update_role(
    client: Client,
    role: RoleArgument,
    permission: Annotated[
        list[str] | None, typer.Option(help="All that it gives from now on; repeatable.")
    ] = None,
    add: Annotated[list[str] | None, typer.Option(help="What it gives, too; repeatable.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="What it gives no longer; repeatable.")
    ] = None,
    display_name: RoleName = None,
) -> None:
    """Changes what a role gives, for all who have it."""
    from weft.auth.v1 import role_service_pb2 as pb

    if permission and (add or remove):
        raise usage_error("give --permission, or --add and --remove")
    if not (permission or add or remove) and display_name is None:
        raise usage_error("nothing to change", "Give --permission, --add, --remove or --name.")
    changed = _find(client, resource_name(role, ROLE, client))
    kept = permission or [*changed.permissions, *(add or [])]
    changed.permissions[:] = dict.fromkeys(p for p in kept if p not in (remove or []))
    if display_name is not None:
        changed.display_name = display_name
    _show(client, client.call(_stub(client).UpdateRole, pb.UpdateRoleRequest(role=changed)).role)


@command(roles, "delete", example="weft role delete reader")
def delete_role(client: Client, role: RoleArgument) -> None:
    """Deletes a role that nobody has."""
    from weft.auth.v1 import role_service_pb2 as pb

    name = resource_name(role, ROLE, client)
    client.call(_stub(client).DeleteRole, pb.DeleteRoleRequest(name=name))
    note(f"deleted role {short_name(name)}")


@command(roles, "bind", example="weft role bind developer --key ci --resource 'agents/*'")
def bind_role(
    client: Client,
    role: RoleArgument,
    key: Annotated[list[str], typer.Option(help="A key that gets it; repeatable.")],
    resource: Resource = "",
    platform: Annotated[
        bool, typer.Option("--platform", help="Also for what concerns the whole deployment.")
    ] = False,
    binding_id: Annotated[
        str, typer.Option("--id", help="The binding's id; made by the server otherwise.")
    ] = "",
) -> None:
    """Gives a role to API keys, for resources."""
    from weft.auth.v1 import role_service_pb2 as pb

    request = pb.CreateRoleBindingRequest(
        role_binding_id=check_id(binding_id, "--id") if binding_id else "",
        parent=client.parent,
        role=resource_name(role, ROLE, client),
        members=[resource_name(text, API_KEY, client) for text in key],
        resource=resource_pattern(resource, client),
        platform=platform,
    )
    binding = client.call(_stub(client).CreateRoleBinding, request).role_binding
    fields = {
        "binding": short_name(binding.name),
        "role": short_name(binding.role),
        "keys": _members(binding),
        "resource": _holds_for(binding),
        "created": moment(binding.create_time),
    }
    show_message(client.output, binding, fields)


@command(roles, "bindings", example="weft role bindings --key ci")
def list_bindings(
    client: Client,
    key: Annotated[str | None, typer.Option(help="Only what this key has.")] = None,
    role: Annotated[str | None, typer.Option(help="Only who has this role.")] = None,
    limit: Limit = LIMIT,
) -> None:
    """Lists who has which role, for what."""
    from weft.auth.v1 import role_service_pb2 as pb

    member = resource_name(key, API_KEY, client) if key else None
    wanted = resource_name(role, ROLE, client) if role else None
    request = pb.ListRoleBindingsRequest(parent=client.parent)
    method = _stub(client).ListRoleBindings
    found = [
        binding
        for binding in fetch(client, method, request, lambda page: page.role_bindings, limit)
        if member in (None, *binding.members) and wanted in (None, binding.role)
    ]
    columns = {
        "binding": lambda b: short_name(b.name),
        "role": lambda b: short_name(b.role),
        "keys": _members,
        "resource": _holds_for,
        "created": lambda b: moment(b.create_time),
    }
    show_list(client.output, found, columns)


@command(roles, "unbind", example="weft role unbind 01j9x")
def unbind_role(
    client: Client,
    binding: Annotated[
        str, typer.Argument(metavar="BINDING", help="The binding: an id or a full name.")
    ],
) -> None:
    """Takes a role back."""
    from weft.auth.v1 import role_service_pb2 as pb

    name = resource_name(binding, ROLE_BINDING, client)
    client.call(_stub(client).DeleteRoleBinding, pb.DeleteRoleBindingRequest(name=name))
    note(f"deleted binding {short_name(name)}")


@command(roles, "check", example="weft role check agents.run --key ci --resource agents/bot")
def check_role(
    client: Client,
    permission: Annotated[str, typer.Argument(help="The permission, as agents.run.")],
    key: Annotated[str | None, typer.Option(help="Who; yourself where nobody is named.")] = None,
    resource: Annotated[str, typer.Option(help="On what; the tenant otherwise.")] = "",
) -> None:
    """Says whether a key has a permission, and by which role. Exits 4 where it hasn't."""
    from weft.auth.v1 import auth_service_pb2 as pb
    from weft.auth.v1.auth_service_pb2_grpc import AuthServiceStub

    request = pb.CheckAccessRequest(
        parent=client.parent,
        principal=resource_name(key, API_KEY, client) if key else "",
        permission=permission,
        resource=resource_pattern(resource, client),
    )
    answer = client.call(client.stub(AuthServiceStub).CheckAccess, request)
    if client.output is not Output.TABLE:
        show_data(client.output, as_data(answer))
    elif answer.allowed:
        role = short_name(answer.role) or "what it is"
        sys.stdout.write(printable(f"allowed by {role}") + "\n")
    if not answer.allowed:
        raise CommandFailed(
            f"{permission} is denied on {request.resource or request.parent}",
            exit_code=ExitCode.AUTHENTICATION,
        )


def _stub(client: Client) -> "RoleServiceStub":
    from weft.auth.v1.role_service_pb2_grpc import RoleServiceStub

    stub: RoleServiceStub = client.stub(RoleServiceStub)
    return stub


def _find(client: Client, name: str) -> "access_pb2.Role":
    """The role of that name: there is no method that returns just one."""
    from weft.auth.v1 import role_service_pb2 as pb

    request = pb.ListRolesRequest(parent="/".join(name.split("/")[:2]))
    method = _stub(client).ListRoles
    for role in each(client, method, request, lambda page: page.roles, ROLES_MAX):
        if role.name == name:
            return role
    raise CommandFailed(f"no role {short_name(name)}", exit_code=ExitCode.NOT_FOUND)


def _members(binding: "access_pb2.RoleBinding") -> str:
    return " ".join(short_name(member) for member in binding.members)


def _holds_for(binding: "access_pb2.RoleBinding") -> str:
    resource = binding.resource or "/".join(binding.name.split("/")[:2])
    return f"{resource} and the platform" if binding.platform else resource


def _show(client: Client, role: "access_pb2.Role") -> None:
    fields = {
        "role": short_name(role.name),
        "name": role.display_name,
        "built in": "yes" if role.built_in else "",
        "permissions": "\n".join(role.permissions),
    }
    show_message(client.output, role, fields)
