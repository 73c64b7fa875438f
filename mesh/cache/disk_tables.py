"""The file of the disk level, and what is done in it; blocking.

Nothing is synced: what a crash of the machine takes is made again. What is deleted is
overwritten.
"""

import contextlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import cast

import apsw

from mesh.cache.level import Sealed

FORMAT_VERSION = 1
OVERHEAD_BYTES = 400
"""About what a row takes beside its sealed value, with its indices."""

_BUSY_MILLISECONDS = 50
_PAGE_BYTES = 4_096
_CACHE_KIBIBYTES = 2_048
_WAL_BYTES_MAX = 4_194_304
_SCHEMA = f"""
CREATE TABLE entries (
  number INTEGER PRIMARY KEY,
  id BLOB NOT NULL UNIQUE,
  tenant BLOB NOT NULL,
  expire_ns INTEGER NOT NULL,
  position INTEGER NOT NULL,
  used_ns INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  sealed BLOB NOT NULL
);
CREATE INDEX entries_by_use ON entries (tenant, used_ns, bytes);
CREATE INDEX entries_by_expiry ON entries (expire_ns);
CREATE TABLE tags (
  tag BLOB NOT NULL,
  entry INTEGER NOT NULL,
  PRIMARY KEY (tag, entry)
) WITHOUT ROWID;
CREATE INDEX tags_by_entry ON tags (entry);
PRAGMA user_version = {FORMAT_VERSION};
"""
_OF_TAG = "number IN (SELECT entry FROM tags WHERE tag = ?) AND position < ?"


class DiskTables:
    """Keeps at most `bytes_max` bytes. Where room is needed the tenant that has the most loses
    what it hasn't used for longest. Faults of SQLite come out as they are."""

    def __init__(self, path: Path, bytes_max: int) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._connection: apsw.Connection | None = None
        self._used: defaultdict[bytes, int] = defaultdict(int)
        self.size_bytes = 0
        self.evicted = 0

    def open(self, now_ns: int) -> None:
        """Opens the file, private to its owner; one of another version is made anew."""
        self._connect()
        if self._sql.pragma("user_version") not in (0, FORMAT_VERSION):
            self.remove()
            self._connect()
        if self._sql.pragma("user_version") == 0:
            with self._sql:
                self._sql.execute(_SCHEMA)
        self._delete("expire_ns <= ?", now_ns)
        self._count()
        self._make_room(0, now_ns)

    def close(self) -> None:
        """Closes the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def remove(self) -> None:
        """Closes the file and takes it away."""
        # Of a file that isn't a database the close fails, too.
        with contextlib.suppress(apsw.Error):
            self.close()
        for suffix in ("", "-wal", "-shm", "-journal"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._used.clear()
        self.size_bytes = 0

    def get(self, entry_id: bytes) -> bytes | None:
        """What is kept under that id."""
        # In a file that was changed a value may be of any type.
        statement = "SELECT CAST(sealed AS BLOB) FROM entries WHERE id = ?"
        rows = self._sql.execute(statement, (entry_id,)).fetchall()
        return cast(bytes, rows[0][0]) if rows else None

    def change(
        self,
        entries: Collection[Sealed],
        dropped: Collection[bytes],
        tags: Iterable[tuple[bytes, int]],
        used: Collection[bytes],
        now_ns: int,
    ) -> None:
        """All that came together, in one transaction: entries to keep, ids to forget, tags with
        the positions of their invalidations, and ids that were used."""
        try:
            with self._sql:
                for entry_id in dropped:
                    self._delete("id = ?", entry_id)
                for tag, position in tags:
                    self._delete(_OF_TAG, tag, position)
                self._sql.executemany(
                    "UPDATE entries SET used_ns = ? WHERE id = ?",
                    ((now_ns, entry_id) for entry_id in used),
                )
                for entry in entries:
                    self._put(entry, now_ns)
        except BaseException:
            # It was rolled back.
            with contextlib.suppress(apsw.Error):
                self._count()
            raise

    def forget_log(self) -> None:
        """Makes the log of changes short, where what was deleted may lie still."""
        self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @property
    def _sql(self) -> apsw.Connection:
        if self._connection is None:
            raise apsw.CantOpenError("the cache's file isn't open")
        return self._connection

    def _connect(self) -> None:
        # SQLite gives its other files the mode of this one.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = apsw.Connection(str(self._path))
        self._connection = connection
        connection.set_busy_timeout(_BUSY_MILLISECONDS)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "off")
        connection.pragma("secure_delete", True)
        connection.pragma("cache_size", -_CACHE_KIBIBYTES)
        connection.pragma("journal_size_limit", _WAL_BYTES_MAX)
        # Beside the bound on rows: so many pages there are at most.
        connection.pragma("max_page_count", max(256, 2 * self._bytes_max // _PAGE_BYTES))

    def _put(self, entry: Sealed, now_ns: int) -> None:
        size = _size(entry)
        if size > self._bytes_max:
            return
        self._delete("id = ?", entry.entry_id)
        self._make_room(size, now_ns)
        row = (
            *(entry.entry_id, entry.tenant, entry.expire_ns, entry.position),
            *(now_ns, size, entry.stored),
        )
        statement = (
            "INSERT INTO entries (id, tenant, expire_ns, position, used_ns, bytes, sealed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)"
        )
        self._sql.execute(statement, row)
        number = self._sql.last_insert_rowid()
        tags = ((tag, number) for tag in set(entry.tags))
        self._sql.executemany("INSERT INTO tags (tag, entry) VALUES (?, ?)", tags)
        self._used[entry.tenant] += size
        self.size_bytes += size

    def _make_room(self, needed: int, now_ns: int) -> None:
        if self.size_bytes + needed > self._bytes_max:
            self._delete("expire_ns <= ?", now_ns)
        while self._used and self.size_bytes + needed > self._bytes_max:
            tenant = max(self._used, key=self._used.__getitem__)
            self.evicted += self._delete(
                "number = (SELECT number FROM entries WHERE tenant = ?"
                " ORDER BY used_ns, number LIMIT 1)",
                tenant,
            )

    def _delete(self, condition: str, *values: object) -> int:
        """Takes rows out; how many."""
        statement = f"DELETE FROM entries WHERE {condition} RETURNING number, tenant, bytes"
        rows = self._sql.execute(statement, values).fetchall()
        for number, tenant, size in cast("list[tuple[int, bytes, int]]", rows):
            self._sql.execute("DELETE FROM tags WHERE entry = ?", (number,))
            self._used[tenant] -= size
            self.size_bytes -= size
            if self._used[tenant] <= 0:
                del self._used[tenant]
        return len(rows)

    def _count(self) -> None:
        rows = self._sql.execute("SELECT tenant, sum(bytes) FROM entries GROUP BY tenant")
        self._used.clear()
        self._used.update(cast("list[tuple[bytes, int]]", rows.fetchall()))
        self.size_bytes = sum(self._used.values())


def _size(entry: Sealed) -> int:
    return OVERHEAD_BYTES + len(entry.stored)
