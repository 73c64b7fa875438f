"""What a tenant's state says."""

from collections.abc import Iterator, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from mesh.errors import NotFound
from services.auth.domain.names import role_name, tenant_of
from services.auth.domain.roles import ADMIN, built_in_roles
from weft.auth.v1 import access_pb2

State = access_pb2.AccessState


def find_api_key(state: State, name: str) -> access_pb2.StoredApiKey | None:
    """The API key of that name, revoked or not; None where there is none."""
    return next((each for each in state.api_keys if each.api_key.name == name), None)


def existing_api_key(state: State, name: str) -> access_pb2.StoredApiKey:
    """As `find_api_key`. Raises NotFound where there is none."""
    stored = find_api_key(state, name)
    if stored is None:
        raise NotFound.of("API key", name)
    return stored


def find_role(state: State, name: str) -> access_pb2.Role | None:
    """The role of that name, built-in or the tenant's own."""
    built_in = built_in_roles(tenant_of(name)).get(name)
    return built_in or next((each for each in state.roles if each.name == name), None)


def find_binding(state: State, name: str) -> access_pb2.RoleBinding | None:
    """The role binding of that name."""
    return next((each for each in state.bindings if each.name == name), None)


def permissions_of(state: State, role: str) -> Sequence[str]:
    """Permissions that the role of that name gives; none where there is no such role."""
    found = find_role(state, role)
    return found.permissions if found is not None else ()


def whole_resource(binding: access_pb2.RoleBinding) -> str:
    """The pattern that a binding holds for, the whole tenant where it names none."""
    return binding.resource or f"tenants/{tenant_of(binding.name)}"


def is_valid(key: access_pb2.ApiKey, now_ns: int) -> bool:
    """Whether the key is neither revoked nor expired."""
    return not key.HasField("revoke_time") and not has_passed(key, "expire_time", now_ns)


def has_passed(message: access_pb2.ApiKey | access_pb2.ApiKeySecret, field: str, now: int) -> bool:
    """Whether the time in `field` is set and not later than `now`."""
    moment: Timestamp = getattr(message, field)
    return message.HasField(field) and moment.ToNanoseconds() <= now  # type: ignore[arg-type]


def bindings_of(state: State, api_key: str) -> Iterator[access_pb2.RoleBinding]:
    """The bindings that give the API key of that name something."""
    return (each for each in state.bindings if api_key in each.members)


def administrators(state: State, now_ns: int, *, platform: bool = False) -> set[str]:
    """Names of the valid, unnarrowed keys with the role `admin` for the whole tenant."""
    tenant = tenant_of(state.tenant.name)
    admin = role_name(tenant, ADMIN)
    named = {
        member
        for binding in state.bindings
        if binding.role == admin and whole_resource(binding) == state.tenant.name
        if binding.platform or not platform
        for member in binding.members
    }
    valid = (each.api_key for each in state.api_keys if is_valid(each.api_key, now_ns))
    return {key.name for key in valid if not key.scopes and key.name in named}
