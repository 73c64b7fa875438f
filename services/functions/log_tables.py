"""The file that has what functions printed, and what is done in it; blocking.

Nothing is synced: what a crash of the machine takes of logs is gone. What is deleted is
overwritten.
"""

import contextlib
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import apsw

FORMAT_VERSION = 1
OVERHEAD_BYTES = 200
"""About what a row takes beside its sealed text, with its index."""
TRIMMED_AT_ONCE = 256
_BUSY_MILLISECONDS = 1_000
_SCHEMA = f"""
CREATE TABLE entries (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  function TEXT NOT NULL,
  invocation TEXT NOT NULL,
  key_stream TEXT NOT NULL,
  key_id TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  sealed BLOB NOT NULL
);
CREATE INDEX entries_of_function ON entries (function, sequence);
PRAGMA user_version = {FORMAT_VERSION};
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A sealed entry; `sequence` is 0 until it is stored."""

    sequence: int
    function: str
    invocation: str
    key_stream: str
    key_id: str
    sealed: bytes


class LogTables:
    """Keeps so many bytes of each function's log, and of all; the oldest go first, of all those
    of the longest log of the tenant that has most. Faults of SQLite come out as they are."""

    def __init__(self, path: Path, log_bytes_max: int, logs_bytes_max: int) -> None:
        self._path = path
        self._log_bytes_max = log_bytes_max
        self._logs_bytes_max = logs_bytes_max
        self._connection: apsw.Connection | None = None
        self._used: defaultdict[str, int] = defaultdict(int)

    def open(self) -> None:
        """Opens the file, private to its owner; one of another version, or a damaged one, is
        made anew."""
        try:
            self._connect()
            fitting = self._sql.pragma("user_version") in (0, FORMAT_VERSION)
        except (apsw.NotADBError, apsw.CorruptError):
            fitting = False
        if not fitting:
            self._remove()
            self._connect()
        if self._sql.pragma("user_version") == 0:
            with self._sql:
                self._sql.execute(_SCHEMA)
        sums = "SELECT function, sum(bytes) FROM entries GROUP BY function"
        counts: Any = self._sql.execute(sums).fetchall()
        self._used.update(counts)

    def close(self) -> None:
        """Closes the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def add(self, rows: Sequence[Row]) -> None:
        """Stores entries behind those that are there, and takes the oldest away where they are
        too many."""
        insert = (
            "INSERT INTO entries (function, invocation, key_stream, key_id, bytes, sealed)"
            " VALUES (?, ?, ?, ?, ?, ?)"
        )
        with self._sql:
            for row in rows:
                count = len(row.sealed) + OVERHEAD_BYTES
                keys = (row.function, row.invocation, row.key_stream, row.key_id)
                self._sql.execute(insert, (*keys, count, row.sealed))
                self._used[row.function] += count
            for name in {row.function for row in rows}:
                self._trim(name, self._used[name] - self._log_bytes_max)
            while (excess := sum(self._used.values()) - self._logs_bytes_max) > 0:
                self._trim(self._longest(), excess)

    def page(self, function: str, invocation: str, after: int, count: int) -> list[Row]:
        """At most `count` entries behind a place, oldest first; of one invocation where it is
        named."""
        found = self._sql.execute(
            "SELECT sequence, function, invocation, key_stream, key_id, sealed FROM entries"
            " WHERE function = ? AND sequence > ? AND (? = '' OR invocation = ?)"
            " ORDER BY sequence LIMIT ?",
            (function, after, invocation, invocation, count),
        )
        return [Row(*row) for row in found]

    def delete(self, function: str) -> None:
        """Takes a function's log away."""
        with self._sql:
            self._sql.execute("DELETE FROM entries WHERE function = ?", (function,))
        self._used.pop(function, None)

    def delete_sealed_by(self, key_stream: str) -> None:
        """Takes away what was sealed with a key."""
        rows = self._sql.execute(
            "SELECT function, sum(bytes) FROM entries WHERE key_stream = ? GROUP BY function",
            (key_stream,),
        ).fetchall()
        with self._sql:
            self._sql.execute("DELETE FROM entries WHERE key_stream = ?", (key_stream,))
        for name, count in cast(list[tuple[str, int]], rows):
            self._used[name] -= count

    def _longest(self) -> str:
        """The function whose log is to be shortened: so no tenant's takes the place of others'."""
        tenants: Counter[str] = Counter()
        for name, count in self._used.items():
            tenants[name.split("/")[1]] += count
        most = tenants.most_common(1)[0][0]
        return max(
            (name for name in self._used if name.split("/")[1] == most), key=self._used.__getitem__
        )

    def _trim(self, function: str, excess: int) -> None:
        while excess > 0:
            oldest = self._sql.execute(
                "SELECT sequence, bytes FROM entries WHERE function = ?"
                f" ORDER BY sequence LIMIT {TRIMMED_AT_ONCE}",
                (function,),
            ).fetchall()
            if not oldest:
                del self._used[function]
                return
            for sequence, count in cast(list[tuple[int, int]], oldest):
                self._sql.execute("DELETE FROM entries WHERE sequence = ?", (sequence,))
                self._used[function] -= count
                excess -= count
                if excess <= 0:
                    return

    def _connect(self) -> None:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._connection = apsw.Connection(str(self._path))
        self._sql.set_busy_timeout(_BUSY_MILLISECONDS)
        self._sql.pragma("secure_delete", True)
        self._sql.pragma("journal_mode", "wal")
        self._sql.pragma("synchronous", "off")

    def _remove(self) -> None:
        with contextlib.suppress(apsw.Error):
            self.close()
        self._connection = None
        for suffix in ("", "-wal", "-shm", "-journal"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    @property
    def _sql(self) -> apsw.Connection:
        assert self._connection is not None
        return self._connection
