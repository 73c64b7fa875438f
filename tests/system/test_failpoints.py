"""A process that dies at any named place of a turn: the next one ends the turn.

The places aren't listed by hand: a turn that nothing happens to shows its commits and
tool calls, and each of them is a place to die before, at and after it.
"""

import asyncio
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.support.grpc_server import serving
from tests.support.ledger_server import LEDGER, Ledger, effects_by_key
from tests.support.ledger_tools import credit, register_credit
from tests.support.plans import plan
from tests.support.platform import Platform, one_process
from tests.support.stored_session import (
    fact_of,
    faults_of_session,
    faults_of_view,
    state_of,
    stored_events,
)
from tests.support.turn_client import TurnClient, kind_of
from weft.agents.v1 import agent_pb2, turn_pb2, turn_service_pb2
from weft.errors.v1 import errors_pb2
from weft.options.v1 import options_pb2
from weft.state.v1 import events_pb2

LANES = 3
"""Platforms that die at the same time, so that one's start fills another's wait."""
RESUME_SECONDS_MAX = 30.0
CALL_SECONDS_MAX = 10.0
TOOL_SECONDS = 1
EFFECTS = {
    "credit": options_pb2.EFFECT_IDEMPOTENT,
    "debit": options_pb2.EFFECT_IRREVERSIBLE,
}
LONG_TEXT = "what was said before and fills the context " * 80
SUM = {"tool": "calculator", "arguments": {"expression": "6 * 7"}}


@dataclass(frozen=True)
class Kind:
    """A turn, as its model and its user make it."""

    steps: Sequence[dict[str, Any]]
    effects: int = 0
    """Effects that it has in the ledger."""
    approved: str = ""
    """The tool whose calls the user must approve."""
    cancelled: bool = False
    """The user cancels it once the model has begun to write."""
    earlier_texts: Sequence[str] = ()
    limits: agent_pb2.Limits = field(default_factory=agent_pb2.Limits)
    end: str = "completed"
    irreversible: bool = False
    commit: str = "ToolCallCompleted"
    """What it commits that makes it this kind of turn."""


ANSWER = {"text": "It is done.", "tokens": 3}
KINDS = {
    "a read tool": Kind([{"calls": [SUM]}, ANSWER]),
    "an idempotent tool": Kind([{"calls": [credit("credit")]}, ANSWER], effects=1),
    "an irreversible tool": Kind(
        [{"calls": [credit("debit")]}, ANSWER],
        effects=1,
        irreversible=True,
        commit="ToolCallStarted",
    ),
    "two tools at once": Kind([{"calls": [SUM, credit("credit")]}, ANSWER], effects=1),
    "an approval": Kind(
        [{"calls": [credit("credit")]}, ANSWER],
        effects=1,
        approved="credit",
        commit="ApprovalDecided",
    ),
    "a compaction": Kind(
        [{"calls": [SUM]}, ANSWER],
        earlier_texts=[LONG_TEXT],
        limits=agent_pb2.Limits(context_tokens_max=1_000),
        commit="ContextCompacted",
    ),
    "a cancellation": Kind(
        [{"text": "one of very many words " * 10, "tokens": 40, "delay_seconds": 0.05}],
        cancelled=True,
        end="cancelled",
        commit="TurnCancelRequested",
    ),
}


@dataclass
class Lane:
    """A platform that dies again and again, its agent, and the ledger of its tools."""

    platform: Platform
    agent: str
    ledger: Ledger
    ledger_file: Path
    kind: Kind

    async def new_client(self) -> TurnClient:
        """A client in a session in which all but the turn has happened."""
        session = await self.platform.session(self.agent)
        for text in self.kind.earlier_texts:
            await TurnClient(session, text).run(self.platform)
        return TurnClient(session, plan(*self.kind.steps))

    async def drive(self, client: TurnClient) -> None:
        """Follows the turn to its end, and does what its user does. What was done before
        the connection was lost may not have arrived, so it is done again."""
        if client.events:
            await self._react(client, client.events[-1])
        async with aclosing(client.follow(self.platform)) as events:
            async for event in events:
                await self._react(client, event)

    async def _react(self, client: TurnClient, event: turn_pb2.TurnEvent) -> None:
        turns = self.platform.turns
        match kind_of(event):
            case "approval_required":
                decision = turn_service_pb2.DecideApprovalRequest(
                    name=client.turn,
                    call_id=event.approval_required.call.id,
                    approved=True,
                    request_id=f"approve-{client.request_id}",
                )
                await turns.DecideApproval(decision, timeout=CALL_SECONDS_MAX)
            case "token" if self.kind.cancelled:
                cancel = turn_service_pb2.CancelTurnRequest(name=client.turn, reason="enough")
                await turns.CancelTurn(cancel, timeout=CALL_SECONDS_MAX)
            case "in_doubt":
                await self._resolve(client, event.in_doubt.call.id)

    async def _resolve(self, client: TurnClient, call_id: str) -> None:
        """A person looks into the ledger, and says what is so as soon as it is taken."""
        done = bool(self.effects(client))
        resolution = events_pb2.RESOLUTION_COMPLETED if done else events_pb2.RESOLUTION_RETRY
        request = turn_service_pb2.ResolveInDoubtRequest(
            name=client.turn,
            call_id=call_id,
            resolution=resolution,
            content="it is in the ledger" if done else "",
        )
        while True:
            try:
                await self.platform.turns.ResolveInDoubt(request, timeout=CALL_SECONDS_MAX)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
                await asyncio.sleep(0.1)
            else:
                return

    def effects(self, client: TurnClient) -> Counter[str]:
        """The effects that the client's turn had, by idempotency key."""
        counted = effects_by_key(self.ledger_file)
        return Counter({key: n for key, n in counted.items() if key.startswith(client.session)})

    def calls(self, client: TurnClient) -> Counter[str]:
        """The calls that reached the ledger for the client's turn, by idempotency key."""
        counted = self.ledger.calls
        return Counter({key: n for key, n in counted.items() if key.startswith(client.session)})


@asynccontextmanager
async def lane(folder: Path, kind: Kind, **environment: str) -> AsyncIterator[Lane]:
    """A lane whose tools and agent are there."""
    ledger_file = folder.with_suffix(".ledger")
    ledger = Ledger(
        ledger_file,
        deduplicates=not kind.irreversible,
        # Results that land together share a commit; these never do.
        delay_before_seconds=0.2 if len(kind.steps[0].get("calls", ())) > 1 else 0,
    )
    async with (
        serving({LEDGER: ledger.handlers}) as address,
        # It is armed, dies and is started again by the test.
        one_process(folder, **environment) as running,
    ):
        for tool, effect in EFFECTS.items():
            await register_credit(running, tool, address, effect, TOOL_SECONDS)
        bindings = [
            agent_pb2.ToolBinding(tool=tool, requires_approval=tool == kind.approved)
            for tool in ("calculator", *EFFECTS)
        ]
        spec = agent_pb2.AgentSpec(tools=bindings, limits=kind.limits)
        yield Lane(running, await running.apply("bot", spec), ledger, ledger_file, kind)


async def failpoints_of(reference: Lane) -> list[str]:
    """The failpoints that a turn passes, from what it stored; each with its pass."""
    client = await reference.new_client()
    before = (await state_of(reference.platform, client.session)).revision
    await reference.drive(client)
    assert client.kinds[-1] == reference.kind.end
    passes: Counter[str] = Counter()
    found: list[str] = []

    def passed(*names: str) -> None:
        passes.update(names)
        found.extend(f"{name}@{passes[name]}" for name in names)

    position = 0
    for event in await stored_events(reference.platform, client.session, before):
        if event.position != position:
            commit = f"commit:{event.type.rsplit('.', 1)[1]}"
            passed(*(f"{commit}:{at}" for at in ("before_publish", "stored", "acknowledged")))
        position = event.position
        fact = fact_of(event)
        if isinstance(fact, events_pb2.ModelStepCompleted):
            for call in fact.message.tool_calls:
                passed(*(f"tool:{call.tool}:{at}" for at in ("before", "after")))
    return found


async def die_and_resume(lane: Lane, failpoint: str) -> float:
    """Lets the process die there and starts it again; returns the seconds from
    its death to the turn's end, and checks all that must hold by then."""
    client = await lane.new_client()
    await lane.platform.arm(failpoint)
    with pytest.raises(grpc.aio.AioRpcError) as lost:
        await lane.drive(client)
    assert lost.value.code() is grpc.StatusCode.UNAVAILABLE, lost.value
    assert await lane.platform.gone() == -signal.SIGKILL
    died = time.monotonic()
    async with asyncio.timeout(RESUME_SECONDS_MAX):
        await lane.platform.start()
        await lane.drive(client)
    seconds = time.monotonic() - died
    assert client.kinds[-1] == lane.kind.end
    assert await faults_of_session(lane.platform, client.session) == []
    assert await faults_of_view(lane.platform, client) == []
    check_effects(lane, client, failpoint)
    return seconds


def check_effects(lane: Lane, client: TurnClient, failpoint: str) -> None:
    """One effect per key; a call whose end wasn't recorded is repeated with its key if
    that may be, and else left to a person."""
    assert list(lane.effects(client).values()) == [1] * lane.kind.effects
    calls = list(lane.calls(client).values())
    unrecorded = re.match("tool:(credit|debit):after|commit:ToolCallCompleted:before", failpoint)
    if lane.kind.irreversible:
        in_doubt = unrecorded or re.match(
            "tool:debit:before|commit:ToolCallStarted:(stored|acknowledged)", failpoint
        )
        assert client.kinds.count("in_doubt") == bool(in_doubt)
        assert calls == [1]
    elif len(lane.kind.steps[0].get("calls", ())) > 1:
        # It may have been under way when the process died beside the other call.
        assert calls in ([1], [2])
    elif lane.kind.effects:
        assert calls == [2 if unrecorded else 1]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_a_turn_outlives_its_process_wherever_that_dies(kind: Kind, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        lanes = await asyncio.gather(
            *(
                stack.enter_async_context(lane(tmp_path / f"lane{number}", kind))
                for number in range(LANES)
            )
        )
        failpoints = await failpoints_of(lanes[0])
        assert f"commit:{kind.commit}:stored@1" in failpoints
        seconds: dict[str, float] = {}

        async def work(lane: Lane, names: Sequence[str]) -> None:
            for name in names:
                seconds[name] = await die_and_resume(lane, name)

        await asyncio.gather(*(work(each, failpoints[n::LANES]) for n, each in enumerate(lanes)))
        assert len(seconds) == len(failpoints)
    slowest = max(seconds, key=lambda name: seconds[name])
    median = sorted(seconds.values())[len(seconds) // 2]
    print(
        f"{len(seconds)} failpoints; from a death over the next start to the turn's end: "
        f"median {median:.2f} s, at most {seconds[slowest]:.2f} s ({slowest})"
    )


async def test_a_turn_that_kills_its_process_at_every_start_fails_after_its_bound(
    tmp_path: Path,
) -> None:
    kind = KINDS["an idempotent tool"]
    async with lane(tmp_path / "platform", kind, WEFT_AGENTS_RESUMES_MAX="2") as dying:
        client = await dying.new_client()
        await dying.platform.arm("tool:credit:before")
        for _ in range(3):
            # Where it died before it was ready, there is no channel.
            with pytest.raises((grpc.aio.AioRpcError, AssertionError)):
                await dying.drive(client)
            assert await dying.platform.gone() == -signal.SIGKILL
            with suppress(AssertionError):
                await dying.platform.start(WEFT_FAILPOINTS="tool:credit:before")
        async with asyncio.timeout(RESUME_SECONDS_MAX):
            await dying.drive(client)
        assert client.kinds.count("resumed") == 2
        error = client.events[-1].failed.error
        assert error.reason == errors_pb2.REASON_LIMIT_EXCEEDED
        assert "died 3 times" in error.message
        assert await faults_of_session(dying.platform, client.session) == []
        assert not dying.effects(client)
