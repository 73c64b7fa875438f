"""Turns that outlive the instance that runs them, on one nats-server for all instances. Each is
one process in both topologies, so that it is known whom a client talks to and who runs what."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from mesh.ids import new_id
from tests.support.grpc_server import serving
from tests.support.ledger_server import LEDGER, Ledger, effects_by_key
from tests.support.ledger_tools import credit, register_credit
from tests.support.nats import NatsServer, running_nats
from tests.support.plans import plan, writing
from tests.support.platform import Platform, one_process
from tests.support.processes import until
from tests.support.stored_session import faults_of_session, faults_of_view, state_of
from tests.support.turn_client import TurnClient, kind_of
from weft.agents.v1 import agent_pb2, turn_service_pb2
from weft.errors.v1 import errors_pb2
from weft.options.v1 import options_pb2
from weft.state.v1 import events_pb2, session_pb2

RESUME_SECONDS_MAX = 5.0
CALL_SECONDS_MAX = 10.0
CREDIT_SECONDS = 0.5
"""How long the ledger thinks before it credits."""
WRITE_THEN_CREDIT = [writing(seconds=1.0, calls=[credit("credit")]), {"text": "done"}]


@dataclass
class Tools:
    """The ledger behind the tool `credit`, which is idempotent, and `debit`, which isn't."""

    address: str
    ledger: Ledger
    file: Path

    def effects(self, session: str) -> list[int]:
        """How often each key of the session had an effect."""
        return [n for key, n in effects_by_key(self.file).items() if key.startswith(session)]

    def calls(self, session: str) -> list[int]:
        """How often the ledger was called with each key of the session."""
        return [n for key, n in self.ledger.calls.items() if key.startswith(session)]


@pytest.fixture(scope="module")
async def tools(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tools]:
    file = tmp_path_factory.mktemp("ledger") / "entries"
    ledger = Ledger(file, deduplicates=True, delay_before_seconds=CREDIT_SECONDS)
    async with serving({LEDGER: ledger.handlers}) as address:
        yield Tools(address, ledger, file)


@pytest.fixture(scope="module")
async def nats(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    async with running_nats(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(scope="module")
async def survivor(
    tmp_path_factory: pytest.TempPathFactory, nats: NatsServer, tools: Tools
) -> AsyncIterator[Platform]:
    """An instance that nothing happens to."""
    folder = tmp_path_factory.mktemp("instances") / "survivor"
    async with one_process(folder, NATS_URL=nats.url) as running:
        await with_tools(running, tools)
        yield running


@pytest.fixture
async def doomed(tmp_path: Path, nats: NatsServer) -> AsyncIterator[Platform]:
    """Another instance on the same nats-server, with a folder of its own."""
    async with one_process(tmp_path / "doomed", NATS_URL=nats.url) as running:
        yield running


async def with_tools(running: Platform, tools: Tools) -> None:
    await register_credit(running, "credit", tools.address, options_pb2.EFFECT_IDEMPOTENT)
    await register_credit(running, "debit", tools.address, options_pb2.EFFECT_IRREVERSIBLE, 2)


async def new_session(running: Platform, *, approved: str = "") -> str:
    """A session of an agent with all tools."""
    bindings = [
        agent_pb2.ToolBinding(tool=tool, requires_approval=tool == approved)
        for tool in ("calculator", "credit", "debit")
    ]
    agent = await running.apply(f"bot-{new_id()}", agent_pb2.AgentSpec(tools=bindings))
    return await running.session(agent)


async def owner_of(running: Platform, session: str) -> str:
    return (await state_of(running, session)).active_turn.owner


async def check(running: Platform, client: TurnClient) -> None:
    """Nothing that the client saw is missing, and nothing was done twice."""
    assert await faults_of_session(running, client.session) == []
    assert await faults_of_view(running, client) == []


async def test_another_instance_takes_over_the_turn_of_a_killed_one(
    doomed: Platform, survivor: Platform, tools: Tools
) -> None:
    session = await new_session(survivor)
    client = TurnClient(session, plan(*WRITE_THEN_CREDIT))
    await client.until(doomed, "token")
    assert await owner_of(survivor, session) == doomed.addresses["instance"]
    await doomed.kill()
    killed = time.monotonic()
    resumed = await client.until(survivor, "resumed")
    seconds = time.monotonic() - killed
    print(f"taken over {seconds:.2f} s after kill -9")
    assert seconds < RESUME_SECONDS_MAX
    assert resumed.resumed.resume_count == 1
    await client.run(survivor)
    assert client.kinds[-1] == "completed"
    assert tools.effects(session) == [1]
    await check(survivor, client)


@pytest.mark.parametrize("while_in", ["token", "tool_call"])
async def test_a_stopped_instance_that_wakes_appends_nothing_and_calls_nothing(
    while_in: str, doomed: Platform, survivor: Platform, tools: Tools
) -> None:
    session = await new_session(survivor)
    client = TurnClient(session, plan(*WRITE_THEN_CREDIT))
    await client.until(doomed, while_in)
    if while_in == "tool_call":
        await asyncio.sleep(CREDIT_SECONDS / 2)
    doomed.signal(signal.SIGSTOP)
    await client.run(survivor)
    assert "resumed" in client.kinds
    calls, effects = tools.calls(session), tools.effects(session)
    revision = (await state_of(survivor, session)).revision
    doomed.signal(signal.SIGCONT)
    await asyncio.sleep(2.0)
    assert tools.calls(session) == calls == [2 if while_in == "tool_call" else 1]
    assert tools.effects(session) == effects == [1]
    assert (await state_of(doomed, session)).revision == revision
    await check(survivor, client)
    await check(doomed, client)


async def test_a_stopped_instance_that_wakes_does_not_try_a_call_again(
    tmp_path: Path, nats: NatsServer, survivor: Platform
) -> None:
    ledger = Ledger(tmp_path / "entries", deduplicates=True)

    async def refused_at_first(request: Any, context: Any) -> Any:
        if not ledger.calls:
            ledger.calls["refused"] += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return await ledger.credit(request, context)

    async with (
        serving({LEDGER: {"Credit": refused_at_first}}) as address,
        one_process(
            tmp_path / "weft", NATS_URL=nats.url, WEFT_AGENTS_TOOL_BACKOFF_SECONDS="1"
        ) as stopped,
    ):
        await register_credit(survivor, "late", address, options_pb2.EFFECT_IDEMPOTENT, 30)
        agent = await survivor.apply(
            f"bot-{new_id()}", agent_pb2.AgentSpec(tools=[agent_pb2.ToolBinding(tool="late")])
        )
        client = TurnClient(
            await survivor.session(agent), plan({"calls": [credit("late")]}, {"text": "done"})
        )
        await client.until(stopped, "tool_call")
        await until(lambda: bool(ledger.calls))
        stopped.signal(signal.SIGSTOP)
        await client.run(survivor)
        stopped.signal(signal.SIGCONT)
        await asyncio.sleep(2.0)
        assert ledger.calls.total() == 2, "one refused, one by the instance that took over"
        await check(survivor, client)
        await check(stopped, client)


async def test_an_irreversible_call_of_a_stopped_instance_is_left_to_a_person(
    doomed: Platform, survivor: Platform, tools: Tools
) -> None:
    session = await new_session(survivor)
    client = TurnClient(session, plan({"calls": [credit("debit")]}, {"text": "done"}))
    await client.until(doomed, "tool_call")
    await asyncio.sleep(CREDIT_SECONDS / 2)
    doomed.signal(signal.SIGSTOP)
    event = await client.until(survivor, "in_doubt")
    doomed.signal(signal.SIGCONT)
    request = turn_service_pb2.ResolveInDoubtRequest(
        name=client.turn,
        call_id=event.in_doubt.call.id,
        resolution=events_pb2.RESOLUTION_COMPLETED,
        content="it is in the ledger",
        request_id=new_id(),
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        # The tool may take 2 s, and the lease 1 s: until then it may still run.
        await survivor.turns.ResolveInDoubt(request, timeout=CALL_SECONDS_MAX)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    while not await resolved(survivor, request):  # noqa: ASYNC110 - pytest bounds it
        await asyncio.sleep(0.1)
    assert await resolved(survivor, request), "the same request has the same answer"
    await client.run(survivor)
    assert client.kinds[-1] == "completed"
    assert tools.calls(session) == tools.effects(session) == [1]
    await check(survivor, client)
    await check(doomed, client)


async def resolved(running: Platform, request: turn_service_pb2.ResolveInDoubtRequest) -> bool:
    try:
        await running.turns.ResolveInDoubt(request, timeout=CALL_SECONDS_MAX)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
            raise
        return False
    return True


@asynccontextmanager
async def harmed(
    folder: Path, tools: Tools, **environment: str
) -> AsyncIterator[tuple[NatsServer, Platform]]:
    """A nats-server and an instance on it, for one test alone."""
    async with (
        running_nats(folder) as nats,
        one_process(folder / "weft", NATS_URL=nats.url, **environment) as running,
    ):
        await with_tools(running, tools)
        yield nats, running


async def test_a_turn_goes_on_after_nats_was_away(tmp_path: Path, tools: Tools) -> None:
    async with harmed(tmp_path, tools) as (nats, running):
        session, other = await new_session(running), await new_session(running)
        client = TurnClient(session, plan(*WRITE_THEN_CREDIT))
        refused = TurnClient(other, plan({"calls": [credit("credit")]}, {"text": "done"}))
        following = asyncio.create_task(client.run(running))
        await until(lambda: "token" in map(kind_of, client.events))
        await nats.kill()
        with pytest.raises(grpc.aio.AioRpcError) as unavailable:
            async with asyncio.timeout(CALL_SECONDS_MAX):
                await refused.run(running)
        assert unavailable.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not refused.events
        assert not following.done()
        await nats.start()
        await asyncio.gather(following, refused.run(running))
        assert client.kinds[-1] == refused.kinds[-1] == "completed"
        assert tools.effects(session) == tools.effects(other) == [1]
        await check(running, client)
        await check(running, refused)


@pytest.mark.parametrize("away_seconds", [0.5, 6.0])
async def test_a_request_repeated_while_nats_is_away_starts_one_turn(
    away_seconds: float, tmp_path: Path, tools: Tools
) -> None:
    # An append is tried for 5 s: the first one succeeds, or has been given up.

    async with harmed(tmp_path, tools) as (nats, running):
        client = TurnClient(await new_session(running), plan({"text": "done"}))
        await nats.kill()
        first = running.turns.RunTurn(client.request, timeout=0.5)
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await first.read()
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        again = asyncio.create_task(client.run(running))
        await asyncio.sleep(away_seconds)
        await nats.start()
        async with asyncio.timeout(CALL_SECONDS_MAX):
            await again
        assert client.kinds == ["accepted", "model_step", "completed"]
        assert (await state_of(running, client.session)).turn_count == 1
        await check(running, client)


async def test_an_approval_waits_over_a_restart_and_its_time_stands_still(
    tmp_path: Path, nats: NatsServer, survivor: Platform, tools: Tools
) -> None:
    session = await new_session(survivor, approved="credit")
    client = TurnClient(
        session, plan({"calls": [credit("credit")]}, {"text": "done"}), timeout_seconds=2
    )
    async with one_process(tmp_path / "weft", NATS_URL=nats.url) as running:
        asked = await client.until(running, "approval_required")
        await running.kill()
        await asyncio.sleep(2.5)
        await running.start()
        state = await state_of(running, session)
        assert state.active_turn.status == session_pb2.TURN_STATUS_WAITING_APPROVAL
        assert tools.calls(session) == []
        decision = turn_service_pb2.DecideApprovalRequest(
            name=client.turn,
            call_id=asked.approval_required.call.id,
            approved=True,
            request_id=new_id(),
        )
        for _ in range(2):
            await running.turns.DecideApproval(decision, timeout=CALL_SECONDS_MAX)
        await client.run(running)
        assert client.kinds[-1] == "completed"
        assert tools.effects(session) == [1]
        await check(running, client)
        decision.approved = False
        with pytest.raises(grpc.aio.AioRpcError) as reused:
            await running.turns.DecideApproval(decision, timeout=CALL_SECONDS_MAX)
        assert reused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_at_sigterm_a_turn_is_ended_if_it_ends_soon(
    doomed: Platform, survivor: Platform
) -> None:
    client = TurnClient(await new_session(survivor), plan(writing(seconds=1.0)))
    following = asyncio.create_task(client.run(doomed))
    await until(lambda: bool(client.events))
    doomed.signal(signal.SIGTERM)
    await following
    assert client.kinds == ["accepted", "model_step", "completed"]
    assert await doomed.gone() == 0
    await check(survivor, client)


@pytest.mark.parametrize("cancel_on_disconnect", [False, True])
async def test_at_sigterm_a_long_turn_is_left_to_the_next_instance(
    cancel_on_disconnect: bool, tmp_path: Path, nats: NatsServer, survivor: Platform
) -> None:
    impatient = {"WEFT_RUNTIME_GRACE_SECONDS": "0.3", "WEFT_AGENTS_DRAIN_SECONDS": "0.3"}
    client = TurnClient(
        await new_session(survivor),
        plan(writing(seconds=3.0)),
        cancel_on_disconnect=cancel_on_disconnect,
    )
    async with one_process(tmp_path / "weft", NATS_URL=nats.url, **impatient) as leaving:
        following = asyncio.create_task(client.run(leaving))
        await until(lambda: bool(client.events))
        leaving.signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as cut_off:
            await following
        assert cut_off.value.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
        )
        assert await leaving.gone() == 0
    await client.run(survivor)
    assert client.kinds[-1] == "completed"
    assert "resumed" in client.kinds
    await check(survivor, client)


async def test_a_turn_whose_model_is_away_for_good_fails_with_the_reason(
    survivor: Platform,
) -> None:
    agent = await survivor.apply(
        f"bot-{new_id()}", agent_pb2.AgentSpec(model="nobody/has-this-model")
    )
    client = TurnClient(await survivor.session(agent), "what?")
    await client.run(survivor)
    assert client.kinds == ["accepted", "failed"]
    assert client.events[-1].failed.error.reason == errors_pb2.REASON_INVALID_FIELD
    await check(survivor, client)
