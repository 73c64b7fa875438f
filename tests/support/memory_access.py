"""Tenants, keys, roles and the audit trail in memory: just what a client sees of them."""

import secrets
import time
import zlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from mesh.call import Call
from mesh.errors import AlreadyExists, CredentialInvalid, NotFound, PermissionDenied
from mesh.ids import new_id
from mesh.principal import Grant, Principal
from mesh.rpc.methods import Handler, MethodSpec
from mesh.rpc.pipeline import Endpoint
from tests.support.memory_catalogues import page_of
from weft.auth.v1 import access_pb2
from weft.auth.v1 import api_key_service_pb2 as keys
from weft.auth.v1 import audit_service_pb2 as audit
from weft.auth.v1 import auth_service_pb2 as auth
from weft.auth.v1 import role_service_pb2 as roles
from weft.auth.v1 import tenant_service_pb2 as tenants

PUBLIC = ("/weft.auth.v1.AuthService/ExchangeToken", "/weft.auth.v1.AuthService/GetJwks")


def new_secret() -> str:
    """A key of the right shape."""
    body = f"weft_{new_id()}_{secrets.token_hex(26)}"
    return f"{body}_{zlib.crc32(body.encode()):08x}"


class MemoryAccess:
    """The services of `weft.auth.v1`, and who may call.

    `authorizations` holds each call's method and header `authorization`. Once `demands`
    is set a call needs a key that was made here, and none of the permissions in `denied`.
    """

    def __init__(self) -> None:
        self.demands = False
        self.denied: set[str] = set()
        self.authorizations: list[tuple[str, str]] = []
        self.audit_requests: list[audit.ListAuditEntriesRequest] = []
        self.entries: list[audit.AuditEntry] = []
        self._tenants: dict[str, access_pb2.Tenant] = {}
        self._keys: dict[str, access_pb2.ApiKey] = {}
        self._secrets: dict[str, str] = {}
        self._bindings: dict[str, access_pb2.RoleBinding] = {}
        self._roles = {
            f"tenants/default/roles/{role}": access_pb2.Role(
                name=f"tenants/default/roles/{role}", permissions=permissions, built_in=True
            )
            for role, permissions in (("admin", ["auth.*", "agents.*"]), ("viewer", ["agents.get"]))
        }

    def add_key(self, name: str, **fields: Any) -> str:
        """Makes an API key; returns its secret."""
        secret = new_secret()
        key = access_pb2.ApiKey(name=name, **fields)
        key.create_time.FromSeconds(1_700_000_000)
        self._keys[name] = key
        self._add_secret(key, secret)
        return secret

    def admit(self, spec: MethodSpec, call: Call) -> None:
        """Lets a call in, or raises."""
        header = call.metadata.get("authorization", "")
        self.authorizations.append((spec.path.rsplit("/", 1)[1], header))
        name = self._secrets.get(header.removeprefix("Bearer "), "")
        if name:
            # Permissions are this class's to refuse, by `denied`; the edge behind it lets all in.
            call.principal = replace(self._principal(name), is_system=True)
        if not self.demands or spec.path in PUBLIC:
            return
        if not name or self._keys[name].HasField("revoke_time"):
            raise CredentialInvalid("no credential, or one that isn't valid")
        if spec.policy.permission in self.denied:
            needed = {"permission": spec.policy.permission, "resource": "tenants/default"}
            raise PermissionDenied("this isn't allowed", metadata=needed)

    async def who_am_i(self, _: auth.WhoAmIRequest, call: Call) -> auth.WhoAmIResponse:
        if call.principal is None or call.principal.name not in self._keys:
            return auth.WhoAmIResponse(principal="system", tenant="tenants/default")
        principal = self._of(call)
        key = self._keys[principal.name]
        grants = [
            auth.Grant(role=g.role, resource=g.resource, permissions=sorted(g.permissions))
            for g in principal.grants
        ]
        tenant = f"tenants/{principal.tenant}"
        answer = auth.WhoAmIResponse(principal=principal.name, tenant=tenant, grants=grants)
        if key.HasField("expire_time"):
            answer.expire_time.CopyFrom(key.expire_time)
        return answer

    async def exchange_token(
        self, request: auth.ExchangeTokenRequest, _: Call
    ) -> auth.ExchangeTokenResponse:
        if request.api_key not in self._secrets:
            raise CredentialInvalid("no credential, or one that isn't valid")
        answer = auth.ExchangeTokenResponse(token=f"header.{new_id()}.signature")
        answer.expire_time.FromSeconds(int(time.time()) + 300)
        return answer

    async def get_jwks(self, _: auth.GetJwksRequest, __: Call) -> auth.GetJwksResponse:
        key = auth.Jwk(kty="OKP", crv="Ed25519", kid="k1", use="sig", alg="EdDSA", x="AAAA")
        return auth.GetJwksResponse(keys=[key])

    async def rotate_master_key(
        self, _: auth.RotateMasterKeyRequest, __: Call
    ) -> auth.RotateMasterKeyResponse:
        return auth.RotateMasterKeyResponse(key_id="m2", wrapped_count=3)

    async def rotate_signing_key(
        self, _: auth.RotateSigningKeyRequest, __: Call
    ) -> auth.RotateSigningKeyResponse:
        return auth.RotateSigningKeyResponse(kid="k2")

    async def revoke_token(self, _: auth.RevokeTokenRequest, __: Call) -> auth.RevokeTokenResponse:
        return auth.RevokeTokenResponse()

    async def check_access(
        self, request: auth.CheckAccessRequest, call: Call
    ) -> auth.CheckAccessResponse:
        asked = self._principal(request.principal) if request.principal else self._of(call)
        role = asked.role_for(request.permission, request.resource or request.parent)
        return auth.CheckAccessResponse(allowed=role is not None, role=role or "")

    async def create_api_key(
        self, request: keys.CreateApiKeyRequest, _: Call
    ) -> keys.CreateApiKeyResponse:
        name = f"{request.parent}/apiKeys/{request.api_key_id or new_id()}"
        if name in self._keys:
            raise AlreadyExists(f"key {name} is there already")
        secret = self.add_key(name, display_name=request.display_name, scopes=request.scopes)
        if request.HasField("ttl"):
            self._keys[name].expire_time.FromSeconds(int(time.time()) + request.ttl.seconds)
        for role in request.roles:
            await self.create_role_binding(
                roles.CreateRoleBindingRequest(
                    parent=request.parent, role=role, members=[name], resource=request.resource
                ),
                _,
            )
        return keys.CreateApiKeyResponse(api_key=self._keys[name], secret=secret)

    async def get_api_key(self, request: keys.GetApiKeyRequest, _: Call) -> keys.GetApiKeyResponse:
        return keys.GetApiKeyResponse(api_key=self._key(request.name))

    async def list_api_keys(
        self, request: keys.ListApiKeysRequest, _: Call
    ) -> keys.ListApiKeysResponse:
        found = [key for name, key in self._keys.items() if name.startswith(request.parent)]
        page, token = page_of(found, request.page_size, request.page_token)
        return keys.ListApiKeysResponse(api_keys=page, next_page_token=token)

    async def rotate_api_key(
        self, request: keys.RotateApiKeyRequest, _: Call
    ) -> keys.RotateApiKeyResponse:
        key, secret = self._key(request.name), new_secret()
        for before in key.secrets:
            before.expire_time.FromSeconds(int(time.time()) + request.overlap.seconds)
        self._add_secret(key, secret)
        return keys.RotateApiKeyResponse(api_key=key, secret=secret)

    async def revoke_api_key(
        self, request: keys.RevokeApiKeyRequest, _: Call
    ) -> keys.RevokeApiKeyResponse:
        self._key(request.name).revoke_time.FromSeconds(1_700_000_000)
        return keys.RevokeApiKeyResponse(api_key=self._key(request.name))

    async def create_role(
        self, request: roles.CreateRoleRequest, _: Call
    ) -> roles.CreateRoleResponse:
        role = access_pb2.Role(
            name=f"{request.parent}/roles/{request.role_id}",
            display_name=request.display_name,
            permissions=request.permissions,
        )
        self._roles[role.name] = role
        return roles.CreateRoleResponse(role=role)

    async def list_roles(self, request: roles.ListRolesRequest, _: Call) -> roles.ListRolesResponse:
        found = list(self._roles.values())
        page, token = page_of(found, request.page_size, request.page_token)
        return roles.ListRolesResponse(roles=page, next_page_token=token)

    async def update_role(
        self, request: roles.UpdateRoleRequest, _: Call
    ) -> roles.UpdateRoleResponse:
        self._roles[request.role.name] = request.role
        return roles.UpdateRoleResponse(role=request.role)

    async def delete_role(
        self, request: roles.DeleteRoleRequest, _: Call
    ) -> roles.DeleteRoleResponse:
        if self._roles.pop(request.name, None) is None:
            raise NotFound.of("role", request.name)
        return roles.DeleteRoleResponse()

    async def create_role_binding(
        self, request: roles.CreateRoleBindingRequest, _: Call
    ) -> roles.CreateRoleBindingResponse:
        binding = access_pb2.RoleBinding(
            name=f"{request.parent}/roleBindings/{request.role_binding_id or new_id()}",
            role=request.role,
            members=request.members,
            resource=request.resource,
            platform=request.platform,
        )
        self._bindings[binding.name] = binding
        return roles.CreateRoleBindingResponse(role_binding=binding)

    async def list_role_bindings(
        self, request: roles.ListRoleBindingsRequest, _: Call
    ) -> roles.ListRoleBindingsResponse:
        return roles.ListRoleBindingsResponse(role_bindings=self._bindings.values())

    async def delete_role_binding(
        self, request: roles.DeleteRoleBindingRequest, _: Call
    ) -> roles.DeleteRoleBindingResponse:
        if self._bindings.pop(request.name, None) is None:
            raise NotFound.of("binding", request.name)
        return roles.DeleteRoleBindingResponse()

    async def create_tenant(
        self, request: tenants.CreateTenantRequest, _: Call
    ) -> tenants.CreateTenantResponse:
        name = f"tenants/{request.tenant_id}"
        tenant = access_pb2.Tenant(name=name, display_name=request.display_name)
        self._tenants[name] = tenant
        secret = self.add_key(f"{name}/apiKeys/admin")
        return tenants.CreateTenantResponse(
            tenant=tenant, api_key=self._keys[f"{name}/apiKeys/admin"], api_key_secret=secret
        )

    async def get_tenant(
        self, request: tenants.GetTenantRequest, _: Call
    ) -> tenants.GetTenantResponse:
        if request.name not in self._tenants:
            raise NotFound.of("tenant", request.name)
        return tenants.GetTenantResponse(tenant=self._tenants[request.name])

    async def list_tenants(
        self, request: tenants.ListTenantsRequest, _: Call
    ) -> tenants.ListTenantsResponse:
        return tenants.ListTenantsResponse(tenants=self._tenants.values())

    async def rotate_tenant_key(
        self, request: tenants.RotateTenantKeyRequest, _: Call
    ) -> tenants.RotateTenantKeyResponse:
        return tenants.RotateTenantKeyResponse(key_id="t2", data_key_count=3)

    async def list_audit_entries(
        self, request: audit.ListAuditEntriesRequest, _: Call
    ) -> audit.ListAuditEntriesResponse:
        received = audit.ListAuditEntriesRequest()
        received.CopyFrom(request)
        self.audit_requests.append(received)
        # Pages that hold less than was asked for, as those of a scanned log do.
        page, token = page_of(self.entries, min(request.page_size, 2), request.page_token)
        return audit.ListAuditEntriesResponse(entries=page, next_page_token=token)

    def _add_secret(self, key: access_pb2.ApiKey, secret: str) -> None:
        key.secrets.add(id=secret.split("_")[1]).create_time.FromSeconds(1_700_000_000)
        self._secrets[secret] = key.name

    def _key(self, name: str) -> access_pb2.ApiKey:
        if name not in self._keys:
            raise NotFound.of("key", name)
        return self._keys[name]

    def _of(self, call: Call) -> Principal:
        if call.principal is None:
            raise CredentialInvalid("no credential, or one that isn't valid")
        return call.principal

    def _principal(self, name: str) -> Principal:
        tenant = "/".join(name.split("/")[:2])
        grants = tuple(
            Grant(b.role, frozenset(self._roles[b.role].permissions), b.resource or tenant)
            for b in self._bindings.values()
            if name in b.members
        )
        return Principal(name, tenant.removeprefix("tenants/"), grants)


def admitting(access: MemoryAccess, endpoint: Endpoint) -> Handler:
    """What answers like the endpoint, and asks a MemoryAccess about every call first."""
    inner = endpoint.invoke

    async def admitted(request: Any, call: Call) -> Any:
        access.admit(endpoint.spec, call)
        return await inner(request, call)

    async def admitted_stream(request: Any, call: Call) -> AsyncGenerator[Any, None]:
        access.admit(endpoint.spec, call)
        async for message in inner(request, call):
            yield message

    return admitted_stream if endpoint.spec.server_streaming else admitted
