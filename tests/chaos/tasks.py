"""Runs rounds of chaos with tasks: `python -m tests.chaos.tasks`. Whatever is harmed, every
accepted task has exactly one end, on every instance and in the log; no attempt is begun twice.
The last line on stdout is a summary in JSON."""

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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from tests.chaos import harm
from tests.chaos.task_world import (
    TASKS,
    TaskWorld,
    Wanted,
    kill_worker,
    stop_worker,
    task_world,
)
from tests.support.config_home import config_home
from tests.support.scheduling import Scheduling
from tests.support.stored_session import Fault
from tests.support.task_log import ends_behind

QUIET_SECONDS_MAX = 0.3
ROUND_SECONDS_MAX = 60.0
"""A task that hasn't ended by then is stuck."""
LOG_LINES = 50
CHECK_ROUNDS = 20
"""Rounds between two countings of the log."""

Harm = Callable[[TaskWorld, random.Random], Awaitable[float]]
HARMS: dict[str, Harm] = {
    "kill a worker": kill_worker,
    "stop a worker": stop_worker,
    **harm.HARMS,
}
LIKELIHOODS = (4, 2, *harm.LIKELIHOODS)


@dataclass
class Tally:
    """What the rounds came to."""

    rounds: int = 0
    tasks: int = 0
    attempts: int = 0
    harmed: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    served_seconds: list[float] = field(default_factory=list)
    """From where a harm was over to the next task's end."""

    def summary(self, seed: int) -> dict[str, object]:
        """For programs."""
        kinds = Counter(fault.kind for fault in self.faults)
        seconds = self.served_seconds or [0.0]
        return {
            "rounds": self.rounds,
            "tasks": self.tasks,
            "attempts": self.attempts,
            "lost": kinds["lost"],
            "doubled": kinds["doubled"],
            "stuck": kinds["open"],
            "differing": kinds["differs"],
            "served_within_seconds": {
                "p50": round(statistics.median(seconds), 3),
                "max": round(max(seconds), 3),
            },
            "harmed": dict(self.harmed),
            "seed": seed,
        }


class LogCount:
    """Counts the ends of tasks in the log, each stretch of it once."""

    def __init__(self) -> None:
        self._ends: Counter[str] = Counter()
        self._position = 0

    async def faults(self, world: TaskWorld, names: list[str]) -> list[Fault]:
        """Of all tasks so far, those that don't have exactly one end."""
        fresh, self._position = await ends_behind(world.instances[0], self._position)
        self._ends += fresh
        found = []
        for name in names:
            count = self._ends[name.rpartition("/")[2]]
            if count != 1:
                found.append(Fault("doubled" if count else "lost", f"{name} has {count} ends"))
        if len(set(names)) != len(names):
            found.append(Fault("doubled", "two requests share a task"))
        known = {name.rpartition("/")[2] for name in names}
        unknown = [Fault("differs", f"nobody knows {task}") for task in self._ends.keys() - known]
        return found + unknown


async def run_round(
    world: TaskWorld, wanted: list[Wanted], chance: random.Random, tally: Tally
) -> str:
    """One round: load, harm, and when all tasks have ended, what must hold. Returns what was
    done."""
    running = [asyncio.create_task(each.run(world)) for each in wanted]
    await asyncio.sleep(chance.uniform(0.0, QUIET_SECONDS_MAX))
    (name,) = chance.choices(list(HARMS), LIKELIHOODS)
    healing = await HARMS[name](world, chance)
    _, stuck = await asyncio.wait(running, timeout=ROUND_SECONDS_MAX)
    for task in stuck:
        task.cancel()
    for each, task in zip(wanted, running, strict=True):
        if task in stuck:
            tally.faults.append(Fault("open", f"{each.name or each}"))
        elif isinstance(error := task.exception(), grpc.aio.AioRpcError):
            tally.faults.append(Fault("differs", f"{each.name}: {error.code()} {error.details()}"))
        elif error is not None:
            raise error
        elif fault := each.fault():
            tally.faults.append(Fault("differs", fault))
    later = [each.ended_time - healing for each in wanted if each.ended_time > healing]
    if later:
        tally.served_seconds.append(min(later))
    tally.harmed[name] += 1
    tally.rounds += 1
    tally.tasks += len(wanted)
    return name


async def faults_of_views(world: TaskWorld, wanted: list[Wanted]) -> list[Fault]:
    """Tasks that an instance shows in another way than their clients saw them."""
    faults = []
    for instance in world.instances:
        for each in wanted:
            shown, ended = await Scheduling(instance).get(each.name), each.ended
            assert ended is not None
            if (shown.state, shown.result) != (ended.state, ended.result):
                faults.append(Fault("differs", f"{instance.data_dir.name} shows {shown}"))
    return faults


def faults_of_attempts(world: TaskWorld, tally: Tally) -> list[Fault]:
    """Attempts that were begun more than once."""
    ran = world.workers.ran()
    tally.attempts = sum(ran.values())
    return [Fault("doubled", f"{what} was begun {n} times") for what, n in ran.items() if n > 1]


async def run(rounds: int, seed: int) -> Tally:
    """All rounds in one world; stops at the first one with a fault."""
    chance, tally, log = random.Random(seed), Tally(), LogCount()
    names: list[str] = []
    with tempfile.TemporaryDirectory(prefix="weft-chaos-") as folder:
        async with task_world(Path(folder)) as world:
            for number in range(1, rounds + 1):
                began, before = time.monotonic(), len(tally.served_seconds)
                wanted = [Wanted.of(number * TASKS + n, chance) for n in range(TASKS)]
                done = await run_round(world, wanted, chance, tally)
                names += [each.name for each in wanted]
                if not tally.faults:
                    tally.faults += await faults_of_views(world, wanted)
                    tally.faults += faults_of_attempts(world, tally)
                if not tally.faults and (number % CHECK_ROUNDS == 0 or number == rounds):
                    tally.faults += await log.faults(world, names)
                served = max(tally.served_seconds[before:], default=0.0)
                seconds = time.monotonic() - began
                line = f"round {number}: {done}; {seconds:.1f} s, served within {served:.2f} s"
                print(line, file=sys.stderr, flush=True)
                if tally.faults:
                    show(tally.faults, world)
                    break
    return tally


def show(faults: list[Fault], world: TaskWorld) -> None:
    """What is wrong, and what the instances logged last."""
    for fault in faults:
        print(f"{fault.kind}: {fault.what}", file=sys.stderr)
    for instance in world.instances:
        lines = instance.log_file.read_text().splitlines()
        print(*lines[-LOG_LINES:], sep="\n", file=sys.stderr)


def main() -> int:
    """0 where all held."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.tasks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, help="a random one where it isn't given")
    options = parser.parse_args()
    seed = secrets.randbits(32) if options.seed is None else options.seed
    with config_home():
        tally = asyncio.run(run(options.rounds, seed))
    print(json.dumps(tally.summary(seed)))
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
