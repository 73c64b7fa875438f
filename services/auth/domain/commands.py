"""What may be asked of a tenant's access. Times are Unix time in nanoseconds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mesh.principal import Principal
from weft.auth.v1 import access_pb2


@dataclass(frozen=True, slots=True)
class Request:
    """The request that a command answers. `caller` asks; `now_ns` is when."""

    id: str
    hash: bytes
    caller: Principal
    now_ns: int


@dataclass(frozen=True, slots=True)
class Secret:
    """A new secret of an API key, without what is secret of it."""

    id: str
    hmac: bytes


@dataclass(frozen=True, slots=True)
class CreateTenant:
    """Makes the tenant, an administrator's key and its binding. With `platform` that key
    also administers the deployment."""

    request: Request
    tenant: str
    display_name: str
    api_key: str
    binding: str
    secret: Secret
    platform: bool = False


@dataclass(frozen=True, slots=True)
class CreateApiKey:
    """Makes an API key, and a binding for each of `roles`. `bindings` are those bindings'
    names, one for each role; `expire_ns` is 0 for a key that doesn't expire."""

    request: Request
    name: str
    display_name: str
    scopes: Sequence[str]
    expire_ns: int
    secret: Secret
    roles: Sequence[str]
    bindings: Sequence[str]
    resource: str
    platform: bool = False


@dataclass(frozen=True, slots=True)
class RotateApiKey:
    """Gives the key another secret; those before it end after `overlap_ns`."""

    request: Request
    name: str
    secret: Secret
    overlap_ns: int


@dataclass(frozen=True, slots=True)
class RevokeApiKey:
    """Revokes the key for good."""

    request: Request
    name: str


@dataclass(frozen=True, slots=True)
class UseApiKeys:
    """Notes that the keys of these names were used; of each, unless that was noted less
    than `interval_ns` ago."""

    names: Collection[str]
    now_ns: int
    interval_ns: int


@dataclass(frozen=True, slots=True)
class NoteRotation:
    """Notes that a key that wraps others was replaced; `kind` is `tenant` or `master`."""

    request: Request
    kind: str
    key_id: str


@dataclass(frozen=True, slots=True)
class RevokeToken:
    """Revokes the token of that id, which expires by itself at `expire_ns`."""

    request: Request
    token_id: str
    expire_ns: int


@dataclass(frozen=True, slots=True)
class CreateRole:
    """Makes the role."""

    request: Request
    role: access_pb2.Role


@dataclass(frozen=True, slots=True)
class UpdateRole:
    """Changes the role as a whole."""

    request: Request
    role: access_pb2.Role


@dataclass(frozen=True, slots=True)
class DeleteRole:
    """Deletes the role."""

    request: Request
    name: str


@dataclass(frozen=True, slots=True)
class CreateBinding:
    """Gives a role."""

    request: Request
    binding: access_pb2.RoleBinding


@dataclass(frozen=True, slots=True)
class DeleteBinding:
    """Takes a role back."""

    request: Request
    name: str


Command = (
    CreateTenant
    | CreateApiKey
    | RotateApiKey
    | RevokeApiKey
    | UseApiKeys
    | NoteRotation
    | RevokeToken
    | CreateRole
    | UpdateRole
    | DeleteRole
    | CreateBinding
    | DeleteBinding
)
