"""Durable turns over the wire: model, tool, model, with a model that answers at once.

Weft runs in a process of its own on a real nats-server that writes every message to the
disk before it acknowledges it; the clients are processes of their own too. The baseline is
what the log alone costs: four messages in a row with nats-py, as many as a turn's commits.
"""

import asyncio
import contextlib
import json
import statistics
import tempfile
from asyncio.subprocess import Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import alternate, median_ms, per_second
from tests.benchmarks.raw_nats import RawNats, connected
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.nats import running_nats
from tests.support.platform import Platform, platform
from tests.support.processes import line_of, running
from weft.agents.v1 import agent_pb2

ROUNDS = 7
CLIENTS = 16
CLIENT_PROCESSES = 2
COMMITS_PER_TURN = 4
COMMIT_BYTES = 700
EARLIER_TURNS = 100
QUESTION = json.dumps(
    {
        "steps": [
            {"calls": [{"tool": "calculator", "arguments": {"expression": "17 * 23"}}]},
            {"text": "It is 391."},
        ]
    }
)
STREAMED = json.dumps({"steps": [{"text": "It is 391, as anybody may count.", "tokens": 16}]})


class Turns:
    """The platform under load. Each method measures once."""

    def __init__(self, weft: Platform, agent: str, clients: list[Process], raw: RawNats) -> None:
        self._weft = weft
        self._agent = agent
        self._clients = clients
        self._raw = raw
        self.fresh_ms: list[float] = []
        self._old_session = ""

    async def prepare(self) -> None:
        """Makes the session with earlier turns; warms up what is measured."""
        self._old_session = await self._weft.session(self._agent)
        await self._job(self._clients[0], [[self._old_session]], turns_max=EARLIER_TURNS)
        await self.many_per_second()

    async def one_ms(self) -> float:
        """A turn of a fresh session, one client."""
        session = await self._weft.session(self._agent)
        done = await self._job(self._clients[0], [[session]], turns_max=60)
        return _median_ms(done["times"][0])

    async def old_ms(self) -> float:
        """A turn of the old session, taking turns with a fresh one; see `fresh_ms`."""
        fresh = await self._weft.session(self._agent)
        done = await self._job(self._clients[0], [[fresh, self._old_session]], turns_max=40)
        self.fresh_ms.append(_median_ms(done["times"][0][0::2]))
        return _median_ms(done["times"][0][1::2])

    async def first_token_ms(self) -> float:
        """From the request to the first token of a streamed answer."""
        session = await self._weft.session(self._agent)
        done = await self._job(
            self._clients[0], [[session]], turns_max=40, question=STREAMED, until="token"
        )
        return _median_ms(done["times"][0])

    async def many_per_second(self) -> float:
        """Turns of 16 clients, each with a session of its own."""
        sessions = [[await self._weft.session(self._agent)] for _ in range(CLIENTS)]
        shares = [sessions[start::CLIENT_PROCESSES] for start in range(CLIENT_PROCESSES)]
        done = await asyncio.gather(
            *(
                self._job(client, share, turns_max=10_000, seconds_max=1.5)
                for client, share in zip(self._clients, shares, strict=True)
            )
        )
        rates: list[float] = [sum(map(len, each["times"])) / each["seconds"] for each in done]
        return sum(rates)

    async def raw_ms(self) -> float:
        """The messages of a turn, without a turn."""
        return await median_ms(self._raw_turn(0), 60)

    async def raw_one_ms(self) -> float:
        """One message."""
        return await median_ms(lambda: self._raw.publish("0", bytes(COMMIT_BYTES)), 60)

    async def raw_many_per_second(self) -> float:
        """The messages of turns of 16 clients."""
        return await per_second([self._raw_turn(client) for client in range(CLIENTS)], 30)

    def _raw_turn(self, client: int) -> Any:
        async def publish() -> None:
            for _ in range(COMMITS_PER_TURN):
                await self._raw.publish(str(client), bytes(COMMIT_BYTES))

        return publish

    async def _job(
        self,
        client: Process,
        workers: Sequence[Sequence[str]],
        *,
        turns_max: int,
        seconds_max: float = 10.0,
        question: str = QUESTION,
        until: str = "completed",
    ) -> Any:
        job = {
            "workers": workers,
            "question": question,
            "turns_max": turns_max,
            "seconds_max": seconds_max,
            "until": until,
        }
        assert client.stdin is not None
        client.stdin.write(json.dumps(job).encode() + b"\n")
        return json.loads(await line_of(client))


def _median_ms(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1e3


async def run() -> list[Result]:
    """The results of the rounds."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nats = await stack.enter_async_context(running_nats(folder))
        raw = await stack.enter_async_context(connected(nats.url))
        weft = await stack.enter_async_context(platform(folder / "weft", NATS_URL=nats.url))
        clients = [
            await stack.enter_async_context(
                running("tests.benchmarks.turn_client", weft.addresses["grpc"])
            )
            for _ in range(CLIENT_PROCESSES)
        ]
        for client in clients:
            assert client.stdin is not None
            client.stdin.write(f"{weft.key}\n".encode())
        spec = agent_pb2.AgentSpec(tools=[agent_pb2.ToolBinding(tool="calculator")])
        turns = Turns(weft, await weft.apply("bench", spec), clients, raw)
        await turns.prepare()
        variants = {
            "raw": turns.raw_ms,
            "one": turns.one_ms,
            "raw one": turns.raw_one_ms,
            "token": turns.first_token_ms,
            "raw many": turns.raw_many_per_second,
            "many": turns.many_per_second,
            "old": turns.old_ms,
        }
        values = await alternate(ROUNDS, variants)
    return [
        Result(
            "turn, 1 client, p50",
            "ms",
            values["one"],
            Baseline("ms, its 4 messages by nats-py", values["raw"]),
            Goal(5, at_most=True),
        ),
        Result(
            "turns, 16 clients",
            "/s",
            values["many"],
            Baseline("/s, their 4 messages by nats-py", values["raw many"]),
            Goal(400, at_most=False),
        ),
        Result(
            f"turn after {EARLIER_TURNS} turns, p50",
            "ms",
            values["old"],
            Baseline("ms, in a fresh session", turns.fresh_ms),
            Goal(1.2, at_most=True, of_ratio=True),
        ),
        Result(
            "turn, time to first token, p50",
            "ms",
            values["token"],
            Baseline("ms, one message by nats-py", values["raw one"]),
        ),
    ]
