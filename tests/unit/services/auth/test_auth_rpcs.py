"""The RPCs of access, on a log in memory, through the pipeline where it matters."""

import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mesh.errors import (
    AlreadyExists,
    CredentialInvalid,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    RequestIdReused,
    WeftError,
)
from mesh.principal import Principal
from mesh.rpc.local import LocalChannel
from mesh.rpc.methods import methods_of
from mesh.rpc.pipeline import bind
from mesh.rpc.settings import RpcSettings
from mesh.security.tokens import verify_access_token
from tests.support.access import Access, access, system_call
from tests.support.edge import pipeline
from weft.auth.v1 import api_key_service_pb2 as keys
from weft.auth.v1 import audit_service_pb2, role_service_pb2, tenant_service_pb2
from weft.auth.v1 import auth_service_pb2 as auth
from weft.auth.v1 import role_service_pb2 as roles
from weft.auth.v1 import tenant_service_pb2 as tenants
from weft.auth.v1.auth_service_pb2_grpc import AuthServiceStub

PARENT = "tenants/default"
ADMIN = f"{PARENT}/apiKeys/admin"


@pytest.fixture
async def made() -> AsyncIterator[Access]:
    async with access() as one:
        yield one


async def ask(made: Access, contract: str, method: str, request: Any, by: str = "") -> Any:
    """The answer of a method to who presents the credential `by`."""
    return await getattr(made.handler(contract), method)(request, made.call(by))


async def create_key(made: Access, *, by: str = "", **fields: Any) -> keys.CreateApiKeyResponse:
    request = keys.CreateApiKeyRequest(parent=PARENT, **fields)
    response: keys.CreateApiKeyResponse = await ask(
        made, "ApiKeyService", "create_api_key", request, by
    )
    return response


async def pages(call: Callable[[str], Any], field: str) -> list[list[Any]]:
    """All pages of a list."""
    found, token = [], ""
    while True:
        response = await call(token)
        found.append(list(getattr(response, field)))
        token = response.next_page_token
        if not token:
            return found


def test_every_method_of_the_contracts_is_implemented(made: Access) -> None:
    for file in (
        auth.DESCRIPTOR,
        keys.DESCRIPTOR,
        roles.DESCRIPTOR,
        tenants.DESCRIPTOR,
        audit_service_pb2.DESCRIPTOR,
    ):
        for contract in file.services_by_name.values():
            for method in methods_of(contract):
                assert hasattr(made.handler(contract.name), method.attribute)


async def test_what_needs_no_credential_works_without_one_in_the_pipeline(made: Access) -> None:
    settings = RpcSettings()
    endpoints = bind(made.service.handlers, pipeline(settings), settings)
    channel: Any = LocalChannel(endpoints)
    stub: Any = AuthServiceStub(channel)
    assert len((await stub.GetJwks(auth.GetJwksRequest())).keys) == 1
    response = await stub.ExchangeToken(auth.ExchangeTokenRequest(api_key=made.admin_key))
    assert made.principal(response.token).name == ADMIN
    with pytest.raises(CredentialInvalid):
        await stub.ExchangeToken(auth.ExchangeTokenRequest(api_key="x"))


class TestTokens:
    async def test_a_token_says_what_the_key_says(self, made: Access) -> None:
        key = await create_key(made, roles=[f"{PARENT}/roles/viewer"], scopes=["agents.*"])
        response = await ask(
            made, "AuthService", "exchange_token", auth.ExchangeTokenRequest(api_key=key.secret)
        )
        token = verify_access_token(response.token, made.directory, made.clock.now_ns())
        assert (token.subject, token.tenant) == (key.api_key.name, "default")
        assert (token.roles, token.scopes) == (("viewer",), ("agents.*",))
        assert token.expire_seconds - token.issued_seconds == 300
        assert response.expire_time.ToSeconds() == token.expire_seconds

    @pytest.mark.parametrize("kind", ["nonsense", "unknown", "revoked", "a token", ""])
    async def test_all_keys_that_arent_valid_are_refused_in_the_same_words(
        self, made: Access, kind: str
    ) -> None:
        key = await create_key(made)
        text = key.secret
        if kind == "revoked":
            revoke = keys.RevokeApiKeyRequest(name=key.api_key.name)
            await ask(made, "ApiKeyService", "revoke_api_key", revoke)
        elif kind == "unknown":
            async with access() as elsewhere:
                text = elsewhere.admin_key
        elif kind == "a token":
            request = auth.ExchangeTokenRequest(api_key=text)
            text = (await ask(made, "AuthService", "exchange_token", request)).token
        else:
            text = kind
        request = auth.ExchangeTokenRequest(api_key=text)
        with pytest.raises(CredentialInvalid, match=r"^the credential isn't valid$"):
            await made.handler("AuthService").exchange_token(request, system_call())

    async def test_what_doesnt_fit_a_token_is_said(self, made: Access) -> None:
        scopes = [f"{letter * 40}.{'x' * 20}" for letter in "abcdefghijklmnopqrstuvwxyz"]
        scopes += [f"{letter * 41}.{'y' * 20}" for letter in "abcdefghijklmnopqrstuvwxyz"]
        key = await create_key(made, scopes=scopes)
        request = auth.ExchangeTokenRequest(api_key=key.secret)
        with pytest.raises(LimitExceeded):
            await ask(made, "AuthService", "exchange_token", request)

    async def test_the_public_keys_are_in_the_form_of_rfc_8037(self, made: Access) -> None:
        response = await ask(made, "AuthService", "get_jwks", auth.GetJwksRequest())
        (key,) = response.keys
        assert (key.kty, key.crv, key.use, key.alg) == ("OKP", "Ed25519", "sig", "EdDSA")
        public = made.directory.signing_key().private_key.public_key().public_bytes_raw()
        assert base64.urlsafe_b64decode(key.x + "=") == public

    async def test_a_caller_learns_who_it_is(self, made: Access) -> None:
        key = await create_key(
            made, roles=[f"{PARENT}/roles/viewer"], resource=f"{PARENT}/agents/a"
        )
        response = await ask(made, "AuthService", "who_am_i", auth.WhoAmIRequest(), key.secret)
        assert (response.principal, response.tenant) == (key.api_key.name, PARENT)
        (grant,) = response.grants
        assert (grant.role, grant.resource) == (f"{PARENT}/roles/viewer", f"{PARENT}/agents/a")
        assert "agents.get" in grant.permissions
        assert not response.HasField("expire_time")

    async def test_whom_another_process_calls_for_is_looked_up(self, made: Access) -> None:
        call = made.call()
        call.principal = Principal(ADMIN, "default")
        response = await made.handler("AuthService").who_am_i(auth.WhoAmIRequest(), call)
        assert response.grants[0].role == f"{PARENT}/roles/admin"
        call.principal = Principal(f"{PARENT}/apiKeys/gone", "default")
        with pytest.raises(CredentialInvalid):
            await made.handler("AuthService").who_am_i(auth.WhoAmIRequest(), call)
        call.principal = None
        with pytest.raises(CredentialInvalid):
            await made.handler("AuthService").who_am_i(auth.WhoAmIRequest(), call)

    @pytest.mark.parametrize(
        ("permission", "resource", "role"),
        [
            ("agents.get", f"{PARENT}/agents/a", "viewer"),
            ("agents.get", f"{PARENT}/agents/a/sessions/s", "viewer"),
            ("agents.get", f"{PARENT}/agents/b", ""),
            ("agents.get", "", ""),
            ("agents.run", f"{PARENT}/agents/a", ""),
        ],
    )
    async def test_access_is_checked_with_the_role_that_gives_it(
        self, made: Access, permission: str, resource: str, role: str
    ) -> None:
        key = await create_key(
            made, roles=[f"{PARENT}/roles/viewer"], resource=f"{PARENT}/agents/a"
        )
        request = auth.CheckAccessRequest(
            parent=PARENT,
            principal=key.api_key.name,
            permission=permission,
            resource=resource,
        )
        response = await ask(made, "AuthService", "check_access", request)
        assert response.allowed == bool(role)
        assert response.role == (f"{PARENT}/roles/{role}" if role else "")
        request.ClearField("principal")
        assert await ask(made, "AuthService", "check_access", request, key.secret) == response

    async def test_access_of_nobody_and_elsewhere(self, made: Access) -> None:
        request = auth.CheckAccessRequest(parent=PARENT, permission="agents.get")
        request.principal = f"{PARENT}/apiKeys/nobody"
        assert not (await ask(made, "AuthService", "check_access", request)).allowed
        for field, value in (
            ("principal", "tenants/acme/apiKeys/admin"),
            ("resource", "tenants/acme/agents/a"),
        ):
            wrong = auth.CheckAccessRequest(parent=PARENT, permission="agents.get", principal=ADMIN)
            setattr(wrong, field, value)
            with pytest.raises(InvalidArgument, match=field):
                await ask(made, "AuthService", "check_access", wrong)


class TestTenants:
    async def test_a_new_tenant_has_an_administrator_of_its_own(self, made: Access) -> None:
        request = tenants.CreateTenantRequest(tenant_id="acme", display_name="Acme")
        response = await ask(made, "TenantService", "create_tenant", request)
        principal = made.principal(response.api_key_secret)
        assert principal.allows("agents.run", "tenants/acme/agents/a")
        assert not principal.allows("agents.run", f"{PARENT}/agents/a")
        assert not principal.allows_platform("auth.create_tenant")
        got = tenants.GetTenantRequest(name="tenants/acme")
        assert (await ask(made, "TenantService", "get_tenant", got)).tenant == response.tenant
        with pytest.raises(AlreadyExists):
            await ask(made, "TenantService", "create_tenant", request)
        with pytest.raises(NotFound):
            await ask(
                made, "TenantService", "get_tenant", tenants.GetTenantRequest(name="tenants/x")
            )

    async def test_tenants_are_listed_by_id_in_pages(self, made: Access) -> None:
        for tenant in ("c", "a", "b"):
            request = tenants.CreateTenantRequest(tenant_id=tenant)
            await ask(made, "TenantService", "create_tenant", request)

        async def call(token: str) -> Any:
            request = tenants.ListTenantsRequest(page_size=3, page_token=token)
            return await ask(made, "TenantService", "list_tenants", request)

        found = await pages(call, "tenants")
        names = [[each.name.removeprefix("tenants/") for each in page] for page in found]
        assert names == [["a", "b", "c"], ["default"]]

    async def test_a_tenants_key_is_rotated_by_the_keyring(self, made: Access) -> None:
        request = tenants.RotateTenantKeyRequest(name=PARENT)
        response = await ask(made, "TenantService", "rotate_tenant_key", request)
        assert response.key_id == "default-1"
        request.name = "tenants/none"
        with pytest.raises(NotFound):
            await ask(made, "TenantService", "rotate_tenant_key", request)


class TestApiKeys:
    async def test_a_key_is_made_with_its_roles_or_not_at_all(self, made: Access) -> None:
        before = made.directory.state(PARENT).revision
        with pytest.raises(InvalidArgument, match=r"roles\[1\]"):
            await create_key(made, roles=[f"{PARENT}/roles/viewer", f"{PARENT}/roles/none"])
        assert made.directory.state(PARENT).revision == before
        key = await create_key(made, api_key_id="k", roles=[f"{PARENT}/roles/viewer"] * 2)
        assert key.api_key.creator == ADMIN
        assert len(made.principal(key.secret).grants) == 1
        with pytest.raises(AlreadyExists):
            await create_key(made, api_key_id="k")

    async def test_no_answer_but_the_first_holds_the_secret(self, made: Access) -> None:
        key = await create_key(made, api_key_id="k")
        get = keys.GetApiKeyRequest(name=key.api_key.name)
        listed = keys.ListApiKeysRequest(parent=PARENT)
        secret = key.secret.split("_")[2]
        for method, request in (("get_api_key", get), ("list_api_keys", listed)):
            assert secret not in str(await ask(made, "ApiKeyService", method, request))
        assert secret.encode() not in b"".join(entry.data for entry in made.log.entries)
        rotated = await ask(
            made, "ApiKeyService", "rotate_api_key", keys.RotateApiKeyRequest(name=get.name)
        )
        assert [each.id for each in rotated.api_key.secrets] == [
            key.secret.split("_")[1],
            rotated.secret.split("_")[1],
        ]

    async def test_keys_are_listed_oldest_first_in_pages(self, made: Access) -> None:
        for name in ("z", "a", "m"):
            await create_key(made, api_key_id=name)

        async def call(token: str) -> Any:
            request = keys.ListApiKeysRequest(parent=PARENT, page_size=2, page_token=token)
            return await ask(made, "ApiKeyService", "list_api_keys", request)

        found = await pages(call, "api_keys")
        names = [[each.name.rpartition("/")[2] for each in page] for page in found]
        assert names == [["admin", "z"], ["a", "m"]]

    async def test_revoking_is_answered_again_with_the_same(self, made: Access) -> None:
        key = await create_key(made)
        request = keys.RevokeApiKeyRequest(name=key.api_key.name, request_id="once")
        first = await ask(made, "ApiKeyService", "revoke_api_key", request)
        assert first.api_key.HasField("revoke_time")
        assert await ask(made, "ApiKeyService", "revoke_api_key", request) == first
        request.name = ADMIN
        with pytest.raises(RequestIdReused):
            await ask(made, "ApiKeyService", "revoke_api_key", request)

    async def test_what_isnt_there_is_not_found(self, made: Access) -> None:
        name = f"{PARENT}/apiKeys/none"
        for method, request in (
            ("get_api_key", keys.GetApiKeyRequest(name=name)),
            ("revoke_api_key", keys.RevokeApiKeyRequest(name=name)),
            ("rotate_api_key", keys.RotateApiKeyRequest(name=name)),
            ("list_api_keys", keys.ListApiKeysRequest(parent="tenants/none")),
            ("create_api_key", keys.CreateApiKeyRequest(parent="tenants/none")),
        ):
            with pytest.raises(NotFound):
                await ask(made, "ApiKeyService", method, request)


class TestRoles:
    async def test_a_role_is_made_changed_given_taken_and_deleted(self, made: Access) -> None:
        name = f"{PARENT}/roles/reader"
        create = roles.CreateRoleRequest(
            parent=PARENT, role_id="reader", permissions=["agents.get", "agents.get"]
        )
        response = await ask(made, "RoleService", "create_role", create)
        assert response.role.permissions == ["agents.get"]
        update = roles.UpdateRoleRequest()
        update.role.name = name
        update.role.permissions.append("models.*")
        updated = await ask(made, "RoleService", "update_role", update)
        assert updated.role.permissions == ["models.*"]
        key = await create_key(made)
        bind = roles.CreateRoleBindingRequest(
            parent=PARENT, role=name, members=[key.api_key.name], request_id="bind"
        )
        bound = await ask(made, "RoleService", "create_role_binding", bind)
        assert await ask(made, "RoleService", "create_role_binding", bind) == bound
        assert made.principal(key.secret).allows("models.list", PARENT)
        unbind = roles.DeleteRoleBindingRequest(name=bound.role_binding.name, request_id="gone")
        for _ in range(2):
            await ask(made, "RoleService", "delete_role_binding", unbind)
        await ask(made, "RoleService", "delete_role", roles.DeleteRoleRequest(name=name))
        with pytest.raises(NotFound):
            await ask(made, "RoleService", "update_role", update)

    async def test_roles_are_listed_with_the_built_in_ones_first(self, made: Access) -> None:
        for role_id in ("zz", "aa"):
            create = roles.CreateRoleRequest(
                parent=PARENT, role_id=role_id, permissions=["agents.get"]
            )
            await ask(made, "RoleService", "create_role", create)

        async def call(token: str) -> Any:
            request = roles.ListRolesRequest(parent=PARENT, page_size=3, page_token=token)
            return await ask(made, "RoleService", "list_roles", request)

        found = await pages(call, "roles")
        names = [[each.name.rpartition("/")[2] for each in page] for page in found]
        assert names == [["admin", "developer", "operator"], ["viewer", "worker", "aa"], ["zz"]]

    async def test_bindings_are_listed_oldest_first(self, made: Access) -> None:
        key = await create_key(made, roles=[f"{PARENT}/roles/viewer", f"{PARENT}/roles/worker"])

        async def call(token: str) -> Any:
            request = roles.ListRoleBindingsRequest(parent=PARENT, page_size=2, page_token=token)
            return await ask(made, "RoleService", "list_role_bindings", request)

        found = await pages(call, "role_bindings")
        assert [len(page) for page in found] == [2, 1]
        assert found[0][0].members == [ADMIN]
        assert {each.role.rpartition("/")[2] for page in found for each in page} == {
            *("admin", "viewer", "worker")
        }
        assert found[1][0].members == [key.api_key.name]

    async def test_a_caller_gives_what_its_credential_has(self, made: Access) -> None:
        create = roles.CreateRoleRequest(
            parent=PARENT, role_id="keeper", permissions=["auth.create_role_binding"]
        )
        await ask(made, "RoleService", "create_role", create)
        key = await create_key(made, roles=[f"{PARENT}/roles/keeper"])
        bind = roles.CreateRoleBindingRequest(
            parent=PARENT, role=f"{PARENT}/roles/admin", members=[key.api_key.name]
        )
        with pytest.raises(PermissionDenied):
            await ask(made, "RoleService", "create_role_binding", bind, key.secret)


@pytest.mark.parametrize("token", ["x", "eA==", "dGVuYW50cy9vdGhlcgphYmM="])
async def test_a_forged_page_token_is_refused(made: Access, token: str) -> None:
    requests: list[tuple[str, str, Any]] = [
        ("ApiKeyService", "list_api_keys", keys.ListApiKeysRequest(parent=PARENT)),
        ("RoleService", "list_roles", role_service_pb2.ListRolesRequest(parent=PARENT)),
        ("TenantService", "list_tenants", tenant_service_pb2.ListTenantsRequest()),
        (
            "AuditService",
            "list_audit_entries",
            audit_service_pb2.ListAuditEntriesRequest(parent=PARENT),
        ),
    ]
    for contract, method, request in requests:
        request.page_token = token
        with pytest.raises(WeftError, match="page_token"):
            await ask(made, contract, method, request)
