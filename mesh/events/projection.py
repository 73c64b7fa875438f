"""Read models: tables in SQLite that follow the log.

The position of the last commit is kept in the same transaction as what the commit
changed, so a read model is never ahead of or behind its own checkpoint; it is stored seldom
while nothing changes. The file can be deleted at any time: it is built again from the log.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from mesh.errors import DataDamaged, EventStoreUnavailable, Internal, WeftError
from mesh.events.batches import in_batches
from mesh.events.store import EVERYTHING, EventStore, Selection, StoredCommit

_log = structlog.get_logger()

BATCH_COMMITS_MAX = 256
RETRY_SECONDS = 0.5
CATCH_UP_SECONDS_MAX = 5.0
REBUILDS_MAX = 3
"""How often a process builds a read model anew whose rows are damaged."""
CHECKPOINT_POSITIONS = 1_000
"""How far the log may go on with what doesn't concern a read model before its checkpoint is
stored: a start looks at so much once more, which is quicker than a transaction for each."""
PAUSE_SECONDS = 0.02
"""Between two batches, so that a transaction holds what comes within it."""

T = TypeVar("T")
Apply = Callable[[sqlite3.Connection, StoredCommit], None]
Observe = Callable[[Sequence[StoredCommit]], None]


class _RowDamaged(Exception):
    """A row of the tables can't be read any more; the log can."""


class Projection:
    """One read model. `tables` is the SQL that makes it, and also its version: another
    text builds the file anew. `apply` changes the tables by one commit; where it raises
    DataDamaged, a row can't be read any more, and the file is built anew too. `observe`, if
    there is one, is told of each batch after it was stored."""

    def __init__(
        self,
        store: EventStore,
        path: Path,
        *,
        tables: str,
        selections: Sequence[Selection],
        apply: Apply,
        observe: Observe | None = None,
    ) -> None:
        self._store = store
        self._path = path
        self._tables = tables
        self._selections = selections
        self._apply = apply
        self._observe = observe
        self._moved = asyncio.Condition()
        self._wanted = asyncio.Event()
        self._waiting = 0
        self._task: asyncio.Task[None] | None = None
        self._follow_failed: WeftError | None = None
        self._connection: sqlite3.Connection | None = None
        self._rebuilds = 0
        self._rebuilding = asyncio.Lock()
        self._made_with = ""
        self._checkpoint = 0
        self.position = 0

    @property
    def connection(self) -> sqlite3.Connection:
        """The tables, to read from; only while it is started."""
        assert self._connection is not None, "start first"
        return self._connection

    @property
    def failure(self) -> WeftError | None:
        """Why it doesn't follow the log any more; None while it does."""
        return self._follow_failed

    async def start(self, sealed_with: str = "") -> None:
        """Opens the file, and returns once it holds all that is in the log by now.
        `sealed_with` tells which key its rows are sealed with, where they are."""
        # What was read from another log or sealed with another key is built anew, as with
        # other tables.
        log = await self._store.log_id()
        self._made_with = (
            f"{self._tables}\n-- of the log {log}, sealed with {sealed_with or 'none'}"
        )
        self._connection = _open(self._path, self._made_with)
        row = self.connection.execute("SELECT position FROM checkpoint").fetchone()
        self.position = self._checkpoint = row[0]
        if self.position > await self._store.last_position():
            # The log lost its end, as when it was restored from a backup.
            self._begin_anew()
        self._task = asyncio.create_task(self._follow())
        await self.catch_up(seconds_max=None)

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """What `query` reads out of the tables, which doesn't wait. Where it raises
        DataDamaged, since a row can't be read, or the file itself is damaged, the tables are
        built anew first."""
        rebuilds = self._rebuilds
        try:
            return query(self.connection)
        except (DataDamaged, sqlite3.DatabaseError) as error:
            if isinstance(error, sqlite3.DatabaseError) and not _tells_of_damage(error):
                raise
            async with self._rebuilding:
                if rebuilds == self._rebuilds:
                    await self._rebuild()
        return query(self.connection)

    async def stop(self) -> None:
        """Ends following and closes the file. Why following failed was logged by then."""
        try:
            await self._stop_following()
        finally:
            if self._connection is not None:
                self._connection.close()

    async def catch_up(self, seconds_max: float | None = CATCH_UP_SECONDS_MAX) -> None:
        """Returns once all that is stored by now is in the tables, so that a caller
        reads its own writes. Raises EventStoreUnavailable past `seconds_max`."""
        target = await self._store.last_position()
        self._waiting += 1
        self._wanted.set()
        try:
            async with asyncio.timeout(seconds_max), self._moved:
                await self._moved.wait_for(
                    lambda: self.position >= target or self._follow_failed is not None
                )
        except TimeoutError as error:
            raise EventStoreUnavailable("the read model lags behind the log") from error
        finally:
            self._waiting -= 1
        if self.position < target and self._follow_failed is not None:
            raise self._follow_failed

    def scrub(self) -> None:
        """Leaves no bytes of deleted rows on the disk: they were overwritten in the tables
        when they were deleted, and go from the journal now."""
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    async def _rebuild(self) -> None:
        self._count_rebuild()
        await self._stop_following()
        self._begin_anew()
        # What it failed at may have been the file that is gone; else it fails again.
        self._follow_failed = None
        self._task = asyncio.create_task(self._follow())
        await self.catch_up(seconds_max=None)

    async def _stop_following(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _count_rebuild(self) -> None:
        self._rebuilds += 1
        if self._rebuilds > REBUILDS_MAX:
            raise DataDamaged(f"rows of {self._path.name} can't be read, again and again")
        _log.warning("read model was damaged and is built anew", path=self._path.name)

    def _begin_anew(self) -> None:
        self.connection.close()
        _delete(self._path)
        self._connection = _open(self._path, self._made_with)
        self.position = self._checkpoint = 0

    async def _follow(self) -> None:
        try:
            while True:
                await self._follow_until_fault()
        except WeftError as error:
            # The log is damaged where the read model would go on: it stays behind,
            # and who needs it newer is told why.
            await self._fail(error)
        except Exception:  # noqa: BLE001 - nobody awaits this task: who waits for it is told
            _log.exception("projection failed", path=self._path.name)
            await self._fail(Internal(f"{self._path.name} doesn't follow the log any more"))

    async def _follow_until_fault(self) -> None:
        """Returns where following may go on. Raises what ends it."""
        try:
            async with contextlib.aclosing(self._batches()) as batches:
                async for batch in batches:
                    self._store_batch(batch)
                    async with self._moved:
                        self._moved.notify_all()
                    await self._pause()
        except EventStoreUnavailable:
            await asyncio.sleep(RETRY_SECONDS)
        except sqlite3.OperationalError as error:
            # As on a full disk: what wasn't stored is read again.
            _log.warning("read model not written", path=self._path.name, error=str(error))
            await asyncio.sleep(RETRY_SECONDS)
        except (_RowDamaged, sqlite3.DatabaseError) as error:
            if isinstance(error, sqlite3.DatabaseError) and not _tells_of_damage(error):
                raise
            self._count_rebuild()
            self._begin_anew()

    async def _fail(self, error: WeftError) -> None:
        _log.error("projection stopped", path=self._path.name, error=error.message)
        self._follow_failed = error
        async with self._moved:
            self._moved.notify_all()

    async def _pause(self) -> None:
        """Lets commits gather, unless somebody waits for them."""
        if not self._waiting:
            self._wanted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE_SECONDS):
                    await self._wanted.wait()

    def _batches(self) -> AsyncGenerator[list[StoredCommit], None]:
        """Commits as they come, those already there together."""
        # Everything is watched, selected or not: the checkpoint must reach the end of the
        # log even where nothing in it concerns this read model.
        return in_batches(self._store.watch(EVERYTHING, self.position), BATCH_COMMITS_MAX)

    def _store_batch(self, batch: Sequence[StoredCommit]) -> None:
        selected = [
            stored
            for stored in batch
            # What an erased stream held was in the tables, or was never to be.
            if not stored.erased
            and any(selection.holds(stored.commit.stream) for selection in self._selections)
        ]
        position = batch[-1].position
        if selected or position >= self._checkpoint + CHECKPOINT_POSITIONS:
            self._write(selected, position)
        self.position = position
        if selected and self._observe is not None:
            self._observe(selected)

    def _write(self, selected: Sequence[StoredCommit], position: int) -> None:
        with self.connection:
            for stored in selected:
                try:
                    self._apply(self.connection, stored)
                except DataDamaged as error:
                    raise _RowDamaged from error
            self.connection.execute("UPDATE checkpoint SET position = ?", (position,))
        self._checkpoint = position


def _tells_of_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is damaged or no database, for which `sqlite3` has no class of its
    own; those derived tell of a statement, or of a disk that may be better in a moment."""
    return type(error) is sqlite3.DatabaseError


def _open(path: Path, tables: str) -> sqlite3.Connection:
    try:
        return _prepare(path, tables)
    except sqlite3.DatabaseError:
        # It is only a copy of the log: a damaged file is built anew.
        _log.warning("read model was damaged and is built anew", path=path.name)
        _delete(path)
        return _prepare(path, tables)


def _prepare(path: Path, tables: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    # What is deleted is overwritten, not only forgotten.
    connection.execute("PRAGMA secure_delete = ON")
    # Losing the last transactions only repeats a little work.
    connection.execute("PRAGMA synchronous = OFF")
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'checkpoint'").fetchone()
    if known and connection.execute("SELECT tables FROM checkpoint").fetchone()[0] == tables:
        return connection
    if known:
        connection.close()
        _delete(path)
        return _prepare(path, tables)
    connection.executescript(tables)
    connection.execute("CREATE TABLE checkpoint (position INTEGER NOT NULL, tables TEXT NOT NULL)")
    connection.execute("INSERT INTO checkpoint VALUES (0, ?)", (tables,))
    connection.commit()
    return connection


def _delete(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
