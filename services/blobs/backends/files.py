"""Objects as files below a folder of this process alone."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from heapq import nsmallest
from pathlib import Path

import obstore
from obstore.store import LocalStore

from mesh.errors import LimitExceeded, Unavailable
from mesh.private_files import make_private_folder, sync_folder
from services.blobs.backends.store import ObstoreObjects, called, translated
from services.blobs.objects import ABSENT, Version, VersionConflict

_HALF_WRITTEN = "#"
"""obstore writes beside a file, under a name with this in it, and renames."""
_DESTROYED = f"{_HALF_WRITTEN}0"
"""How the name of a file ends that is overwritten next; obstore counts its own from 1."""
_READS_MAX = 8


class FileObjects(ObstoreObjects):
    """Keeps objects in a folder, readable by its owner alone. What is destroyed or replaced
    by `put` is overwritten: on a file system that copies on write that may not reach
    what was there. Versions are compared with nobody else in between where its one process
    sees to that."""

    shared = False

    def __init__(self, folder: Path, free_bytes_min: int) -> None:
        make_private_folder(folder)
        super().__init__(LocalStore(folder.absolute()))
        self._folder = folder
        self._free_bytes_min = free_bytes_min

    async def open(self) -> None:
        """See ObjectStore."""
        await asyncio.to_thread(self._clear)

    async def put(self, key: str, data: bytes, version: Version) -> None:
        """See ObjectStore."""
        self._refuse_full()
        path = self._folder / key
        present = await asyncio.to_thread(_version, path)
        if present != version:
            raise VersionConflict("the object has changed")
        async with called():
            replaced = await asyncio.to_thread(_opened, path)
            try:
                await obstore.put_async(self._root, key, data, use_multipart=False)
                await asyncio.to_thread(_sync, path)
                if replaced is not None:
                    await asyncio.to_thread(_overwrite, replaced)
            finally:
                if replaced is not None:
                    os.close(replaced)

    async def upload(self, key: str, pieces: AsyncIterator[bytes]) -> None:
        """See ObjectStore."""
        await super().upload(key, self._while_there_is_room(pieces))
        with translated():
            await asyncio.to_thread(_sync, self._folder / key)

    async def get(self, key: str) -> tuple[bytes, Version] | None:
        """See ObjectStore."""
        path = self._folder / key
        try:
            with translated():
                return await asyncio.to_thread(_read, path)
        except FileNotFoundError:
            return None

    async def page(self, folder: str, prefix: str, after: str, count: int) -> Sequence[str]:
        """See ObjectStore."""
        with translated():
            return await asyncio.to_thread(_page, self._folder / folder, prefix, after, count)

    async def delete(self, key: str) -> None:
        """See ObjectStore."""
        with suppress(FileNotFoundError), translated():
            await asyncio.to_thread((self._folder / key).unlink)

    async def destroy(self, key: str) -> None:
        """See ObjectStore."""
        with suppress(FileNotFoundError), translated():
            await asyncio.to_thread(_destroy, self._folder / key)

    async def _while_there_is_room(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            self._refuse_full()
            yield piece

    def _refuse_full(self) -> None:
        if shutil.disk_usage(self._folder).free < self._free_bytes_min:
            raise LimitExceeded("the disk that the blobs lie on has no room left")

    def _clear(self) -> None:
        for path in self._folder.rglob(f"*{_HALF_WRITTEN}*"):
            if path.name.endswith(_DESTROYED):
                _destroy_hidden(path)
            else:
                path.unlink(missing_ok=True)


def _version(path: Path | int) -> Version:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return ABSENT
    return Version(f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}")


def _read(path: Path) -> tuple[bytes, Version]:
    """What a file holds that still was in its place when it was read: one that isn't any more
    is overwritten, maybe under the reader's hands."""
    for _ in range(_READS_MAX):
        with path.open("rb") as file:
            version = _version(file.fileno())
            data = file.read()
        if _version(path) == version:
            return data, version
    raise Unavailable("an object changes all the time")


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _overwrite(descriptor: int) -> None:
    os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)
    os.fsync(descriptor)


def _destroy(path: Path) -> None:
    """Nobody finds it half overwritten, and what a crash leaves is destroyed at the start."""
    hidden = path.with_name(f"{path.name}{_DESTROYED}")
    path.rename(hidden)
    sync_folder(path.parent)
    _destroy_hidden(hidden)


def _destroy_hidden(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        _overwrite(descriptor)
    finally:
        os.close(descriptor)
    path.unlink()
    sync_folder(path.parent)


def _sync(path: Path) -> None:
    """Has the disk keep a file, and that it is there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


def _page(folder: Path, prefix: str, after: str, count: int) -> Sequence[str]:
    try:
        with os.scandir(folder) as entries:
            names = (
                entry.name
                for entry in entries
                if entry.name > after
                and entry.name.startswith(prefix)
                and _HALF_WRITTEN not in entry.name
            )
            return nsmallest(count, names)
    except FileNotFoundError:
        return []
