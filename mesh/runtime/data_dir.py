"""The data folder: one process at a time, of a format that this version reads.

lock       locked while a process uses the folder; holds that process's id
VERSION    what the folder's format is
instance   id of the run that used it last
heads      where the streams of the event log are known to end: heads.sqlite3
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from mesh.errors import DataDamaged, FailedPrecondition, WeftError
from mesh.settings import FILE_NAME

FORMAT = "weft-data 1"
_MARKER_BYTES_MAX = 200
_INSTANCE_BYTES_MAX = 64


class DataDirectory:
    """A data folder, opened for `instance` and locked until `close`.

    The kernel frees the lock when the process ends, however it ends. Whoever holds it
    is therefore the successor of `previous_instance`, which can't be alive any more.

    Raises FailedPrecondition where another process uses the folder, where it can't be
    made or written, or where it holds other things than Weft's; DataDamaged where its
    format is unknown or its marker doesn't parse.
    """

    path: Path
    previous_instance: str | None
    """Id of the run that used the folder before; None for a new one."""

    def __init__(self, path: Path, instance: str) -> None:
        self.path = path.expanduser().absolute()
        self._lock = -1
        try:
            self._lock = self._take_lock()
            self._check_format()
            self.previous_instance = self._read_instance()
            write_durably(self.path / "instance", instance)
        except OSError as error:
            self.close()
            raise FailedPrecondition(
                f"data folder {self.path} can't be used: {error.strerror}"
            ) from error
        except WeftError:
            self.close()
            raise

    def close(self) -> None:
        """Unlocks the folder; safe to call again."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _take_lock(self) -> int:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.path.stat().st_uid != os.geteuid():
            raise FailedPrecondition(f"data folder {self.path} belongs to another user")
        if not (self.path / "lock").exists() and _is_foreign(self.path):
            raise FailedPrecondition(
                f"{self.path} isn't a data folder of Weft and isn't empty: name another one"
            )
        # Keys and conversations lie in it; a folder made by hand is often readable by all.
        self.path.chmod(0o700)
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise FailedPrecondition(
                f"data folder {self.path} is in use by process {owner}",
                metadata={"pid": owner},
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return lock

    def _check_format(self) -> None:
        marker = self.path / "VERSION"
        if not marker.exists():
            if _is_foreign(self.path):
                raise DataDamaged(f"{marker} is missing, but the folder isn't empty")
            write_durably(marker, FORMAT)
            return
        found = _read_short(marker, _MARKER_BYTES_MAX)
        if found == FORMAT:
            return
        if found.startswith("weft-data "):
            raise DataDamaged(f"{self.path} has the format {found!r}; this Weft reads {FORMAT!r}")
        raise DataDamaged(f"{marker} is damaged: it doesn't name a format")

    def _read_instance(self) -> str | None:
        try:
            return _read_short(self.path / "instance", _INSTANCE_BYTES_MAX) or None
        except FileNotFoundError:
            return None


def _is_foreign(folder: Path) -> bool:
    """Whether there is more in it than a first start that was cut short leaves behind, and the
    settings, which may be there before it."""
    known = {"lock", "VERSION.new", FILE_NAME}
    return any(entry.name not in known for entry in folder.iterdir())


def _read_short(path: Path, bytes_max: int) -> str:
    with path.open("rb") as file:
        return file.read(bytes_max).decode(errors="replace").strip()


def write_durably(path: Path, text: str) -> None:
    """Replaces the file as a whole: after a crash it holds the old text or the new one."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_addresses(folder: Path, told: Mapping[str, object]) -> Path:
    """Leaves word for commands of the same data folder: where this process listens, and its
    id. Returns the file, which is deleted at the end."""
    run = folder / "run"
    run.mkdir(exist_ok=True)
    path = run / "address.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({**told, "pid": os.getpid()}))
    temporary.replace(path)
    return path
