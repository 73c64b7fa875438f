"""Servers with workers in processes of their own, and the tasks that they are given."""

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from tests.chaos.world import InstanceAway, Servers, servers
from tests.support.platform import Platform
from tests.support.processes import ROOT
from tests.support.scheduling import DEFAULT, FINAL, Scheduling, spec
from weft.scheduler.v1 import task_service_pb2, tasks_pb2

SETTINGS = {
    "WEFT_SCHEDULER_LEASE_SECONDS": "1",
    "WEFT_SCHEDULER_HEARTBEAT_SECONDS": "0.2",
}
WORKERS = 3
TASKS = 40
PAUSE_SECONDS_MAX = 1.6
"""Longer than a lease, so that some workers come back to tasks that are another's."""
CANCELLED_SHARE = 0.05
POISON_SHARE = 0.03
MOODY_SHARE = 0.1
ATTEMPTS_MAX = 50
"""A task may meet more than one harm; a poisoned one is given up sooner."""
POISON_ATTEMPTS_MAX = 2
RETRY_SECONDS = 0.02
BACKOFF_MS_MAX = 100
ADDRESS_SECONDS = 0.05
CALL_SECONDS_MAX = 10.0
WATCH_SECONDS_MAX = 30.0
SUCCEEDED = tasks_pb2.TASK_STATE_SUCCEEDED
FAILED = tasks_pb2.TASK_STATE_FAILED
CANCELLED = tasks_pb2.TASK_STATE_CANCELLED

_AWAY = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError, InstanceAway)
_TRY_AGAIN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)

Ask = Callable[[Platform], Awaitable[tasks_pb2.Task]]


class Workers:
    """Workers in processes of their own, which are started again when they die."""

    def __init__(self, folder: Path, up: Servers) -> None:
        self.ran_file = folder / "ran"
        self._up = up
        self._key = up.instances[0].key
        self._address_file = folder / "address"
        self._alive: dict[int, asyncio.subprocess.Process] = {}
        self._running: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts them."""
        self._tell_address()
        keeping = [asyncio.create_task(self._keep(number)) for number in range(WORKERS)]
        self._running = [*keeping, asyncio.create_task(self._follow())]

    def any(self, chance: random.Random) -> asyncio.subprocess.Process | None:
        """One that runs."""
        running = [each for each in self._alive.values() if each.returncode is None]
        return chance.choice(running) if running else None

    async def stop(self) -> None:
        """Ends them."""
        for task in self._running:
            task.cancel()
        await asyncio.wait(self._running)
        for process in self._alive.values():
            if process.returncode is None:
                process.kill()
            await process.wait()

    def ran(self) -> Counter[str]:
        """How often each attempt was begun, by the task's name and the attempt's number."""
        return Counter(self.ran_file.read_text().splitlines())

    def _tell_address(self) -> None:
        known = [each.addresses["grpc"] for each in self._up.instances if each.channel is not None]
        if known:
            fresh = self._address_file.with_suffix(".new")
            fresh.write_text("ipv4:" + ",".join(known))
            fresh.replace(self._address_file)

    async def _follow(self) -> None:
        while True:
            self._tell_address()
            await asyncio.sleep(ADDRESS_SECONDS)

    async def _keep(self, number: int) -> None:
        while True:
            self._alive[number] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.support.task_worker", DEFAULT),
                *(str(self._address_file), str(self.ran_file)),
                cwd=ROOT,
                env={**os.environ, "WEFT_API_KEY": self._key},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            await self._alive[number].wait()


@dataclass
class TaskWorld(Servers):
    """The servers and the workers."""

    workers: Workers


@contextlib.asynccontextmanager
async def task_world(folder: Path) -> AsyncIterator[TaskWorld]:
    """All of it, gone at the end however it was treated."""
    async with servers(folder, **SETTINGS) as up:
        workers = Workers(folder, up)
        try:
            workers.start()
            yield TaskWorld(up.nats, up.instances, up.turn_about, workers)
        finally:
            await workers.stop()


async def kill_worker(world: TaskWorld, chance: random.Random) -> float:
    """kill -9 of one worker; another one takes its place."""
    process = world.workers.any(chance)
    if process is not None:
        process.kill()
    return time.monotonic()


async def stop_worker(world: TaskWorld, chance: random.Random) -> float:
    """SIGSTOP of one worker for a while."""
    process = world.workers.any(chance)
    if process is not None:
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(chance.uniform(0.1, PAUSE_SECONDS_MAX))
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
    return time.monotonic()


@dataclass
class Wanted:
    """A task, the client that wants it done, and what became of it."""

    number: int
    capability: str
    cancel_after_seconds: float | None
    name: str = ""
    ended: tasks_pb2.Task | None = None
    ended_time: float = 0.0
    """On the monotonic clock."""

    @classmethod
    def of(cls, number: int, chance: random.Random) -> "Wanted":
        """A task of any kind."""
        kinds = ("poison", "moody", "echo")
        shares = (POISON_SHARE, MOODY_SHARE, 1 - POISON_SHARE - MOODY_SHARE)
        (kind,) = chance.choices(kinds, shares)
        cancelled = kind == "echo" and chance.random() < CANCELLED_SHARE
        return cls(number, kind, chance.uniform(0.0, 0.3) if cancelled else None)

    async def run(self, world: Servers) -> None:
        """Submits it and follows it to its end, on whatever instance answers."""
        self.name = (await self._persist(world, self._submit)).name
        cancelling = asyncio.create_task(self._cancel(world))
        try:
            self.ended = await self._persist(world, self._watch)
            self.ended_time = time.monotonic()
        finally:
            cancelling.cancel()

    def fault(self) -> str:
        """What is wrong with its end; empty where nothing is."""
        ended = self.ended
        assert ended is not None
        if ended.state == CANCELLED and self.cancel_after_seconds is not None:
            return ""
        if self.capability == "poison":
            return "" if ended.state == FAILED else f"{ended}"
        right = ended.state == SUCCEEDED and ended.result == b"%d" % self.number
        return "" if right else f"{ended}"

    async def _submit(self, instance: Platform) -> tasks_pb2.Task:
        wanted = spec(self.capability, b"%d" % self.number)
        # What waits for its next attempt isn't what a harm cost.
        wanted.retry.max_backoff.FromMilliseconds(BACKOFF_MS_MAX)
        poison = self.capability == "poison"
        wanted.retry.max_attempts = POISON_ATTEMPTS_MAX if poison else ATTEMPTS_MAX
        return await Scheduling(instance).submit(wanted, request_id=f"request-{self.number}")

    async def _watch(self, instance: Platform) -> tasks_pb2.Task:
        request = task_service_pb2.WatchTaskRequest(name=self.name)
        stream = Scheduling(instance).tasks.WatchTask(request, timeout=WATCH_SECONDS_MAX)
        async for message in stream:
            if message.task.state in FINAL:
                task: tasks_pb2.Task = message.task
                return task
        raise InstanceAway

    async def _cancel(self, world: Servers) -> None:
        """Asks once; an answer that is lost isn't asked for again."""
        if self.cancel_after_seconds is None:
            return
        await asyncio.sleep(self.cancel_after_seconds)
        request = task_service_pb2.CancelTaskRequest(name=self.name, reason="chaos")
        with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.UsageError, InstanceAway):
            tasks = Scheduling(world.any_instance()).tasks
            await tasks.CancelTask(request, timeout=CALL_SECONDS_MAX)

    async def _persist(self, world: Servers, ask: Ask) -> tasks_pb2.Task:
        me = asyncio.current_task()
        assert me is not None
        while True:
            try:
                return await ask(world.any_instance())
            except _AWAY as error:
                # A channel that is closed cancels its calls; so does who gives this task up.
                if me.cancelling():
                    raise
                if isinstance(error, grpc.aio.AioRpcError) and error.code() not in _TRY_AGAIN:
                    raise
            await asyncio.sleep(RETRY_SECONDS)
