"""A file system that is soon full."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import finished

DISK_BYTES = 160 * 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """One of `DISK_BYTES`."""
    with mounted_disk(tmp_path / "disk", DISK_BYTES) as folder:
        yield folder


@contextlib.contextmanager
def mounted_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system in memory at the folder, which is made; its test is skipped where we may
    not mount one."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs"]
    try:
        mounted = finished(["mount", *options, folder])
    except FileNotFoundError:
        pytest.skip("there is no command mount")
    if mounted.returncode:
        pytest.skip(f"a file system can't be mounted here: {mounted.stderr.strip()}")
    yield folder
    assert finished(["umount", "--lazy", folder]).returncode == 0


def fill(path: Path) -> None:
    """Takes all that is left of the disk."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    continue
    assert not shutil.disk_usage(path.parent).free
