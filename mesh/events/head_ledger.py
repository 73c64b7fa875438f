"""Where every stream of the log ends, kept outside the log.

An event store that loses the end of a stream, or has it replaced, has nothing in itself
that tells: the hash chain of what is left holds. The ledger lies outside the store's files
and remembers what was there. It follows the log, so that it may lag behind and is never
ahead; unlike a read model it isn't built anew where the log differs from it.
"""

import asyncio
import contextlib
import hashlib
import json
import sqlite3
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog
from google.protobuf.message import DecodeError

from mesh.errors import DataDamaged, EventStoreUnavailable, Internal, WeftError
from mesh.events.batches import in_batches
from mesh.events.store import EVERYTHING, EventStore, Head, SealedCommit
from weft.events.v1 import events_pb2

_log = structlog.get_logger(__name__)

BATCH_COMMITS_MAX = 256
PAUSE_SECONDS = 0.02
"""Between two batches, so that a transaction holds what comes within it."""
RETRY_SECONDS = 0.5
STOP_SECONDS_MAX = 2.0
"""How long the last commits are waited for when the process stops."""
READ_ROWS = 1_000

_TABLES = """
CREATE TABLE IF NOT EXISTS heads (
  stream TEXT PRIMARY KEY, tenant TEXT NOT NULL, revision INTEGER NOT NULL,
  position INTEGER NOT NULL, hash BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tenants ON heads (tenant);
CREATE TABLE IF NOT EXISTS followed (
  log TEXT NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL, lacking INTEGER NOT NULL
);
"""
_UPDATE_HEAD = """
INSERT INTO heads VALUES (?, ?, ?, ?, ?) ON CONFLICT (stream) DO UPDATE SET
  revision = excluded.revision, position = excluded.position, hash = excluded.hash
  WHERE excluded.position > heads.position
"""


class Followed(NamedTuple):
    """The log of that id held a commit with that hash at `position`, 0 where none was seen;
    `lacking` of its commits are gone, and that was accepted."""

    log: str
    position: int
    hash: bytes
    lacking: int


class HeadLedger:
    """The file `path`, which follows the log of `store`.

    `problem` says in what the log differs from what the ledger remembers; it isn't
    followed then. Empty where it goes on from there.
    """

    def __init__(self, store: EventStore, path: Path) -> None:
        self._store = store
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()
        self.problem = ""
        self.failure: WeftError | None = None
        """Why the log isn't followed any more."""
        self.followed = Followed("", 0, b"", 0)

    async def start(
        self, *, lacking: int = 0, accept_loss: bool = False, before: Followed | None = None
    ) -> None:
        """Compares the log, of which `lacking` commits are gone, with what is remembered,
        and follows it unless there is a `problem`. With `accept_loss` all that was
        remembered is forgotten, and what the log has is remembered instead. `before` is what
        was known of the log before there was a ledger.

        Raises DataDamaged where the file can't be read.
        """
        log = await self._store.log_id()
        try:
            self._open()
            if before is not None and not self.followed.log:
                self.followed = before
            self.problem = await self._difference(log, lacking)
        except sqlite3.DatabaseError as error:
            if not accept_loss:
                raise DataDamaged(
                    f"{self._path} is damaged: it doesn't tell where the event log ended;"
                    " `weft up --accept-loss` starts without it"
                ) from error
        if accept_loss:
            _log.warning("event_log_loss_accepted", message=self.problem)
            self._reset(log, lacking)
        if not self.problem:
            self._task = asyncio.create_task(self._follow(), name="head ledger")

    async def stop(self) -> None:
        """Takes in what is stored by now, and closes the file. Why following failed was
        logged by then."""
        try:
            if self._task is not None:
                with contextlib.suppress(TimeoutError, WeftError):
                    async with asyncio.timeout(STOP_SECONDS_MAX):
                        await self.catch_up()
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
        finally:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    async def catch_up(self) -> None:
        """Returns once all that is stored by now is in the ledger. Raises `failure` where
        the log isn't followed any more."""
        target = await self._store.last_position()
        while self.followed.position < target:
            if self.failure is not None:
                raise self.failure
            self._moved.clear()
            await self._moved.wait()

    def heads(self, tenant: str) -> Iterator[tuple[str, Head]]:
        """The tenant's streams, each with the last head that was seen. It may be gone on
        with while the log is followed: a row is then the one before or after."""
        after = ""
        while True:
            rows = self._file.execute(
                "SELECT stream, revision, position, hash FROM heads"
                " WHERE tenant = ? AND stream > ? ORDER BY stream LIMIT ?",
                (tenant, after, READ_ROWS),
            ).fetchall()
            for stream, revision, position, digest in rows:
                yield stream, Head(revision, position, digest)
            if len(rows) < READ_ROWS:
                return
            after = rows[-1][0]

    @property
    def _file(self) -> sqlite3.Connection:
        assert self._connection is not None, "start first"
        return self._connection

    def _open(self) -> None:
        self._connection = sqlite3.connect(self._path)
        self._file.execute("PRAGMA journal_mode = WAL")
        # After a power cut it may lag by its last transactions, and is whole.
        self._file.execute("PRAGMA synchronous = NORMAL")
        self._file.executescript(_TABLES)
        row = self._file.execute("SELECT log, position, hash, lacking FROM followed").fetchone()
        if row:
            self.followed = Followed(*row)

    async def _difference(self, log: str, lacking: int) -> str:
        """What isn't as it is remembered."""
        kept = self.followed
        if not kept.position and kept.log != log:
            kept = Followed(log, 0, b"", kept.lacking)
        held = f"but it held position {kept.position}"
        if kept.log != log:
            return f"the event log is another one, {held}"
        last = await self._store.last_position()
        if last < kept.position:
            return f"the event log ends at position {last}, {held}"
        if lacking > kept.lacking:
            return f"the event log lacks {lacking} commits"
        if kept.hash and await self._hash_at(kept.position) != kept.hash:
            return f"the event log has another commit at position {kept.position} than it had"
        if not kept.hash:
            # No head of it was seen yet.
            self._remember(kept._replace(position=0))
        return ""

    async def _hash_at(self, position: int) -> bytes:
        scan = self._store.scan(EVERYTHING, position - 1, position)
        async with contextlib.aclosing(scan) as found:
            async for sealed in found:
                return hashlib.sha256(sealed.data).digest()
        return b""

    def _reset(self, log: str, lacking: int) -> None:
        if self._connection is not None:
            self._connection.close()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._open()
        self._remember(Followed(log, 0, b"", lacking))
        self.problem = ""

    def _remember(self, followed: Followed, heads: Sequence[tuple[object, ...]] = ()) -> None:
        with self._file as transaction:
            transaction.executemany(_UPDATE_HEAD, heads)
            transaction.execute("DELETE FROM followed")
            transaction.execute("INSERT INTO followed VALUES (?, ?, ?, ?)", followed)
        self.followed = followed
        self._moved.set()

    async def _follow(self) -> None:
        try:
            await self._follow_log()
        except WeftError as error:
            _log.error("head ledger stopped", error=error.message)
            self.failure = error
        except Exception:  # noqa: BLE001 - nobody awaits this task: who waits for it is told
            _log.exception("head ledger failed")
            self.failure = Internal(f"{self._path.name} doesn't follow the log any more")
        self._moved.set()

    async def _follow_log(self) -> None:
        while True:
            try:
                async with contextlib.aclosing(self._batches()) as batches:
                    async for batch in batches:
                        self._take(batch)
                        await asyncio.sleep(PAUSE_SECONDS)
            except EventStoreUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
            except sqlite3.OperationalError as error:
                # As on a full disk: what wasn't stored is read again.
                _log.warning("head ledger not written", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    def _batches(self) -> AsyncGenerator[list[SealedCommit], None]:
        watch = self._store.watch_sealed(EVERYTHING, self.followed.position)
        return in_batches(watch, BATCH_COMMITS_MAX)

    def _take(self, batch: Sequence[SealedCommit]) -> None:
        # Of a stream's commits in it, the last alone is worth a write.
        last_of = {sealed.stream: sealed for sealed in batch}
        heads = [head for sealed in last_of.values() if (head := _head(sealed)) is not None]
        last = batch[-1]
        digest = hashlib.sha256(last.data).digest()
        self._remember(self.followed._replace(position=last.position, hash=digest), heads)


def _head(sealed: SealedCommit) -> tuple[object, ...] | None:
    try:
        commit = events_pb2.Commit.FromString(sealed.data)
    except DecodeError:
        # Who verifies the log is told; the head before it still says what was there.
        return None
    revision = commit.revision + len(commit.events) - 1
    tenant = sealed.stream.split(".")[1]
    digest = hashlib.sha256(sealed.data).digest()
    return sealed.stream, tenant, revision, sealed.position, digest


def read_mark(path: Path) -> Followed | None:
    """What an earlier version noted of the event log, in place of the ledger; None where
    there is nothing, or nothing that can be read."""
    try:
        kept = json.loads(path.read_bytes())
        return Followed(str(kept["log"]), int(kept["position"]), b"", int(kept["lacking"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
