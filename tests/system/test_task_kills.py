"""Rounds of kills under load: whatever dies, each accepted task has exactly one result."""

import asyncio
import contextlib
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio

from tests.support.nats import NatsServer, running_nats
from tests.support.platform import TENANT, Platform, platform
from tests.support.processes import ROOT
from tests.support.scheduling import DEFAULT, Scheduling, spec
from weft.scheduler.v1 import events_pb2 as facts
from weft.scheduler.v1 import tasks_pb2
from weft.state.v1 import state_service_pb2
from weft.state.v1.state_service_pb2_grpc import StateServiceStub

ROUNDS = 12
TASKS = 40
SEED = 20_261_127
ROUND_SECONDS_MAX = 60.0
SETTINGS = {
    "WEFT_SCHEDULER_LEASE_SECONDS": "1",
    "WEFT_SCHEDULER_HEARTBEAT_SECONDS": "0.2",
}


class Workers:
    """Two workers in processes of their own, which are started again when they die."""

    def __init__(self, folder: Path, weft: Platform) -> None:
        self._weft = weft
        self._address_file = folder / "address"
        self._processes: list[asyncio.subprocess.Process] = []
        self._keeping: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts them."""
        self.tell_address()
        self._keeping = [asyncio.create_task(self._keep()) for _ in range(2)]

    def tell_address(self) -> None:
        """Says where the scheduler is by now."""
        fresh = self._address_file.with_suffix(".new")
        fresh.write_text(self._weft.addresses["grpc"])
        fresh.replace(self._address_file)

    def kill_one(self, chance: random.Random) -> None:
        """kill -9 of one; another one takes its place."""
        alive = [process for process in self._processes if process.returncode is None]
        if alive:
            chance.choice(alive).kill()

    async def stop(self) -> None:
        """Ends them."""
        for keeping in self._keeping:
            keeping.cancel()
        await asyncio.wait(self._keeping)
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _keep(self) -> None:
        while True:
            process = await self._started()
            self._processes.append(process)
            await process.wait()

    async def _started(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.task_worker", DEFAULT, str(self._address_file)),
            cwd=ROOT,
            env={**os.environ, "WEFT_API_KEY": self._weft.key},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )


@contextlib.asynccontextmanager
async def world(folder: Path) -> AsyncIterator[tuple[NatsServer, Platform, Workers]]:
    """All that can be killed."""
    async with (
        running_nats(folder) as nats,
        platform(folder / "weft", NATS_URL=nats.url, **SETTINGS) as weft,
    ):
        workers = Workers(folder, weft)
        try:
            workers.start()
            yield nats, weft, workers
        finally:
            await workers.stop()


async def harm(nats: NatsServer, weft: Platform, workers: Workers, chance: random.Random) -> str:
    """Kills one of them; returns which, once it runs again."""
    await asyncio.sleep(chance.uniform(0.0, 0.15))
    kind = chance.choice(("scheduler", "worker", "nats", "scheduler"))
    if kind == "worker":
        workers.kill_one(chance)
    elif kind == "nats":
        await nats.kill()
        await asyncio.sleep(chance.uniform(0.0, 0.3))
        await nats.start()
    else:
        await weft.kill()
        await weft.start()
        workers.tell_address()
    return kind


async def submitted(scheduling: Scheduling, number: int) -> str:
    """Name of a task that is surely accepted, over any number of attempts."""
    wanted = spec(payload=b"poison" if number % 20 == 7 else str(number).encode())
    wanted.retry.max_attempts = 50
    if wanted.payload == b"poison":
        wanted.capability = "poison"
        wanted.retry.max_attempts = 2
    while True:
        if scheduling.platform.channel is None:
            await asyncio.sleep(0.02)
            continue
        try:
            task = await scheduling.submit(wanted, request_id=f"request-{number}")
        except (grpc.aio.AioRpcError, asyncio.CancelledError, grpc.aio.UsageError):
            await asyncio.sleep(0.02)
        else:
            return task.name


async def ended(scheduling: Scheduling, name: str) -> tasks_pb2.Task:
    """The task once it is final."""
    while True:
        with contextlib.suppress(grpc.aio.AioRpcError, AssertionError):
            return await scheduling.done(name)
        await asyncio.sleep(0.05)


async def ends_in_the_log(weft: Platform) -> Counter[str]:
    """How many results and failures each task has in the log."""
    stub: Any = StateServiceStub(weft.open_channel)
    wanted = [fact.DESCRIPTOR.full_name for fact in (facts.TaskSucceeded, facts.TaskFailed)]
    request = state_service_pb2.WatchEventsRequest(name=TENANT, types=wanted, after_position=0)
    found: Counter[str] = Counter()
    stream = stub.WatchEvents(request)
    while True:
        try:
            message = await asyncio.wait_for(stream.read(), 2)
        except TimeoutError:
            stream.cancel()
            return found
        payload = message.event.payload
        succeeded = payload.Is(facts.TaskSucceeded.DESCRIPTOR)
        fact: Any = facts.TaskSucceeded() if succeeded else facts.TaskFailed()
        payload.Unpack(fact)
        found[fact.task] += 1


async def test_every_accepted_task_has_exactly_one_result(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    tasks: dict[int, str] = {}
    killed: Counter[str] = Counter()
    async with world(tmp_path) as (nats, weft, workers):
        scheduling = Scheduling(weft)
        for number in range(ROUNDS):
            wanted = range(number * TASKS, (number + 1) * TASKS)
            load = asyncio.gather(*(submitted(scheduling, each) for each in wanted))
            async with asyncio.timeout(ROUND_SECONDS_MAX):
                killed[await harm(nats, weft, workers, chance)] += 1
                tasks.update(zip(wanted, await load, strict=True))
                done = await asyncio.gather(*(ended(scheduling, tasks[each]) for each in wanted))
            for each, task in zip(wanted, done, strict=True):
                if task.spec.capability == "poison":
                    assert task.state == tasks_pb2.TASK_STATE_FAILED
                    continue
                assert task.state == tasks_pb2.TASK_STATE_SUCCEEDED, task
                assert task.result == str(each).encode()
        ends = await ends_in_the_log(weft)
    assert sum(killed.values()) == ROUNDS
    assert len(set(tasks.values())) == ROUNDS * TASKS
    assert ends == Counter(name.rpartition("/")[2] for name in tasks.values())
