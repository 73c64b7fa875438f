"""Runs rounds of chaos; the last line on stdout is a summary in JSON."""

import argparse
import asyncio
import json
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from tests.chaos.harm import HARMS, LIKELIHOODS
from tests.chaos.load import Request, effects_in, new_requests, new_sessions
from tests.chaos.world import World, world
from tests.support.configuration import use_own_configuration
from tests.support.stored_session import Fault, faults_of_session, faults_of_view

QUIET_SECONDS_MAX = 0.4
"""How long a round's load runs at most before it is harmed."""
ROUND_SECONDS_MAX = 30.0
"""A turn that hasn't ended by then is stuck."""
LOG_LINES = 50
SESSION_ROUNDS = 20
"""Rounds for which sessions are used: enough for their snapshots to be taken."""


@dataclass
class Tally:
    """What the rounds came to."""

    rounds: int = 0
    acknowledged: int = 0
    """Commits that clients saw acknowledged."""
    turns: int = 0
    faults: list[Fault] = field(default_factory=list)
    resumed_seconds: list[float] = field(default_factory=list)

    def count(self, requests: list[Request], healing: float) -> None:
        """Takes a round's turns that have ended. Those that were open when the harm was
        over were resumed when their next event came."""
        for request in requests:
            self.turns += 1
            self.acknowledged += len({event.offset.revision for event in request.client.events})
            if request.seen_times[-1] > healing:
                after = next(seen for seen in request.seen_times if seen > healing)
                self.resumed_seconds.append(after - healing)

    def summary(self, seed: int) -> dict[str, object]:
        """For programs."""
        kinds = Counter(fault.kind for fault in self.faults)
        seconds = self.resumed_seconds or [0.0]
        return {
            "rounds": self.rounds,
            "turns": self.turns,
            "acknowledged": self.acknowledged,
            "lost": kinds["lost"],
            "doubled": kinds["doubled"],
            "stuck": kinds["open"],
            "differing": kinds["differs"],
            "resumed_within_seconds": {
                "p50": round(statistics.median(seconds), 3),
                "max": round(max(seconds), 3),
            },
            "seed": seed,
        }


async def run_round(world: World, sessions: list[str], chance: random.Random, tally: Tally) -> str:
    """One round: load, harm, and when all turns have ended, what must hold. Returns what
    was done."""
    requests = new_requests(sessions, chance)
    running = [asyncio.create_task(request.run(world)) for request in requests]
    await asyncio.sleep(chance.uniform(0.0, QUIET_SECONDS_MAX))
    (name,) = chance.choices(list(HARMS), LIKELIHOODS)
    healing = await HARMS[name](world, chance)
    _, stuck = await asyncio.wait(running, timeout=ROUND_SECONDS_MAX)
    for task in stuck:
        task.cancel()
    faults = []
    for request, task in zip(requests, running, strict=True):
        if task in stuck:
            faults.append(Fault("open", f"{request.client.turn}: {request.client.kinds}"))
        elif isinstance(error := task.exception(), grpc.aio.AioRpcError):
            faults.append(Fault("differs", f"{request.client.session}: {error.details()}"))
        else:
            task.result()
    if not faults:
        tally.count(requests, healing)
        try:
            faults = await faults_of_round(world, requests)
        except grpc.aio.AioRpcError as error:
            faults = [Fault("differs", f"after {name}: {error.details()}")]
    tally.faults += faults
    tally.rounds += 1
    return name


async def faults_of_round(world: World, requests: list[Request]) -> list[Fault]:
    """What doesn't hold once all turns have ended, on any instance."""
    counted = effects_in(world)
    faults = [fault for request in requests for fault in request.faults(counted)]
    for instance in world.instances:
        for request in requests:
            faults += await faults_of_view(instance, request.client)
        for session in {request.client.session for request in requests}:
            faults += await faults_of_session(instance, session)
    return faults


async def run(rounds: int, seed: int) -> Tally:
    """All rounds in one world; stops at the first one with a fault."""
    chance, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory(prefix="weft-chaos-") as folder:
        async with world(Path(folder)) as harmed:
            sessions: list[str] = []
            for number in range(1, rounds + 1):
                if number % SESSION_ROUNDS == 1:
                    sessions = await new_sessions(harmed)
                began, before = time.monotonic(), len(tally.resumed_seconds)
                name = await run_round(harmed, sessions, chance, tally)
                seconds = time.monotonic() - began
                resumed = max(tally.resumed_seconds[before:], default=0.0)
                line = f"round {number}: {name}; {seconds:.1f} s, resumed within {resumed:.2f} s"
                print(line, file=sys.stderr, flush=True)
                if tally.faults:
                    show(tally.faults, harmed)
                    break
    return tally


def show(faults: list[Fault], world: World) -> None:
    """What is wrong, and what the instances logged last."""
    for fault in faults:
        print(f"{fault.kind}: {fault.what}", file=sys.stderr)
    for instance in world.instances:
        lines = instance.log_file.read_text().splitlines()
        print(*lines[-LOG_LINES:], sep="\n", file=sys.stderr)


def main() -> int:
    """0 where all held."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, help="a random one where it isn't given")
    options = parser.parse_args()
    seed = secrets.randbits(32) if options.seed is None else options.seed
    use_own_configuration()
    tally = asyncio.run(run(options.rounds, seed))
    print(json.dumps(tally.summary(seed)))
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
