"""The master key's back ends."""

import asyncio
import base64
import hashlib
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mesh.errors import DataDamaged, FailedPrecondition
from mesh.security.master_key import (
    VARIABLE,
    EnvironmentMasterKey,
    FileMasterKey,
    MasterKey,
    MasterKeyUnknown,
    open_master_key,
)
from mesh.security.settings import SecuritySettings
from tests.support.keys import new_master_text


@pytest.fixture(params=["file", "environment"])
def master(request: pytest.FixtureRequest, tmp_path: Path) -> MasterKey:
    if request.param == "file":
        return FileMasterKey(tmp_path / "secrets")
    return EnvironmentMasterKey(new_master_text())


async def test_what_is_wrapped_unwraps_in_its_context_only(master: MasterKey) -> None:
    wrapped = await master.wrap(b"k" * 32, b"here")
    assert await master.unwrap(wrapped, b"here") == b"k" * 32
    assert b"k" * 8 not in wrapped
    with pytest.raises(DataDamaged):
        await master.unwrap(wrapped, b"there")
    for index in range(len(wrapped)):
        changed = wrapped[:index] + bytes([wrapped[index] ^ 1]) + wrapped[index + 1 :]
        with pytest.raises((DataDamaged, MasterKeyUnknown)):
            await master.unwrap(changed, b"here")
    with pytest.raises((DataDamaged, MasterKeyUnknown)):
        await master.unwrap(wrapped[:10], b"here")


async def test_the_file_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "weft" / "secrets"
    first = FileMasterKey(folder)
    assert not folder.exists()
    wrapped = await first.wrap(b"x", b"")
    file = folder / "master.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(base64.b64decode(file.read_bytes())) == 32
    assert [path.name for path in folder.iterdir()] == ["master.key"]
    second = FileMasterKey(folder)
    assert await second.unwrap(wrapped, b"") == b"x"
    assert second.key_id == first.key_id


def test_processes_that_start_together_make_one_key(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, sys; from mesh.security.master_key import FileMasterKey;"
        "key = FileMasterKey(pathlib.Path(sys.argv[1])); asyncio.run(key.wrap(b'', b''));"
        "print(key.key_id)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "secrets")]

    def made(_: int) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(made, range(4)))) == 1


def test_processes_that_rotate_together_lose_no_generation(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, sys; from mesh.security.master_key import FileMasterKey\n"
        "async def main():\n"
        "    key = FileMasterKey(pathlib.Path(sys.argv[1]))\n"
        "    for _ in range(100):\n"
        "        await key.rotate()\n"
        "        print((await key.wrap(b'x', b'')).hex())\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "secrets")]

    def wrapped(_: int) -> list[str]:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.split()

    with ThreadPoolExecutor(2) as pool:
        texts = [text for texts in pool.map(wrapped, range(2)) for text in texts]
    master = FileMasterKey(tmp_path / "secrets")
    for text in texts:
        assert asyncio.run(master.unwrap(bytes.fromhex(text), b"")) == b"x"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
async def test_a_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    await FileMasterKey(tmp_path).wrap(b"", b"")
    (tmp_path / "master.key").chmod(mode)
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        FileMasterKey(tmp_path)


@pytest.mark.parametrize("text", ["", "short", "ä", base64.b64encode(b"x" * 31).decode()])
def test_what_is_no_key_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "master.key").write_text(text)
    (tmp_path / "master.key").chmod(0o600)
    with pytest.raises(FailedPrecondition, match="32 bytes") as refused:
        FileMasterKey(tmp_path)
    assert not text or text not in refused.value.message.removeprefix(str(tmp_path))
    with pytest.raises(FailedPrecondition, match=VARIABLE):
        EnvironmentMasterKey(text)


async def test_the_variable_comes_first_and_is_inherited_by_nobody(tmp_path: Path) -> None:
    settings = SecuritySettings(secrets_dir=tmp_path)
    assert isinstance(open_master_key(settings), FileMasterKey)
    os.environ[VARIABLE] = new_master_text()
    assert isinstance(open_master_key(settings), EnvironmentMasterKey)
    assert VARIABLE not in os.environ


async def test_the_id_says_nothing_of_the_key(tmp_path: Path) -> None:
    master = FileMasterKey(tmp_path)
    await master.wrap(b"", b"")
    key = base64.b64decode((tmp_path / "master.key").read_bytes())
    assert len(master.key_id) == 16
    assert master.key_id != hashlib.sha256(key).hexdigest()[:16]
