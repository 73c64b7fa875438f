"""Turns at the edge: clients that vanish, models without delay, results by the dozen."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.grpc_server import serving
from tests.support.plans import plan, writing
from tests.support.platform import TENANT, Platform, platform
from tests.support.protos import message_type
from tests.support.turn_client import TurnClient
from weft.agents.v1 import agent_pb2, turn_service_pb2
from weft.options.v1 import options_pb2
from weft.state.v1 import session_pb2, session_service_pb2, state_service_pb2
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub
from weft.tools.v1 import tool_service_pb2, tools_pb2

ECHO = "kinds.v1.Echo"
VANISHING_WATCHERS = 150
OTHER_TURN_SECONDS_MAX = 3.0
"""Far above what a turn takes, and below what a lost connection to NATS costs."""


@pytest.fixture(scope="module")
async def weft(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with platform(tmp_path_factory.mktemp("edges") / "data") as running:
        yield running


async def test_watchers_that_vanish_do_not_cut_anybody_off_from_nats(weft: Platform) -> None:
    agent = await weft.apply("watched", agent_pb2.AgentSpec())
    busy = await weft.session(agent, session_pb2.SUBMIT_POLICY_ENQUEUE)
    slow = TurnClient(busy, plan(writing(seconds=20)))
    await slow.until(weft, "accepted")
    queued = TurnClient(busy, plan({"text": "later"}))
    await queued.until(weft, "accepted")
    worst, stop = 0.0, asyncio.Event()

    async def others() -> None:
        nonlocal worst
        session = await weft.session(agent)
        while not stop.is_set():
            began = time.monotonic()
            await TurnClient(session, plan({"text": "ping"})).run(weft)
            worst = max(worst, time.monotonic() - began)

    probe = asyncio.create_task(others())
    for number in range(VANISHING_WATCHERS):
        request = turn_service_pb2.WatchTurnRequest(name=queued.turn)
        watch: Any = weft.turns.WatchTurn(request)
        await asyncio.sleep(0.0005 + number % 40 * 0.0002)
        watch.cancel()
    await asyncio.sleep(0.5)
    stop.set()
    await probe
    assert worst < OTHER_TURN_SECONDS_MAX
    assert "nats_disconnected" not in weft.log_file.read_text()


async def test_a_turn_that_waits_at_once_says_for_what(weft: Platform) -> None:
    binding = agent_pb2.ToolBinding(tool="calculator", requires_approval=True)
    agent = await weft.apply("careful", agent_pb2.AgentSpec(tools=[binding]))
    call = {"tool": "calculator", "arguments": {"expression": "1 + 1"}}
    for _ in range(20):
        request = turn_service_pb2.RunTurnRequest(
            session=await weft.session(agent), input=plan({"calls": [call]}, {"text": "two"})
        )
        kinds = [
            event.WhichOneof("event")
            async for response in weft.turns.RunTurn(request, timeout=10)
            for event in response.events
        ]
        assert kinds == ["accepted", "model_step", "approval_required"]


async def test_results_that_land_together_are_each_recorded_once(weft: Platform) -> None:
    calls = 0

    async def grow(request: Any, context: Any) -> Any:
        nonlocal calls
        calls += 1
        return message_type("kinds.v1.Kinds")(string_field="x" * request.length)

    async with serving({ECHO: {"Grow": grow}}) as address:
        register = tool_service_pb2.RegisterToolRequest(
            parent=TENANT,
            tool_id="grow",
            grpc=tools_pb2.GrpcTool(address=address, method=f"{ECHO}/Grow"),
            effect=options_pb2.EFFECT_READ,
        )
        await weft.tools.RegisterTool(register, timeout=10)
        tools = [agent_pb2.ToolBinding(tool="grow")]
        agent = await weft.apply("grower", agent_pb2.AgentSpec(tools=tools))
        many = [{"tool": "grow", "arguments": {"length": 15_000 + n}} for n in range(64)]
        client = TurnClient(await weft.session(agent), plan({"calls": many}, {"text": "grown"}))
        await client.run(weft)
    assert client.kinds.count("tool_result") == 64
    assert client.kinds[-1] == "completed"
    assert calls == 64


@pytest.mark.parametrize(
    ("effect", "outcome"),
    [
        (options_pb2.EFFECT_READ, "completed"),
        (options_pb2.EFFECT_IDEMPOTENT, "completed"),
        (options_pb2.EFFECT_IRREVERSIBLE, "in_doubt"),
    ],
)
async def test_a_call_whose_answer_is_too_large_is_made_once(
    weft: Platform, effect: "options_pb2.Effect.ValueType", outcome: str
) -> None:
    calls = 0

    async def grow(request: Any, context: Any) -> Any:
        nonlocal calls
        calls += 1
        return message_type("kinds.v1.Kinds")(string_field="x" * request.length)

    tool = f"grow-{effect}"
    async with serving({ECHO: {"Grow": grow}}) as address:
        register = tool_service_pb2.RegisterToolRequest(
            parent=TENANT,
            tool_id=tool,
            grpc=tools_pb2.GrpcTool(address=address, method=f"{ECHO}/Grow"),
            effect=effect,
        )
        await weft.tools.RegisterTool(register, timeout=10)
        agent = await weft.apply(
            tool, agent_pb2.AgentSpec(tools=[agent_pb2.ToolBinding(tool=tool)])
        )
        call = {"tool": tool, "arguments": {"length": 2_000_000}}
        client = TurnClient(await weft.session(agent), plan({"calls": [call]}, {"text": "so"}))
        await client.until(weft, outcome)
    results = [event.tool_result for event in client.events if event.HasField("tool_result")]
    assert ["the tool ran" in result.content for result in results if result.is_error] == (
        [] if outcome == "in_doubt" else [True]
    )
    assert calls == 1


async def test_long_texts_are_read_by_clients_with_grpcs_own_bounds(weft: Platform) -> None:
    session = await weft.session(await weft.apply("long", agent_pb2.AgentSpec()))
    for number in range(3):
        client = TurnClient(session, chr(0x1F600 + number) * 262_144)
        await client.run(weft)
        assert client.kinds[-1] == "completed"
    request = state_service_pb2.ListEventsRequest(parent=session, page_size=1000)
    revisions = []
    while True:
        page = await weft.state.ListEvents(request, timeout=60)
        revisions += [event.revision for event in page.events]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert revisions == list(range(1, len(revisions) + 1))


async def test_a_turn_that_ended_long_ago_is_still_watched_and_not_run_again(
    tmp_path: Path, weft: Platform
) -> None:
    agent = await weft.apply("old", agent_pb2.AgentSpec())
    session = await weft.session(agent)
    first = TurnClient(session, plan({"text": "first"}), request_id="the-first")
    await first.run(weft)
    for _ in range(260):
        await TurnClient(session, plan({"text": "more"})).run(weft)
    again = TurnClient(session, plan({"text": "first"}), request_id="the-first")
    await again.run(weft)
    assert again.turn == first.turn
    assert again.kinds == first.kinds


async def test_a_fork_is_listed_as_it_is(weft: Platform) -> None:
    agent = await weft.apply("forked", agent_pb2.AgentSpec())
    parent = await weft.session(agent, session_pb2.SUBMIT_POLICY_ENQUEUE)
    await TurnClient(parent, plan({"text": "one"})).run(weft)
    sessions: Any = SessionServiceStub(weft.open_channel)
    fork = session_service_pb2.ForkSessionRequest(name=parent)
    forked = (await sessions.ForkSession(fork, timeout=10)).session
    await TurnClient(forked.name, plan({"text": "two"})).run(weft)
    listing = session_service_pb2.ListSessionsRequest(parent=agent)
    listed = {s.name: s for s in (await sessions.ListSessions(listing, timeout=10)).sessions}
    for name in (parent, forked.name):
        get = session_service_pb2.GetSessionRequest(name=name)
        assert listed[name] == (await sessions.GetSession(get, timeout=10)).session
