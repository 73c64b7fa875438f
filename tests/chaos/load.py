"""What is asked of a world while it is harmed: turns with tools, some cancelled."""

import asyncio
import random
import time
from collections import Counter
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import grpc.aio

from tests.chaos.world import InstanceAway, World
from tests.support.ledger_server import effects_by_key
from tests.support.ledger_tools import credit
from tests.support.plans import plan
from tests.support.stored_session import Fault
from tests.support.turn_client import TurnClient
from weft.agents.v1 import turn_service_pb2
from weft.state.v1 import session_pb2

SESSIONS = 6
TURNS_MAX = 2
"""Turns that a session gets in a round; the second one waits behind the first."""
CANCELLED_SHARE = 0.1
STEP_TEXT = "let me see "
ANSWER = "it is done, and here is why"
CALL_SECONDS_MAX = 10.0
RETRY_SECONDS = 0.05
# What a client may meet when its server dies, stops or can't store.
_TRY_AGAIN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


@dataclass
class Request:
    """A turn and the client that follows it, on whatever instance answers."""

    client: TurnClient
    effects: int
    text: str
    """Effects that it has and what it writes in all its steps, if it isn't cancelled."""
    cancel_after_seconds: float | None
    seen_times: list[float] = field(default_factory=list)
    """When, on the monotonic clock, each of its events came."""

    async def run(self, world: World) -> None:
        """Follows the turn to its end. AioRpcError where it's refused."""
        cancelling = asyncio.create_task(self._cancel(world))
        try:
            while not self.client.ended:
                try:
                    async with aclosing(self.client.follow(world.any_instance())) as events:
                        async for _ in events:
                            self.seen_times.append(time.monotonic())
                except InstanceAway:
                    await asyncio.sleep(RETRY_SECONDS)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in _TRY_AGAIN:
                        raise
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            cancelling.cancel()

    async def _cancel(self, world: World) -> None:
        """Asks once; an answer that is lost isn't asked for again."""
        if self.cancel_after_seconds is None:
            return
        await asyncio.sleep(self.cancel_after_seconds)
        if self.client.turn:
            request = turn_service_pb2.CancelTurnRequest(name=self.client.turn, reason="chaos")
            with suppress(grpc.aio.AioRpcError, InstanceAway):
                turns = world.any_instance().turns
                await turns.CancelTurn(request, timeout=CALL_SECONDS_MAX)

    def faults(self, counted: Counter[str]) -> list[Fault]:
        """What is wrong with the turn's end, its text, and its effects in the ledger."""
        turn, end = self.client.turn, self.client.kinds[-1]
        own = {key: n for key, n in counted.items() if key.startswith(f"{turn}/")}
        what = f"{turn}: {sum(own.values())} effects under {len(own)} keys, not {self.effects}"
        if sum(own.values()) > self.effects:
            return [Fault("doubled", what)]
        if end == "cancelled" and self.cancel_after_seconds is not None:
            return []
        if end != "completed":
            return [Fault("differs", f"{turn}: {self.client.events[-1]}")]
        if sum(own.values()) < self.effects:
            return [Fault("lost", what)]
        if self.client.text != self.text:
            shown = "; ".join(str(event).replace("\n", " ") for event in self.client.events)
            return [Fault("differs", f"{turn}: was shown {self.client.text!r}: {shown}")]
        return []


def effects_in(world: World) -> Counter[str]:
    """The effects so far, by key."""
    return effects_by_key(world.ledger_file)


async def new_sessions(world: World) -> list[str]:
    """Sessions that take turns in while others run."""
    policy = session_pb2.SUBMIT_POLICY_ENQUEUE
    return [await world.instances[0].session(world.agent, policy) for _ in range(SESSIONS)]


def new_requests(sessions: list[str], chance: random.Random) -> list[Request]:
    """A round's turns."""
    return [
        new_request(session, chance)
        for session in sessions
        for _ in range(chance.randint(1, TURNS_MAX))
    ]


def new_request(session: str, chance: random.Random) -> Request:
    """A turn of one to three steps with tools, and an answer in a few tokens."""
    sums: dict[str, object] = {"tool": "calculator", "arguments": {"expression": "6 * 7"}}
    steps: list[dict[str, object]] = []
    effects = 0
    for _ in range(chance.randint(1, 3)):
        credited = chance.randint(0, 2)
        effects += credited
        calls = [credit("credit")] * credited
        calls += [sums] * chance.randint(0 if credited else 1, 2)
        steps.append({"calls": calls, "text": STEP_TEXT, "delay_seconds": chance.random() / 20})
    steps.append({"text": ANSWER, "tokens": 5, "delay_seconds": 0.01})
    cancelled = chance.random() < CANCELLED_SHARE
    return Request(
        TurnClient(session, plan(*steps)),
        effects,
        STEP_TEXT * (len(steps) - 1) + ANSWER,
        chance.uniform(0.05, 0.5) if cancelled else None,
    )
