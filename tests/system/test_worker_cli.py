"""`weft worker run` against a real server: tasks, signals, a server that goes and comes."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import ROOT, Ran, command_line, environment_for
from tests.support.platform import platform
from tests.support.weft_up import weft_up

pytestmark = pytest.mark.timeout(180)

SHOP = """
import asyncio
import os
import time

from mesh.worker import TaskFailure, Worker

worker = Worker("tenants/other/queues/other", address="127.0.0.1:1", api_key="not-the-key")

@worker.task("upper")
async def upper(task):
    return task.payload.decode().upper()

@worker.task("pid")
def pid(task):
    return str(os.getpid())

@worker.task("nap")
def nap(task):
    time.sleep(float(task.payload))
    return "slept"

@worker.task("hog")
async def hog(task):
    time.sleep(float(task.payload))
    return "slept"

@worker.task("slow")
async def slow(task):
    await asyncio.sleep(float(task.payload))
    return "slept"

@worker.task("bad")
async def bad(task):
    raise TaskFailure("out of paper", 3)
"""


@dataclass
class Run:
    """A `weft worker run` that goes on, and what it said on stderr so far."""

    process: asyncio.subprocess.Process
    said: str = ""

    async def until_said(self, text: str) -> None:
        assert self.process.stderr is not None
        async with asyncio.timeout(30):
            while text not in self.said:
                line = await self.process.stderr.readline()
                assert line, f"it ended:\n{self.said}"
                self.said += line.decode()

    async def ended(self) -> int:
        """Its exit code, within 30 s."""
        assert self.process.stderr is not None
        async with asyncio.timeout(30):
            self.said += (await self.process.stderr.read()).decode()
            return await self.process.wait()


@dataclass
class Shop:
    """A platform, and a folder with a module `shop` that has a worker."""

    address: str
    key: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return environment_for(self.address, WEFT_API_KEY=self.key)

    @asynccontextmanager
    async def worker(self, *arguments: str) -> AsyncIterator[Run]:
        """`weft worker run shop`, which is killed at the end where it still runs."""
        process = await asyncio.create_subprocess_exec(
            *command_line("worker", "run", "shop", *arguments),
            env=self.environment,
            cwd=self.folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            yield Run(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def __call__(self, *arguments: str) -> Ran:
        process = await asyncio.create_subprocess_exec(
            *command_line(*arguments),
            env=self.environment,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return Ran(process.returncode or 0, out.decode(), err.decode())


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    (tmp_path / "shop.py").write_text(SHOP)
    async with platform(tmp_path / "data") as weft:
        yield Shop(weft.addresses["grpc"], weft.key, tmp_path)


async def test_tasks_are_run_by_the_modules_worker_with_the_commands_access(shop: Shop) -> None:
    assert (await shop("queue", "create", "images")).code == 0
    async with shop.worker("--queue", "images", "--slots", "3", "--id", "w1") as run:
        await run.until_said("attached")
        assert f"Worker w1 is attached to {shop.address}" in run.said
        assert "queue images, 3 slots" in run.said
        submit = ("task", "submit", "--queue", "images", "--watch")
        assert (await shop(*submit, "upper", "--payload", "grün")).out == "GRÜN"
        alone = await shop(*submit, "pid")
        assert alone.code == 0
        assert alone.out not in ("", str(run.process.pid))
        failed = await shop(*submit, "bad", "--id", "t1")
        assert (failed.code, "the task failed: out of paper" in failed.err) == (6, True)
        letters = (await shop("deadletter", "list", "--queue", "images", "-o", "json")).data
        assert [letter["name"] for letter in letters] == ["tenants/default/queues/images/tasks/t1"]
        tailed = await shop("events", "tail", "--all", "--type", "TaskFailed", "-n", "1")
        assert tailed.out.endswith("TaskFailed  t1: out of paper\n")
        assert "1 on w1" in (await shop("task", "show", "images/t1")).out
        run.process.send_signal(signal.SIGTERM)
        assert await run.ended() == 0
        assert shop.key not in run.said
        assert "Traceback" not in run.said


async def test_a_worker_of_all_tenants_serves_each_and_is_for_administrators(shop: Shop) -> None:
    acme = shop.folder / "acme.key"
    assert (await shop("tenant", "create", "acme", "--to", str(acme))).code == 0
    other = Shop(shop.address, acme.read_text().strip(), shop.folder)
    for each in (shop, other):
        assert (await each("task", "submit", "upper", "--id", "t1", "--payload", "a")).code == 0
    async with other.worker("--queue", "default", "--all-tenants") as run:
        assert await run.ended() == 4
        assert "scheduler.work_shared" in run.said
    async with shop.worker("--queue", "default", "--all-tenants") as run:
        await run.until_said("attached")
        assert "queue default of all tenants" in run.said
        for each in (shop, other):
            done = await each("task", "submit", "upper", "--payload", "b", "--watch")
            assert (done.code, done.out) == (0, "B")
            first = (await each("task", "watch", "t1", "-o", "json")).items[-1]
            assert first["state"] == "TASK_STATE_SUCCEEDED"


async def test_what_kept_it_from_beating_is_told_as_it_is(shop: Shop) -> None:
    async with shop.worker("--queue", "default") as run:
        await run.until_said("attached")
        run.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(3)
        run.process.send_signal(signal.SIGCONT)
        await run.until_said("stood still")
        assert "a handler held" not in run.said
        assert (await shop("task", "submit", "hog", "--payload", "3", "--watch")).out == "slept"
        await run.until_said("a handler held the event loop")
        await run.until_said("hog")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_lets_it_finish_what_it_runs(shop: Shop, number: signal.Signals) -> None:
    async with shop.worker("--queue", "default") as run:
        await run.until_said("attached")
        await shop("task", "submit", "slow", "--payload", "2", "--id", "t1")
        await _running(shop, "t1")
        run.process.send_signal(number)
        await run.until_said("Draining")
        await shop("task", "submit", "upper", "--id", "t2")
        assert await run.ended() == 0
    assert (await shop("task", "show", "t1", "-o", "json")).data["state"] == "TASK_STATE_SUCCEEDED"
    assert (await _until(shop, "t2", "TASK_STATE_UNSCHEDULABLE"))["attempts"] == []


@pytest.mark.parametrize("capability", ["slow", "nap"])
async def test_ctrl_c_reaches_all_its_processes_and_counts_once(
    shop: Shop, capability: str
) -> None:
    async with shop.worker("--queue", "default") as run:
        await run.until_said("attached")
        await shop("task", "submit", capability, "--payload", "2", "--id", "t1")
        await _running(shop, "t1")
        os.killpg(run.process.pid, signal.SIGINT)
        assert await run.ended() == 0
        assert run.said.count("Draining") == 1
    assert (await shop("task", "show", "t1", "-o", "json")).data["state"] == "TASK_STATE_SUCCEEDED"


@pytest.mark.parametrize("capability", ["slow", "nap"])
async def test_a_second_signal_ends_it_at_once(shop: Shop, capability: str) -> None:
    async with shop.worker("--queue", "default") as run:
        await run.until_said("attached")
        submit = ("task", "submit", capability, "--payload", "600", "--id", "t1")
        await shop(*submit, "--timeout", "1h")
        await _running(shop, "t1")
        run.process.send_signal(signal.SIGINT)
        await run.until_said("Draining")
        run.process.send_signal(signal.SIGINT)
        assert await run.ended() == 130
        assert "Traceback" not in run.said


async def test_a_cancelled_plain_function_leaves_its_slot(shop: Shop) -> None:
    async with shop.worker("--queue", "default", "--slots", "1") as run:
        await run.until_said("attached")
        await shop("task", "submit", "nap", "--payload", "600", "--id", "t1", "--timeout", "1h")
        await _running(shop, "t1")
        assert (await shop("task", "cancel", "t1")).code == 0
        assert (await shop("task", "submit", "pid", "--watch")).code == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--queue", "missing"], 3), (["--queue", "default", "--timeout", "3"], 124)],
    ids=["no-queue", "out-of-time"],
)
async def test_it_exits_with_the_reason(shop: Shop, arguments: list[str], code: int) -> None:
    async with shop.worker(*arguments) as run:
        assert await run.ended() == code
        assert "Traceback" not in run.said


async def test_it_attaches_again_to_a_server_that_comes_back(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    serve = (tmp_path / "up.log", "--data-dir", tmp_path / "data", "--http-port", "0", "--port")
    async with AsyncExitStack() as workers:
        with weft_up(*serve, "0") as up:
            shop = Shop(up.address, str(up.said["api_key"]), tmp_path)
            run = await workers.enter_async_context(shop.worker("--queue", "default"))
            await run.until_said("is attached")
            up.process.kill()
        await run.until_said("detached")
        run.said = ""
        with weft_up(*serve, shop.address.rpartition(":")[2]) as up:
            assert up.address == shop.address
            await run.until_said("is attached")
            done = await shop("task", "submit", "upper", "--payload", "a", "--watch")
            assert (done.code, done.out) == (0, "A")


async def _running(shop: Shop, task: str) -> None:
    await _until(shop, task, "TASK_STATE_RUNNING")


async def _until(shop: Shop, task: str, state: str) -> Any:
    """What `task show` says of it once it is in that state."""
    end = time.monotonic() + 30
    while True:
        shown = (await shop("task", "show", task, "-o", "json")).data
        if shown["state"] == state:
            return shown
        assert time.monotonic() < end, shown["state"]
