"""Turns that have stalled: how they are found, told, and helped on by an operator."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from mesh.ids import new_id
from tests.support.grpc_server import serving
from tests.support.keyed import KeyedChannel
from tests.support.plans import plan
from tests.support.platform import TENANT, Platform, platform, two_instances
from tests.support.processes import until
from tests.support.protos import message_type
from tests.support.stored_session import (
    fact_of,
    faults_of_session,
    faults_of_view,
    state_of,
    stored_events,
)
from tests.support.turn_client import TurnClient, kind_of
from weft.agents.v1 import agent_pb2, turn_pb2, turn_service_pb2
from weft.agents.v1 import stalled_turn_service_pb2 as pb
from weft.agents.v1.stalled_turn_service_pb2_grpc import StalledTurnServiceStub
from weft.auth.v1 import api_key_service_pb2
from weft.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from weft.options.v1 import options_pb2
from weft.scheduler.v1 import task_service_pb2
from weft.scheduler.v1.task_service_pb2_grpc import TaskServiceStub
from weft.state.v1 import events_pb2, session_pb2
from weft.tools.v1 import tool_service_pb2, tools_pb2

STALLED_SECONDS = 1.0
SETTINGS = {
    "WEFT_AGENTS_STALLED_TURN_SECONDS": str(STALLED_SECONDS),
    "WEFT_SCHEDULER_STALLED_RUNNING_SECONDS": str(STALLED_SECONDS / 2),
}
SECONDS = 20.0
ECHO = "kinds.v1.Echo"
STREAMS = {"text": "word " * 300, "tokens": 300, "delay_seconds": 0.1}
HANGS = {"text": "never", "delay_seconds": 60}
EFFECTS = {
    "read": options_pb2.EFFECT_READ,
    "irreversible": options_pb2.EFFECT_IRREVERSIBLE,
}
Pair = tuple[Platform, Platform]


@dataclass
class Slow:
    """A tool that doesn't answer, but for calls of the length 1."""

    begun: list[int] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)

    async def grow(self, request: Any, context: Any) -> Any:
        self.begun.append(request.length)
        try:
            if request.length > 1:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.given_up.append(request.length)
            raise
        return message_type("kinds.v1.Kinds")(string_field="x")


@pytest.fixture(scope="module")
async def slow() -> AsyncIterator[tuple[Slow, str]]:
    tool = Slow()
    async with serving({ECHO: {"Grow": tool.grow}}) as address:
        yield tool, address


@pytest.fixture(scope="module")
async def pair(
    tmp_path_factory: pytest.TempPathFactory, slow: tuple[Slow, str]
) -> AsyncIterator[Pair]:
    """Two instances on one nats-server; both know the tool."""
    folder = tmp_path_factory.mktemp("stalled")
    async with two_instances(folder, **SETTINGS) as (one, two):
        for tool, effect in EFFECTS.items():
            register = tool_service_pb2.RegisterToolRequest(
                parent=TENANT,
                tool_id=tool,
                grpc=tools_pb2.GrpcTool(address=slow[1], method=f"{ECHO}/Grow"),
                effect=effect,
                timeout=Duration(seconds=60),
                trust=tools_pb2.TRUST_TRUSTED,
            )
            await one.tools.RegisterTool(register, timeout=SECONDS)
        yield one, two


def grow(tool: str, length: int) -> dict[str, object]:
    return {"tool": tool, "arguments": {"length": length}}


async def new_session(
    running: Platform,
    policy: "session_pb2.SubmitPolicy.ValueType" = session_pb2.SUBMIT_POLICY_REJECT,
    **binding: Any,
) -> str:
    tools = [agent_pb2.ToolBinding(tool=tool, **binding) for tool in EFFECTS]
    spec = agent_pb2.AgentSpec(tools=tools)
    return await running.session(await running.apply(f"bot-{new_id()}", spec), policy)


def stalled_turns(running: Platform) -> Any:
    return StalledTurnServiceStub(running.open_channel)


async def listed(running: Platform) -> list[turn_pb2.Turn]:
    found: list[turn_pb2.Turn] = []
    request = pb.ListStalledTurnsRequest(parent=TENANT, page_size=1)
    while True:
        page = await stalled_turns(running).ListStalledTurns(request, timeout=SECONDS)
        found += page.turns
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


async def get(running: Platform, turn: str) -> turn_pb2.Turn:
    request = turn_service_pb2.GetTurnRequest(name=turn)
    return (await running.turns.GetTurn(request, timeout=SECONDS)).turn


async def stalls(running: Platform, session: str) -> list[events_pb2.TurnStalled]:
    """What the session's log has of them."""
    facts = [fact_of(event) for event in await stored_events(running, session)]
    return [fact for fact in facts if isinstance(fact, events_pb2.TurnStalled)]


async def refused(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code()


async def check(pair: Pair, client: TurnClient) -> None:
    for running in pair:
        assert await faults_of_session(running, client.session) == []
        assert await faults_of_view(running, client) == []


@pytest.mark.parametrize("by", [0, 1], ids=["its owner", "another instance"])
async def test_a_model_that_hangs_is_found_and_the_turn_failed(pair: Pair, by: int) -> None:
    owner, operator = pair[0], pair[by]
    session = await new_session(owner, session_pb2.SUBMIT_POLICY_ENQUEUE)
    client = TurnClient(session, plan(HANGS))
    stalled = await client.until(owner, "stalled")
    assert stalled.stalled.doing == "model step 1"
    assert stalled.stalled.idle.ToNanoseconds() >= STALLED_SECONDS * 1e9
    (found,) = [turn for turn in await listed(operator) if turn.name == client.turn]
    shown = await get(operator, client.turn)
    assert found.stalled_doing == shown.stalled_doing == "model step 1"
    behind = TurnClient(session, plan({"text": "next"}))
    following = asyncio.create_task(behind.run(operator))
    await until(lambda: bool(behind.events))
    request = pb.FailTurnRequest(name=client.turn, reason="hangs")
    failed = (await stalled_turns(operator).FailTurn(request, timeout=SECONDS)).turn
    assert failed.status == session_pb2.TURN_STATUS_FAILED
    assert failed.error.message == "hangs"
    assert not failed.HasField("stalled_time")
    await following
    assert behind.kinds[-1] == "completed"
    await client.run(owner)
    assert client.kinds[-1] == "failed"
    again = await stalled_turns(operator).FailTurn(request, timeout=SECONDS)
    assert again.turn.status == session_pb2.TURN_STATUS_FAILED
    assert client.turn not in [turn.name for turn in await listed(operator)]
    assert len(await stalls(owner, session)) == 1
    await check(pair, client)
    await check(pair, behind)


@pytest.mark.parametrize("by", [0, 1], ids=["its owner", "another instance"])
@pytest.mark.parametrize("tool", EFFECTS)
async def test_a_tool_that_hangs_is_skipped_and_the_turn_goes_on(
    pair: Pair, slow: tuple[Slow, str], tool: str, by: int
) -> None:
    owner, operator = pair[0], pair[by]
    session = await new_session(owner)
    length = 100 + list(EFFECTS).index(tool) * 10 + by
    # The one beside it isn't disturbed: a call that is begun isn't begun again.
    calls = [grow(tool, length), grow(tool, length + 100)]
    client = TurnClient(session, plan({"calls": calls}, {"text": "so"}))
    stalled = await client.until(owner, "stalled")
    assert stalled.stalled.doing.startswith(f"tool calls {tool} (")
    running = (await get(operator, client.turn)).running_calls
    assert len(running) == 2
    for number, state in enumerate(running):
        request = pb.SkipCallRequest(name=client.turn, call_id=state.call.id, reason="it hangs")
        turn = (await stalled_turns(operator).SkipCall(request, timeout=SECONDS)).turn
        assert not turn.HasField("stalled_time")
        assert len(turn.running_calls) == 1 - number
    await client.run(owner)
    assert client.kinds[-1] == "completed"
    assert "in_doubt" not in client.kinds
    results = [event.tool_result for event in client.events if event.HasField("tool_result")]
    assert [result.is_error for result in results] == [True, True]
    assert all("it hangs" in result.content for result in results)
    for each in (length, length + 100):
        await until(lambda each=each: each in slow[0].given_up)  # type: ignore[misc]
        assert slow[0].begun.count(each) == 1
    await check(pair, client)


async def test_what_streams_or_waits_for_a_person_has_not_stalled(pair: Pair) -> None:
    one, _ = pair
    streaming = TurnClient(await new_session(one), plan(STREAMS))
    await streaming.until(one, "token")
    careful = await new_session(one, requires_approval=True)
    waiting = TurnClient(careful, plan({"calls": [grow("read", 1)]}, {"text": "so"}))
    await waiting.until(one, "approval_required")
    for _ in range(2):
        hanging = TurnClient(await new_session(one), plan(HANGS))
        await hanging.until(one, "stalled")
        request = pb.FailTurnRequest(name=hanging.turn)
        await stalled_turns(one).FailTurn(request, timeout=SECONDS)
    assert await stalls(one, waiting.session) == await stalls(one, streaming.session) == []
    for client in (streaming, waiting):
        request = pb.FailTurnRequest(name=client.turn)
        failed = (await stalled_turns(one).FailTurn(request, timeout=SECONDS)).turn
        assert "failed by tenants/default/apiKeys/" in failed.error.message


async def test_the_next_stall_of_a_turn_is_told_again(pair: Pair) -> None:
    one, _ = pair
    session = await new_session(one)
    client = TurnClient(session, plan({"calls": [grow("read", 300)]}, HANGS))
    await client.until(one, "stalled")
    (call,) = (await get(one, client.turn)).running_calls
    skip = pb.SkipCallRequest(name=client.turn, call_id=call.call.id)
    await stalled_turns(one).SkipCall(skip, timeout=SECONDS)
    await client.until(one, "stalled")
    doing = [event.stalled.doing for event in client.events if kind_of(event) == "stalled"]
    assert doing == [f"tool call read ({call.call.id})", "model step 2"]
    # One that has its result keeps it.
    await stalled_turns(one).SkipCall(skip, timeout=SECONDS)
    unknown = pb.SkipCallRequest(name=client.turn, call_id="none")
    skipping = stalled_turns(one).SkipCall(unknown, timeout=SECONDS)
    assert await refused(skipping) is grpc.StatusCode.NOT_FOUND
    await stalled_turns(one).FailTurn(pb.FailTurnRequest(name=client.turn), timeout=SECONDS)
    skipping = stalled_turns(one).SkipCall(skip, timeout=SECONDS)
    assert await refused(skipping) is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_turn_in_the_background_stalls_as_a_turn_and_ends_with_its_task(
    pair: Pair,
) -> None:
    one, _ = pair
    session = await new_session(one)
    submit = turn_service_pb2.SubmitTurnRequest(session=session, input=plan(HANGS))
    turn = (await one.turns.SubmitTurn(submit, timeout=SECONDS)).turn
    while not (await get(one, turn)).HasField("stalled_time"):  # noqa: ASYNC110 - pytest bounds it
        await asyncio.sleep(0.05)
    tasks: Any = TaskServiceStub(one.open_channel)
    queue = f"{TENANT}/queues/turns"
    listing = task_service_pb2.ListTasksRequest(parent=queue, stalled=True)
    assert not (await tasks.ListTasks(listing, timeout=SECONDS)).tasks
    name = f"{queue}/tasks/{turn.rpartition('/')[2]}"
    skip = task_service_pb2.SkipTaskRequest(name=name, reason="it hangs")
    await tasks.SkipTask(skip, timeout=SECONDS)
    while (await get(one, turn)).status != session_pb2.TURN_STATUS_CANCELLED:  # noqa: ASYNC110 - pytest bounds it
        await asyncio.sleep(0.05)
    later = turn_service_pb2.SubmitTurnRequest(session=session, input=plan(HANGS))
    later.not_before.FromNanoseconds(time.time_ns() + 3600 * 10**9)
    waits = (await one.turns.SubmitTurn(later, timeout=SECONDS)).turn
    failing = stalled_turns(one).FailTurn(pb.FailTurnRequest(name=waits), timeout=SECONDS)
    assert await refused(failing) is grpc.StatusCode.FAILED_PRECONDITION


async def test_who_may_not_end_turns_is_refused(pair: Pair) -> None:
    one, _ = pair
    client = TurnClient(await new_session(one), plan(HANGS))
    await client.until(one, "stalled")
    channel: Any = one.open_channel
    fail = pb.FailTurnRequest(name=client.turn)
    for role in ("viewer", "developer", "operator"):
        made = await ApiKeyServiceStub(channel).CreateApiKey(
            api_key_service_pb2.CreateApiKeyRequest(
                parent=TENANT, api_key_id=f"{role}-{new_id()}", roles=[f"{TENANT}/roles/{role}"]
            ),
            timeout=SECONDS,
        )
        keyed: Any = KeyedChannel(channel.bare, made.secret)
        stub: Any = StalledTurnServiceStub(keyed)
        seen = await stub.ListStalledTurns(
            pb.ListStalledTurnsRequest(parent=TENANT), timeout=SECONDS
        )
        assert client.turn in [turn.name for turn in seen.turns]
        if role == "operator":
            await stub.FailTurn(fail, timeout=SECONDS)
        else:
            call = stub.FailTurn(fail, timeout=SECONDS)
            assert await refused(call) is grpc.StatusCode.PERMISSION_DENIED


async def test_a_restart_does_not_tell_of_a_stall_again_before_something_happened(
    tmp_path: Path,
) -> None:
    async with platform(tmp_path / "data", **SETTINGS) as running:
        session = await running.session(await running.apply("bot", agent_pb2.AgentSpec()))
        client = TurnClient(session, plan(HANGS))
        await client.until(running, "stalled")
        assert len(await stalls(running, session)) == 1
        await running.kill()
        await running.start()
        # It is resumed, which is something, and stalls again.
        await client.until(running, "resumed")
        await client.until(running, "stalled")
        assert client.kinds == ["accepted", "stalled", "resumed", "stalled"]
        await asyncio.sleep(2 * STALLED_SECONDS)
        assert len(await stalls(running, session)) == 2
        state = await state_of(running, session)
        assert state.active_turn.HasField("stalled_time")
