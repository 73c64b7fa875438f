"""Turns of one process against those of two, as `weft up --processes 2` starts them: each on a
nats-server of its own, under the same load, in turns. They, NATS and the clients share the
machine's cores, so that two processes can't do twice as much where there are two."""

import contextlib
import tempfile
from pathlib import Path

from tests.benchmarks.measure import alternate
from tests.benchmarks.raw_nats import connected
from tests.benchmarks.results import Baseline, Result
from tests.benchmarks.turn import CLIENT_PROCESSES, CLIENTS, Turns
from tests.support.nats import running_nats
from tests.support.platform import Platform
from tests.support.processes import running
from weft.agents.v1 import agent_pb2

ROUNDS = 7
PROCESSES = 2


async def run() -> list[Result]:
    """The results of the rounds."""
    async with contextlib.AsyncExitStack() as stack:
        variants = {
            str(count): (await _turns(stack, count)).many_per_second for count in (1, PROCESSES)
        }
        await alternate(1, variants)
        values = await alternate(ROUNDS, variants)
    return [
        Result(
            f"turns, {CLIENTS} clients, {PROCESSES} processes",
            "/s",
            values[str(PROCESSES)],
            Baseline("/s, 1 process", values["1"]),
        )
    ]


async def _turns(stack: contextlib.AsyncExitStack, processes: int) -> Turns:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    nats = await stack.enter_async_context(running_nats(folder))
    raw = await stack.enter_async_context(connected(nats.url))
    weft = Platform(folder / "weft", {"NATS_URL": nats.url}, split=False, processes=processes)
    stack.push_async_callback(weft.kill)
    await weft.start()
    clients = []
    for _ in range(CLIENT_PROCESSES):
        # The system spreads connections over the processes: each client has one.
        program = ("tests.benchmarks.turn_client", weft.addresses["grpc"], CLIENTS)
        client = await stack.enter_async_context(running(*program))
        assert client.stdin is not None
        client.stdin.write(f"{weft.key}\n".encode())
        clients.append(client)
    spec = agent_pb2.AgentSpec(tools=[agent_pb2.ToolBinding(tool="calculator")])
    return Turns(weft, await weft.apply("bench", spec), clients, raw)
