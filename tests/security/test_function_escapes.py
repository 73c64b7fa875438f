"""What hostile functions try to get out of the sandbox, on each of its back ends: nothing works,
no secret comes out, and nothing is left running. Without a sandbox the harmless ones work.

Those that leave others alone are tried some in one process; with WEFT_ESCAPES_ALONE=1 each has
its own.
"""

import asyncio
import json
import os
import platform
import secrets
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from mesh.errors import FailedPrecondition
from services.functions.sandbox.limits import Ended
from tests.security.escapes import Attempt, attempts, batch_source, batched
from tests.support.functions import LIMITS, keeping, run

ATTEMPTS = attempts()
AT_ONCE = 6
TOGETHER = 1 if os.environ.get("WEFT_ESCAPES_ALONE") else 12
CANARY_NAME = "WEFT_CANARY"
BOUNDS = replace(
    LIMITS, timeout_seconds=4.0, cpu_seconds=1, memory_bytes=192 << 20, output_bytes=200_000
)
NOTHING = (None, "null", "false", "[]", "0", '""')
GROUPS = sorted({attempt.name.partition(" ")[0].strip(":") for attempt in ATTEMPTS})

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of calls are x86_64's"),
]


@dataclass
class Outside:
    """What there is outside of a sandbox."""

    folder: Path
    canary: str
    at: dict[str, Any]
    listening: socket.socket

    def state(self) -> dict[str, Any]:
        """What an attempt could have changed."""
        found: dict[str, Any] = {"limits": psutil.Process().rlimit(psutil.RLIMIT_NOFILE)}
        for path in sorted(self.folder.rglob("*")):
            if path.name == "scratch":
                continue
            status = path.lstat()
            is_file = path.is_file() and not path.is_symlink()
            content = path.read_bytes() if is_file else b""
            found[str(path)] = (status.st_mode, status.st_uid, status.st_mtime_ns, content)
        return found


@contextmanager
def world(folder: Path) -> Iterator[Outside]:
    """Files with canaries, and sockets that listen, in a folder."""
    canary = f"canary-{secrets.token_hex(16)}"
    private = folder / "data" / "keys"
    private.mkdir(parents=True)
    for name in ("secret.txt", "nats.nk", "master.key"):
        (private / name).write_text(canary)
    (private / "outside.py").write_text(f"SECRET = {canary!r}\n")
    database = sqlite3.connect(private / "s.sqlite3")
    database.execute("CREATE TABLE t (x)")
    database.execute("INSERT INTO t VALUES (?)", (canary,))
    database.commit()
    database.close()
    for name in ("outside", "outside/empty", "scratch", "scratch/another"):
        (folder / name).mkdir()
    (folder / "scratch/another/left").write_text(canary)
    victim = folder / "outside" / "victim"
    victim.write_text("as it was")
    os.setxattr(victim, "user.a", b"1")
    abstract = f"weft-{secrets.token_hex(8)}"
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv(CANARY_NAME, canary)
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        datagram = socket.SOCK_DGRAM
        for kind, name in (
            (socket.SOCK_STREAM, str(private / "s")),
            (datagram, str(private / "d")),
            (socket.SOCK_STREAM, f"\0{abstract}"),
            (datagram, f"\0{abstract}-d"),
        ):
            bound = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            bound.bind(name)
            if kind == socket.SOCK_STREAM:
                bound.listen()
        yield Outside(
            folder,
            canary,
            {
                "secret": str(private / "secret.txt"),
                "nats_key": str(private / "nats.nk"),
                "master_key": str(private / "master.key"),
                "database": str(private / "s.sqlite3"),
                "outside": str(folder / "outside"),
                "empty": str(folder / "outside/empty"),
                "victim": str(victim),
                "scratch_of_another": str(folder / "scratch/another"),
                "pid": os.getpid(),
                "canary_name": CANARY_NAME,
                "host_name": os.uname().nodename,
                "hosts": Path("/etc/hosts").read_text(),
                "mounts": Path("/proc/mounts").read_text().splitlines()[-1],
                "tcp": listening.getsockname()[1],
                "unix": str(private / "s"),
                "unix_datagram": str(private / "d"),
                "abstract": f"\0{abstract}",
                "abstract_datagram": f"\0{abstract}-d",
            },
            listening,
        )


@dataclass
class Tried:
    """How all attempts ended on a back end, and what there was before and after."""

    ends: dict[str, tuple[Ended, str]]
    canary: str
    before: dict[str, Any]
    after: dict[str, Any]
    called: bool
    left: list[str]


async def try_all(name: str, folder: Path, tried: list[Attempt]) -> Tried:
    """Tries them, some at a time."""
    with world(folder) as outside:
        before = outside.state()
        arguments = json.dumps(outside.at)
        turns = asyncio.Semaphore(AT_ONCE)
        ends: dict[str, tuple[Ended, str]] = {}
        async with keeping(name, folder / "scratch") as keeper:
            # Starting clears the folder away: what is there after that is another's.
            await (await keeper.sandbox()).close()
            (folder / "scratch/another").mkdir()
            (folder / "scratch/another/left").write_text(outside.canary)
            before = outside.state()

            async def attempt(batch: list[Attempt]) -> None:
                async with turns:
                    ended, printed = await run(keeper, batch_source(batch), arguments, BOUNDS)
                if ended.result is None and len(batch) > 1:
                    # One of them ended it.
                    await asyncio.gather(*(attempt([one]) for one in batch))
                    return
                got = json.loads(ended.result) if ended.result is not None else {}
                for one in batch:
                    result = json.dumps(got[one.name]) if one.name in got else None
                    ends[one.name] = (replace(ended, result=result), printed)

            await asyncio.gather(*(attempt(batch) for batch in batched(tried, TOGETHER)))
            after = outside.state()
        outside.listening.setblocking(False)
        try:
            outside.listening.accept()[0].close()
            called = True
        except BlockingIOError:
            called = False
        left = [
            str(process.info["cmdline"])
            for process in psutil.process_iter(["cmdline", "cwd"])
            if str(folder) in (process.info["cwd"] or "")
        ]
        return Tried(ends, outside.canary, before, after, called, left)


@pytest.fixture(scope="module", params=["sandlock", "bubblewrap"])
async def tried(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Tried]:
    try:
        yield await try_all(request.param, tmp_path_factory.mktemp("escapes"), ATTEMPTS)
    except FailedPrecondition as error:
        pytest.skip(error.message)


def test_there_are_three_hundred() -> None:
    assert len({attempt.name for attempt in ATTEMPTS}) == len(ATTEMPTS) >= 300


def refused(ended: Ended) -> bool:
    """Whether it was ended, or what it tried raised within it."""
    return bool(ended.error) or ended.result in NOTHING


@pytest.mark.parametrize("group", GROUPS)
def test_no_attempt_succeeds(tried: Tried, group: str) -> None:
    got_out = {
        name: (ended.result, ended.error, ended.message)
        for name, (ended, _) in tried.ends.items()
        if name.startswith(group) and ended.result not in NOTHING
    }
    assert got_out == {}


def test_what_uses_too_much_is_ended(tried: Tried) -> None:
    ends = {n: e for n, (e, _) in tried.ends.items() if n.startswith("exhaustion")}
    assert {name for name, ended in ends.items() if not refused(ended)} == set()
    slow = {n: e.duration_seconds for n, e in ends.items() if e.duration_seconds > 10}
    assert slow == {}


def test_no_secret_comes_out(tried: Tried) -> None:
    for ended, printed in tried.ends.values():
        told = " ".join((ended.result or "", ended.message, ended.trace, printed))
        assert tried.canary not in told


def test_nothing_outside_has_changed(tried: Tried) -> None:
    assert tried.after == tried.before
    assert not tried.called
    assert tried.left == []
    assert not any(Path(path).exists() for path in ("/tmp/weft-escaped", "/dev/shm/weft-escaped"))


async def test_attempts_succeed_where_nothing_confines_them(tmp_path: Path) -> None:
    """Else what is refused above may be refused for another reason than the sandbox."""
    plain = [attempt for attempt in ATTEMPTS if attempt.plain]
    found = await try_all("unsafe", tmp_path, plain)
    failed = {
        name: (ended.result, ended.message)
        for name, (ended, _) in found.ends.items()
        if ended.result in NOTHING
    }
    assert failed == {}
    assert len(plain) > 60
    assert any(found.canary in (ended.result or "") for ended, _ in found.ends.values())
    assert found.called
