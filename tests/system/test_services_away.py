"""A turn whose models and tools run in a process that isn't there for a while."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.catalog import CATALOGUE
from tests.support.eventually import eventually
from tests.support.grpc_server import serving
from tests.support.ledger_server import LEDGER, Ledger, effects_by_key
from tests.support.ledger_tools import credit, register_credit
from tests.support.nats import running_nats
from tests.support.plans import plan, writing
from tests.support.platform import Platform
from tests.support.turn_client import TurnClient
from weft.agents.v1 import agent_pb2
from weft.options.v1 import options_pb2

pytestmark = pytest.mark.timeout(180)
BEHIND = ("models", "tools")
AWAY_SECONDS = 6.0
"""Longer than a call waits by itself for somebody to serve it."""
SLOW_SECONDS = 1.5


@dataclass
class Parts:
    """A deployment of two processes, and what the tool did."""

    front: Platform
    behind: Platform
    ledger: Path
    session: str

    async def away(self) -> None:
        """The process behind dies, and comes back after a while."""
        await self.behind.kill()
        await asyncio.sleep(AWAY_SECONDS)
        await self.behind.start()


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    ledger = tmp_path / "ledger"
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(running_nats(tmp_path))
        slow = Ledger(ledger, deduplicates=True, delay_after_seconds=SLOW_SECONDS)
        address = await stack.enter_async_context(serving({LEDGER: slow.handlers}))
        front_serves = [entry.name for entry in CATALOGUE if entry.name not in BEHIND]
        both = []
        for name, serves in (("front", front_serves), ("behind", BEHIND)):
            environment = {"NATS_URL": nats.url}
            weft = Platform(tmp_path / name, environment, split=False, serves=serves)
            stack.push_async_callback(weft.kill)
            await weft.start()
            both.append(weft)
        front, behind = both
        await register_credit(front, "credit", address, options_pb2.EFFECT_IDEMPOTENT, 30)
        spec = agent_pb2.AgentSpec(tools=[agent_pb2.ToolBinding(tool="credit")])
        agent = await front.apply("clerk", spec)
        yield Parts(front, behind, ledger, await front.session(agent))


async def before(turn: TurnClient, parts: Parts) -> None:
    """Nothing was asked of the process yet."""


async def writes(turn: TurnClient, parts: Parts) -> None:
    """Its model is about to write."""
    await turn.until(parts.front, "token")


async def acts(turn: TurnClient, parts: Parts) -> None:
    """Its tool has done what it does, and hasn't answered."""
    running = asyncio.create_task(turn.run(parts.front))
    await eventually(lambda: bool(effects_by_key(parts.ledger)), seconds=30)
    running.cancel()
    await asyncio.wait({running})


@pytest.mark.parametrize(("until", "resumed"), [(before, False), (writes, True), (acts, False)])
async def test_a_turn_goes_on_once_they_are_back(
    parts: Parts, until: Callable[[TurnClient, Parts], Awaitable[None]], resumed: bool
) -> None:
    steps = [{**writing(seconds=2), "calls": [credit("credit")]}, {"text": "It is done."}]
    turn = TurnClient(parts.session, plan(*steps))
    await until(turn, parts)
    away = asyncio.create_task(parts.away())
    await turn.run(parts.front)
    await away
    assert turn.kinds[-1] == "completed", turn.events[-1]
    assert ("resumed" in turn.kinds) == resumed
    assert turn.text.endswith("It is done.")
    assert "<gap>" not in turn.text
    assert list(effects_by_key(parts.ledger).values()) == [1]
