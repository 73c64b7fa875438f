"""Following, steering and refusing turns, with two instances on one nats-server: what one
runs, the other shows and steers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from mesh.ids import new_id
from tests.support.plans import plan, writing
from tests.support.platform import TENANT, Platform, two_instances
from tests.support.processes import until
from tests.support.stored_session import faults_of_session, faults_of_view, state_of
from tests.support.turn_client import TurnClient, events_of, kind_of
from weft.agents.v1 import agent_pb2, agent_service_pb2, turn_pb2, turn_service_pb2
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub
from weft.state.v1 import session_pb2, session_service_pb2, state_service_pb2
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub

SECONDS = 10.0
SUM = {"calls": [{"tool": "calculator", "arguments": {"expression": "6 * 7"}}]}
NOBODY = f"{TENANT}/agents/nobody"
NO_SESSION = f"{NOBODY}/sessions/none"
NO_TURN = f"{NO_SESSION}/turns/none"
Pair = tuple[Platform, Platform]


@pytest.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Two instances."""
    async with two_instances(tmp_path_factory.mktemp("pair")) as both:
        yield both


async def new_session(
    running: Platform,
    policy: "session_pb2.SubmitPolicy.ValueType" = session_pb2.SUBMIT_POLICY_REJECT,
) -> str:
    binding = agent_pb2.ToolBinding(tool="calculator")
    agent = await running.apply(f"bot-{new_id()}", agent_pb2.AgentSpec(tools=[binding]))
    return await running.session(agent, policy)


async def check(pair: Pair, *clients: TurnClient) -> None:
    """Both instances have the same, and all that the clients saw."""
    for running in pair:
        for client in clients:
            assert await faults_of_session(running, client.session) == []
            assert await faults_of_view(running, client) == []


def refusal(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
    """The status code and the reason in ErrorInfo."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    assert info.domain == "weft"
                    return error.code(), info.reason
    raise AssertionError(f"no ErrorInfo in {error}")


def joined(events: list[turn_pb2.TurnEvent]) -> list[object]:
    """The events, with all tokens between two facts as one text and the offset of its end."""
    said: list[object] = []
    for event in events:
        if not event.HasField("token"):
            said.append(event)
        elif said and isinstance(said[-1], tuple):
            said[-1] = (said[-1][0] + event.token.text, event.offset)
        else:
            said.append((event.token.text, event.offset))
    return said


async def test_a_turn_is_watched_on_another_instance_with_each_token_once(pair: Pair) -> None:
    one, two = pair
    client = TurnClient(await new_session(one), plan(SUM, writing(seconds=0.6)))
    await client.until(one, "accepted")
    here, there = [TurnClient(client.session, client.input, events=client.events[:]) for _ in pair]
    await asyncio.gather(here.run(one), there.run(two))
    assert joined(here.events) == joined(there.events)
    assert here.text == there.text
    assert [kind_of(event) for event in there.events].count("token") > 3, "they came as they were"
    await check(pair, here, there)


async def test_watching_goes_on_behind_any_event(pair: Pair) -> None:
    client = TurnClient(await new_session(pair[0]), plan(SUM, writing(seconds=0.2)))
    await client.run(pair[0])
    for running in pair:
        assert joined(await events_of(running, client.turn)) == joined(client.events)
        for index, seen in enumerate(client.events):
            rest = await events_of(running, client.turn, seen.offset)
            assert joined(rest) == joined(client.events[index + 1 :])


async def test_a_running_turn_is_left_and_joined_again_anywhere(pair: Pair) -> None:
    client = TurnClient(await new_session(pair[0]), plan(SUM, writing(seconds=1.0)))
    while not client.ended:
        for running in pair:
            async with aclosing(client.follow(running)) as events:
                async for event in events:
                    if kind_of(event) == "token":
                        break
    called = ["model_step", "tool_call", "tool_result"]
    assert client.kinds == ["accepted", *called, "model_step", "completed"]
    assert client.text == client.events[-1].completed.text
    await check(pair, client)


@pytest.mark.parametrize("cancel_on_disconnect", [False, True])
async def test_a_lost_connection_cancels_only_where_that_was_asked_for(
    cancel_on_disconnect: bool, pair: Pair
) -> None:
    client = TurnClient(
        await new_session(pair[0]),
        plan(writing(seconds=1.0)),
        cancel_on_disconnect=cancel_on_disconnect,
    )
    await client.until(pair[0], "token")
    await client.run(pair[1])
    assert client.kinds[-1] == ("cancelled" if cancel_on_disconnect else "completed")
    await check(pair, client)


async def test_cancelling_by_another_instance_keeps_what_was_written(pair: Pair) -> None:
    one, two = pair
    client = TurnClient(await new_session(one), plan(writing(seconds=2.0)))
    following = asyncio.create_task(client.run(one))
    await until(lambda: bool(client.text))
    request = turn_service_pb2.CancelTurnRequest(name=client.turn, reason="enough")
    for _ in range(2):
        await two.turns.CancelTurn(request, timeout=SECONDS)
    await following
    assert client.kinds == ["accepted", "cancel_requested", "cancelled"]
    cancelled = client.events[-1].cancelled
    assert cancelled.reason == "enough"
    assert cancelled.partial_text == client.text
    (*_, kept) = (await state_of(two, client.session)).context.messages
    assert kept.text == cancelled.partial_text
    await check(pair, client)


async def test_the_policy_reject_refuses_a_second_turn(pair: Pair) -> None:
    session = await new_session(pair[0])
    client = TurnClient(session, plan(writing(seconds=1.0)))
    await client.until(pair[0], "token")
    for running in pair:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await TurnClient(session, "and this?").run(running)
        assert refusal(refused.value) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "TURN_IN_PROGRESS",
        )
    await client.run(pair[0])
    assert client.kinds[-1] == "completed"
    await check(pair, client)


async def test_the_policy_enqueue_runs_turns_one_after_another(pair: Pair) -> None:
    session = await new_session(pair[0], session_pb2.SUBMIT_POLICY_ENQUEUE)
    clients = [TurnClient(session, plan(writing(seconds=0.3))) for _ in range(4)]
    running = []
    for number, client in enumerate(clients):
        running.append(asyncio.create_task(client.run(pair[number % 2])))
        await until(lambda client=client: bool(client.events))  # type: ignore[misc]
    await asyncio.gather(*running)
    assert clients[0].kinds == ["accepted", "model_step", "completed"]
    for before, client in pairwise(clients):
        assert client.kinds == ["accepted", "started", "model_step", "completed"]
        assert client.events[1].offset.revision > before.events[-1].offset.revision
    await check(pair, *clients)


async def test_the_policy_interrupt_cancels_the_turn_that_runs(pair: Pair) -> None:
    session = await new_session(pair[0], session_pb2.SUBMIT_POLICY_INTERRUPT)
    first = TurnClient(session, plan(writing(seconds=3.0)))
    following = asyncio.create_task(first.run(pair[0]))
    await until(lambda: bool(first.text))
    second = TurnClient(session, plan({"text": "done"}))
    await second.run(pair[1])
    await following
    assert first.kinds == ["accepted", "cancel_requested", "cancelled"]
    assert second.kinds == ["accepted", "started", "model_step", "completed"]
    await check(pair, first, second)


async def test_an_instance_that_lags_behind_writes_each_text_once(pair: Pair) -> None:
    session = await new_session(pair[0])
    for number in range(20):
        # It just ran on the other instance: this one decides on what was before, and again.
        client = TurnClient(session, plan({"text": "one two three", "tokens": 3}))
        await client.run(pair[number % 2])
        assert client.text == "one two three"
    await check(pair, client)


async def test_one_request_sent_many_times_at_once_is_one_turn(pair: Pair) -> None:
    session = await new_session(pair[0])
    request_id = new_id()
    clients = [TurnClient(session, plan(writing(seconds=0.3)), request_id) for _ in range(8)]
    await asyncio.gather(*(client.run(pair[n % 2]) for n, client in enumerate(clients)))
    assert len({client.turn for client in clients}) == 1
    for client in clients:
        assert client.kinds == ["accepted", "model_step", "completed"]
        assert client.text == clients[0].text
    late = TurnClient(session, clients[0].input, request_id)
    await late.run(pair[1])
    assert joined(late.events) == joined(clients[0].events)
    assert (await state_of(pair[1], session)).turn_count == 1
    await check(pair, *clients)


async def test_a_request_id_with_another_body_is_refused(pair: Pair) -> None:
    client = TurnClient(await new_session(pair[0]), plan({"text": "done"}))
    await client.run(pair[0])
    for running in pair:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await TurnClient(client.session, "something else", client.request_id).run(running)
        assert refusal(refused.value) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "REQUEST_ID_REUSED",
        )


async def test_a_stale_revision_is_refused(pair: Pair) -> None:
    client = TurnClient(await new_session(pair[0]), plan({"text": "done"}))
    revision = (await state_of(pair[0], client.session)).revision
    await client.run(pair[0])
    for running in pair:
        request = turn_service_pb2.RunTurnRequest(
            session=client.session, input="and this?", expected_revision=revision
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.turns.RunTurn(request, timeout=SECONDS).read()
        assert refusal(refused.value) == (grpc.StatusCode.ABORTED, "REVISION_CONFLICT")


Unknown = Callable[[Platform, str], Awaitable[Any]]
UNKNOWN: dict[str, Unknown] = {
    "an agent": lambda p, s: AgentServiceStub(p.open_channel).GetAgent(
        agent_service_pb2.GetAgentRequest(name=NOBODY), timeout=SECONDS
    ),
    "an agent's revision": lambda p, s: AgentServiceStub(p.open_channel).GetAgent(
        agent_service_pb2.GetAgentRequest(name=s.split("/sessions/")[0], revision=9),
        timeout=SECONDS,
    ),
    "an agent of a new session": lambda p, s: SessionServiceStub(p.open_channel).CreateSession(
        session_service_pb2.CreateSessionRequest(parent=NOBODY), timeout=SECONDS
    ),
    "a session": lambda p, s: p.turns.RunTurn(
        turn_service_pb2.RunTurnRequest(session=NO_SESSION, input="what?"), timeout=SECONDS
    ).read(),
    "a session's state": lambda p, s: p.state.GetState(
        state_service_pb2.GetStateRequest(name=NO_SESSION), timeout=SECONDS
    ),
    "a session's revision": lambda p, s: p.state.GetState(
        state_service_pb2.GetStateRequest(name=s, revision=9), timeout=SECONDS
    ),
    "a session's events": lambda p, s: p.state.ListEvents(
        state_service_pb2.ListEventsRequest(parent=NO_SESSION), timeout=SECONDS
    ),
    "a session to verify": lambda p, s: p.state.VerifyReplay(
        state_service_pb2.VerifyReplayRequest(name=NO_SESSION), timeout=SECONDS
    ),
    "a turn": lambda p, s: p.turns.GetTurn(
        turn_service_pb2.GetTurnRequest(name=f"{s}/turns/none"), timeout=SECONDS
    ),
    "a turn of no session": lambda p, s: p.turns.GetTurn(
        turn_service_pb2.GetTurnRequest(name=NO_TURN), timeout=SECONDS
    ),
    "a turn to watch": lambda p, s: p.turns.WatchTurn(
        turn_service_pb2.WatchTurnRequest(name=f"{s}/turns/none"), timeout=SECONDS
    ).read(),
    "a turn to cancel": lambda p, s: p.turns.CancelTurn(
        turn_service_pb2.CancelTurnRequest(name=f"{s}/turns/none"), timeout=SECONDS
    ),
    "a turn to approve": lambda p, s: p.turns.DecideApproval(
        turn_service_pb2.DecideApprovalRequest(name=f"{s}/turns/none", call_id="c", approved=True),
        timeout=SECONDS,
    ),
}


@pytest.mark.parametrize("ask", UNKNOWN.values(), ids=UNKNOWN)
async def test_what_is_not_there_is_not_found(ask: Unknown, pair: Pair) -> None:
    session = await new_session(pair[0])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(pair[1], session)
    assert refusal(refused.value) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
