"""Faults under load in a deployment of many processes: `python -m tests.chaos.mesh`.

A client calls a read all the time, by way of two gateways, while processes behind them are
killed, stopped and restarted. The last line on stdout is what was seen, as JSON; it exits 1
where a call failed or a turn was lost, done twice or stuck. How quick it was is reported,
and depends on the machine.
"""

import argparse
import asyncio
import json
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from mesh.rpc.channel import MESH_TARGET
from mesh.rpc.retries import BUDGET_SECONDS
from tests.chaos.__main__ import faults_of_round
from tests.chaos.load import Request, new_requests, new_sessions
from tests.chaos.mesh_world import Load, MeshWorld, calls_of, mesh_world
from tests.support import stored_session
from tests.support.config_home import config_home
from tests.support.platform import Platform
from tests.support.weft_up import weft

CLIENT_PER_SECOND = 100.0
"""Calls of a client beside the one that loads the gateways."""
FRESH_PER_SECOND = 10.0
QUIET_SECONDS = 0.5
STOPPED_SECONDS = 3.0
BACK_SECONDS_MAX = 30.0
TURN_SECONDS_MAX = 60.0
BACKENDS = ("control", "tools", "work")

Seen = dict[str, Any]
Fault = Callable[[MeshWorld, Load], Awaitable[Seen]]


async def kill_backends(world: MeshWorld, load: Load, rounds: int) -> Seen:
    """SIGKILL of one process after the other; each is started again at once."""
    await load.lap()
    for _ in range(rounds):
        for process in chain(*(world.parts[part] for part in BACKENDS)):
            await process.kill()
            await asyncio.sleep(QUIET_SECONDS)
            await process.start()
    return await load.lap()


async def stop_backend(world: MeshWorld, load: Load, rounds: int) -> Seen:
    """SIGSTOP of one of the processes that answer, for a while."""
    seen = _seen()
    await load.lap()
    for number in range(rounds):
        process = world.parts["tools"][number % 2]
        process.signal(signal.SIGSTOP)
        await asyncio.sleep(STOPPED_SECONDS)
        process.signal(signal.SIGCONT)
        await asyncio.sleep(BUDGET_SECONDS)
        _add(seen, await load.lap())
    return seen


async def lose_zone(world: MeshWorld, load: Load, rounds: int) -> Seen:
    """SIGKILL of all backends of a zone, whose gateway calls them first, and what becomes of
    the calls until they are back."""
    seen, firsts, backs = _seen(), [], []
    own = [world.parts[part][0] for part in BACKENDS]
    async with world.client(world.parts["gateway"][0].addresses["grpc"]) as inside:
        await inside.start(CLIENT_PER_SECOND)
        for _ in range(rounds):
            await asyncio.sleep(QUIET_SECONDS)
            _add(seen, await inside.lap())
            lost = time.monotonic()
            await asyncio.gather(*(process.kill() for process in own))
            firsts.append(await _answer(inside, seen, lost))
            await own[0].start()
            await asyncio.gather(*(process.start() for process in own[1:]))
            backs.append(await _called_again(world.parts["tools"][0]))
        _add(seen, await inside.stop())
    _add(seen, await load.lap())
    return seen | {"first_answer_seconds": max(firsts), "back_after_seconds": max(backs)}


async def _called_again(process: Platform) -> float:
    """Seconds until a process that was started answers calls again."""
    began = time.monotonic()
    async with asyncio.timeout(BACK_SECONDS_MAX):
        while not await calls_of(process):  # noqa: ASYNC110 - another process counts them
            await asyncio.sleep(0.05)
    return time.monotonic() - began


async def restart_all(world: MeshWorld, load: Load, rounds: int, chance: random.Random) -> Seen:
    """SIGTERM of every process in turn, each started again before the next, while turns run."""
    seen = _seen()
    await load.lap()
    for number in range(rounds):
        for part, processes in world.parts.items():
            for process in processes:
                _add_turns(seen, await _restart(world, process, chance))
            lap = await load.lap()
            _add(seen, lap)
            _tell(f"restarts {number + 1}: {part}; {lap}")
    return seen


async def kill_with_turns(world: MeshWorld, load: Load, rounds: int, chance: random.Random) -> Seen:
    """SIGKILL of the processes that run turns."""
    seen = _seen()
    await load.lap()
    for number in range(rounds):
        process = world.parts["work"][number % 2]
        _add_turns(seen, await _restart(world, process, chance, kill=True))
    _add(seen, await load.lap())
    return seen


async def _restart(
    world: MeshWorld, process: Platform, chance: random.Random, *, kill: bool = False
) -> Seen:
    """Restarts one process while turns run. The turns' faults, and the longest time from its
    end to the next event of a turn that was open then."""
    requests = new_requests(await new_sessions(world.turns), chance)
    running = [asyncio.create_task(request.run(world.turns)) for request in requests]
    await asyncio.sleep(chance.uniform(0.0, 0.3))
    if kill:
        await process.kill()
    else:
        await process.stop()
    gone = time.monotonic()
    await process.start()
    _, stuck = await asyncio.wait(running, timeout=TURN_SECONDS_MAX)
    for task in stuck:
        task.cancel()
    done = [request for request, task in zip(requests, running, strict=True) if task not in stuck]
    for task in running:
        if task not in stuck:
            task.result()
    faults = [stored_session.Fault("open", f"{len(stuck)} turns")] if stuck else []
    faults += await faults_of_round(world.turns, done)
    return {
        "turns": len(requests),
        "faults": [f"{fault.kind}: {fault.what}" for fault in faults],
        "resumed_seconds": max((_pause(request, gone) for request in done), default=0.0),
    }


def _pause(request: Request, gone: float) -> float:
    """From a moment to the next event of a turn that was open at it; 0 where it wasn't."""
    return next(
        (after - gone for before, after in pairwise(request.seen_times) if before <= gone < after),
        0.0,
    )


async def lose_control_plane(world: MeshWorld, load: Load, seconds: float) -> Seen:
    """SIGKILL of the control plane that a client without Weft's code asks; one that comes
    later is served by the other."""
    printed = weft(
        *("mesh", "bootstrap", "--address", world.parts["gateway"][0].addresses["grpc"]),
        WEFT_API_KEY=world.turns.instances[0].key,
    )
    assert printed.code == 0, printed.err
    seen = _seen()
    await load.lap()
    async with world.client(MESH_TARGET, printed.out) as meshed:
        await meshed.start(CLIENT_PER_SECOND)
        await asyncio.sleep(QUIET_SECONDS)
        await world.parts["control"][0].kill()
        await asyncio.sleep(seconds / 2)
        async with world.client(MESH_TARGET, printed.out) as fresh:
            began = time.monotonic()
            await fresh.start(FRESH_PER_SECOND)
            first = await _answer(fresh, seen, began)
            _add(seen, await fresh.stop())
        await asyncio.sleep(seconds / 2)
        await world.parts["control"][0].start()
        await asyncio.sleep(QUIET_SECONDS)
        _add(seen, await meshed.stop())
    _add(seen, await load.lap())
    return seen | {"fresh_client_seconds": first}


async def _answer(load: Load, seen: Seen, since: float) -> float:
    """Seconds from a moment to the first answer after it."""
    async with asyncio.timeout(BACK_SECONDS_MAX):
        while True:
            await asyncio.sleep(0.05)
            lap = await load.lap(since=since)
            _add(seen, lap)
            if lap["first_seconds"] is not None:
                return float(lap["first_seconds"])


@asynccontextmanager
async def loaded(world: MeshWorld, per_second: float) -> AsyncIterator[Load]:
    """A client of the gateways that has called for a while. What they may try again is a share
    of the calls of the last ten seconds; and who calls first connects first."""
    async with world.client() as load:
        await load.start(per_second)
        await asyncio.sleep(BUDGET_SECONDS)
        lap = await load.lap()
        assert not lap["failed"], lap
        yield load


def _seen() -> Seen:
    return {"answered": 0, "failed": {}, "slowest_seconds": 0.0}


def _add(seen: Seen, lap: Seen) -> None:
    seen["answered"] += lap["answered"]
    seen["slowest_seconds"] = max(seen["slowest_seconds"], lap["slowest_seconds"])
    for failure, count in lap["failed"].items():
        seen["failed"][failure] = seen["failed"].get(failure, 0) + count


def _add_turns(seen: Seen, turns: Seen) -> None:
    seen["turns"] = seen.get("turns", 0) + turns["turns"]
    seen["faults"] = [*seen.get("faults", ()), *turns["faults"]]
    before = seen.get("resumed_within_seconds", 0.0)
    seen["resumed_within_seconds"] = max(before, turns["resumed_seconds"])


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def run(
    rounds: int, seconds: float, per_second: float, only: str, seed: int
) -> dict[str, Seen]:
    """All of it in one deployment; the restarts at half of the load."""
    chance = random.Random(seed)
    few = max(1, rounds // 5)
    faults: dict[str, tuple[float, Fault]] = {
        "backends killed": (1, lambda world, load: kill_backends(world, load, few)),
        "backend stopped": (1, lambda world, load: stop_backend(world, load, few)),
        "zone lost": (1, lambda world, load: lose_zone(world, load, few)),
        "control plane lost": (
            1,
            lambda world, load: lose_control_plane(world, load, seconds),
        ),
        "killed with turns": (
            0.5,
            lambda world, load: kill_with_turns(world, load, rounds, chance),
        ),
        "rolling restarts": (
            0.5,
            lambda world, load: restart_all(world, load, rounds, chance),
        ),
    }
    seen = {}
    with tempfile.TemporaryDirectory(prefix="weft-chaos-") as folder:
        async with mesh_world(Path(folder)) as world:
            for name, (share, fault) in faults.items():
                if only in name:
                    async with loaded(world, share * per_second) as load:
                        seen[name] = await fault(world, load)
                    _tell(f"{name}: {json.dumps(seen[name])}")
    return seen


def broken(seen: Sequence[Seen]) -> bool:
    """Whether a call failed or a turn has a fault."""
    return any(each["failed"] or each.get("faults") for each in seen)


def main() -> int:
    """0 where all held."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mesh", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="restarts of each process")
    parser.add_argument("--seconds", type=float, default=30.0, help="without a control plane")
    parser.add_argument("--per-second", type=float, default=400.0, help="calls of the client")
    parser.add_argument("--only", default="", help="part of the names of the faults")
    parser.add_argument("--seed", type=int, help="a random one where it isn't given")
    options = parser.parse_args()
    seed = secrets.randbits(32) if options.seed is None else options.seed
    with config_home():
        seen = asyncio.run(
            run(options.rounds, options.seconds, options.per_second, options.only, seed)
        )
    print(json.dumps({**seen, "seed": seed}))
    return 1 if broken(list(seen.values())) else 0


if __name__ == "__main__":
    sys.exit(main())
