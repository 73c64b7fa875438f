"""Programs of `tests.support`, run as processes of their own."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINE_SECONDS_MAX = 30.0
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Has the kernel kill this process with whoever started it, who may be killed with no
    chance to clean up. On Linux; elsewhere it does nothing."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent == 1 or os.getppid() != parent:
        sys.exit("whoever started this is gone")


@contextlib.asynccontextmanager
async def running(
    module: str, *arguments: object, prefix: Sequence[str] = ()
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m MODULE ARGUMENTS` with both ends piped; killed where it still runs at the end.
    `prefix` is a command that becomes the one behind it, such as nsenter."""
    process = await asyncio.create_subprocess_exec(
        *prefix,
        sys.executable,
        "-m",
        module,
        *map(str, arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line_of(process: asyncio.subprocess.Process) -> str:
    """The next line that it prints, within 30 s; empty at its end."""
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), LINE_SECONDS_MAX)
    return line.decode().strip()


async def asked(process: asyncio.subprocess.Process) -> str:
    """The line with which it answers an empty one."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    return await line_of(process)


async def until(condition: Callable[[], bool], seconds_max: float = 10.0) -> None:
    """Returns as soon as `condition` holds; TimeoutError after `seconds_max`."""
    async with asyncio.timeout(seconds_max):
        while not condition():  # noqa: ASYNC110 - other processes set no event of ours
            await asyncio.sleep(0.02)


def finished(
    command: Sequence[str | Path],
    *,
    cwd: Path = ROOT,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
    seconds_max: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """The command once it has ended; subprocess.TimeoutExpired past `seconds_max`."""
    return subprocess.run(
        [str(part) for part in command],
        input=stdin,
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=seconds_max,
        check=False,
    )
