"""What may be done to a tenant's access, and what not."""

from collections.abc import Sequence
from typing import Any

import pytest

from mesh.clock import NANOSECONDS
from mesh.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    RequestIdReused,
    WeftError,
)
from services.auth import domain
from services.auth.domain.decide import MEMBERS_MAX, PERMISSIONS_MAX, REVOKED_TOKENS_MAX
from services.auth.domain.evolve import API_KEYS_MAX, REQUESTS_MAX, SECRETS_MAX
from tests.support.access_tenant import START_NS, T, Tenant, secret
from weft.auth.v1 import access_pb2

ADMIN_KEY = f"{T}/apiKeys/admin"


def refused(error: type[WeftError], match: str | None = None) -> Any:
    return pytest.raises(error, match=match)


class TestGiving:
    """Nobody gives what they don't have."""

    def test_a_role_is_given_by_who_has_all_of_it(self) -> None:
        tenant = Tenant()
        tenant.role("keeper", "auth.create_role_binding", "agents.get", "agents.list")
        tenant.role("reader", "agents.get", "agents.list")
        tenant.key("k", "keeper")
        tenant.key("other")
        tenant.bind("ok", "reader", "other", by="k")
        with refused(PermissionDenied, "agents.run"):
            tenant.bind("no", "worker", "other", by="k")
        with refused(PermissionDenied):
            tenant.bind("no", "admin", "k", by="k")

    def test_all_of_an_area_is_more_than_each_of_its_permissions(self) -> None:
        tenant = Tenant()
        tenant.role("each", "models.list", "models.generate")
        tenant.role("all", "models.*")
        tenant.key("k", "each")
        with refused(PermissionDenied, r"models\.\*"):
            tenant.bind("no", "all", "k", by="k")

    def test_a_role_for_some_resources_is_not_given_for_others(self) -> None:
        tenant = Tenant()
        tenant.key("k", "viewer", resource=f"{T}/agents/bot")
        tenant.key("other")
        tenant.bind("ok", "viewer", "other", by="k", resource=f"{T}/agents/bot/sessions/*")
        for resource in ("", f"{T}/agents/*", f"{T}/agents/cat", T):
            with refused(PermissionDenied):
                tenant.bind("no", "viewer", "other", by="k", resource=resource)

    def test_the_platform_is_given_by_who_holds_it(self) -> None:
        tenant = Tenant()
        tenant.key("other")
        with refused(PermissionDenied, "platform"):
            tenant.bind("no", "viewer", "other", by="admin", platform=True)
        owner = Tenant(platform=True)
        owner.key("other")
        owner.bind("ok", "viewer", "other", by="admin", platform=True)
        assert owner.principal("other").allows_platform("agents.get")

    def test_who_has_no_say_for_the_platform_takes_nothing_of_it_away(self) -> None:
        tenant = Tenant(platform=True)
        tenant.key("local", "admin", by="admin")
        tenant.key("owner")
        tenant.bind("owns", "admin", "owner", by="admin", platform=True)
        with refused(PermissionDenied, "platform"):
            tenant.revoke("owner", by="local")
        with refused(PermissionDenied, "platform"):
            tenant.unbind("owns", by="local")
        tenant.unbind("owns", by="admin")
        tenant.revoke("owner", by="local")

    def test_a_new_key_is_given_no_more_roles_than_its_maker_has(self) -> None:
        tenant = Tenant()
        tenant.key("k", "viewer")
        with refused(PermissionDenied):
            tenant.key("more", "developer", by="k")
        tenant.key("same", "viewer", by="k")
        assert f"{T}/apiKeys/more" not in [each.api_key.name for each in tenant.state.api_keys]

    @pytest.mark.parametrize("scopes", [(), ("agents.*",), ("agents.get", "models.list")])
    def test_a_new_key_is_no_wider_than_its_makers(self, scopes: Sequence[str]) -> None:
        tenant = Tenant()
        tenant.key("narrow", "admin", scopes=("agents.get", "auth.*"))
        with refused(PermissionDenied, "scopes"):
            tenant.key("wide", by="narrow", scopes=scopes)
        tenant.key("same", by="narrow", scopes=("agents.get",))

    def test_scopes_narrow_what_can_be_given(self) -> None:
        tenant = Tenant()
        tenant.key("narrow", "admin", scopes=("auth.*",))
        tenant.key("other")
        with refused(PermissionDenied):
            tenant.bind("no", "viewer", "other", by="narrow")

    def test_who_rotates_a_key_holds_it_so_it_must_give_nothing_more(self) -> None:
        tenant = Tenant()
        tenant.role("rotator", "auth.rotate_api_key", "agents.get")
        tenant.role("reader", "agents.get")
        tenant.key("k", "rotator")
        tenant.key("reading", "reader")
        tenant.key("narrowed", "admin", scopes=("agents.get",))
        with refused(PermissionDenied):
            tenant.rotate("admin", "stolen", by="k")
        tenant.rotate("k", "own", by="k")
        tenant.rotate("reading", "ok", by="k")
        tenant.rotate("narrowed", "as narrow", by="k")

    def test_what_is_added_to_a_role_is_given_to_all_who_have_it(self) -> None:
        tenant = Tenant()
        tenant.role("growing", "agents.get")
        tenant.role("keeper", "auth.update_role", "agents.get", "agents.list")
        tenant.key("k", "growing", "keeper")
        tenant.update_role("growing", "agents.get", "agents.list", by="k")
        with refused(PermissionDenied):
            tenant.update_role("growing", "agents.*", by="k")
        tenant.update_role("growing", "agents.list", by="k")
        assert tenant.principal("k").allows("agents.list", T)


class TestAdministrators:
    """A tenant isn't locked by accident."""

    def test_the_last_administrator_stays(self) -> None:
        tenant = Tenant()
        with refused(FailedPrecondition, "without an administrator"):
            tenant.revoke("admin")
        with refused(FailedPrecondition, "without an administrator"):
            tenant.unbind("first")
        tenant.key("second", "admin")
        assert tenant.revoke("admin") == 1
        with refused(FailedPrecondition):
            tenant.revoke("second")

    @pytest.mark.parametrize("kind", ["narrowed", "for some", "expired", "revoked"])
    def test_who_can_do_less_is_no_other_administrator(self, kind: str) -> None:
        tenant = Tenant()
        tenant.key(
            "second",
            "admin",
            scopes=("auth.*",) if kind == "narrowed" else (),
            resource=f"{T}/agents/*" if kind == "for some" else "",
            expire_ns=START_NS + 1 if kind == "expired" else 0,
        )
        if kind == "revoked":
            tenant.revoke("second")
        tenant.now_ns += NANOSECONDS
        with refused(FailedPrecondition):
            tenant.revoke("admin")

    def test_the_last_administrator_of_the_platform_stays(self) -> None:
        tenant = Tenant(platform=True)
        tenant.key("second", "admin")
        with refused(FailedPrecondition, "the platform"):
            tenant.revoke("admin")
        tenant.bind("platform", "admin", "second", by="admin", platform=True)
        tenant.revoke("admin")


class TestApiKeys:
    def test_a_rotation_ends_what_was_valid_before(self) -> None:
        tenant = Tenant()
        tenant.key("k")
        tenant.rotate("k", "s2", overlap_ns=100)
        tenant.rotate("k", "s3", overlap_ns=1_000)
        ends = [each.expire_time.ToNanoseconds() for each in tenant.stored("k").api_key.secrets]
        # The overlap of the first rotation isn't prolonged by the second.
        assert ends == [START_NS + 100, START_NS + 1_000, 0]
        tenant.now_ns += 500
        tenant.rotate("k", "s4", overlap_ns=0)
        assert [each.id for each in tenant.stored("k").api_key.secrets] == ["s4"]
        assert tenant.stored("k").secret_hmacs == [secret("s4").hmac]

    def test_a_key_keeps_a_few_secrets_only(self) -> None:
        tenant = Tenant()
        tenant.key("k")
        for number in range(20):
            tenant.rotate("k", f"r{number}", overlap_ns=10**12)
        stored = tenant.stored("k")
        assert [each.id for each in stored.api_key.secrets] == [f"r{n}" for n in range(12, 20)]
        assert len(stored.secret_hmacs) == SECRETS_MAX

    def test_a_revoked_key_is_gone_with_its_secrets_and_bindings(self) -> None:
        tenant = Tenant()
        tenant.key("k", "viewer")
        tenant.key("l")
        tenant.bind("both", "worker", "k", "l")
        assert tenant.revoke("k") == 1
        assert tenant.revoke("k") == 0
        assert not tenant.stored("k").secret_hmacs
        assert [each.name for each in tenant.state.bindings] == [
            f"{T}/roleBindings/first",
            f"{T}/roleBindings/both",
        ]
        with refused(FailedPrecondition):
            tenant.rotate("k", "again")
        with refused(InvalidArgument):
            tenant.bind("no", "viewer", "k")
        with refused(AlreadyExists):
            tenant.key("k")

    def test_an_expired_key_is_not_rotated(self) -> None:
        tenant = Tenant()
        tenant.key("k", expire_ns=START_NS + 10)
        tenant.now_ns += 10
        with refused(FailedPrecondition):
            tenant.rotate("k", "again")

    def test_uses_are_noted_once_in_a_while(self) -> None:
        tenant = Tenant()
        key = tenant.key("k")
        use = domain.UseApiKeys([key, "tenants/acme/apiKeys/gone"], tenant.now_ns, 600)
        assert tenant.run(use) == 1
        assert tenant.run(use) == 0
        tenant.now_ns += 600
        assert tenant.run(domain.UseApiKeys([key], tenant.now_ns, 600)) == 1

    def test_ended_keys_make_room(self) -> None:
        tenant = Tenant()
        tenant.key("ended", "viewer", expire_ns=START_NS + 1)
        for number in range(API_KEYS_MAX - 2):
            tenant.key(f"k{number}")
        with refused(LimitExceeded):
            tenant.key("more")
        tenant.now_ns += 1
        tenant.key("more")
        assert len(tenant.state.api_keys) == API_KEYS_MAX
        with refused(NotFound):
            tenant.stored("ended")
        # Who takes its name doesn't find what it had.
        tenant.revoke("k0")
        tenant.key("ended")
        assert not tenant.principal("ended").grants


class TestRolesAndBindings:
    def test_built_in_roles_stay_as_they_are(self) -> None:
        tenant = Tenant()
        with refused(AlreadyExists):
            tenant.role("admin", "agents.get")
        with refused(FailedPrecondition, "comes with Weft"):
            tenant.update_role("viewer", "agents.get")
        with refused(FailedPrecondition, "comes with Weft"):
            tenant.run(domain.DeleteRole(tenant.request(), f"{T}/roles/viewer"))

    def test_a_role_in_use_stays(self) -> None:
        tenant = Tenant()
        tenant.role("reader", "agents.get")
        tenant.key("k", "reader")
        delete = domain.DeleteRole(tenant.request(), f"{T}/roles/reader")
        with refused(FailedPrecondition, "in use"):
            tenant.run(delete)
        tenant.unbind("k-reader")
        assert tenant.run(delete) == 1
        with refused(NotFound):
            tenant.update_role("reader", "agents.list")

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"role": f"{T}/roles/none"}, "role"),
            ({"role": "tenants/other/roles/viewer"}, "role"),
            ({"members": [f"{T}/apiKeys/none"]}, r"members\[0\]"),
            ({"members": [ADMIN_KEY, "tenants/other/apiKeys/admin"]}, r"members\[1\]"),
            ({"resource": "tenants/other"}, "resource"),
            ({"resource": "tenants/*"}, "resource"),
            ({"resource": "tenants/acme2/agents/*"}, "resource"),
        ],
    )
    def test_a_binding_names_what_there_is_in_its_tenant(
        self, change: dict[str, Any], field: str
    ) -> None:
        tenant = Tenant()
        right = {
            "name": f"{T}/roleBindings/b",
            "role": f"{T}/roles/viewer",
            "members": [ADMIN_KEY],
            "resource": f"{T}/agents/*",
        }
        binding = access_pb2.RoleBinding(**(right | change))
        with refused(InvalidArgument, field):
            tenant.run(domain.CreateBinding(tenant.request(), binding))

    def test_a_binding_of_that_name_is_there_or_not(self) -> None:
        tenant = Tenant()
        with refused(AlreadyExists):
            tenant.bind("first", "viewer", "admin")
        with refused(NotFound):
            tenant.unbind("none")

    def test_all_together_is_bounded(self) -> None:
        tenant = Tenant()
        permissions = [f"area.p{number}" for number in range(256)]
        for number in range(PERMISSIONS_MAX // 256):
            tenant.role(f"r{number}", *permissions)
        with refused(LimitExceeded, "permissions"):
            tenant.role("more", "agents.get")
        members = [f"k{number}" for number in range(256)]
        for member in members:
            tenant.key(member)
        for number in range(MEMBERS_MAX // 256 - 1):
            tenant.bind(f"b{number}", "viewer", *members)
        with refused(LimitExceeded, "members"):
            tenant.bind("more", "viewer", *members)


class TestRequests:
    def test_a_repeated_request_changes_nothing(self) -> None:
        tenant = Tenant()
        role = access_pb2.Role(name=f"{T}/roles/r", permissions=["agents.get"])
        command = domain.CreateRole(tenant.request(request_id="once", body=b"a"), role)
        assert tenant.run(command) == 1
        assert tenant.run(command) == 0
        with refused(RequestIdReused):
            tenant.run(domain.CreateRole(tenant.request(request_id="once", body=b"b"), role))

    def test_the_last_requests_are_known(self) -> None:
        tenant = Tenant()
        for _ in range(REQUESTS_MAX + 10):
            tenant.rotate("admin", "s")
        assert len(tenant.state.requests) == REQUESTS_MAX

    def test_a_tenant_is_made_once(self) -> None:
        tenant = Tenant()
        again = domain.CreateTenant(tenant.request(), "acme", "", "x", "y", secret("z"))
        with refused(AlreadyExists):
            tenant.run(again)

    def test_there_is_nothing_without_a_tenant(self) -> None:
        tenant = Tenant()
        tenant.state = domain.State()
        with refused(NotFound):
            tenant.run(domain.RevokeApiKey(tenant.request(), ADMIN_KEY))


def test_revoked_tokens_are_forgotten_once_they_expire() -> None:
    tenant = Tenant()

    def revoke(token_id: str) -> int:
        expire_ns = tenant.now_ns + 300
        return tenant.run(domain.RevokeToken(tenant.request(), token_id, expire_ns))

    for number in range(REVOKED_TOKENS_MAX):
        tenant.state.revoked_tokens.add(id=f"t{number}").expire_time.FromNanoseconds(
            tenant.now_ns + 300
        )
    assert revoke("t1") == 0
    with refused(LimitExceeded):
        revoke("more")
    tenant.now_ns += 300
    assert revoke("more") == 1
    assert [token.id for token in tenant.state.revoked_tokens] == ["more"]
