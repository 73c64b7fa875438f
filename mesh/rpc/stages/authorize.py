"""Refuses what the caller may not do, and hides what is another tenant's."""

from collections.abc import Callable, Mapping
from typing import Any

from mesh.call import Call
from mesh.errors import CredentialInvalid, NotFound, PermissionDenied
from mesh.principal import CACHED_NAME_LENGTH_MAX, Principal
from mesh.rpc.methods import MALFORMED, MethodSpec
from mesh.rpc.open_methods import FOR_EVERY_CALLER, PUBLIC
from mesh.rpc.tenancy import (
    foreign,
    name_count,
    names_in,
    platform_names,
    resource_reader,
    tenant_of,
)
from mesh.security.authenticator import Authenticator

ALLOWED_MAX = 1_000
Callers = Mapping[str, frozenset[str]]
"""For a contract's full name, the services that may call it, as the catalogue says."""


class Authorize:
    """Checks the tenant of every resource that a request names, then the permission that
    the method's contract asks for, on the resource that it acts upon. Where that is in no
    tenant, it is the permission for the platform.

    Another tenant's resource is NotFound, as if it weren't there. A call from a service
    needs no permission of its principal, but the catalogue's leave; the tenant is checked
    all the same.

    The checks raise NotFound, PermissionDenied; `check_of` itself raises ValueError for a
    method whose contract states no permission.
    """

    def __init__(self, authenticator: Authenticator, callers: Callers) -> None:
        self._authenticator = authenticator
        self._callers = callers

    def opening_of(self, spec: MethodSpec) -> Callable[[Call], None]:
        """What checks that a caller may open a client's stream: it has the permission for
        something, and each message tells for what. A service has the catalogue's leave."""
        permission = spec.policy.permission
        callers = self._callers.get(spec.service, frozenset())

        def check(call: Call) -> None:
            principal = call.principal
            if principal is None or not call.peer:
                return
            service = call.caller or call.relayed_by
            if service and service not in callers:
                raise PermissionDenied(f"{service} doesn't call {spec.service}")
            if not call.caller and not principal.allows_somewhere(permission):
                self._authenticator.denied(principal, spec.path)
                raise PermissionDenied(
                    f"needs the permission {permission}", metadata={"permission": permission}
                )

        return check if permission else lambda call: None

    def check_of(self, spec: MethodSpec) -> Callable[[Any, Call], None]:
        """What checks the requests of a method."""
        if spec.path in PUBLIC:
            return _anything
        permitted = _permission_check(spec)
        names = names_in(spec.request_class.DESCRIPTOR)
        callers = self._callers.get(spec.service, frozenset())
        sole = _sole_name(spec)
        # Who may call with which name, where that is the only one in a request.
        allowed: dict[tuple[int, str], Principal] = {}

        def check(request: Any, call: Call) -> None:
            principal = call.principal
            if principal is None:
                raise CredentialInvalid("the call has no credential")
            if (
                sole is None
                or not call.peer
                or call.caller
                or call.relayed_by
                or request is MALFORMED
            ):
                check_all(request, call, principal)
                return
            name = sole(request)
            key = (id(principal), name)
            if allowed.get(key) is not principal:
                check_all(request, call, principal)
                if len(name) > CACHED_NAME_LENGTH_MAX:
                    return
                if len(allowed) >= ALLOWED_MAX:
                    allowed.clear()
                allowed[key] = principal

        def check_all(request: Any, call: Call, principal: Principal) -> None:
            if request is not MALFORMED and principal.tenant:
                for name in foreign(names(request), principal.tenant):
                    raise NotFound.of("resource", name)
            if not call.peer:
                return
            service = call.caller or call.relayed_by
            if service and service not in callers:
                raise PermissionDenied(f"{service} doesn't call {spec.service}")
            if not call.caller and request is not MALFORMED and not permitted(principal, request):
                self._authenticator.denied(principal, spec.path)
                raise _denied(spec, request)

        return check


def _anything(request: Any, call: Call) -> None:
    """A public method has nothing to check."""


def _sole_name(spec: MethodSpec) -> Callable[[Any], str] | None:
    """Reads the one resource name that a request of the method has, where it has one only
    and the method acts upon it."""
    path = spec.policy.resource
    if not path or name_count(spec.request_class.DESCRIPTOR) != 1:
        return None
    return resource_reader(spec.request_class.DESCRIPTOR, path)


def _permission_check(spec: MethodSpec) -> Callable[[Principal, Any], bool]:
    permission, path = spec.policy.permission, spec.policy.resource
    if spec.path in FOR_EVERY_CALLER:
        return lambda principal, request: True
    if not permission or bool(path) == spec.policy.platform:
        raise ValueError(f"{spec.path} must state its permission, and a resource or `platform`")
    if spec.policy.platform:
        return lambda principal, request: principal.allows_platform(permission)
    read = resource_reader(spec.request_class.DESCRIPTOR, path)
    of_platform = platform_names(spec.request_class.DESCRIPTOR, path)

    def permitted(principal: Principal, request: Any) -> bool:
        resource = read(request)
        if tenant_of(resource) is not None:
            return principal.allows(permission, resource)
        if of_platform is not None and of_platform.fullmatch(resource):
            return principal.allows_platform(permission)
        # What names nothing is refused by its bounds, which come next.
        return True

    return permitted


def _denied(spec: MethodSpec, request: Any) -> PermissionDenied:
    permission = spec.policy.permission
    if spec.policy.platform:
        where = "the platform"
    else:
        where = resource_reader(spec.request_class.DESCRIPTOR, spec.policy.resource)(request)
    return PermissionDenied(
        f"needs the permission {permission} for {where}",
        metadata={"permission": permission, "resource": where},
    )
