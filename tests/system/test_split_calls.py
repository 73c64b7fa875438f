"""The calls of a gateway to two versions of what it calls, each in a process of its own: they go
by the split, none fails while it changes, and the version that fails loses its share."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.support.nats import running_nats
from tests.support.platform import TENANT, Platform
from weft.control.v1 import registry_service_pb2, splits_pb2
from weft.control.v1 import traffic_service_pb2 as pb
from weft.control.v1.registry_service_pb2_grpc import RegistryServiceStub
from weft.control.v1.traffic_service_pb2_grpc import TrafficServiceStub
from weft.models.v1 import model_service_pb2, models_pb2
from weft.models.v1.model_service_pb2_grpc import ModelServiceStub
from weft.tools.v1 import tool_service_pb2
from weft.tools.v1.tool_service_pb2_grpc import ToolServiceStub

pytestmark = pytest.mark.timeout(180)
SECONDS_MAX = 60.0
FRONT = ("auth", "blobs", "control", "gateway", "agents", "scheduler", "state", "vectors")
BEHIND = ("models", "tools")
TOOLS, MODELS = "services/tools/split", "services/models/split"
CALLS = 1_000
FLIPS = 10
NO_LIMITS = {f"WEFT_LIMITS_{who}_READS_PER_SECOND": "100000" for who in ("KEY", "TENANT")}
BY_POLICY = splits_pb2.SPLIT_ACTION_ROLLED_BACK_BY_POLICY


@pytest.fixture(scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """The gateway, before versions 1 and 2 of models and tools; the models of 2 can't be
    reached."""
    folder = tmp_path_factory.mktemp("split-calls")
    nowhere = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "WEFT_MODELS_OPENAI_ATTEMPTS_MAX": "1"}
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(running_nats(folder))
        parts = {"front": (FRONT, NO_LIMITS), "1": (BEHIND, {}), "2": (BEHIND, nowhere)}
        started = []
        for version, (serves, more) in parts.items():
            environment = {"NATS_URL": nats.url, "WEFT_RUNTIME_VERSION": version, **more}
            weft = Platform(
                folder / version,
                environment,
                configured_models="OPENAI_BASE_URL" in more,
                split=False,
                serves=serves,
            )
            stack.push_async_callback(weft.kill)
            await weft.start()
            started.append(weft)
        async with asyncio.timeout(SECONDS_MAX):
            while set(await answered(started[0])) != {"1", "2"}:  # noqa: ASYNC110 - elsewhere
                await asyncio.sleep(0.05)
        yield started[0]


async def answered(front: Platform) -> dict[str, int]:
    """How many calls of tools each version says that it answered."""
    stub: Any = RegistryServiceStub(front.open_channel)
    wanted = registry_service_pb2.ListInstancesRequest(service="tools")
    found = (await stub.ListInstances(wanted, timeout=10)).instances
    return {
        each.version: sum(served.calls for served in each.load.served if served.service == "tools")
        for each in found
    }


async def set_split(front: Platform, name: str, *weights: int, **fields: Any) -> None:
    """Gives version 1, 2 and so on these weights."""
    portions = [
        splits_pb2.Portion(version=str(number), weight=weight)
        for number, weight in enumerate(weights, start=1)
    ]
    request = pb.SetSplitRequest(name=name, portions=portions, **fields)
    stub: Any = TrafficServiceStub(front.open_channel)
    await stub.SetSplit(request, timeout=10)


async def call_tools(front: Platform, count: int) -> None:
    stub: Any = ToolServiceStub(front.open_channel)
    request = tool_service_pb2.GetToolRequest(name=f"{TENANT}/tools/calculator")
    slots = asyncio.Semaphore(8)

    async def one() -> None:
        async with slots:
            await stub.GetTool(request, timeout=20)

    await asyncio.gather(*(one() for _ in range(count)))


async def shares(front: Platform, count: int) -> dict[str, int]:
    """How many of so many calls each version answers."""
    before = await answered(front)
    await call_tools(front, count)
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            # Each says it with its next heartbeat.
            now = await answered(front)
            if sum(now.values()) >= sum(before.values()) + count:
                return {version: now[version] - before[version] for version in now}
            await asyncio.sleep(0.05)


async def settled(front: Platform, *weights: int) -> None:
    """Returns once the gateway calls only whom the split lets take calls."""
    await set_split(front, TOOLS, *weights)
    taking = {str(number) for number, weight in enumerate(weights, start=1) if weight}
    async with asyncio.timeout(SECONDS_MAX):
        while {version for version, count in (await shares(front, 20)).items() if count} - taking:
            pass


async def test_calls_go_by_weight_and_all_to_who_is_promoted(front: Platform) -> None:
    await settled(front, 100, 0)
    await set_split(front, TOOLS, 90, 10)
    async with asyncio.timeout(SECONDS_MAX):
        while not (await shares(front, 20))["2"]:
            pass
    found = await shares(front, CALLS)
    # Five standard deviations; a slow call may have been made twice.
    assert 50 <= found["2"] <= 150 + sum(found.values()) - CALLS
    stub: Any = TrafficServiceStub(front.open_channel)
    await stub.Promote(pb.PromoteRequest(name=TOOLS, version="2"), timeout=10)
    async with asyncio.timeout(SECONDS_MAX):
        while (await shares(front, 20))["1"]:
            pass
    assert (await shares(front, 100))["1"] == 0


async def test_no_call_fails_while_a_split_flips(front: Platform) -> None:
    async def flip() -> None:
        for number in range(FLIPS):
            await set_split(front, TOOLS, number % 2, (number + 1) % 2)

    flipping = asyncio.create_task(flip())
    while not flipping.done():
        await call_tools(front, 50)
    await flipping


async def test_the_version_that_fails_loses_its_share_by_itself(front: Platform) -> None:
    models: Any = ModelServiceStub(front.open_channel)
    traffic: Any = TrafficServiceStub(front.open_channel)
    policy = splits_pb2.RollbackPolicy(failures_per_million_max=100_000, calls_min=10)
    await set_split(front, MODELS, 50, 50, rollback_policy=policy)
    request = model_service_pb2.GenerateRequest(parent=TENANT)
    request.conversation.messages.add(role=models_pb2.ROLE_USER, text="{}")

    async def works() -> bool:
        try:
            await models.Generate(request, timeout=20)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        return True

    async def is_back() -> bool:
        response = await traffic.GetSplit(pb.GetSplitRequest(name=MODELS), timeout=10)
        return bool(response.split.changes[0].action == BY_POLICY)

    outcomes = []
    async with asyncio.timeout(SECONDS_MAX):
        while not await is_back():
            outcomes.append(await works())
        assert not all(outcomes)
        # Until the gateway knows it as well.
        while not all([await works() for _ in range(20)]):
            pass
