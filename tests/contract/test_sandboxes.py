"""What every back end of the sandbox does alike; what only confinement brings is left to
`tests/security/test_function_escapes.py`."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mesh.errors import FailedPrecondition
from services.functions.sandbox import backends
from services.functions.sandbox.backends import Backend, choose
from services.functions.sandbox.keeper import bubblewrap_command
from services.functions.sandbox.launcher import Keeper
from services.functions.sandbox.limits import Invocation
from services.functions.sandbox.pool import Pool
from services.functions.sandbox.syscalls import filter_program
from tests.support.eventually import eventually
from tests.support.functions import LIMITS, keeping, run

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=["sandlock", "bubblewrap", "unsafe"])
async def keeper(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Keeper]:
    try:
        async with keeping(request.param, tmp_path / "scratch") as keeper:
            yield keeper
    except FailedPrecondition as error:
        pytest.skip(error.message)


def inside(folder: Path) -> list[psutil.Process]:
    """Processes that work in the folder, or below."""
    processes = psutil.process_iter(["cwd"])
    return [each for each in processes if str(folder) in (each.info["cwd"] or "")]


async def test_what_it_returns_is_json(keeper: Keeper) -> None:
    source = "def handler(a):\n    print('seen')\n    return {'twice': a['x'] * 2, 'é': None}"
    ended, printed = await run(keeper, source, '{"x": 21}')
    assert (ended.result, ended.error, printed) == ('{"twice": 42, "é": null}', "", "seen\n")
    assert 0 < ended.cpu_seconds < 10
    assert ended.memory_bytes > 1 << 20


async def test_its_folder_is_its_own_and_its_environment_empty(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_CANARY", "x")
    source = (
        "import os\ndef handler(a):\n    open('f', 'w').write('x')\n"
        "    return [os.listdir('.'), [n for n in os.environ if n != 'LC_CTYPE']]"
    )
    for _ in range(2):
        ended, _ = await run(keeper, source)
        assert ended.result == '[["f"], []]'
    await eventually(lambda: list((tmp_path / "scratch").iterdir()) == [], seconds=10)


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("def handler(a): raise KeyError('lost')", "raised", "KeyError: 'lost'"),
        ("import sys\ndef handler(a): sys.exit('gone')", "raised", "SystemExit: gone"),
        ("def handler(a)", "source", "expected ':'"),
        ("import nothing_such\ndef handler(a): pass", "raised", "ModuleNotFoundError"),
        ("handler = 1", "source", "no function handler"),
        ("def handler(a): return {1, 2}", "result", "isn't JSON"),
        ("def handler(a): return float('nan')", "result", "isn't JSON"),
        ("def handler(a): return 'x' * (2 << 20)", "output", "bytes"),
        ("def handler(a):\n    while True: print('x' * 4096)", "output", ""),
        ("def handler(a): return len(bytearray(1 << 30))", "memory", "memory"),
        ("import time\ndef handler(a): time.sleep(900)", "timeout", ""),
        ("def handler(a):\n    while True: pass", "cpu", ""),
        ("import os\ndef handler(a): os._exit(3)", "crashed", ""),
        ("import ctypes\ndef handler(a): ctypes.string_at(1)", "crashed", ""),
        (
            "import threading, time\ndef handler(a):\n    threading.stack_size(65536)\n"
            "    for _ in range(40): threading.Thread(target=time.sleep, args=(60,)).start()\n"
            "    time.sleep(60)",
            "threads",
            "",
        ),
        (
            "import time\ndef handler(a):\n"
            "    for n in range(8): open(f'f{n}', 'wb').write(bytes(1 << 20))\n    time.sleep(60)",
            "scratch",
            "",
        ),
    ],
)
async def test_what_goes_wrong_has_a_word(
    keeper: Keeper, source: str, error: str, says: str
) -> None:
    seconds = 1.0 if error == "timeout" else 15.0
    limits = replace(LIMITS, timeout_seconds=seconds, cpu_seconds=1)
    ended, _ = await run(keeper, source, limits=limits)
    assert (ended.result, ended.error) == (None, error)
    assert says in ended.message


async def test_a_function_says_where_it_failed(keeper: Keeper) -> None:
    ended, _ = await run(
        keeper, "def handler(a):\n    return inner(a)\n\ndef inner(a):\n    1 / 0\n"
    )
    assert 'File "function.py", line 2, in handler' in ended.trace
    assert "1 / 0" in ended.trace
    assert "inside.py" not in ended.trace


@pytest.mark.parametrize(
    "written",
    [
        "b'\\xff' * 4",
        "(1 << 20).to_bytes(4, 'big') + b'[' * (1 << 20)",
        "(4).to_bytes(4, 'big') + b'null'",
        "(4).to_bytes(4, 'big') + b'\\xff' * 4",
        "(16).to_bytes(4, 'big') + b'{\"error\": \"made\"}'[:16]",
        "(17).to_bytes(4, 'big') + b'{\"error\": \"made\"}'",
        "(13).to_bytes(4, 'big') + b'{\"result\": 1}'",
        "(1 << 20).to_bytes(4, 'big') + b'cut off'",
    ],
)
async def test_an_answer_that_it_makes_itself_is_a_strangers_word(
    keeper: Keeper, written: str
) -> None:
    source = (
        "import os\ndef handler(a):\n    left = memoryview(" + written + ")\n"
        "    while left: left = left[os.write(3, left):]\n    os._exit(0)"
    )
    ended, _ = await run(keeper, source)
    assert ended.result is None
    assert ended.error in ("crashed", "output")


async def test_it_sees_its_context_if_it_asks(keeper: Keeper) -> None:
    sandbox = await keeper.sandbox()
    source = "async def handler(a, context):\n    return [a, context['idempotency_key']]"
    invocation = Invocation(source, "handler", "1", {"idempotency_key": "k"})
    ended = await sandbox.run(invocation, LIMITS, lambda stream, data: None)
    assert ended.result == '[1, "k"]'


async def test_one_that_is_given_up_is_ended(keeper: Keeper, tmp_path: Path) -> None:
    running = asyncio.ensure_future(run(keeper, "import time\ndef handler(a): time.sleep(900)"))
    await eventually(lambda: len(inside(tmp_path)) == 1, seconds=10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await eventually(lambda: inside(tmp_path) == [], seconds=10)
    assert (await run(keeper, "def handler(a): return 1"))[0].result == "1"


@pytest.mark.parametrize("whom", ["keeper", "guard"])
async def test_nothing_is_left_where_its_starter_is_killed(
    keeper: Keeper, tmp_path: Path, whom: str
) -> None:
    begun = asyncio.Event()
    sandbox = await keeper.sandbox()
    source = "import time\ndef handler(a):\n    print('begun')\n    time.sleep(900)"
    running = asyncio.ensure_future(
        sandbox.run(Invocation(source, "handler"), LIMITS, lambda stream, data: begun.set())
    )
    await asyncio.wait_for(begun.wait(), 15)
    function = inside(tmp_path)[0]
    guard = function.parent()
    assert guard is not None
    killed = guard if whom == "guard" else guard.parent()
    assert killed is not None
    os.kill(killed.pid, signal.SIGKILL)
    if whom == "keeper":
        # Its guard stays with the function, until Weft lets go of it.
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    else:
        ended = await running
        assert ended.error == "crashed"
    await eventually(lambda: inside(tmp_path) == [], seconds=10)
    assert (await run(keeper, "def handler(a): return 1"))[0].result == "1"


async def test_grandchildren_end_where_nothing_confines_them(tmp_path: Path) -> None:
    source = (
        "import os, time\ndef handler(a):\n    if os.fork() == 0:\n        os.setsid()\n"
        "        if os.fork() == 0:\n            time.sleep(900)\n        os._exit(0)\n    return 1"
    )
    async with keeping("unsafe", tmp_path / "scratch") as keeper:
        assert (await run(keeper, source))[0].result == "1"
        await eventually(lambda: inside(tmp_path) == [], seconds=10)


async def test_the_pool_gives_no_process_twice(tmp_path: Path) -> None:
    source = (
        "import builtins, json\ndef handler(a):\n    seen = getattr(builtins, 'left', None)\n"
        "    builtins.left = a\n    json.dumps = None\n    return seen"
    )
    pool = Pool(Keeper(choose("unsafe"), tmp_path / "scratch"), 2)
    try:
        warm = []
        for number in range(5):
            sandbox, was_ready = await pool.take()
            invocation = Invocation(source, "handler", str(number))
            ended = await sandbox.run(invocation, LIMITS, lambda stream, data: None)
            assert ended.result is None or ended.result == "null"
            warm.append(was_ready)
            await asyncio.sleep(0.3)
        assert warm[0] is False
        assert any(warm)
    finally:
        await pool.stop()


async def test_one_that_died_waiting_isnt_given(tmp_path: Path) -> None:
    pool = Pool(Keeper(choose("unsafe"), tmp_path / "scratch"), 1)
    try:
        await (await pool.take())[0].close()
        await eventually(lambda: len(inside(tmp_path)) == 1, seconds=10)
        # Until it waits nobody is given it.
        await asyncio.sleep(1)
        inside(tmp_path)[0].kill()
        await eventually(lambda: inside(tmp_path) == [], seconds=10)
        sandbox, _ = await pool.take()
        ended = await sandbox.run(
            Invocation("def handler(a): return 1", "handler"), LIMITS, lambda stream, data: None
        )
        assert ended.result == "1"
    finally:
        await pool.stop()


def test_what_cant_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_sandlock_problem", lambda: "the kernel has Landlock 0")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FailedPrecondition) as refused:
        choose("auto")
    assert "the kernel has Landlock 0" in refused.value.message
    assert "there is no bwrap" in refused.value.message
    assert choose("unsafe") == Backend("unsafe")


def test_bubblewrap_shows_the_interpreter_and_the_folder_only(tmp_path: Path) -> None:
    configuration = Backend("bubblewrap", "/usr/bin/bwrap").configuration(tmp_path)
    command = bubblewrap_command(configuration, "/scratch")
    assert {"--unshare-all", "--die-with-parent", "--clearenv", "--new-session"} <= set(command)
    binds = [command[i + 1] for i, word in enumerate(command) if word == "--bind"]
    assert binds == ["/scratch"]
    read = [command[i + 1] for i, word in enumerate(command) if word == "--ro-bind"]
    assert read == configuration["readable"]
    assert not {"/", "/etc", "/proc", "/tmp", str(tmp_path)} & set(read)
    assert not {"--proc", "--dev", "--dev-bind", "--share-net"} & set(command)
    assert command[-1] == filter_program().hex()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_one_that_the_kernel_takes(machine: str) -> None:
    program = filter_program(machine)
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4_096


def test_an_unknown_machine_has_no_filter() -> None:
    with pytest.raises(FailedPrecondition):
        filter_program("riscv64")
