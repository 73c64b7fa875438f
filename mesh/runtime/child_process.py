"""A server that Weft runs as a child: never two for one lock file, none left behind.

The child inherits a lock (flock) and keeps it through exec, so the kernel frees it
exactly when the child ends. Whoever wants to start the next one takes the lock first,
and ends its holder if there is one. On Linux the child is also told to end when its
parent dies; elsewhere the next start does that.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mesh.errors import FailedPrecondition

_END_SECONDS_MAX = 10.0
# A server that was left behind was told to end by its parent's death; one that still
# runs now is likely to hang, and what it acknowledged is on the disk.
_LEFT_END_SECONDS_MAX = 2.0
_LEFT_KILL_SECONDS_MAX = 5.0
_POLL_SECONDS = 0.02

# Runs in the child before the server, in the same process: argv is the lock's
# descriptor, the parent's id, then the command. PR_SET_PDEATHSIG is 1; a parent that
# died before that call is noticed by the check behind it. The id is written under
# the lock, so what stands in a locked file is always its holder's.
_SHIM = """
import os, sys
lock, parent, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
if os.getppid() != parent:
    sys.exit(1)
os.pwrite(lock, b"%d\\n" % os.getpid(), 0)
os.execv(command[0], command)
"""


class ChildProcess:
    """A running server; made by `start`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls,
        command: Sequence[str | Path],
        *,
        lock_file: Path,
        output_file: Path | None,
        environment: Mapping[str, str] | None = None,
    ) -> "ChildProcess":
        """Ends the server that an earlier owner left behind, if any, and starts `command`.

        `command` begins with the program's absolute path and ends with that of its
        configuration, by which a left one is recognised. Its output replaces
        `output_file`; without one `line` reads what it says, and its errors go where ours
        do. `environment` is added to ours.

        Raises FailedPrecondition where the lock's holder can't be ended.
        """
        arguments = [str(part) for part in command]
        lock = await _take_lock(lock_file, arguments[-1])
        try:
            output = None
            if output_file is not None:
                output = os.open(output_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", "-c", _SHIM),
                    *(str(lock), str(os.getpid())),
                    *arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE if output is None else output,
                    stderr=output,
                    env={**os.environ, **(environment or {})},
                    pass_fds=(lock,),
                    # Ctrl-C in the terminal is for Weft, which stops its servers in order.
                    start_new_session=True,
                )
            finally:
                if output is not None:
                    os.close(output)
        finally:
            os.close(lock)
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs, as far as is known here."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """Its exit code; negative for a signal."""
        return await self._process.wait()

    async def line(self) -> bytes:
        """The next line that it says, where it was started without an output file; empty
        once it has ended."""
        assert self._process.stdout is not None
        return await self._process.stdout.readline()

    async def stop(self, seconds_max: float = _END_SECONDS_MAX) -> None:
        """Ends it, by force once it had so long; returns when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(seconds_max):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


async def end_left_behind(lock_file: Path, configuration: Path) -> None:
    """Ends the server that a killed owner left behind, if there is one.

    Raises FailedPrecondition where the lock's holder can't be ended.
    """
    os.close(await _take_lock(lock_file, str(configuration)))


def holder(lock_file: Path, configuration: Path) -> int | None:
    """Id of the server that runs with this configuration, whoever owns it; None where none
    does."""
    try:
        lock = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        written = os.pread(lock, 20, 0).decode(errors="replace").strip()
        if _try_lock(lock) or not written.isdigit():
            return None
    finally:
        os.close(lock)
    return int(written) if _runs(int(written), str(configuration)) else None


def end_holder(lock_file: Path, configuration: Path) -> None:
    """Tells the server that runs with this configuration to end, if there is one; its
    owner, where it has one, starts the next."""
    pid = holder(lock_file, configuration)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


async def _take_lock(path: Path, mark: str) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _try_lock(lock):
            await _end_holder(lock, path, mark)
        os.ftruncate(lock, 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


async def _end_holder(lock: int, path: Path, mark: str) -> None:
    """Signals the lock's holder until the lock is ours."""
    for number, seconds_max in (
        (signal.SIGTERM, _LEFT_END_SECONDS_MAX),
        (signal.SIGKILL, _LEFT_KILL_SECONDS_MAX),
    ):
        signalled = False
        for _ in range(int(seconds_max / _POLL_SECONDS)):
            # The id is missing for the moment between taking the lock and writing it.
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
            if holder.isdigit() and not signalled:
                if not _runs(int(holder), mark):
                    raise FailedPrecondition(f"{path} is locked by process {holder}, not ours")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(holder), number)
                signalled = True
            await asyncio.sleep(_POLL_SECONDS)
            if _try_lock(lock):
                return
    raise FailedPrecondition(f"the process that locks {path} can't be ended")


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _runs(pid: int, mark: str) -> bool:
    """Whether the process has `mark` among its arguments, or has just ended. Where
    there is no /proc to ask, the lock alone is trusted."""
    if sys.platform != "linux":
        return True
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return True
    # A process that is ending has no arguments any more.
    return arguments in ([b""], []) or os.fsencode(mark) in arguments
