"""The process that starts sandboxes, apart from Weft's own: it has none of its memory, its
environment or its descriptors, and gives up every capability.

For each sandbox it forks a guard, which starts the confined interpreter, watches it, and
ends it, with all that came of it, when Weft says so or is gone. It is run as a file by a
bare interpreter, so it imports nothing of Weft's.

Descriptor 0 is a socket to Weft; each message on it asks for a sandbox, and brings the
channel, two pipes for what is printed, and a socket to its guard. To the guard Weft says
`{"limits": ...}` when an invocation begins; closing it ends the sandbox. The guard says
how it ended, as JSON, and closes.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

DESCRIPTORS = 4
FIRST_FREE = 16
MESSAGE_BYTES_MAX = 4_096
WATCH_SECONDS = 0.05
END_SECONDS_MAX = 5.0
SCRATCH_ENTRIES_MAX = 4_096
SCRATCH_PATH_MAX = 1_024
UNCOUNTED_BYTES = 1 << 62
_PR_SET_CHILD_SUBREAPER, _PR_CAPBSET_DROP, _PR_SET_PDEATHSIG = 36, 24, 1
_CAPABILITY_VERSION = 0x20080522
_CAPABILITIES = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Running:
    """A sandbox that was started: its first process, and how to wait for that, which tells the
    signal that ended it. `signal` is 0 until then, and where none did."""

    def __init__(self, pid: int, wait: Callable[[], int]) -> None:
        self.pid = pid
        self.signal = 0
        self._wait = wait
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._await, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """Kills it, with its process group and all that came of it."""
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        for _ in range(int(END_SECONDS_MAX / WATCH_SECONDS)):
            left = descendants(os.getpid())
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if self.ended.wait(WATCH_SECONDS / 10):
                # Adopted ones are ours to bury.
                bury()

    def _await(self) -> None:
        try:
            self.signal = self._wait()
        finally:
            self.ended.set()


def main(configuration: dict[str, Any]) -> None:
    """Serves until Weft closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    drop_capabilities()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if configuration["sandbox"] == "sandlock":
        sys.path.append(configuration["packages"])
        import sandlock  # type: ignore[import-untyped]  # noqa: F401 - once, for all guards
    control = socket.socket(fileno=os.dup(0))
    control.setblocking(True)
    guards: set[int] = set()
    while True:
        readable, _, _ = select.select([control], [], [], 1.0)
        if readable:
            message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES_MAX, DESCRIPTORS)
            if not message:
                return
            guards.add(fork_guard(configuration, control, descriptors))
        bury(guards)
        for pid in descendants(os.getpid(), deep=False) - guards:
            # Its guard was killed.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def drop_capabilities() -> None:
    """Leaves a process of root's with no more than its files' owner may do."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(_CAPABILITIES):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    if libc.capset(header, b"\0" * 24) != 0:
        raise OSError(ctypes.get_errno(), "the capabilities can't be dropped")


def fork_guard(configuration: dict[str, Any], control: socket.socket, given: list[int]) -> int:
    """The id of the new guard, which has what was given."""
    pid = os.fork()
    if pid:
        for descriptor in given:
            os.close(descriptor)
        return pid
    try:
        control.close()
        # First out of the way of where they go.
        moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, FIRST_FREE) for descriptor in given]
        for place, descriptor in enumerate(moved):
            os.dup2(descriptor, place, inheritable=place < 3)
        os.closerange(DESCRIPTORS, 1 << 12)
        guard(configuration, socket.socket(fileno=3))
    finally:
        os._exit(0)


def guard(configuration: dict[str, Any], weft: socket.socket) -> None:
    """Starts a sandbox and stays with it until it has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    scratch = tempfile.mkdtemp(prefix="s-", dir=configuration["scratch"])
    end: dict[str, Any] = {"reason": ""}
    try:
        running = START[configuration["sandbox"]](configuration, scratch)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        end["reason"] = watch(running, weft, scratch)
        running.kill()
        running.ended.wait(END_SECONDS_MAX)
        end["signal"] = running.signal
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        end["cpu_seconds"] = usage.ru_utime + usage.ru_stime
        end["memory_bytes"] = usage.ru_maxrss << 10
    except Exception as error:  # noqa: BLE001 - whatever it is, Weft is told
        end["reason"] = "start"
        end["message"] = f"{type(error).__name__}: {error}"
    finally:
        remove_folder(scratch)
        with contextlib.suppress(OSError):
            weft.sendall(json.dumps(end).encode())


def watch(running: Running, weft: socket.socket, scratch: str) -> str:
    """Returns once it has ended, or has to: the reason, empty where it has by itself."""
    limits: dict[str, int] = {}
    while not running.ended.is_set():
        readable, _, _ = select.select([weft], [], [], WATCH_SECONDS if limits else 1.0)
        if readable:
            said = weft.recv(MESSAGE_BYTES_MAX)
            if not said:
                return "ended"
            limits = json.loads(said)["limits"]
        if limits and not running.ended.is_set():
            if threads(running.pid) > limits["threads"]:
                return "threads"
            if scratch_bytes(running.pid, scratch) > limits["scratch_bytes"]:
                return "scratch"
    return ""


def threads(pid: int) -> int:
    """How many threads the process has, and those that came of it."""
    count = 0
    for each in {pid} | descendants(pid):
        try:
            count += len(os.listdir(f"/proc/{each}/task"))
        except OSError:
            continue
    return count


def scratch_bytes(pid: int, folder: str) -> int:
    """What lies in the folder, and in files that were deleted and are open still. Whoever made
    too many files, or keeps some where they aren't counted, has used all there is."""
    sizes: dict[tuple[int, int], int] = {}
    entries = 0
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    entries += 1
                    deep = len(entry.path) > len(folder) + SCRATCH_PATH_MAX
                    if deep or entries > SCRATCH_ENTRIES_MAX:
                        return UNCOUNTED_BYTES
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        sizes[status.st_dev, status.st_ino] = status.st_blocks << 9
        except (FileNotFoundError, NotADirectoryError):
            # It was deleted meanwhile.
            continue
        except OSError:
            # Nobody may list it.
            return UNCOUNTED_BYTES
    for each in {pid} | descendants(pid):
        opened = deleted_files(each)
        if mapped_files(each, folder) - {inode for _, inode in opened}:
            return UNCOUNTED_BYTES
        sizes |= opened
    return sum(sizes.values())


def deleted_files(pid: int) -> dict[tuple[int, int], int]:
    """Files that were deleted, and that a thread of the process has open: bytes by device and
    inode. A thread may have descriptors of its own, and outlive the first one."""
    sizes = {}
    for thread in listed(f"/proc/{pid}/task"):
        folder = f"/proc/{pid}/task/{thread}/fd"
        for name in listed(folder):
            with contextlib.suppress(OSError):
                status = os.stat(f"{folder}/{name}")
                if status.st_nlink == 0:
                    sizes[status.st_dev, status.st_ino] = status.st_blocks << 9
    return sizes


def mapped_files(pid: int, folder: str) -> set[int]:
    """Inodes of files of the folder that were deleted, and are in the process's memory."""
    inodes = set()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as maps:
        for line in maps:
            if folder.encode() in line and line.endswith(b" (deleted)\n"):
                inodes.add(int(line.split(maxsplit=5)[4]))
    return inodes


def listed(folder: str) -> list[str]:
    """What is in a folder of /proc; nothing once the process is gone."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def remove_folder(folder: str) -> None:
    """Deletes a folder with all that is in it, as far as that goes. Neither its depth nor modes
    keep it: what is within a folder is moved up before that is deleted."""
    with contextlib.suppress(OSError):
        top = os.open(folder, _FOLDER)
        try:
            while names := os.listdir(top):
                for name in names:
                    if is_unlinked(name, top):
                        continue
                    inner = os.open(name, _FOLDER, dir_fd=top)
                    try:
                        for each in os.listdir(inner):
                            if not is_unlinked(each, inner):
                                free = os.urandom(16).hex()
                                os.rename(each, free, src_dir_fd=inner, dst_dir_fd=top)
                    finally:
                        os.close(inner)
                    os.rmdir(name, dir_fd=top)
        finally:
            os.close(top)
        os.rmdir(folder)


def is_unlinked(name: str, within: int) -> bool:
    """Deletes what is no folder; whether it was none. One can be moved and emptied after."""
    try:
        os.unlink(name, dir_fd=within)
    except IsADirectoryError:
        os.chmod(name, 0o700, dir_fd=within)
        return False
    return True


def descendants(pid: int, *, deep: bool = True) -> set[int]:
    """Processes that came of this one and haven't ended; without `deep` its children."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{thread}/children") as children:
                    new = {int(child) for child in children.read().split()} - found
                found |= new
                if deep:
                    waiting += new
    return {each for each in found if not is_dead(each)}


def is_dead(pid: int) -> bool:
    """Whether it has ended, buried or not."""
    try:
        with open(f"/proc/{pid}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def bury(known: set[int] | None = None) -> None:
    """Takes the ends of children that have ended."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        if known is not None:
            known.discard(pid)


def start_sandlock(configuration: dict[str, Any], scratch: str) -> Running:
    """In a Landlock domain of its own, with sandlock's filter."""
    from sandlock import ExitReason, Sandbox, StdioMode

    def wait() -> int:
        result = process.wait()
        # It tells of every signal but that one.
        killed = result.reason == ExitReason.KILLED
        return signal.SIGKILL if killed else max(result.signal or 0, 0)

    process = Sandbox(
        fs_readable=configuration["readable"],
        fs_writable=[scratch],
        cwd=scratch,
        clean_env=True,
        max_processes=1,
        name=os.path.basename(scratch),
    ).popen(configuration["command"], StdioMode.INHERIT, StdioMode.INHERIT, StdioMode.INHERIT)
    pid = process.pid
    if pid is None:
        raise RuntimeError("sandlock started nothing")
    return Running(pid, wait)


def bubblewrap_command(configuration: dict[str, Any], scratch: str) -> list[str]:
    """What starts the interpreter in namespaces of its own: it sees the files that it may read,
    its folder, and nothing else; no process, no network."""
    command = [configuration["bwrap"], "--unshare-all", "--die-with-parent", "--new-session"]
    command += ["--clearenv", "--cap-drop", "ALL", "--uid", "65534", "--gid", "65534"]
    for path in configuration["readable"]:
        command += ["--ro-bind", path, path]
    command += ["--bind", scratch, scratch, "--chdir", scratch, "--hostname", "function"]
    return [*command, "--", *configuration["command"]]


def start_bubblewrap(configuration: dict[str, Any], scratch: str) -> Running:
    """By `bwrap`."""
    return started(bubblewrap_command(configuration, scratch), scratch)


def start_unsafe(configuration: dict[str, Any], scratch: str) -> Running:
    """As a plain process: nothing keeps it from what its user may do."""
    return started(configuration["command"], scratch)


def started(command: list[str], folder: str) -> Running:
    """A process with our first three descriptors, no environment, and a group of its own."""
    process = subprocess.Popen(command, cwd=folder, env={}, process_group=0)
    return Running(process.pid, lambda: max(-process.wait(), 0))


START = {"sandlock": start_sandlock, "bubblewrap": start_bubblewrap, "unsafe": start_unsafe}

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
