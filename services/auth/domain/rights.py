"""Nobody gives what they don't have: whether a caller may hand something out."""

from collections.abc import Iterable

from mesh.errors import FailedPrecondition, PermissionDenied
from mesh.principal import Principal, holds
from services.auth.domain.queries import (
    State,
    administrators,
    bindings_of,
    permissions_of,
    whole_resource,
)
from weft.auth.v1 import access_pb2


def check_giver(
    caller: Principal, permissions: Iterable[str], resource: str, *, platform: bool
) -> None:
    """Raises PermissionDenied unless the caller has all of the permissions for all of the
    resource, and for the platform where that is to be given."""
    for permission in permissions:
        if not caller.allows(permission, resource):
            raise PermissionDenied(
                f"you can't give {permission} on {resource}: you don't have it",
                metadata={"permission": permission, "resource": resource},
            )
        if platform and not caller.allows_platform(permission):
            raise PermissionDenied(
                f"you can't give {permission} for the platform: you don't have it",
                metadata={"permission": permission},
            )


def check_scopes(caller: Principal, scopes: Iterable[str]) -> None:
    """Raises PermissionDenied where a key with these scopes would be less narrow than the
    caller's own."""
    if caller.is_system or not caller.scopes:
        return
    wanted = list(scopes)
    if not wanted or not all(holds(caller.scopes, scope) for scope in wanted):
        raise PermissionDenied("the key's scopes must be within those of your own key")


def check_rotator(state: State, caller: Principal, key: access_pb2.ApiKey) -> None:
    """Who rotates a key holds it afterwards: raises PermissionDenied unless it is the
    caller's own, or gives nothing that they don't have."""
    if caller.name == key.name:
        return
    for binding in bindings_of(state, key.name):
        given = narrowed(permissions_of(state, binding.role), key.scopes)
        check_giver(caller, given, whole_resource(binding), platform=binding.platform)


def check_taker(
    caller: Principal, permission: str, bindings: Iterable[access_pb2.RoleBinding]
) -> None:
    """Who takes away what holds for the platform must have a say there: raises
    PermissionDenied unless they have the permission for it."""
    if any(binding.platform for binding in bindings) and not caller.allows_platform(permission):
        raise PermissionDenied(
            "it holds for the platform: only who has that permission there can take it away",
            metadata={"permission": permission},
        )


def narrowed(permissions: Iterable[str], scopes: Iterable[str]) -> set[str]:
    """What is left of permissions under scopes, which narrow nothing where there are none."""
    given, narrow = set(permissions), set(scopes)
    if not narrow:
        return given
    return {each for each in given if holds(narrow, each)} | {
        each for each in narrow if holds(given, each)
    }


def check_administered(before: State, after: State, now_ns: int, what: str) -> None:
    """Raises FailedPrecondition where `what` would leave the tenant, or the platform,
    without an administrator."""
    for platform, of in ((False, "the tenant"), (True, "the platform")):
        had = administrators(before, now_ns, platform=platform)
        if had and not administrators(after, now_ns, platform=platform):
            raise FailedPrecondition(
                f"{what} would leave {of} without an administrator: give another API key"
                " the role admin first",
                metadata={"resource": before.tenant.name},
            )
