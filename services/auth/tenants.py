"""The RPCs of tenants."""

from typing import Protocol

from mesh.call import Call
from mesh.clock import Clock
from mesh.errors import LimitExceeded
from mesh.ids import new_id
from mesh.security.api_keys import new_api_key
from services.auth import domain
from services.auth.directory import AccessDirectory
from services.auth.requests import Requests, page_of
from weft.auth.v1 import tenant_service_pb2 as pb

ADMIN_API_KEY = "admin"
TENANTS_MAX = 65_536
"""Every process knows all of them."""


class WrappingKeys(Protocol):
    """What is needed of the keyring."""

    async def rotate_master_key(self) -> tuple[str, int]:
        """Wraps all tenants' keys and secrets with a new master key; returns its id and
        their number."""
        ...

    async def rotate_tenant_key(self, tenant: str) -> tuple[str, int]:
        """Wraps the tenant's data keys with a new key; returns its id and their number."""
        ...


class Tenants:
    """`weft.auth.v1.TenantService`."""

    def __init__(self, directory: AccessDirectory, keys: WrappingKeys, clock: Clock) -> None:
        self._directory = directory
        self._keys = keys
        self._requests = Requests(directory, clock)

    async def create_tenant(
        self, request: pb.CreateTenantRequest, call: Call
    ) -> pb.CreateTenantResponse:
        """Makes the tenant with its administrator's key."""
        if len(self._directory.tenants) >= TENANTS_MAX:
            raise LimitExceeded(f"a deployment has at most {TENANTS_MAX} tenants")
        key = new_api_key()
        command = domain.CreateTenant(
            request=self._requests.of(call),
            tenant=request.tenant_id,
            display_name=request.display_name,
            api_key=ADMIN_API_KEY,
            binding=new_id(),
            secret=domain.Secret(key.id, self._directory.hmac_of(key)),
        )
        state = await self._directory.change(request.tenant_id, command)
        name = domain.api_key_name(request.tenant_id, ADMIN_API_KEY)
        return pb.CreateTenantResponse(
            tenant=state.tenant,
            api_key=domain.existing_api_key(state, name).api_key,
            api_key_secret=key.text,
        )

    async def get_tenant(self, request: pb.GetTenantRequest, call: Call) -> pb.GetTenantResponse:
        """The tenant."""
        return pb.GetTenantResponse(tenant=self._directory.state(request.name).tenant)

    async def list_tenants(
        self, request: pb.ListTenantsRequest, call: Call
    ) -> pb.ListTenantsResponse:
        """A page of all tenants, by id."""
        tenants = [access.state.tenant for access in self._directory.tenants.values()]
        page, token = page_of(
            tenants, lambda tenant: tenant.name, "tenants", request.page_size, request.page_token
        )
        return pb.ListTenantsResponse(tenants=page, next_page_token=token)

    async def rotate_tenant_key(
        self, request: pb.RotateTenantKeyRequest, call: Call
    ) -> pb.RotateTenantKeyResponse:
        """Makes another key for the tenant, and wraps its data keys with it."""
        self._directory.state(request.name)
        tenant = domain.tenant_of(request.name)
        key_id, count = await self._keys.rotate_tenant_key(tenant)
        noted = domain.NoteRotation(self._requests.of(call), "tenant", key_id)
        await self._directory.change(tenant, noted)
        return pb.RotateTenantKeyResponse(key_id=key_id, data_key_count=count)
