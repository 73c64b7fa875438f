"""Files that are put as blobs, and that blobs are written to."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mesh.cli.failures import CommandFailed

CHUNK_BYTES = 1024 * 1024


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The file's bytes, or those of standard input for `-`. CommandFailed where it can't be
    read."""
    if path == "-":
        yield sys.stdin.buffer
        return
    try:
        with Path(path).open("rb") as file:
            yield file
    except OSError as error:
        raise CommandFailed(f"can't read {path}: {error.strerror}") from error


def measured(file: BinaryIO) -> tuple[int, bytes] | None:
    """Size and SHA-256 of a file that can be read again, which is at its begin after that;
    None for another one."""
    if not file.seekable():
        return None
    begin = file.tell()
    sha256, size = hashlib.sha256(), 0
    for chunk in chunks_of(file):
        sha256.update(chunk)
        size += len(chunk)
    file.seek(begin)
    return size, sha256.digest()


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


@contextmanager
def written(path: Path | None, sha256: bytes) -> Iterator[Callable[[bytes], object]]:
    """What writes to standard output, or to a file that takes the place of `path` once the
    block has ended. CommandFailed where the bytes haven't the SHA-256, unless that is empty,
    or can't be written."""
    digest = hashlib.sha256()

    def check() -> None:
        if sha256 and digest.digest() != sha256:
            raise CommandFailed("the bytes that came aren't those that were put")

    if path is None:

        def show(data: bytes) -> None:
            digest.update(data)
            sys.stdout.buffer.write(data)

        yield show
        sys.stdout.buffer.flush()
        check()
        return
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.new")
    try:
        with temporary.open("xb") as file:

            def write(data: bytes) -> None:
                digest.update(data)
                file.write(data)

            yield write
            check()
        temporary.replace(path)
    except OSError as error:
        raise CommandFailed(f"can't write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
