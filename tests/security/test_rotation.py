"""Keys are replaced while Weft works: nothing stops, nothing becomes unreadable, and the
audit tells who did it."""

from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from mesh.runtime.host import Host
from mesh.runtime.settings import RuntimeSettings
from services.catalog import CATALOGUE, access
from tests.security.conftest import Deployment, deployed, environment
from tests.support.keyed import KeyedChannel
from weft.agents.v1 import agent_pb2, agent_service_pb2
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub
from weft.auth.v1 import audit_service_pb2, auth_service_pb2, tenant_service_pb2
from weft.auth.v1.audit_service_pb2_grpc import AuditServiceStub
from weft.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from weft.auth.v1.tenant_service_pb2_grpc import TenantServiceStub

ROTATED = "weft.auth.v1.WrappingKeyRotated"


async def make_agent(channel: Any, agent: str) -> None:
    request = agent_service_pb2.CreateAgentRequest(
        parent="tenants/default", agent_id=agent, spec=agent_pb2.AgentSpec(instructions=agent)
    )
    await AgentServiceStub(channel).CreateAgent(request, timeout=10)


async def instructions(channel: Any, agent: str) -> str:
    request = agent_service_pb2.GetAgentRequest(name=f"tenants/default/agents/{agent}")
    answer = await AgentServiceStub(channel).GetAgent(request, timeout=10)
    return str(answer.agent.spec.instructions)


async def rotate(weft: Deployment) -> None:
    channel = weft.keyed("default")
    auth: Any = AuthServiceStub(channel)
    tenants: Any = TenantServiceStub(channel)
    tenant_key = tenant_service_pb2.RotateTenantKeyRequest(name="tenants/default")
    assert (await tenants.RotateTenantKey(tenant_key, timeout=10)).data_key_count
    request = auth_service_pb2.RotateMasterKeyRequest()
    assert (await auth.RotateMasterKey(request, timeout=10)).wrapped_count
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await auth.RotateMasterKey(request, timeout=10)
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_what_was_sealed_before_and_after_is_read_by_the_next_process(
    tmp_path: Path,
) -> None:
    async with deployed(tmp_path) as weft:
        channel = weft.keyed("default")
        await make_agent(channel, "before")
        await rotate(weft)
        await make_agent(channel, "after")
        assert await instructions(channel, "before") == "before"
        audit: Any = AuditServiceStub(channel)
        request = audit_service_pb2.ListAuditEntriesRequest(parent="tenants/default")
        entries = (await audit.ListAuditEntries(request, timeout=10)).entries
        rotations = [entry for entry in entries if ROTATED in entry.actions]
        assert len(rotations) == 2
        assert {entry.actor for entry in rotations} == {"tenants/default/apiKeys/admin"}
        key = weft.keys["default"]
    secrets = tmp_path / "secrets"
    present = (secrets / "master.key").read_bytes()
    old = [path for path in secrets.glob("master.*.key") if path.read_bytes() != present]
    assert len(old) == 1
    # Nothing needs it any more.
    old[0].unlink()
    settings = RuntimeSettings(data_dir=tmp_path / "data", grpc_port=0, http_port=0, nats_port=0)
    with environment({"WEFT_SECURITY_SECRETS_DIR": str(secrets)}):
        async with (
            Host(CATALOGUE, settings, access) as host,
            grpc.aio.insecure_channel(host.addresses["grpc"]) as bare,
        ):
            again: Any = KeyedChannel(bare, key)
            for agent in ("before", "after"):
                assert await instructions(again, agent) == agent
