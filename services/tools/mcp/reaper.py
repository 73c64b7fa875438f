"""Runs an MCP server's program and ends it with all that it started. A program of its own.

    python -I -S reaper.py PARENT COMMAND [ARGUMENT ...]

Weft talks to the server through this process's standard input and output, which the server
gets. When the server ends, or Weft tells this one to end, or Weft dies, which on Linux the
kernel tells, all processes that came from the server are ended: on Linux also those that left
its group, since they become this process's children. It imports little, to start quickly.
"""

import contextlib
import os
import resource
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 1.0
KILL_SECONDS_MAX = 5.0
POLL_SECONDS = 0.02
NOT_STARTED = 127


def run(parent: int, command: list[str]) -> int:
    """Runs the command; its exit code, negative for a signal."""
    wanted = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    _control(PR_SET_PDEATHSIG, signal.SIGTERM)
    _control(PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent:
        return 1
    reaper = os.getpid()
    server = os.fork()
    if server == 0:
        _become(reaper, wanted, command)
    # Weft must see the end of the server's output once the server has ended.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    code = None
    while code is None:
        if signal.sigwait(wanted) == signal.SIGTERM:
            break
        code = _reaped(server)
    return _end_all(server, code)


def _become(reaper: int, wanted: set[signal.Signals], command: list[str]) -> None:
    """Turns this process into the server."""
    try:
        os.setsid()
        _control(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == reaper:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
            # A core file would hold the server's secrets.
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(NOT_STARTED)


def _reaped(server: int) -> int | None:
    """Takes notice of all children that have ended; the server's exit code, if it is among
    them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if not ended:
                break
            if ended == server:
                code = os.waitstatus_to_exitcode(status)
    return code


def _end_all(server: int, code: int | None) -> int:
    """Ends what is left: with a signal that can be heeded first, then by force."""
    started = time.monotonic()
    signalled: set[int] = set()
    while time.monotonic() - started < GRACE_SECONDS + KILL_SECONDS_MAX:
        by_force = time.monotonic() - started > GRACE_SECONDS
        number = signal.SIGKILL if by_force else signal.SIGTERM
        for process in _descendants(server):
            if by_force or process not in signalled:
                signalled.add(process)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, number)
        ended = _reaped(server)
        code = ended if ended is not None else code
        if not _descendants(server):
            break
        time.sleep(POLL_SECONDS)
    return 1 if code is None else code


def _descendants(server: int) -> list[int]:
    """All processes that came from the server and haven't ended."""
    if sys.platform != "linux":
        # The group's leader stands for it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server, 0)
            return [-server]
        return []
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The name in parentheses may hold anything, parentheses too.
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state != b"Z":
                    parents[int(name)] = int(parent)
    found: list[int] = []
    level = {os.getpid()}
    while level:
        level = {process for process, parent in parents.items() if parent in level}
        found.extend(level)
    return found


def _control(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    _code = run(int(sys.argv[1]), sys.argv[2:])
    # As a shell tells the signal that ended a program.
    sys.exit(128 - _code if _code < 0 else _code)
