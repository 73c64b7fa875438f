"""Files that only their owner may read: keys, contexts, exports."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from mesh.cli.failures import CommandFailed, ExitCode

FILE_BYTES_MAX = 1024 * 1024
_OTHERS = 0o077


def config_folder() -> Path:
    """`$XDG_CONFIG_HOME/weft`, else `~/.config/weft`. A relative path in the variable is
    passed over, as the XDG Base Directory Specification wants it."""
    named = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".config") / "weft"


@contextmanager
def private_file(path: Path) -> Iterator[TextIO]:
    """A file of mode 0600 that takes the place of `path` once the block has ended; should
    the block fail, `path` stays as it was. CommandFailed where it can't be written."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.new")
    try:
        if path.is_dir():
            raise CommandFailed(f"can't write {path}: it is a folder")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CommandFailed(f"can't write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Replaces a file at once by one of mode 0600; makes its folder, of mode 0700, where
    there is none. CommandFailed where it can't be written."""
    try:
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
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
