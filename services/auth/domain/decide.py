"""What a command leads to in a tenant's access."""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    RequestIdReused,
)
from mesh.events.fold import Place
from services.auth.domain import commands
from services.auth.domain.evolve import API_KEYS_MAX, evolve
from services.auth.domain.names import api_key_name, role_name, tenant_name, tenant_of
from services.auth.domain.queries import (
    State,
    bindings_of,
    existing_api_key,
    find_api_key,
    find_binding,
    find_role,
    is_valid,
    whole_resource,
)
from services.auth.domain.rights import (
    check_administered,
    check_giver,
    check_rotator,
    check_scopes,
    check_taker,
)
from services.auth.domain.roles import ADMIN
from weft.auth.v1 import access_pb2
from weft.auth.v1 import events_pb2 as facts

ROLES_MAX = 256
BINDINGS_MAX = 2_048
REVOKED_TOKENS_MAX = 4_096
PERMISSIONS_MAX = 8_192
"""Permissions of all roles of a tenant together; as below, what bounds the state's size."""
MEMBERS_MAX = 8_192
"""Members of all bindings of a tenant together."""


def decide(state: State, command: commands.Command) -> list[Message]:
    """The facts that `command` leads to; none where the same request came before, or
    nothing is to be done.

    Raises NotFound, AlreadyExists, FailedPrecondition, PermissionDenied, InvalidArgument,
    RequestIdReused, LimitExceeded.
    """
    if isinstance(command, commands.CreateTenant):
        return _create_tenant(state, command)
    if isinstance(command, commands.UseApiKeys):
        return _use_api_keys(state, command)
    answered = find_request(state, command.request.id)
    if answered is not None:
        if answered.request_hash != command.request.hash:
            raise RequestIdReused(f"request_id {command.request.id} came before with another body")
        return []
    if not state.tenant.name:
        raise NotFound("no such tenant")
    return _DECISIONS[type(command)](state, command)


def find_request(state: State, request_id: str) -> access_pb2.AnsweredRequest | None:
    """What is known of a request that came before."""
    return next((each for each in state.requests if each.request_id == request_id), None)


def _create_tenant(state: State, command: commands.CreateTenant) -> list[Message]:
    name = tenant_name(command.tenant)
    if state.tenant.name:
        raise AlreadyExists(f"tenant {name} is there", metadata={"resource": name})
    key_name = api_key_name(command.tenant, command.api_key)
    key = access_pb2.ApiKey(
        name=key_name, display_name="Administrator", creator=command.request.caller.name
    )
    key.secrets.add(id=command.secret.id)
    binding = access_pb2.RoleBinding(
        name=f"{name}/roleBindings/{command.binding}",
        role=role_name(command.tenant, ADMIN),
        members=[key_name],
        platform=command.platform,
    )
    tenant = access_pb2.Tenant(name=name, display_name=command.display_name)
    return [
        facts.TenantCreated(tenant=tenant, request=_answer(command.request, name)),
        facts.ApiKeyCreated(api_key=key, secret_hmac=command.secret.hmac),
        facts.RoleBindingCreated(binding=binding),
    ]


def _create_api_key(state: State, command: commands.CreateApiKey) -> list[Message]:
    request = command.request
    if find_api_key(state, command.name) is not None:
        raise AlreadyExists(f"API key {command.name} is there", metadata={"resource": command.name})
    live = sum(is_valid(each.api_key, request.now_ns) for each in state.api_keys)
    if live >= API_KEYS_MAX:
        raise LimitExceeded(f"a tenant has at most {API_KEYS_MAX} valid API keys")
    check_scopes(request.caller, command.scopes)
    key = access_pb2.ApiKey(
        name=command.name,
        display_name=command.display_name,
        scopes=command.scopes,
        creator=request.caller.name,
    )
    key.secrets.add(id=command.secret.id)
    if command.expire_ns:
        key.expire_time.CopyFrom(_timestamp(command.expire_ns))
    bindings = [
        access_pb2.RoleBinding(
            name=name,
            role=role,
            members=[command.name],
            resource=command.resource,
            platform=command.platform,
        )
        for role, name in zip(command.roles, command.bindings, strict=True)
    ]
    _check_room_for_bindings(state, bindings)
    for index, binding in enumerate(bindings):
        _check_binding(state, request, binding, f"roles[{index}]")
    created = facts.ApiKeyCreated(
        api_key=key, secret_hmac=command.secret.hmac, request=_answer(request, command.name)
    )
    return [created, *(facts.RoleBindingCreated(binding=binding) for binding in bindings)]


def _rotate_api_key(state: State, command: commands.RotateApiKey) -> list[Message]:
    request = command.request
    key = _valid_api_key(state, command.name, request.now_ns)
    check_rotator(state, request.caller, key)
    rotated = facts.ApiKeyRotated(
        api_key=command.name,
        secret=access_pb2.ApiKeySecret(id=command.secret.id),
        secret_hmac=command.secret.hmac,
        previous_expire_time=_timestamp(request.now_ns + command.overlap_ns),
        request=_answer(request, command.name),
    )
    return [rotated]


def _revoke_api_key(state: State, command: commands.RevokeApiKey) -> list[Message]:
    key = existing_api_key(state, command.name).api_key
    if key.HasField("revoke_time"):
        return []
    bindings = bindings_of(state, command.name)
    check_taker(command.request.caller, "auth.revoke_api_key", bindings)
    request = _answer(command.request, command.name)
    revoked = facts.ApiKeyRevoked(api_key=command.name, request=request)
    _check_administered(state, revoked, command.request, f"revoking {command.name}")
    return [revoked]


def _use_api_keys(state: State, command: commands.UseApiKeys) -> list[Message]:
    due = []
    for stored in state.api_keys:
        key = stored.api_key
        last_ns = key.last_used_time.ToNanoseconds()
        if (
            key.name in command.names
            and is_valid(key, command.now_ns)
            and command.now_ns - last_ns >= command.interval_ns
        ):
            due.append(facts.ApiKeyUsed(api_key=key.name))
    return [*due]


def _revoke_token(state: State, command: commands.RevokeToken) -> list[Message]:
    now_ns = command.request.now_ns
    live = [each for each in state.revoked_tokens if each.expire_time.ToNanoseconds() > now_ns]
    if any(each.id == command.token_id for each in live):
        return []
    if len(live) >= REVOKED_TOKENS_MAX:
        raise LimitExceeded(
            f"{REVOKED_TOKENS_MAX} tokens are revoked already: revoke their API keys"
        )
    token = access_pb2.RevokedToken(id=command.token_id, expire_time=_timestamp(command.expire_ns))
    request = _answer(command.request, state.tenant.name)
    return [facts.TokenRevoked(token=token, request=request)]


def _note_rotation(state: State, command: commands.NoteRotation) -> list[Message]:
    request = _answer(command.request, state.tenant.name)
    return [facts.WrappingKeyRotated(kind=command.kind, key_id=command.key_id, request=request)]


def _create_role(state: State, command: commands.CreateRole) -> list[Message]:
    role = command.role
    if find_role(state, role.name) is not None:
        raise AlreadyExists(f"role {role.name} is there", metadata={"resource": role.name})
    if len(state.roles) >= ROLES_MAX:
        raise LimitExceeded(f"a tenant has at most {ROLES_MAX} roles of its own")
    _check_room_for_permissions(state, role)
    return [facts.RoleCreated(role=role, request=_answer(command.request, role.name))]


def _update_role(state: State, command: commands.UpdateRole) -> list[Message]:
    role, request = command.role, command.request
    before = _own_role(state, role.name)
    _check_room_for_permissions(state, role)
    added = set(role.permissions) - set(before.permissions)
    for binding in state.bindings:
        # Whoever has the role gets what is added to it.
        if binding.role == role.name:
            resource = whole_resource(binding)
            check_giver(request.caller, added, resource, platform=binding.platform)
    return [facts.RoleUpdated(role=role, request=_answer(request, role.name))]


def _delete_role(state: State, command: commands.DeleteRole) -> list[Message]:
    _own_role(state, command.name)
    if any(binding.role == command.name for binding in state.bindings):
        raise FailedPrecondition(
            f"role {command.name} is in use: delete its role bindings first",
            metadata={"resource": command.name},
        )
    return [facts.RoleDeleted(role=command.name, request=_answer(command.request, command.name))]


def _create_binding(state: State, command: commands.CreateBinding) -> list[Message]:
    binding, request = command.binding, command.request
    if find_binding(state, binding.name) is not None:
        raise AlreadyExists(
            f"role binding {binding.name} is there", metadata={"resource": binding.name}
        )
    _check_room_for_bindings(state, [binding])
    for index, member in enumerate(binding.members):
        stored = find_api_key(state, member)
        if stored is None or not is_valid(stored.api_key, request.now_ns):
            raise InvalidArgument.of(f"members[{index}]", f"there is no valid API key {member}")
    _check_binding(state, request, binding, "role")
    return [facts.RoleBindingCreated(binding=binding, request=_answer(request, binding.name))]


def _delete_binding(state: State, command: commands.DeleteBinding) -> list[Message]:
    binding = find_binding(state, command.name)
    if binding is None:
        raise NotFound.of("role binding", command.name)
    check_taker(command.request.caller, "auth.delete_role_binding", [binding])
    request = _answer(command.request, command.name)
    deleted = facts.RoleBindingDeleted(binding=command.name, request=request)
    _check_administered(state, deleted, command.request, f"deleting {command.name}")
    return [deleted]


def _check_binding(
    state: State, request: commands.Request, binding: access_pb2.RoleBinding, path: str
) -> None:
    role = find_role(state, binding.role)
    if role is None or tenant_of(role.name) != tenant_of(state.tenant.name):
        raise InvalidArgument.of(path, f"there is no role {binding.role}")
    resource = whole_resource(binding)
    if resource.split("/")[:2] != state.tenant.name.split("/"):
        raise InvalidArgument.of("resource", f"must be in {state.tenant.name}")
    check_giver(request.caller, role.permissions, resource, platform=binding.platform)


def _check_room_for_bindings(state: State, added: list[access_pb2.RoleBinding]) -> None:
    if len(state.bindings) + len(added) > BINDINGS_MAX:
        raise LimitExceeded(f"a tenant has at most {BINDINGS_MAX} role bindings")
    if sum(len(each.members) for each in (*state.bindings, *added)) > MEMBERS_MAX:
        raise LimitExceeded(f"a tenant's role bindings have at most {MEMBERS_MAX} members")


def _check_room_for_permissions(state: State, role: access_pb2.Role) -> None:
    others = (each for each in state.roles if each.name != role.name)
    if sum(len(each.permissions) for each in (role, *others)) > PERMISSIONS_MAX:
        raise LimitExceeded(f"a tenant's roles have at most {PERMISSIONS_MAX} permissions")


def _check_administered(state: State, event: Message, request: commands.Request, what: str) -> None:
    after = State()
    after.CopyFrom(state)
    after = evolve(after, event, Place(state.revision + 1, _timestamp(request.now_ns)))
    check_administered(state, after, request.now_ns, what)


def _valid_api_key(state: State, name: str, now_ns: int) -> access_pb2.ApiKey:
    key = existing_api_key(state, name).api_key
    if not is_valid(key, now_ns):
        raise FailedPrecondition(
            f"API key {name} is revoked or has expired", metadata={"resource": name}
        )
    return key


def _own_role(state: State, name: str) -> access_pb2.Role:
    role = find_role(state, name)
    if role is None:
        raise NotFound.of("role", name)
    if role.built_in:
        raise FailedPrecondition(
            f"role {name} comes with Weft and can't be changed", metadata={"resource": name}
        )
    return role


def _answer(request: commands.Request, resource: str) -> access_pb2.AnsweredRequest:
    return access_pb2.AnsweredRequest(
        request_id=request.id, request_hash=request.hash, resource=resource
    )


def _timestamp(time_ns: int) -> Timestamp:
    moment = Timestamp()
    moment.FromNanoseconds(time_ns)
    return moment


_DECISIONS: dict[type, Callable[[State, Any], list[Message]]] = {
    commands.CreateApiKey: _create_api_key,
    commands.RotateApiKey: _rotate_api_key,
    commands.RevokeApiKey: _revoke_api_key,
    commands.RevokeToken: _revoke_token,
    commands.NoteRotation: _note_rotation,
    commands.CreateRole: _create_role,
    commands.UpdateRole: _update_role,
    commands.DeleteRole: _delete_role,
    commands.CreateBinding: _create_binding,
    commands.DeleteBinding: _delete_binding,
}
