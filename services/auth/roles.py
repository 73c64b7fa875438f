"""The RPCs of roles and role bindings."""

from mesh.call import Call
from mesh.clock import Clock
from mesh.errors import NotFound
from mesh.ids import new_id
from services.auth import domain
from services.auth.directory import AccessDirectory
from services.auth.requests import Requests, page_of
from weft.auth.v1 import access_pb2
from weft.auth.v1 import role_service_pb2 as pb


class Roles:
    """`weft.auth.v1.RoleService`."""

    def __init__(self, directory: AccessDirectory, clock: Clock) -> None:
        self._directory = directory
        self._requests = Requests(directory, clock)

    async def create_role(self, request: pb.CreateRoleRequest, call: Call) -> pb.CreateRoleResponse:
        """Makes a role."""
        role = access_pb2.Role(
            name=f"{request.parent}/roles/{request.role_id}",
            display_name=request.display_name,
            permissions=dict.fromkeys(request.permissions),
        )
        made = self._requests.repeatable(call, request)
        state = await self._change(request.parent, domain.CreateRole(made, role))
        return pb.CreateRoleResponse(role=_role(state, role.name))

    async def list_roles(self, request: pb.ListRolesRequest, call: Call) -> pb.ListRolesResponse:
        """A page of the roles: those that come with Weft, then the tenant's own, by id."""
        tenant = domain.tenant_of(request.parent)
        roles = [
            *domain.built_in_roles(tenant).values(),
            *self._directory.state(request.parent).roles,
        ]
        page, token = page_of(
            roles,
            lambda role: f"{0 if role.built_in else 1} {role.name}",
            request.parent,
            request.page_size,
            request.page_token,
        )
        return pb.ListRolesResponse(roles=page, next_page_token=token)

    async def update_role(self, request: pb.UpdateRoleRequest, call: Call) -> pb.UpdateRoleResponse:
        """Changes the role as a whole."""
        role = access_pb2.Role(
            name=request.role.name,
            display_name=request.role.display_name,
            permissions=dict.fromkeys(request.role.permissions),
        )
        made = self._requests.repeatable(call, request)
        state = await self._change(role.name, domain.UpdateRole(made, role))
        return pb.UpdateRoleResponse(role=_role(state, role.name))

    async def delete_role(self, request: pb.DeleteRoleRequest, call: Call) -> pb.DeleteRoleResponse:
        """Deletes a role that no binding gives."""
        made = self._requests.repeatable(call, request)
        await self._change(request.name, domain.DeleteRole(made, request.name))
        return pb.DeleteRoleResponse()

    async def create_role_binding(
        self, request: pb.CreateRoleBindingRequest, call: Call
    ) -> pb.CreateRoleBindingResponse:
        """Gives a role."""
        made = self._requests.repeatable(call, request)
        binding = access_pb2.RoleBinding(
            name=f"{request.parent}/roleBindings/{request.role_binding_id or new_id()}",
            role=request.role,
            members=dict.fromkeys(request.members),
            resource=request.resource,
            platform=request.platform,
        )
        state = await self._change(request.parent, domain.CreateBinding(made, binding))
        answered = domain.find_request(state, made.id)
        name = answered.resource if answered is not None else binding.name
        found = domain.find_binding(state, name)
        if found is None:
            raise NotFound.of("role binding", name)
        return pb.CreateRoleBindingResponse(role_binding=found)

    async def list_role_bindings(
        self, request: pb.ListRoleBindingsRequest, call: Call
    ) -> pb.ListRoleBindingsResponse:
        """A page of the bindings, oldest first."""
        page, token = page_of(
            self._directory.state(request.parent).bindings,
            lambda binding: f"{binding.create_time.ToNanoseconds():020d} {binding.name}",
            request.parent,
            request.page_size,
            request.page_token,
        )
        return pb.ListRoleBindingsResponse(role_bindings=page, next_page_token=token)

    async def delete_role_binding(
        self, request: pb.DeleteRoleBindingRequest, call: Call
    ) -> pb.DeleteRoleBindingResponse:
        """Takes a role back."""
        made = self._requests.repeatable(call, request)
        await self._change(request.name, domain.DeleteBinding(made, request.name))
        return pb.DeleteRoleBindingResponse()

    async def _change(self, name: str, command: domain.Command) -> domain.State:
        return await self._directory.change(domain.tenant_of(name), command)


def _role(state: domain.State, name: str) -> access_pb2.Role:
    role = domain.find_role(state, name)
    if role is None:
        raise NotFound.of("role", name)
    return role
