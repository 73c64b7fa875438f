"""Private files of the CLI: what goes wrong with them, said as a command says it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import mesh.private_files as files
from mesh.cli.failures import CommandFailed, ExitCode

FILE_BYTES_MAX = 1024 * 1024
_OTHERS = 0o077


@contextmanager
def private_file(path: Path) -> Iterator[TextIO]:
    """See `mesh.private_files`. CommandFailed where it can't be written."""
    try:
        if path.is_dir():
            raise CommandFailed(f"can't write {path}: it is a folder")
        with files.private_file(path) as file:
            yield file
    except OSError as error:
        raise CommandFailed(f"can't write {path}: {error.strerror}") from error


def write_private(path: Path, text: str) -> None:
    """See `mesh.private_files`. CommandFailed where it can't be written."""
    try:
        files.make_private_folder(path.parent)
    except OSError as error:
        raise CommandFailed(f"can't make {path.parent}: {error.strerror}") from error
    with private_file(path) as file:
        file.write(text)


def read_private(path: Path) -> str | None:
    """The text of a file with secrets; None where there is no such file. CommandFailed
    where somebody else may read it, too, or where it can't be read."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS:
                raise CommandFailed(
                    f"others can read {path}, which holds a key",
                    exit_code=ExitCode.AUTHENTICATION,
                    notes=[f"chmod 600 {path}", "Somebody may have read it: weft key rotate"],
                )
            return file.read(FILE_BYTES_MAX).decode("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CommandFailed(f"can't read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        # Its text may be a secret, and the error would hold it.
        raise CommandFailed(f"{path} isn't UTF-8 text") from None


def others_may_read(path: Path) -> bool:
    """Whether anybody but its owner may read or write the file; False where there is none."""
    try:
        return bool(path.stat().st_mode & _OTHERS)
    except OSError:
        return False
