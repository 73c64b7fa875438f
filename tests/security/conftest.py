"""A whole Weft in this process, with two tenants, for what tries to get in."""

import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from mesh.runtime.host import Host
from mesh.runtime.settings import RuntimeSettings
from mesh.telemetry.logs import configure_logs
from services.catalog import CATALOGUE, access
from services.first_key import admitted
from tests.support.keyed import KeyedChannel, bearer
from weft.auth.v1 import api_key_service_pb2, tenant_service_pb2
from weft.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from weft.auth.v1.tenant_service_pb2_grpc import TenantServiceStub

UNBOUNDED = {
    # What is tried here is more than any peer or key may do.
    "WEFT_RPC_PEER_FAILURES_MAX": "1000000",
    "WEFT_LIMITS_KEY_READS_PER_SECOND": "1000000",
    "WEFT_LIMITS_KEY_WRITES_PER_SECOND": "1000000",
    "WEFT_LIMITS_TENANT_READS_PER_SECOND": "1000000",
    "WEFT_LIMITS_TENANT_WRITES_PER_SECOND": "1000000",
}


@dataclass
class Deployment:
    """A Weft that serves: `keys` are those of administrators, by tenant; that of `default`
    administers the deployment."""

    host: Host
    channel: grpc.aio.Channel
    keys: dict[str, str]

    def keyed(self, tenant: str) -> Any:
        """A channel of the tenant's administrator, for generated stubs."""
        return KeyedChannel(self.channel, self.keys[tenant])

    def credential(self, tenant: str) -> tuple[str, str]:
        """The metadata of the tenant's administrator."""
        return bearer(self.keys[tenant])

    async def new_key(self, tenant: str, *roles: str, **options: Any) -> tuple[str, str]:
        """Name and text of a new API key with those roles."""
        names = [f"tenants/{tenant}/roles/{role}" for role in roles]
        request = api_key_service_pb2.CreateApiKeyRequest(
            parent=f"tenants/{tenant}", roles=names, **options
        )
        stub: Any = ApiKeyServiceStub(self.keyed(tenant))
        made = await stub.CreateApiKey(request, timeout=10)
        return made.api_key.name, made.secret


@contextmanager
def environment(variables: Mapping[str, str]) -> Any:
    """Those variables, for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


@pytest.fixture(scope="session")
async def weft(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    """The deployment, with the tenants `default`, `acme` and `globex`."""
    async with deployed(tmp_path_factory.mktemp("weft")) as made:
        yield made


@asynccontextmanager
async def deployed(home: Path) -> AsyncIterator[Deployment]:
    """A deployment with its data and secrets under `home`."""
    configure_logs("warning", sys.stderr)  # so that what is logged is still to be caught
    secrets = {"WEFT_SECURITY_SECRETS_DIR": str(home / "secrets")}
    settings = RuntimeSettings(
        data_dir=home / "data", grpc_port=0, http_port=0, nats_port=0, xds_port=0
    )
    async with AsyncExitStack() as stack:
        # Read while it starts; what else runs in these tests has an environment of its own.
        with environment(UNBOUNDED | secrets):
            host = await stack.enter_async_context(Host(CATALOGUE, settings, access))
        first = await admitted(host)
        assert first is not None
        address = host.addresses["grpc"]
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        made = Deployment(host, channel, {"default": first.text})
        tenants: Any = TenantServiceStub(made.keyed("default"))
        for tenant in ("acme", "globex"):
            request = tenant_service_pb2.CreateTenantRequest(tenant_id=tenant)
            answer = await tenants.CreateTenant(request, timeout=10)
            made.keys[tenant] = answer.api_key_secret
        yield made
