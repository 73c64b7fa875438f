"""Commands that follow something, while the server is killed and comes back elsewhere."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.weft_up import WEFT, environment, weft, weft_up

pytestmark = pytest.mark.timeout(180)

SHOP = """
from mesh.worker import Worker

worker = Worker("default")

@worker.task("upper")
async def upper(task):
    return task.payload.decode().upper()
"""
SECONDS_MAX = 60.0


@dataclass
class Follower:
    """A command that goes on, and what it says."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    def until_said(self, *texts: str) -> None:
        """Returns once it has said one of these on stderr."""
        end = time.monotonic() + SECONDS_MAX
        while not any(text in self.err.read_text() for text in texts):
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < end, self.err.read_text()
            time.sleep(0.05)

    def ended(self) -> int:
        """Its exit code."""
        return self.process.wait(SECONDS_MAX)


@contextmanager
def follower(folder: Path, *arguments: str) -> Iterator[Follower]:
    """`weft ARGUMENTS`, which is ended at the end where it still runs."""
    name = "-".join(arguments[:2])
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [WEFT, *arguments, "--data-dir", str(folder / "data")],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=folder,
            env=environment(),
        )
        try:
            yield Follower(process, out, err)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def test_what_follows_goes_on_where_the_server_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "items.ndjson").write_text('{"payload": "b"}\n{"payload": "c"}\n')
    data_dir = tmp_path / "data"
    serve = (tmp_path / "up.log", "--data-dir", data_dir, "--port", "0", "--http-port", "0")

    def command(*arguments: str) -> None:
        ran = weft(*arguments, "--data-dir", data_dir)
        assert ran.code == 0, ran.err

    with ExitStack() as followers:

        def follow(*arguments: str) -> Follower:
            return followers.enter_context(follower(tmp_path, *arguments))

        with weft_up(*serve) as up:
            first = up.address
            command("task", "submit", "upper", "--payload", "first")
            command("queue", "pause", "default")
            worker = follow("worker", "run", "shop")
            worker.until_said("is attached")
            (tmp_path / "say.py").write_text("def handler(a):\n    print(a)\n")
            command("fn", "deploy", "say", str(tmp_path / "say.py"))
            logs = follow("fn", "logs", "say", "--follow")
            tail = follow("events", "tail", "--type", "QueueResumed", "-n", "1")
            task = follow("task", "submit", "upper", "--payload", "a", "--watch")
            task.until_said("task ")
            batch = follow("batch", "run", "items.ndjson", "upper")
            batch.until_said("batch ")
            end = time.monotonic() + SECONDS_MAX
            while (
                '"queued": "2"'
                not in weft(*("batch", "list", "-o", "json", "--data-dir", data_dir)).out
            ):
                assert time.monotonic() < end
            up.process.kill()
            up.process.wait()
        for each in (tail, task, batch, logs):
            each.until_said("looking for one in its place")
        worker.until_said("detached")
        with weft_up(*serve) as up:
            assert up.address != first
            for each in (tail, task, batch, logs):
                each.until_said(f"Weft is at {up.address} now")
            worker.until_said(f"is attached to {up.address}")
            command("queue", "resume", "default")
            assert [task.ended(), batch.ended(), tail.ended()] == [0, 0, 0]
            assert task.out.read_text() == "A"
            results = [json.loads(line)["result"] for line in batch.out.read_text().splitlines()]
            assert sorted(results) == ["B", "C"]
            assert "QueueResumed" in tail.out.read_text()
            command("fn", "invoke", "say", "-d", '"back"')
            end = time.monotonic() + SECONDS_MAX
            while logs.out.read_text() != "back\n":
                assert time.monotonic() < end, logs.err.read_text()
                time.sleep(0.05)


def test_what_follows_gives_up_where_no_server_comes_back(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    serve = (tmp_path / "up.log", "--data-dir", data_dir, "--port", "0", "--http-port", "0")
    with (
        weft_up(*serve) as up,
        follower(tmp_path, "task", "submit", "upper", "--watch", "-o", "json") as task,
    ):
        end = time.monotonic() + SECONDS_MAX
        while not task.out.read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        up.process.kill()
        up.process.wait()
        assert task.ended() == 5
        assert "has ended: a key isn't sent" in task.err.read_text()
