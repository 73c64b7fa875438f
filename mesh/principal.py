"""Who a call is made by, and what they may do.

A permission is `<area>.<verb>`; a role or scope may say `<area>.*` for all of an area and
`*` for all there are. A resource pattern such as `tenants/acme/agents/*` holds for what
it matches, each `*` being one id, and for all below that.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

EVERYTHING = "*"
SYSTEM_NAME = "system"
"""What the log calls Weft itself."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A role that holds for resources: `role` is its name, `resource` a pattern. With
    `platform` it also holds for what concerns the whole deployment."""

    role: str
    permissions: frozenset[str]
    resource: str
    platform: bool = False


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls.

    `name` is what the log calls them: `tenants/{tenant}/apiKeys/{api_key}`, or `system`
    for Weft itself, which may do anything. `tenant` is the tenant's id; only Weft itself
    may have none, and then acts in all. `scopes` narrow what the grants give, unless they
    are empty. `token_id` is the token's `jti`, where it is one, and
    `secret_id` the id of the API key's secret, where it is that. `expire_ns` is Unix time
    in nanoseconds; None where the credential doesn't expire.
    """

    name: str
    tenant: str
    grants: tuple[Grant, ...] = ()
    scopes: frozenset[str] = frozenset()
    token_id: str = ""
    expire_ns: int | None = None
    is_system: bool = False
    secret_id: str = ""
    _allowed: dict[tuple[str, str], str | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def role_for(self, permission: str, resource: str) -> str | None:
        """Name of a role that gives the permission on the resource; None where none does."""
        if len(resource) > CACHED_NAME_LENGTH_MAX:
            # Not a name yet: its bounds are looked at after this.
            return self._role_for(permission, resource)
        key = (permission, resource)
        if key not in self._allowed:
            if len(self._allowed) >= _DECISIONS_MAX:
                self._allowed.clear()
            self._allowed[key] = self._role_for(permission, resource)
        return self._allowed[key]

    def allows(self, permission: str, resource: str) -> bool:
        """Whether they have the permission on the resource of that name, or on all
        resources that a pattern matches."""
        return self.is_system or self.role_for(permission, resource) is not None

    def allows_somewhere(self, permission: str) -> bool:
        """Whether they have the permission on any resource at all."""
        if self.is_system:
            return True
        return self._in_scope(permission) and any(
            holds(grant.permissions, permission) for grant in self.grants
        )

    def allows_platform(self, permission: str) -> bool:
        """Whether they have the permission for what concerns the whole deployment."""
        if self.is_system:
            return True
        return self._in_scope(permission) and any(
            grant.platform and holds(grant.permissions, permission) for grant in self.grants
        )

    def _role_for(self, permission: str, resource: str) -> str | None:
        if not self._in_scope(permission):
            return None
        for grant in self.grants:
            if holds(grant.permissions, permission) and covers(grant.resource, resource):
                return grant.role
        return None

    def _in_scope(self, permission: str) -> bool:
        return not self.scopes or holds(self.scopes, permission)


_DECISIONS_MAX = 1_024
CACHED_NAME_LENGTH_MAX = 512
"""No contract takes a longer name."""


@cache
def system(tenant: str = "") -> Principal:
    """Weft itself, in one tenant or, without one, in all."""
    return Principal(SYSTEM_NAME, tenant, is_system=True)


def holds(permissions: Iterable[str], wanted: str) -> bool:
    """Whether `wanted`, which may itself be `<area>.*` or `*`, is among `permissions`."""
    area = wanted.partition(".")[0]
    return any(given in (wanted, f"{area}.*", EVERYTHING) for given in permissions)


def covers(pattern: str, resource: str) -> bool:
    """Whether the pattern holds for a resource: it matches it, or one above it.

    `resource` may be a pattern itself: then whether it holds for all that this matches.
    """
    wanted, given = resource.split("/"), pattern.split("/")
    if len(given) > len(wanted):
        return False
    return all(
        part in (EVERYTHING, found) for part, found in zip(given, wanted[: len(given)], strict=True)
    )
