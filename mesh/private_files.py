"""Files that only their owner may read: keys, credentials, contexts, exports."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


def config_folder() -> Path:
    """`$XDG_CONFIG_HOME/weft`, else `~/.config/weft`. A relative path in the variable is
    passed over, as the XDG Base Directory Specification wants it."""
    named = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".config") / "weft"


def make_private_folder(folder: Path) -> None:
    """Makes the folder, of mode 0700, and those above it; one that is there stays as it is."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def private_file(path: Path) -> Iterator[TextIO]:
    """A file of mode 0600, never wider in between, that takes the place of `path` once the
    block has ended; should the block fail, `path` stays as it was. After a crash it holds
    the old text or the new one. Raises OSError where it can't be written."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.new")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_private(path: Path, text: str) -> None:
    """As `private_file`, with that text; makes the folder, of mode 0700, where there is
    none."""
    make_private_folder(path.parent)
    with private_file(path) as file:
        file.write(text)


def sync_folder(folder: Path) -> None:
    """Has the disk keep which files are in the folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
