"""A revision of an agent whose turns fail loses its share of new sessions by itself, whichever
instance runs them; what isn't its fault isn't counted, and no turn is counted twice."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.ids import new_id
from tests.support.plans import plan, writing
from tests.support.platform import TENANT, Platform, one_process, two_instances
from tests.support.turn_client import TurnClient
from weft.agents.v1 import agent_pb2, agent_service_pb2, turn_service_pb2
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub
from weft.auth.v1 import audit_service_pb2
from weft.auth.v1.audit_service_pb2_grpc import AuditServiceStub
from weft.control.v1 import instances_pb2, registry_service_pb2, splits_pb2
from weft.control.v1 import traffic_service_pb2 as pb
from weft.control.v1.registry_service_pb2_grpc import RegistryServiceStub
from weft.control.v1.traffic_service_pb2_grpc import TrafficServiceStub
from weft.errors.v1 import errors_pb2
from weft.state.v1 import session_service_pb2
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub

pytestmark = pytest.mark.timeout(180)
SECONDS_MAX = 60.0
BY_POLICY = splits_pb2.SPLIT_ACTION_ROLLED_BACK_BY_POLICY
NOWHERE = agent_pb2.AgentSpec(model="nobody/none")
"""No turn of it ends well: no provider has its model."""
SUM = {"calls": [{"tool": "calculator", "arguments": {"expression": "6 * 7"}}]}
Pair = tuple[Platform, Platform]


@pytest.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Two instances on one log."""
    async with two_instances(tmp_path_factory.mktemp("revisions")) as both:
        yield both


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not await holds():  # noqa: ASYNC110 - it happens in other processes
            await asyncio.sleep(0.05)


async def agent_of(weft: Platform, *specs: agent_pb2.AgentSpec) -> str:
    """A new agent with these revisions."""
    name = await weft.apply(f"bot-{new_id()}", specs[0])
    stub: Any = AgentServiceStub(weft.open_channel)
    for spec in specs[1:]:
        update = agent_service_pb2.UpdateAgentRequest(agent=agent_pb2.Agent(name=name, spec=spec))
        await stub.UpdateAgent(update, timeout=10)
    return name


async def set_split(weft: Platform, agent: str, *weights: int, calls_min: int) -> None:
    """Gives revision 1, 2 and so on these weights; a tenth of the turns may fail."""
    portions = [
        splits_pb2.Portion(agent_revision=number, weight=weight)
        for number, weight in enumerate(weights, start=1)
    ]
    policy = splits_pb2.RollbackPolicy(failures_per_million_max=100_000, calls_min=calls_min)
    request = pb.SetSplitRequest(name=f"{agent}/split", portions=portions, rollback_policy=policy)
    stub: Any = TrafficServiceStub(weft.open_channel)
    await stub.SetSplit(request, timeout=10)


async def split_of(weft: Platform, agent: str) -> splits_pb2.Split:
    stub: Any = TrafficServiceStub(weft.open_channel)
    response = await stub.GetSplit(pb.GetSplitRequest(name=f"{agent}/split"), timeout=10)
    split: splits_pb2.Split = response.split
    return split


async def session_of(weft: Platform, agent: str, revision: int = 0) -> tuple[str, int]:
    """A new session, pinned to that revision where it isn't 0, and the one that it is pinned to."""
    stub: Any = SessionServiceStub(weft.open_channel)
    request = session_service_pb2.CreateSessionRequest(parent=agent, agent_revision=revision)
    session = (await stub.CreateSession(request, timeout=10)).session
    return session.name, session.agent_revision


async def end_of(weft: Platform, session: str, asked: str = "hello") -> str:
    """How a turn of the session ends."""
    client = TurnClient(session, asked)
    await client.run(weft)
    return client.kinds[-1]


async def told(weft: Platform) -> list[instances_pb2.RevisionTurns]:
    """What all instances say of turns by now."""
    stub: Any = RegistryServiceStub(weft.open_channel)
    wanted = registry_service_pb2.ListInstancesRequest()
    listed = await stub.ListInstances(wanted, timeout=10)
    return [turns for each in listed.instances for turns in each.load.turns]


async def counted(weft: Platform, revision: int) -> tuple[int, int]:
    """Turns of that agent's revision, and those that failed, as all instances say by now. One
    agent at a time has a revision of that number and a policy."""
    found = [each for each in await told(weft) if each.agent_revision == revision]
    return sum(each.turns for each in found), sum(each.failures for each in found)


async def end_split(weft: Platform, agent: str) -> None:
    stub: Any = TrafficServiceStub(weft.open_channel)
    await stub.SetSplit(pb.SetSplitRequest(name=f"{agent}/split"), timeout=10)

    async def nothing_is_told() -> bool:
        return not await told(weft)

    await until(nothing_is_told)


async def audited(weft: Platform, agent: str) -> list[tuple[str, str]]:
    """What the tenant's audit has of the agent's split: who did what."""
    stub: Any = AuditServiceStub(weft.open_channel)
    request = audit_service_pb2.ListAuditEntriesRequest(parent=TENANT, page_size=1_000)
    entries = (await stub.ListAuditEntries(request, timeout=10)).entries
    found = [each for each in entries if each.resource == f"{agent}/split"]
    return [(each.actor, action) for each in found for action in each.actions]


async def test_a_revision_whose_turns_fail_is_taken_back_once(pair: Pair) -> None:
    one, two = pair
    agent = await agent_of(one, agent_pb2.AgentSpec(), NOWHERE)
    stream = TrafficServiceStub(two.open_channel).WatchSplits(
        pb.WatchSplitsRequest(parent=f"{TENANT}/agents/-"),
        timeout=SECONDS_MAX,
    )
    messages = aiter(stream)
    await anext(messages)
    await set_split(one, agent, 50, 50, calls_min=8)
    pinned: dict[int, list[str]] = {1: [], 2: []}
    ends: dict[int, set[str]] = {1: set(), 2: set()}
    count = 0

    async def is_back() -> bool:
        nonlocal count
        weft, count = pair[count % 2], count + 1
        session, revision = await session_of(weft, agent)
        pinned[revision].append(session)
        ends[revision].add(await end_of(weft, session))
        return (await split_of(weft, agent)).changes[0].action == BY_POLICY

    await until(is_back)
    assert ends == {1: {"completed"}, 2: {"failed"}}
    assert len(pinned[2]) >= 8
    # Who is pinned to it stays so, and what they fail takes nothing more back.
    for session in pinned[2][:12]:
        assert await end_of(one, session) == "failed"
    drawn = [(await session_of(pair[n % 2], agent, 0))[1] for n in range(8)]
    assert set(drawn) == {1}
    split = await split_of(two, agent)
    assert [(each.agent_revision, each.weight) for each in split.portions] == [(1, 100)]
    assert [each.action for each in split.changes] == [BY_POLICY, splits_pb2.SPLIT_ACTION_SET]
    assert split.changes[0].actor == "system"
    assert split.changes[0].reason.endswith("turns of revision 2 failed")
    assert not split.HasField("rollback_policy")

    async def watched() -> bool:
        found = (await anext(messages)).splits
        return any(each.changes[0].action == BY_POLICY for each in found)

    await until(watched)
    stream.cancel()
    actors = await audited(one, agent)
    assert actors[-1] == ("system", "weft.control.v1.SplitRolledBack")
    assert len(actors) == 2


async def test_only_what_a_revision_is_at_fault_for_is_counted(pair: Pair) -> None:
    one, two = pair
    tools = [agent_pb2.ToolBinding(tool="calculator")]
    limits = agent_pb2.Limits(steps_max=1)
    hasty = agent_pb2.AgentSpec(tools=tools, limits=limits)
    agent = await agent_of(one, agent_pb2.AgentSpec(tools=tools), hasty)
    await set_split(one, agent, 50, 50, calls_min=1_000)
    good, _ = await session_of(one, agent, 1)
    bad, _ = await session_of(two, agent, 2)
    assert await end_of(one, good) == "completed"
    # A call that fails is for the model to see.
    wrong = {"calls": [{"tool": "calculator", "arguments": {"expression": "6 *"}}]}
    assert await end_of(two, good, plan(wrong, {"text": "done"})) == "completed"
    assert await end_of(two, bad, plan(SUM, {"text": "done"})) == "failed"
    assert await end_of(two, bad, plan({"text": "done"})) == "completed"
    late = TurnClient(bad, plan(writing(seconds=20)), timeout_seconds=1)
    await late.run(two)
    assert late.kinds[-1] == "failed"
    cancelled = TurnClient(bad, plan(writing(seconds=20)))
    await cancelled.until(one, "token")
    cancel = turn_service_pb2.CancelTurnRequest(name=cancelled.turn)
    await two.turns.CancelTurn(cancel, timeout=10)
    await cancelled.run(one)
    assert cancelled.kinds[-1] == "cancelled"

    async def is_told() -> bool:
        return (await counted(one, 1), await counted(one, 2)) == ((2, 0), (3, 2))

    await until(is_told)
    # Nothing that is said names the agent.
    assert all(agent.encode() not in each.SerializeToString() for each in await told(two))
    await end_split(one, agent)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_turn_that_another_process_goes_on_with_counts_once(
    how: signal.Signals, pair: Pair, tmp_path: Path
) -> None:
    one, two = pair
    agent = await agent_of(one, agent_pb2.AgentSpec())
    await set_split(one, agent, 1, calls_min=1_000)
    session, _ = await session_of(one, agent)
    nats = one.environment["NATS_URL"]
    async with one_process(tmp_path / "doomed", NATS_URL=nats) as doomed:
        client = TurnClient(session, plan(writing(seconds=1.0)))
        await client.until(doomed, "token")
        doomed.signal(how)
        await client.run(one)
        assert client.kinds[-2:] == ["model_step", "completed"]
        assert "resumed" in client.kinds
        if how is signal.SIGSTOP:
            doomed.signal(signal.SIGCONT)
            # By the end of another turn it has long seen that this one isn't its own.
            other, _ = await session_of(one, agent)
            assert await end_of(doomed, other, plan(writing(seconds=2.0))) == "completed"
        wanted = (1 if how is signal.SIGKILL else 2, 0)

        async def is_told() -> bool:
            return await counted(two, 1) == wanted

        await until(is_told)
    await end_split(one, agent)


async def test_time_that_a_turn_lost_with_its_process_is_not_held_against_its_revision(
    pair: Pair, tmp_path: Path
) -> None:
    one, two = pair
    agent = await agent_of(one, agent_pb2.AgentSpec())
    await set_split(one, agent, 1, calls_min=1_000)
    session, _ = await session_of(one, agent)
    async with one_process(tmp_path / "doomed", NATS_URL=one.environment["NATS_URL"]) as doomed:
        # Long enough for a first token where twenty processes share two cores.
        late = TurnClient(session, plan(writing(seconds=30)), timeout_seconds=10)
        await late.until(doomed, "token")
        await doomed.kill()
        await late.run(one)
    assert "resumed" in late.kinds
    assert late.events[-1].failed.error.reason == errors_pb2.REASON_DEADLINE_EXCEEDED
    # Either may have ended it; what they say of the next ones they say of that one, too.
    for weft in pair:
        assert await end_of(weft, session) == "completed"

    async def is_told() -> bool:
        return (await counted(two, 1))[0] >= len(pair)

    await until(is_told)
    assert await counted(two, 1) == (2, 0)
    await end_split(one, agent)
