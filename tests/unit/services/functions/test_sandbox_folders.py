"""The folders of sandboxes: what is counted in them, and that nothing of them is left."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.errors import FailedPrecondition
from services.functions.sandbox.keeper import remove_folder
from services.functions.sandbox.launcher import Keeper
from services.functions.sandbox.limits import Invocation
from tests.support.functions import LIMITS, keeping, run

DEPTH = 1_500
"""More than Python's recursion, and than the length of a path."""
NAME = "d" * 9

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def keeper(tmp_path: Path) -> AsyncIterator[Keeper]:
    async with keeping("auto", tmp_path / "scratch") as made:
        try:
            await (await made.sandbox()).close()
        except FailedPrecondition as error:
            pytest.skip(error.message)
        yield made


def nest(folder: Path) -> None:
    """Makes folders within folders, with a file in the last."""
    folder.mkdir()
    inner = os.open(folder, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir(NAME, dir_fd=inner)
        outer, inner = inner, os.open(NAME, os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=inner))
    os.close(inner)


def test_a_folder_is_removed_however_deep_and_whatever_its_modes(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    nest(folder)
    (folder / "closed/inner").mkdir(parents=True)
    (folder / "closed/inner/file").touch()
    (folder / "closed/inner").chmod(0o300)
    (folder / "closed").chmod(0)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (folder / "link").symlink_to(outside)
    remove_folder(str(folder))
    assert not folder.exists()
    assert (outside / "file").exists()


async def test_what_a_process_before_left_is_cleared_away(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    nest(scratch / "s-left")
    async with keeping("unsafe", scratch) as keeper:
        await (await keeper.sandbox()).close()
        assert not (scratch / "s-left").exists()


async def test_a_sandbox_keeps_its_folder_when_its_keeper_ends(
    keeper: Keeper, tmp_path: Path
) -> None:
    source = (
        "import os, time\ndef handler(a):\n    open('f', 'w').write('mine')\n    print('there')\n"
        "    while not os.path.exists(a): time.sleep(0.01)\n    return open('f').read()\n"
    )
    printed = asyncio.Event()
    sandbox = await keeper.sandbox()
    going_on = tmp_path / "go-on"
    running = asyncio.create_task(
        sandbox.run(
            Invocation(source, "handler", f'"{going_on}"'), LIMITS, lambda *_: printed.set()
        )
    )
    await printed.wait()
    await keeper.stop()
    await (await keeper.sandbox()).close()
    going_on.touch()
    ended = await running
    assert (ended.result, ended.message) == ('"mine"', "")


async def test_a_file_counts_once_however_often_it_is_open_or_linked(keeper: Keeper) -> None:
    source = (
        "import mmap, os, tempfile, time\ndef handler(a):\n"
        "    f = tempfile.TemporaryFile(dir='.'); f.write(b'x' * (1 << 20)); f.flush()\n"
        "    kept = [mmap.mmap(f.fileno(), 0) for _ in range(4)]\n"
        "    open('g', 'wb').write(b'x' * (1 << 20))\n"
        "    for n in range(4): os.link('g', f'g{n}')\n"
        "    time.sleep(0.5); return 'done'\n"
    )
    ended, _ = await run(keeper, source)
    assert (ended.result, ended.error) == ('"done"', "")
