"""Two versions of Weft on one log: their calls and their agents' sessions are split, promoted
and taken back, and what fails is taken back by itself."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.support.nats import running_nats
from tests.support.platform import TENANT, Platform
from weft.agents.v1 import agent_pb2, agent_service_pb2
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub
from weft.control.v1 import registry_service_pb2, splits_pb2
from weft.control.v1 import traffic_service_pb2 as pb
from weft.control.v1.registry_service_pb2_grpc import RegistryServiceStub
from weft.control.v1.traffic_service_pb2_grpc import TrafficServiceStub
from weft.models.v1 import model_service_pb2
from weft.models.v1.model_service_pb2_grpc import ModelServiceStub
from weft.state.v1 import session_service_pb2
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub

pytestmark = pytest.mark.timeout(180)
SECONDS_MAX = 60.0
MODELS = "services/models/split"
SESSIONS = 200
Code = grpc.StatusCode
BY_POLICY = splits_pb2.SPLIT_ACTION_ROLLED_BACK_BY_POLICY


@pytest.fixture(scope="module")
async def versions(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Platform]]:
    """Versions 1 and 2, which know each other; the model of 2 can't be reached."""
    folder = tmp_path_factory.mktemp("versions")
    nowhere = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "WEFT_MODELS_OPENAI_ATTEMPTS_MAX": "1"}
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(running_nats(folder))
        found = []
        for version, more in (("1", {}), ("2", nowhere)):
            environment = {"NATS_URL": nats.url, "WEFT_RUNTIME_VERSION": version, **more}
            weft = Platform(
                folder / version, environment, configured_models=bool(more), split=False
            )
            found.append(weft)
            stack.push_async_callback(weft.kill)
            await weft.start()
        for weft in found:
            await until(lambda: know(weft, {"1", "2"}))  # noqa: B023 - called in this round
        yield found


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not await holds():  # noqa: ASYNC110 - it happens in other processes
            await asyncio.sleep(0.05)


async def know(weft: Platform, wanted: set[str]) -> bool:
    stub: Any = RegistryServiceStub(weft.open_channel)
    listed = await stub.ListInstances(registry_service_pb2.ListInstancesRequest())
    return {each.version for each in listed.instances} == wanted


def traffic(weft: Platform) -> Any:
    return TrafficServiceStub(weft.open_channel)


async def set_split(weft: Platform, name: str, **fields: Any) -> splits_pb2.Split:
    portions = [
        splits_pb2.Portion(version=version, weight=weight)
        for version, weight in fields.pop("versions", {}).items()
    ]
    request = pb.SetSplitRequest(name=name, portions=portions, **fields)
    response: pb.SetSplitResponse = await traffic(weft).SetSplit(request, timeout=10)
    return response.split


async def split_of(weft: Platform, name: str) -> splits_pb2.Split:
    response: pb.GetSplitResponse = await traffic(weft).GetSplit(
        pb.GetSplitRequest(name=name), timeout=10
    )
    return response.split


def weights(split: splits_pb2.Split) -> dict[str, int]:
    return {each.version or str(each.agent_revision): each.weight for each in split.portions}


async def test_what_one_sets_the_other_knows_and_watches(versions: list[Platform]) -> None:
    one, two = versions
    name = "services/scheduler/split"
    seen: list[dict[str, int]] = []
    request = pb.WatchSplitsRequest(parent="services/-")
    stream = traffic(two).WatchSplits(request, timeout=SECONDS_MAX)
    messages = aiter(stream)

    async def next_of() -> splits_pb2.Split:
        while True:
            message: pb.WatchSplitsResponse = await anext(messages)
            for split in message.splits:
                if split.name == name:
                    return split

    # Its first message is there, and tells of what there is: nothing of this one.
    await anext(messages)
    await set_split(one, name, versions={"1": 90, "2": 10}, reason="canary")
    seen.append(weights(await next_of()))
    await traffic(one).Promote(pb.PromoteRequest(name=name, version="2"), timeout=10)
    seen.append(weights(await next_of()))
    await traffic(two).Rollback(pb.RollbackRequest(name=name), timeout=10)
    seen.append(weights(await next_of()))
    stream.cancel()
    assert seen == [{"1": 90, "2": 10}, {"2": 100}, {"1": 90, "2": 10}]
    split = await split_of(two, name)
    assert [each.reason for each in split.changes] == ["", "", "canary"]
    assert all("/apiKeys/" in each.actor for each in split.changes)
    # Version 1 came back, and has another cluster; version 2 was there all along.
    since = {each.version: each.since_revision for each in split.portions}
    assert since == {"1": 3, "2": 1}
    listed = await traffic(two).ListSplits(pb.ListSplitsRequest(parent="services/-"), timeout=10)
    assert weights(next(each for each in listed.splits if each.name == name)) == seen[-1]
    with pytest.raises(grpc.aio.AioRpcError) as stale:
        await set_split(one, name, versions={"1": 1}, etag="r1")
    assert stale.value.code() is Code.ABORTED


async def test_a_version_that_nobody_runs_must_be_wanted(versions: list[Platform]) -> None:
    one, _ = versions
    name = "services/tools/split"
    with pytest.raises(grpc.aio.AioRpcError) as absent:
        await set_split(one, name, versions={"1": 1, "3": 1})
    assert absent.value.code() is Code.FAILED_PRECONDITION
    assert "runs 3;" in (absent.value.details() or "")
    split = await set_split(one, name, versions={"1": 1, "3": 1}, allow_absent=True)
    assert weights(split) == {"1": 1, "3": 1}


async def test_what_fails_too_often_is_taken_back_once(versions: list[Platform]) -> None:
    one, two = versions
    policy = splits_pb2.RollbackPolicy(failures_per_million_max=200_000, calls_min=20)
    await set_split(one, MODELS, versions={"1": 90, "2": 10}, rollback_policy=policy)

    async def fail() -> bool:
        stub: Any = ModelServiceStub(two.open_channel)
        request = model_service_pb2.GenerateRequest(parent=TENANT, model="openai/any")
        request.conversation.messages.add(role=1, text="hello")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Generate(request, timeout=10)
        assert failed.value.code() is Code.UNAVAILABLE
        return (await split_of(one, MODELS)).changes[0].action == BY_POLICY

    await until(fail)
    split = await split_of(one, MODELS)
    assert weights(split) == {"1": 100}
    assert [each.action for each in split.changes].count(BY_POLICY) == 1
    assert split.changes[0].actor == "system"
    assert split.changes[0].reason.endswith("calls of 2 failed")
    assert not split.HasField("rollback_policy")


async def test_new_sessions_get_their_agents_revisions_by_weight(
    versions: list[Platform],
) -> None:
    one, two = versions
    agent = await one.apply("drawn", agent_pb2.AgentSpec(instructions="1"))
    update = agent_service_pb2.UpdateAgentRequest(
        agent=agent_pb2.Agent(name=agent, spec=agent_pb2.AgentSpec(instructions="2"))
    )
    stub: Any = AgentServiceStub(one.open_channel)
    await stub.UpdateAgent(update, timeout=10)
    name = f"{agent}/split"
    portions = [splits_pb2.Portion(agent_revision=each, weight=50) for each in (1, 2)]
    request = pb.SetSplitRequest(name=name, portions=portions)
    await traffic(one).SetSplit(request, timeout=10)

    async def revision(weft: Platform, number: int, prefix: str = "s") -> int:
        sessions: Any = SessionServiceStub(weft.open_channel)
        wanted = session_service_pb2.CreateSessionRequest(
            parent=agent, request_id=f"{prefix}{number}"
        )
        response = await sessions.CreateSession(wanted, timeout=30)
        return int(response.session.agent_revision)

    slots = asyncio.Semaphore(8)

    async def bounded(weft: Platform, number: int) -> int:
        async with slots:
            return await revision(weft, number)

    numbers = range(SESSIONS)
    drawn = await asyncio.gather(*(bounded(versions[n % 2], n) for n in numbers))
    # Four standard deviations.
    assert 72 <= Counter(drawn)[1] <= 128
    await traffic(two).Promote(pb.PromoteRequest(name=name, agent_revision=2), timeout=10)
    assert {await revision(versions[n % 2], n, "t") for n in range(8)} == {2}
    # A request that comes again gets what it got, whatever the split is by now.
    assert [await revision(versions[(n + 1) % 2], n) for n in range(8)] == drawn[:8]
    unknown = pb.SetSplitRequest(name=name, portions=[splits_pb2.Portion(agent_revision=3)])
    unknown.portions[0].weight = 1
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await traffic(one).SetSplit(unknown, timeout=10)
    assert refused.value.code() is Code.INVALID_ARGUMENT
    wanted = pb.ListSplitsRequest(parent=f"{TENANT}/agents/-")
    listed = await traffic(two).ListSplits(wanted, timeout=10)
    assert [each.name for each in listed.splits] == [name]


async def test_splits_outlive_their_processes(versions: list[Platform]) -> None:
    one, two = versions
    name = "services/vectors/split"
    await set_split(one, name, versions={"1": 1, "2": 1})
    assert await one.stop() == 0
    await until(lambda: know(two, {"2"}))
    # Back to the base it doesn't go while nobody runs that.
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await traffic(two).Rollback(pb.RollbackRequest(name=name), timeout=10)
    assert refused.value.code() is Code.FAILED_PRECONDITION
    await one.start()
    listed = await traffic(one).ListSplits(pb.ListSplitsRequest(parent="services/-"), timeout=10)
    assert weights(next(each for each in listed.splits if each.name == name)) == {"1": 1, "2": 1}
