"""A client of turns in a process of its own:
`python -m tests.benchmarks.turn_client ADDRESS [CONNECTIONS]`.

Its first line of input is the API key. It does the jobs that come as lines of JSON behind
it, and answers each with one line. Messages are
sent and taken as bytes, so that the client costs the machine little.
"""

import asyncio
import contextlib
import json
import sys
import time
from typing import Any

import grpc.aio
import uvloop

from tests.support.keyed import KeyedChannel
from weft.agents.v1 import turn_service_pb2

PATH = "/weft.agents.v1.TurnService/RunTurn"


async def serve(address: str, connections: int) -> None:
    """Does jobs until the end of its input, over so many connections.

    A job has `workers`, lists of sessions: each worker takes its sessions in rotation, one
    turn after the other, all workers at the same time; `question`; `turns_max` per worker,
    `seconds_max`; and `until`, `token` or `completed`: the event at which a turn's time
    ends. The answer has `seconds`, and by worker the `times` of its turns in seconds.
    """
    async with contextlib.AsyncExitStack() as stack:
        key = await asyncio.to_thread(sys.stdin.readline)
        run_turns = []
        for _ in range(connections):
            # Else they would be one.
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.insecure_channel(address, options=options)
            keyed: Any = KeyedChannel(await stack.enter_async_context(channel), key.strip())
            run_turns.append(keyed.unary_stream(PATH))
        while line := await asyncio.to_thread(sys.stdin.readline):
            job = json.loads(line)
            started = time.perf_counter()
            times = await asyncio.gather(
                *(
                    work(run_turns[number % connections], sessions, job, started)
                    for number, sessions in enumerate(job["workers"])
                )
            )
            seconds = time.perf_counter() - started
            print(json.dumps({"seconds": seconds, "times": times}), flush=True)


async def work(
    run_turn: Any, sessions: list[str], job: dict[str, Any], started: float
) -> list[float]:
    """The times of one worker's turns."""
    requests = [
        turn_service_pb2.RunTurnRequest(session=session, input=job["question"]).SerializeToString()
        for session in sessions
    ]
    times: list[float] = []
    while len(times) < job["turns_max"] and time.perf_counter() - started < job["seconds_max"]:
        times.append(await turn_seconds(run_turn, requests[len(times) % len(requests)], job))
    return times


async def turn_seconds(run_turn: Any, request: bytes, job: dict[str, Any]) -> float:
    """The time of one turn, which must complete."""
    reached, message = 0.0, b""
    started = time.perf_counter()
    async for message in run_turn(request, timeout=30):
        if job["until"] == "token" and not reached and "token" in kinds(message):
            reached = time.perf_counter()
    ended = time.perf_counter()
    assert kinds(message)[-1:] == ["completed"], message
    return (reached or ended) - started


def kinds(message: bytes) -> list[str | None]:
    """Which events a response carries."""
    response = turn_service_pb2.RunTurnResponse.FromString(message)
    return [event.WhichOneof("event") for event in response.events]


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 1))
