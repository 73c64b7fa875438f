"""Every RPC, every resource field of its request, with another tenant's, a forged and no
resource in it: none succeeds, and nothing of the other tenant changes."""

from typing import Any, cast

import grpc
import pytest

from mesh.events.store import Selection
from mesh.rpc.methods import MethodSpec
from mesh.rpc.open_methods import PUBLIC
from services.auth.directory import AccessDirectory
from tests.contract.test_contracts import METHODS
from tests.security.conftest import Deployment
from tests.support.keyed import KeyedChannel
from tests.support.requests import bounds_of, field_at, filled, outcome, put, resource_fields
from weft.agents.v1 import agent_pb2, agent_service_pb2
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub
from weft.auth.v1 import access_pb2
from weft.state.v1 import session_service_pb2, state_service_pb2
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub
from weft.state.v1.state_service_pb2_grpc import StateServiceStub

FORGED = (
    "tenants/acme/../globex",
    "tenants/globex/../acme",
    "tenants/./acme",
    "tenants//acme",
    "/tenants/acme",
    "tenants/ACME",
    "tenants/acme ",
    "tenants/*",
    "tenants/-",
    "tenants/%61cme",
    "tenants/acme%2f..%2fglobex",
    "tenants/acme\x00globex",
    "tenants/acme\n",
    "tenants/\u0430\u0441me",
    "tenants/acme\u200b",
    "Tenants/acme",
    "projects/acme",
    "acme",
    "globex/tenants/acme",
)
CELLS = [
    (spec, path)
    for spec in METHODS
    if spec.path not in PUBLIC
    for path in resource_fields(spec.request_class.DESCRIPTOR)
]
Code = grpc.StatusCode


def with_resource(spec: MethodSpec, path: tuple[str, ...], name: str) -> Any:
    request = filled(spec, "acme")
    put(request, path, name)
    return request


def tail_of(spec: MethodSpec, path: tuple[str, ...]) -> str:
    """What follows `tenants/acme` in a good name of the field."""
    request: Any = filled(spec, "acme")
    for part in path:
        request = getattr(request, part)
        request = request[0] if hasattr(request, "append") and request else request
    return str(request).removeprefix("tenants/acme") if isinstance(request, str) else ""


@pytest.fixture(scope="module")
async def theirs(weft: Deployment) -> str:
    """The other tenant has an agent and a session of the very names that are asked for."""
    agents: Any = AgentServiceStub(weft.keyed("globex"))
    made = agent_service_pb2.CreateAgentRequest(
        parent="tenants/globex", agent_id="x1", spec=agent_pb2.AgentSpec(display_name="x")
    )
    await agents.CreateAgent(made, timeout=10)
    sessions: Any = SessionServiceStub(weft.keyed("globex"))
    session = session_service_pb2.CreateSessionRequest(
        parent="tenants/globex/agents/x1", session_id="x1"
    )
    await sessions.CreateSession(session, timeout=10)
    return "globex"


def test_every_method_that_acts_upon_a_tenant_has_a_cell() -> None:
    covered = {spec.path for spec, _ in CELLS}
    rest = {spec.path for spec in METHODS if spec.policy.resource} - covered
    assert rest == set()


async def held(weft: Deployment, tenant: str) -> Any:
    """All that the tenant has: where its streams end, and its access, but for when its keys
    were last used."""
    directory = weft.host.access
    assert isinstance(directory, AccessDirectory)
    access = access_pb2.AccessState()
    access.CopyFrom(directory.tenants[tenant].state)
    for stored in access.api_keys:
        stored.api_key.ClearField("last_used_time")
    access.ClearField("revision")
    areas = (
        *("agents", "blobs", "budgets", "control", "exports", "functions", "mcp"),
        *("scheduler", "schedules"),
        *("state", "tools", "vectors"),
    )
    ends = [await weft.host.events.last_position(Selection(f"{area}.{tenant}")) for area in areas]
    return ends, access


async def test_another_tenants_resource_is_not_found(weft: Deployment, theirs: str) -> None:
    before = await held(weft, theirs)
    seen = []
    for spec, path in CELLS:
        tail = tail_of(spec, path)
        request = with_resource(spec, path, f"tenants/{theirs}{tail}")
        code = await outcome(weft.channel, spec, request, [weft.credential("acme")])
        if code is not Code.NOT_FOUND:
            seen.append((spec.path, path, code))
    assert seen == []
    assert await held(weft, theirs) == before


async def test_a_forged_name_never_succeeds(weft: Deployment, theirs: str) -> None:
    before = await held(weft, theirs)
    passed = []
    for spec, path in CELLS:
        tail = tail_of(spec, path)
        for forged in FORGED:
            request = with_resource(spec, path, forged + tail)
            code = await outcome(weft.channel, spec, request, [weft.credential("acme")])
            if code not in (Code.NOT_FOUND, Code.INVALID_ARGUMENT):
                passed.append((spec.path, path, forged, code))
    assert passed == []
    assert await held(weft, theirs) == before


async def test_a_required_resource_that_is_absent_is_an_invalid_argument(
    weft: Deployment,
) -> None:
    passed = []
    for spec, path in CELLS:
        if not bounds_of(field_at(spec.request_class.DESCRIPTOR, path)).required:
            continue
        request = with_resource(spec, path, "")
        code = await outcome(weft.channel, spec, request, [weft.credential("acme")])
        if code is not Code.INVALID_ARGUMENT:
            passed.append((spec.path, path, code))
    assert passed == []


async def test_who_has_no_part_in_the_platform_may_do_nothing_to_it(weft: Deployment) -> None:
    for spec in METHODS:
        if spec.policy.platform:
            code = await outcome(
                weft.channel, spec, filled(spec, "acme"), [weft.credential("acme")]
            )
            assert code is Code.PERMISSION_DENIED, spec.path


async def test_what_is_the_platforms_by_name_needs_a_part_in_it(weft: Deployment) -> None:
    """A field may name what is in a tenant or the platform's: the permission is for either."""
    seen = []
    for spec in METHODS:
        path = tuple(spec.policy.resource.split("."))
        for name in platform_examples(spec, path) if spec.policy.resource else ():
            request = with_resource(spec, path, name)
            for tenant in ("acme", "default"):
                credential = [weft.credential(tenant)]
                seen.append((name, tenant, await outcome(weft.channel, spec, request, credential)))
    assert len(seen) >= 12
    for name, tenant, code in seen:
        assert (code is Code.PERMISSION_DENIED) == (tenant == "acme"), (name, tenant, code)


def platform_examples(spec: MethodSpec, path: tuple[str, ...]) -> list[str]:
    """A name of each kind that is in no tenant."""
    patterns = bounds_of(field_at(spec.request_class.DESCRIPTOR, path)).resource.split("|")
    return [each.replace("*", "x1") for each in patterns if not each.startswith("tenants/")]


async def test_what_a_tenant_lists_is_its_own(weft: Deployment, theirs: str) -> None:
    agents: Any = AgentServiceStub(weft.keyed("acme"))
    request = agent_service_pb2.ListAgentsRequest(parent="tenants/acme")
    listed = await agents.ListAgents(request, timeout=10)
    assert all(agent.name.startswith("tenants/acme/") for agent in listed.agents)


async def test_a_tenants_watch_tells_nothing_of_its_access(weft: Deployment) -> None:
    """Who may watch events needn't be who may see keys and roles."""
    _, viewer = await weft.new_key("acme", "viewer")
    stub: Any = StateServiceStub(cast(Any, KeyedChannel(weft.channel, viewer)))
    agents: Any = AgentServiceStub(weft.keyed("acme"))
    made = agent_service_pb2.CreateAgentRequest(
        parent="tenants/acme", agent_id="seen", spec=agent_pb2.AgentSpec(display_name="x")
    )
    await agents.CreateAgent(made, timeout=10)
    request = state_service_pb2.WatchEventsRequest(name="tenants/acme", after_position=0)
    streams = set()
    async for response in stub.WatchEvents(request, timeout=10):
        streams.add(response.event.stream)
        if response.event.stream == "agents.acme.seen":
            break
    assert streams
    assert not any(stream.startswith("auth.") for stream in streams)
    assert all(stream.split(".")[1] == "acme" for stream in streams)
