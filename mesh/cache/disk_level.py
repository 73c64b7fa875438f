"""The third level: SQLite on this process's disk, which outlives a restart.

SQLite is blocking: one thread does all of it. What comes to be kept while it works is kept
together, in one transaction.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import apsw
import structlog

from mesh.cache.disk_tables import DiskTables
from mesh.cache.entries import is_of_session
from mesh.cache.level import Guard, LevelFailed, LevelOff, Sealed
from mesh.clock import Clock
from mesh.events.jetstream.assets import CACHE_TAGS_MAX

T = TypeVar("T")
FILE_NAME = "cache.sqlite3"

_GETS_MAX = 64
_PENDING_MAX = 1_024
_PENDING_BYTES_MAX = 8_388_608
_AT_ONCE_MAX = 128
_AT_ONCE_BYTES = 1_048_576
_CHANGE_SECONDS_MAX = 5.0
_STOP_SECONDS_MAX = 2.0
_CHANGE_PAUSE_SECONDS = 1.0
_DAMAGED = (apsw.CorruptError, apsw.NotADBError, apsw.FormatError)
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Pending:
    """What waits for the thread; `tags` with the positions of their invalidations."""

    entries: dict[bytes, Sealed] = field(default_factory=dict)
    dropped: set[bytes] = field(default_factory=set)
    tags: dict[bytes, int] = field(default_factory=dict)
    used: set[bytes] = field(default_factory=set)
    size_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.entries or self.dropped or self.tags)

    def add(self, sealed: Sealed) -> None:
        """Keeps the newest of an id."""
        self.forget(sealed.entry_id)
        self.entries[sealed.entry_id] = sealed
        self.size_bytes += len(sealed.stored)

    def forget(self, entry_id: bytes) -> None:
        """It isn't to be kept."""
        sealed = self.entries.pop(entry_id, None)
        self.size_bytes -= len(sealed.stored) if sealed is not None else 0

    def forget_tagged(self, tag: bytes, position: int) -> None:
        """What has the tag and was made before isn't to be kept."""
        for sealed in list(self.entries.values()):
            if tag in sealed.tags and sealed.position < position:
                self.forget(sealed.entry_id)

    def take(self) -> "_Pending":
        """A part of it, small enough that nobody who reads waits for long."""
        taken = _Pending(dropped=self.dropped, used=self.used)
        self.dropped, self.used = set(), set()
        for tag in list(islice(self.tags, _AT_ONCE_MAX)):
            taken.tags[tag] = self.tags.pop(tag)
        while (
            self.entries and len(taken.entries) < _AT_ONCE_MAX and taken.size_bytes < _AT_ONCE_BYTES
        ):
            entry_id = next(iter(self.entries))
            taken.add(self.entries[entry_id])
            self.forget(entry_id)
        return taken


class DiskLevel:
    """See the module, and the port `mesh.cache.level.Level`. A file that is damaged is made
    anew."""

    name = "disk"

    def __init__(self, path: Path, bytes_max: int, timeout_seconds: float, clock: Clock) -> None:
        self._tables = DiskTables(path, bytes_max)
        self._clock = clock
        self._pending = _Pending()
        self._changing: asyncio.Task[None] | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._opened = False
        now = clock.monotonic
        self._gets = Guard("disk", timeout_seconds, now, _GETS_MAX)
        # Apart: a full disk can still be read.
        self._changes = Guard("disk writes", _CHANGE_SECONDS_MAX, now, 1)

    @property
    def size_bytes(self) -> int:
        """See Level."""
        return self._tables.size_bytes

    @property
    def evicted(self) -> int:
        """See Level."""
        return self._tables.evicted

    async def start(self) -> None:
        """Begins; the file is opened beside, and with the next use where that failed."""
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache")
        self._changing = asyncio.create_task(self._change_all(), name="cache on disk")

    async def stop(self) -> None:
        """Keeps what waits to be kept, for two seconds at most."""
        if self._worker is None:
            return
        changing = self._changing
        if changing is not None:
            await asyncio.wait({changing}, timeout=_STOP_SECONDS_MAX)
            changing.cancel()
        await self._gets.stop()
        await self._changes.stop()
        worker, self._worker = self._worker, None
        closed = asyncio.wrap_future(worker.submit(self._tables.close))
        await asyncio.wait({closed}, timeout=_STOP_SECONDS_MAX)
        worker.shutdown(wait=False, cancel_futures=True)

    async def get(self, entry_id: bytes) -> bytes | None:
        """See Level."""
        found = await self._gets.ask(lambda: self._run(lambda: self._tables.get(entry_id)))
        if found is not None and len(self._pending.used) < _PENDING_MAX:
            self._pending.used.add(entry_id)
        return found

    def put(self, sealed: Sealed) -> None:
        """See Level."""
        pending, size = self._pending, len(sealed.stored)
        if len(pending.entries) < _PENDING_MAX and pending.size_bytes + size <= _PENDING_BYTES_MAX:
            pending.add(sealed)
            self._change()

    def drop(self, entry_id: bytes) -> None:
        """See Level."""
        if len(self._pending.dropped) < _PENDING_MAX:
            self._pending.forget(entry_id)
            self._pending.dropped.add(entry_id)
            self._change()

    def drop_tagged(self, tag: bytes, position: int) -> None:
        """See Level."""
        if len(self._pending.tags) < CACHE_TAGS_MAX:
            self._pending.forget_tagged(tag, position)
            self._pending.tags[tag] = position
            self._change()

    def _change(self) -> None:
        if self._changing is None and self._worker is not None:
            self._changing = asyncio.create_task(self._change_all(), name="cache on disk")

    async def _change_all(self) -> None:
        try:
            # The file is opened, whatever there is to keep.
            await self._change_once(self._pending.take())
            while self._pending:
                await self._change_once(self._pending.take())
        finally:
            self._changing = None

    async def _change_once(self, pending: _Pending) -> None:
        scrubs = any(is_of_session(tag) for tag in pending.tags)

        def change() -> None:
            self._tables.change(
                pending.entries.values(),
                pending.dropped,
                pending.tags.items(),
                pending.used,
                self._clock.now_ns(),
            )
            if scrubs:
                self._tables.forget_log()

        try:
            await self._changes.ask(lambda: self._run(change))
        except LevelFailed:
            # Entries are lost by it. What is to be forgotten isn't used; it is forgotten when
            # the file can be written again, or when it expires.
            for tag, position in pending.tags.items():
                self._pending.tags.setdefault(tag, position)
            await asyncio.sleep(_CHANGE_PAUSE_SECONDS)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._worker is None:
            raise LevelOff
        return await asyncio.wrap_future(self._worker.submit(self._guarded, work))

    def _guarded(self, work: Callable[[], T]) -> T:
        """On the thread: opens the file where it isn't open, and takes it away where it is
        damaged, so that the next use makes it anew."""
        try:
            if not self._opened:
                self._tables.open(self._clock.now_ns())
                self._opened = True
            return work()
        except _DAMAGED:
            _log.warning("cache_file_damaged")
            self._opened = False
            self._tables.remove()
            raise
