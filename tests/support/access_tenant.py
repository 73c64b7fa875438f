"""A tenant's access without a log: commands are decided on it and folded in."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from mesh.clock import NANOSECONDS
from mesh.events.fold import Place
from mesh.ids import new_id
from mesh.principal import Principal, system
from services.auth import domain
from services.auth.access import TenantAccess
from weft.auth.v1 import access_pb2

T = "tenants/acme"
START_NS = 1_700_000_000 * NANOSECONDS


class Tenant:
    """A tenant on which commands are decided, and whose clock stands until it is moved."""

    def __init__(self, *, platform: bool = False) -> None:
        self.state = domain.State()
        self.now_ns = START_NS
        self.run(
            domain.CreateTenant(
                self.request(), "acme", "Acme", "admin", "first", secret("s-admin"), platform
            )
        )

    def request(self, caller: str = "", request_id: str = "", body: bytes = b"") -> domain.Request:
        principal = self.principal(caller) if caller else system()
        return domain.Request(request_id or new_id(), body, principal, self.now_ns)

    def principal(self, api_key: str) -> Principal:
        return TenantAccess(self.state, {}).keys[f"{T}/apiKeys/{api_key}"].principal()

    def run(self, command: domain.Command) -> int:
        """How many facts it led to."""
        events = domain.decide(self.state, command)
        time = Timestamp()
        time.FromNanoseconds(self.now_ns)
        for event in events:
            place = Place(self.state.revision + 1, time)
            self.state = domain.ACCESS_FOLD.evolve(self.state, event, place)
        return len(events)

    def key(
        self,
        name: str,
        *roles: str,
        by: str = "",
        scopes: Sequence[str] = (),
        expire_ns: int = 0,
        resource: str = "",
    ) -> str:
        self.run(
            domain.CreateApiKey(
                request=self.request(by),
                name=f"{T}/apiKeys/{name}",
                display_name="",
                scopes=scopes,
                expire_ns=expire_ns,
                secret=secret(f"s-{name}"),
                roles=[f"{T}/roles/{role}" for role in roles],
                bindings=[f"{T}/roleBindings/{name}-{role}" for role in roles],
                resource=resource,
            )
        )
        return f"{T}/apiKeys/{name}"

    def role(self, name: str, *permissions: str, by: str = "") -> None:
        role = access_pb2.Role(name=f"{T}/roles/{name}", permissions=permissions)
        self.run(domain.CreateRole(self.request(by), role))

    def update_role(self, name: str, *permissions: str, by: str = "") -> None:
        role = access_pb2.Role(name=f"{T}/roles/{name}", permissions=permissions)
        self.run(domain.UpdateRole(self.request(by), role))

    def bind(self, name: str, role: str, *members: str, by: str = "", **more: Any) -> None:
        binding = access_pb2.RoleBinding(
            name=f"{T}/roleBindings/{name}",
            role=f"{T}/roles/{role}",
            members=[f"{T}/apiKeys/{member}" for member in members],
            **more,
        )
        self.run(domain.CreateBinding(self.request(by), binding))

    def unbind(self, name: str, *, by: str = "") -> None:
        self.run(domain.DeleteBinding(self.request(by), f"{T}/roleBindings/{name}"))

    def rotate(self, name: str, secret_id: str, *, overlap_ns: int = 0, by: str = "") -> None:
        self.run(
            domain.RotateApiKey(
                self.request(by), f"{T}/apiKeys/{name}", secret(secret_id), overlap_ns
            )
        )

    def revoke(self, name: str, *, by: str = "") -> int:
        return self.run(domain.RevokeApiKey(self.request(by), f"{T}/apiKeys/{name}"))

    def stored(self, name: str) -> access_pb2.StoredApiKey:
        return domain.existing_api_key(self.state, f"{T}/apiKeys/{name}")


def secret(secret_id: str) -> domain.Secret:
    return domain.Secret(secret_id, secret_id.encode().ljust(32))
