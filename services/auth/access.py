"""A tenant's access, compiled for deciding in memory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mesh.clock import NANOSECONDS
from mesh.principal import Grant, Principal
from mesh.security.tokens import AccessToken
from services.auth.domain import State, permissions_of, role_name, whole_resource
from weft.auth.v1 import access_pb2


@dataclass(slots=True)
class Use:
    """When it is next to be noted that a key is used, in Unix time."""

    due_ns: int = 0


@dataclass(frozen=True, slots=True)
class KeyAccess:
    """An API key that isn't revoked, with what it may do."""

    name: str
    tenant: str
    grants: tuple[Grant, ...]
    scopes: frozenset[str]
    expire_ns: int | None
    use: Use

    def principal(self) -> Principal:
        """Who presents the key, for checks that no credential was shown for."""
        return Principal(self.name, self.tenant, self.grants, self.scopes)

    def is_valid(self, now_ns: int) -> bool:
        """Whether it hasn't expired."""
        return self.expire_ns is None or now_ns < self.expire_ns

    def token_principal(self, token: AccessToken) -> Principal:
        """Who presents the token: never more than the key may now, nor than it might when
        the token was issued."""
        roles = {role_name(self.tenant, role) for role in token.roles}
        return Principal(
            self.name,
            self.tenant,
            tuple(grant for grant in self.grants if grant.role in roles),
            self.scopes,
            token_id=token.token_id,
            expire_ns=token.expire_seconds * NANOSECONDS,
        )

    def still_gives(self, principal: Principal) -> bool:
        """Whether nothing was taken back of what the principal may do."""
        return self.scopes == principal.scopes and all(
            any(_includes(current, grant) for current in self.grants) for grant in principal.grants
        )


@dataclass(frozen=True, slots=True)
class SecretAccess:
    """A secret of a key; `principal` is who presents it."""

    id: str
    hmac: bytes = field(repr=False)
    key: KeyAccess
    principal: Principal


class TenantAccess:
    """What a state says, until another one takes its place: then `current` is false."""

    def __init__(self, state: State, uses: Mapping[str, Use]) -> None:
        self.current = True
        self.state = state
        self.keys: dict[str, KeyAccess] = {}
        self.secrets: dict[str, SecretAccess] = {}
        self.revoked_tokens = frozenset(each.id for each in state.revoked_tokens)
        grants = _grants(state)
        for stored in state.api_keys:
            if stored.api_key.HasField("revoke_time"):
                continue
            key = _key(stored.api_key, grants.get(stored.api_key.name, ()), uses)
            self.keys[key.name] = key
            pairs = zip(stored.api_key.secrets, stored.secret_hmacs, strict=True)
            for secret, digest in pairs:
                self.secrets[secret.id] = _secret(key, secret, digest)


def _grants(state: State) -> dict[str, list[Grant]]:
    """The grants of all keys by name."""
    grants: dict[str, list[Grant]] = {}
    permissions: dict[str, frozenset[str]] = {}
    for binding in state.bindings:
        if binding.role not in permissions:
            permissions[binding.role] = frozenset(permissions_of(state, binding.role))
        grant = Grant(
            binding.role, permissions[binding.role], whole_resource(binding), binding.platform
        )
        for member in binding.members:
            grants.setdefault(member, []).append(grant)
    return grants


def _key(key: access_pb2.ApiKey, grants: Iterable[Grant], uses: Mapping[str, Use]) -> KeyAccess:
    return KeyAccess(
        name=key.name,
        tenant=key.name.split("/")[1],
        grants=tuple(grants),
        scopes=frozenset(key.scopes),
        expire_ns=key.expire_time.ToNanoseconds() if key.HasField("expire_time") else None,
        use=uses.get(key.name) or Use(),
    )


def _secret(key: KeyAccess, secret: access_pb2.ApiKeySecret, digest: bytes) -> SecretAccess:
    expire_ns = key.expire_ns
    if secret.HasField("expire_time"):
        ends_ns = secret.expire_time.ToNanoseconds()
        expire_ns = ends_ns if expire_ns is None else min(expire_ns, ends_ns)
    principal = Principal(
        key.name,
        key.tenant,
        key.grants,
        key.scopes,
        expire_ns=expire_ns,
        secret_id=secret.id,
    )
    return SecretAccess(secret.id, digest, key, principal)


def _includes(current: Grant, grant: Grant) -> bool:
    return (
        (current.role, current.resource) == (grant.role, grant.resource)
        and (current.platform or not grant.platform)
        and current.permissions >= grant.permissions
    )
