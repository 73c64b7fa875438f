"""Plain functions in processes of their own: results, errors, deaths, cancelling."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from mesh.worker.processes import TELL_SECONDS, Processes, Untold, tell

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def processes() -> AsyncIterator[Processes]:
    found = Processes()
    yield found
    await found.close()


def _pid(_: object) -> int:
    return os.getpid()


def _fail(words: str) -> None:
    raise ValueError(words)


def _die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _wait_for(file: Path) -> str:
    """Says its pid in the file `file`.pid, and waits until there is `file`."""
    file.with_suffix(".pid").write_text(str(os.getpid()))
    while not file.exists():
        time.sleep(0.01)
    return "found"


async def _pid_in(file: Path) -> int:
    def read() -> int:
        while not file.exists() or not file.read_text():
            time.sleep(0.01)
        return int(file.read_text())

    return await asyncio.to_thread(read)


async def _ends(pid: int) -> None:
    def wait() -> None:
        while _is_there(pid):
            time.sleep(0.01)

    await asyncio.to_thread(wait)


def _is_there(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for yet doesn't."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


async def test_one_process_serves_one_function_after_the_other(processes: Processes) -> None:
    pids = {await processes.run(_pid, None) for _ in range(3)}
    assert len(pids) == 1
    assert os.getpid() not in pids


async def test_an_error_is_the_callers_and_its_process_goes_on(processes: Processes) -> None:
    before = await processes.run(_pid, None)
    with pytest.raises(ValueError, match="no paper"):
        await processes.run(_fail, "no paper")
    assert await processes.run(_pid, None) == before


class Peculiar(Exception):
    """What can be made of one in another process has an argument too few."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(f"{words} ({code})")


class Closed(Exception):
    """Can't be sent at all."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.lock = threading.Lock()


def _raise_peculiar(words: str) -> None:
    raise Peculiar(7, words)


def _raise_closed(words: str) -> None:
    raise Closed(words)


def _return_closed(_: object) -> object:
    return threading.Lock()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (_raise_peculiar, "Peculiar: no paper (7)"),
        (_raise_closed, "Closed: no paper"),
        (_return_closed, "its result, lock, can't be sent from its process"),
    ],
)
async def test_what_cant_be_sent_from_its_process_is_told(
    processes: Processes, function: Callable[[str], object], said: str
) -> None:
    before = await processes.run(_pid, None)
    with pytest.raises(Untold) as raised:
        await processes.run(function, "no paper")
    assert str(raised.value) == said
    assert await processes.run(_pid, None) == before


async def test_a_death_disturbs_no_other(processes: Processes, tmp_path: Path) -> None:
    file = tmp_path / "go"
    other = asyncio.create_task(processes.run(_wait_for, file))
    await _pid_in(file.with_suffix(".pid"))
    with pytest.raises(BrokenProcessPool):
        await processes.run(_die, None)
    file.touch()
    assert await other == "found"


async def test_one_that_died_while_idle_is_replaced(processes: Processes) -> None:
    before = await processes.run(_pid, None)
    os.kill(before, signal.SIGKILL)
    with contextlib.suppress(BrokenProcessPool):
        # A moment may pass before its end is noticed.
        await processes.run(_pid, None)
    assert await processes.run(_pid, None) != before


async def test_a_cancelled_function_is_killed(processes: Processes, tmp_path: Path) -> None:
    file = tmp_path / "never"
    running = asyncio.create_task(processes.run(_wait_for, file))
    pid = await _pid_in(file.with_suffix(".pid"))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await _ends(pid)


def _tell_and_wait_for(file: Path) -> None:
    tell(0.25, "a quarter")
    tell(0.26, "too soon after it")
    _wait_for(file)


async def test_what_a_function_tells_is_heard_while_it_runs(
    processes: Processes, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        told: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
        file = tmp_path / name
        running = asyncio.create_task(
            processes.run(_tell_and_wait_for, file, lambda *each, told=told: told.put_nowait(each))
        )
        assert await told.get() == (0.25, "a quarter")
        assert not running.done()
        file.touch()
        await running
        assert told.empty()
        # The next one is in the same process.
        await asyncio.sleep(TELL_SECONDS)


async def test_closing_ends_the_idle_ones(processes: Processes) -> None:
    pid = await processes.run(_pid, None)
    await processes.close()
    await _ends(pid)
