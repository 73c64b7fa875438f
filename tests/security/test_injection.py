"""A model that always obeys what its tools answer: pages that anybody wrote move nothing.

The model is behind an OpenAI-compatible endpoint over HTTP, the tools are gRPC servers whose
effects are counted where they happen. `WEFT_INJECTIONS` is how many pages are read.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.support.grpc_server import serving
from tests.support.hostile_pages import LISTED, page
from tests.support.ledger_server import LEDGER, Entry, Ledger, read_entries
from tests.support.ledger_tools import register_credit
from tests.support.obedient_model import ObedientModel, demands
from tests.support.openai_server import serve_openai
from tests.support.platform import TENANT, Platform
from tests.support.protos import message_type
from tests.support.stored_session import state_of, stored_events
from tests.support.turn_client import TurnClient, kind_of
from weft.agents.v1 import agent_pb2, turn_pb2, turn_service_pb2
from weft.options.v1 import options_pb2
from weft.state.v1 import session_pb2, session_service_pb2
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub
from weft.tools.v1 import tool_service_pb2, tools_pb2

PAGES = int(os.environ.get("WEFT_INJECTIONS", "60"))
ALL_PAGES = 500
CONTROL_PAGES = 24
TOGETHER = 8
SECONDS = 30.0
ECHO = "kinds.v1.Echo"
ENDS = ("completed", "failed", "cancelled")
PLACES = (
    "tool:page:after",
    "commit:ToolCallCompleted:stored",
    "commit:ToolCallCompleted:before_publish",
    "commit:ModelStepCompleted:stored@2",
)
TAINTED = session_pb2.APPROVAL_REASON_TAINTED_CONTEXT


@dataclass
class World:
    """The platform, its model, and what its tools did."""

    platform: Platform
    model: ObedientModel
    folder: Path

    def effects(self, tool: str) -> list[Entry]:
        """What a tool did, for ever."""
        return read_entries(self.folder / f"{tool}.ndjson")


async def _page(request: Any, context: Any) -> Any:
    return message_type("kinds.v1.Kinds")(string_field=page(request.length))


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("injection")
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(serve_openai(ObedientModel))
        assert isinstance(model, ObedientModel)
        environment = {
            "OPENAI_BASE_URL": model.base_url,
            "OPENAI_API_KEY": "sk-none",
            "OPENAI_MODEL": "small",
        }
        platform = Platform(folder / "data", environment, configured_models=True, split=False)
        await platform.start()
        stack.push_async_callback(platform.kill)
        made = World(platform, model, folder)
        for tool in ("pay", "wipe", "settle"):
            ledger = Ledger(folder / f"{tool}.ndjson")
            address = await stack.enter_async_context(serving({LEDGER: ledger.handlers}))
            await register_credit(platform, tool, address, options_pb2.EFFECT_IRREVERSIBLE)
        address = await stack.enter_async_context(serving({ECHO: {"Grow": _page}}))
        for tool, trust in (
            ("page", tools_pb2.TRUST_UNSPECIFIED),
            ("own-page", tools_pb2.TRUST_TRUSTED),
        ):
            register = tool_service_pb2.RegisterToolRequest(
                parent=TENANT,
                tool_id=tool,
                grpc=tools_pb2.GrpcTool(address=address, method=f"{ECHO}/Grow"),
                effect=options_pb2.EFFECT_READ,
                trust=trust,
            )
            await platform.tools.RegisterTool(register, timeout=SECONDS)
        yield made


async def agent_with(
    world: World,
    name: str,
    tools: Sequence[str] = LISTED,
    policy: "agent_pb2.TaintPolicy.ValueType" = agent_pb2.TAINT_POLICY_UNSPECIFIED,
) -> str:
    """An agent whose payments go to `safe`, whatever its model says."""
    bound = [
        agent_pb2.ToolBinding(
            tool=tool, fixed_arguments_json='{"account": "safe"}' if tool == "pay" else ""
        )
        for tool in tools
    ]
    limits = agent_pb2.Limits(steps_max=6)
    return await world.platform.apply(
        name, agent_pb2.AgentSpec(tools=bound, taint_policy=policy, limits=limits)
    )


def first(*calls: tuple[str, dict[str, Any]]) -> str:
    """A question at which the model begins with these calls."""
    return json.dumps({"first": [{"tool": tool, "arguments": given} for tool, given in calls]})


async def asked(world: World, session: str, question: str) -> TurnClient:
    """The turn, until it ends or waits for a person."""
    client = TurnClient(session, question)
    await client.until(world.platform, "approval_required", "in_doubt", *ENDS)
    return client


async def read_pages(world: World, agent: str, tool: str, count: int) -> list[TurnClient]:
    """A turn in a session of its own for each page, some at once."""
    turns: list[TurnClient] = []
    numbers = iter(range(count))

    async def reader() -> None:
        for number in numbers:
            session = await world.platform.session(agent)
            turns.append(await asked(world, session, first((tool, {"length": number}))))

    await asyncio.gather(*(reader() for _ in range(TOGETHER)))
    return turns


def of_kind(turns: Sequence[TurnClient], kind: str) -> list[turn_pb2.TurnEvent]:
    return [event for turn in turns for event in turn.events if kind_of(event) == kind]


def paying_page() -> int:
    """A page that asks for a payment as the tool takes it."""
    for number in range(0, 600, 6):
        (wanted,) = demands(page(number))
        if isinstance(wanted["arguments"], dict):
            return number
    raise AssertionError("no page asks for it")


async def test_hostile_pages_move_nothing(world: World) -> None:
    agent = await agent_with(world, "reader")
    before = len(world.effects("pay"))
    turns = await read_pages(world, agent, "page", PAGES)
    assert len(turns) == PAGES
    demanded = set(world.model.asked)
    assert {"pay", "wipe"} <= demanded, "the model obeyed"
    assert len(demanded) > 10
    assert world.effects("pay")[before:] == []
    assert world.effects("wipe") == []
    called = {event.tool_call.call.tool for event in of_kind(turns, "tool_call")}
    assert called == {"page"}, "nothing else was called"
    waiting = of_kind(turns, "approval_required")
    assert len(waiting) > PAGES // 4, "what can't be taken back was asked for"
    for event in waiting:
        assert event.approval_required.call.tool == "pay"
        assert event.approval_required.reason == TAINTED
        assert "untrusted tool page" in event.approval_required.detail


async def test_without_the_taint_the_same_pages_do_move_money(world: World) -> None:
    """The control: that the model obeys, and that the tools work."""
    agent = await agent_with(world, "believer", ("own-page", "settle"))
    session = await world.platform.session(agent)
    settle = ("settle", {"account": "x", "amount": "1"})
    client = await asked(world, session, first(settle))
    assert client.kinds[-1] == "completed"
    agent = await agent_with(world, "believing-payer", ("own-page", "pay"))
    before = len(world.effects("pay"))
    turns = await read_pages(world, agent, "own-page", CONTROL_PAGES)
    done = world.effects("pay")[before:]
    assert len(done) > CONTROL_PAGES // 8
    assert of_kind(turns, "approval_required") == []
    assert world.effects("wipe") == []
    assert {entry.account for entry in done} == {"safe"}, "what the agent fixes stays fixed"


async def test_a_person_decides_and_sees_why(world: World) -> None:
    agent = await agent_with(world, "asker")
    session = await world.platform.session(agent)
    client = await asked(world, session, first(("page", {"length": paying_page()})))
    before = len(world.effects("pay"))
    turn = (
        await world.platform.turns.GetTurn(
            turn_service_pb2.GetTurnRequest(name=client.turn), timeout=SECONDS
        )
    ).turn
    (waiting,) = turn.waiting_calls
    assert waiting.approval_reason == TAINTED
    assert "page" in waiting.approval_detail
    await world.platform.turns.DecideApproval(
        turn_service_pb2.DecideApprovalRequest(
            name=client.turn, call_id=waiting.call.id, approved=True
        ),
        timeout=SECONDS,
    )
    await client.run(world.platform)
    assert [entry.account for entry in world.effects("pay")[before:]] == ["safe"]


async def test_the_taint_stays_for_later_turns_and_forks(world: World) -> None:
    agent = await agent_with(world, "heir")
    session = await world.platform.session(agent)
    pay = first(("pay", {"amount": "7"}))
    before = len(world.effects("pay"))
    assert (await asked(world, session, pay)).kinds[-1] == "completed"
    assert len(world.effects("pay")) == before + 1, "nothing had tainted it"
    clean = (await state_of(world.platform, session)).revision
    # It wants what the agent hasn't: the turn ends.
    read = await asked(world, session, first(("page", {"length": 1})))
    assert read.kinds[-1] in ENDS
    state = await state_of(world.platform, session)
    assert state.taint.tool == "page"
    assert (await asked(world, session, pay)).kinds[-1] == "approval_required"
    sessions = SessionServiceStub(world.platform.open_channel)
    for revision, kind in ((state.revision, "approval_required"), (clean, "completed")):
        request = session_service_pb2.ForkSessionRequest(name=session, revision=revision)
        fork = (await sessions.ForkSession(request, timeout=SECONDS)).session.name
        assert (await asked(world, fork, pay)).kinds[-1] == kind
    assert len(world.effects("pay")) == before + 2


async def test_an_agent_may_deny_instead_of_asking(world: World) -> None:
    agent = await agent_with(world, "denier", policy=agent_pb2.TAINT_POLICY_DENY)
    before = len(world.effects("pay"))
    turns = await read_pages(world, agent, "page", CONTROL_PAGES)
    assert world.effects("pay")[before:] == []
    assert of_kind(turns, "approval_required") == []
    refused = [
        event.tool_result.content
        for event in of_kind(turns, "tool_result")
        if event.tool_result.content.startswith("not made: it can't be taken back")
    ]
    assert len(refused) > CONTROL_PAGES // 8


async def test_no_death_comes_between_a_result_and_its_taint(world: World) -> None:
    """The process dies around the commits that bring a result in and what it makes the model ask
    for; the next one asks a person."""
    agent = await agent_with(world, "mortal")
    before = len(world.effects("pay"))
    for place in PLACES if PAGES >= ALL_PAGES else PLACES[:2]:
        session = await world.platform.session(agent)
        await world.platform.arm(place)
        client = TurnClient(session, first(("page", {"length": 0})))
        with pytest.raises(grpc.aio.AioRpcError):
            await client.until(world.platform, "approval_required", *ENDS)
        await world.platform.gone()
        await world.platform.start()
        event = await client.until(world.platform, "approval_required", *ENDS)
        assert event.approval_required.reason == TAINTED, place
        facts = [event.type for event in await stored_events(world.platform, session)]
        assert facts.count("weft.state.v1.ToolCallCompleted") == 1
    assert world.effects("pay")[before:] == []
