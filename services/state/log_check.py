"""Looks through a tenant's log for what doesn't hold."""

import asyncio
import contextlib
import hashlib
import sqlite3
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from mesh.errors import DataDamaged, DataErased
from mesh.events.aggregate import SNAPSHOT_COMMITS
from mesh.events.head_ledger import HeadLedger
from mesh.events.store import EventStore, Head, SealedCommit, Selection, StreamName
from weft.events.v1 import events_pb2
from weft.state.v1 import events_pb2 as facts
from weft.state.v1 import state_service_pb2

PROGRESS_COMMITS = 1_000
PROGRESS_SECONDS = 1.0
BREATH_COMMITS = 32
"""After so many commits the event loop may do other work."""
ROWS_MAX = 1_000
PROBLEMS_MAX = 1_000
"""Most that are told one by one."""

_ERASED = facts.SessionErased.DESCRIPTOR.full_name
_TABLES = """
CREATE TABLE found (
  stream TEXT PRIMARY KEY, revision INTEGER, position INTEGER, hash BLOB, state INTEGER
) WITHOUT ROWID;
CREATE TABLE expected (
  stream TEXT, position INTEGER, revision INTEGER, hash BLOB, source TEXT,
  PRIMARY KEY (stream, position, source)
) WITHOUT ROWID;
"""
_READABLE, _UNREADABLE, _STATED = 0, 1, 2
"""Of a stream: all opened; something is gone with its key, and why is not known; it was
erased, as the log says."""


@dataclass(slots=True)
class _Chain:
    """A stream as far as it was looked at."""

    head: Head
    state: int = _READABLE


@dataclass
class LogCheck:
    """One look through the log of `tenant`; for one use.

    What is known of the streams lies in a table that SQLite keeps on disk where it grows,
    so that their number doesn't matter. Heads of `ledger` and of snapshots are expected at
    their positions: the commits that are met there have those hashes.
    """

    store: EventStore
    ledger: HeadLedger
    tenant: str
    stream_count: int = 0
    commit_count: int = 0
    erased_count: int = 0
    problem_count: int = 0
    _problems: list[tuple[str, str]] = field(default_factory=list)
    _told: float = 0.0
    # An unnamed database is a temporary file, and gone when it is closed.
    _tables: sqlite3.Connection = field(
        default_factory=lambda: sqlite3.connect("", isolation_level=None)
    )

    async def run(self) -> AsyncGenerator[state_service_pb2.VerifyLogResponse, None]:
        """How far it got each second or each 1,000 commits, problems as they are found,
        and `done` in the last message."""
        with contextlib.closing(self._tables):
            self._tables.executescript(_TABLES)
            self._tables.execute("BEGIN")
            async for response in self._look():
                yield response

    async def _look(self) -> AsyncGenerator[state_service_pb2.VerifyLogResponse, None]:
        loop = asyncio.get_running_loop()
        if self.ledger.problem:
            self._found("", self.ledger.problem)
        yield self._progress(loop.time())
        if self.ledger.followed.log == await self.store.log_id():
            for stream, head in self.ledger.heads(self.tenant):
                self._expect(stream, head, "what is kept outside the log")
        until = await self.store.last_position()
        scan = self.store.scan(Selection.of_tenant(self.tenant), 0, until)
        async with contextlib.aclosing(scan) as commits:
            async for sealed in commits:
                await self._check(sealed)
                if self.commit_count % BREATH_COMMITS == 0:
                    await asyncio.sleep(0)
                if self._is_due(loop.time()):
                    yield self._progress(loop.time())
        await self._check_snapshots()
        await self._check_ends()
        for stream, revision, source in self._tables.execute(
            "SELECT stream, revision, source FROM expected ORDER BY stream"
        ):
            self._found(stream, f"the log lost revision {revision}, which {source} had seen")
            if self._is_due(loop.time()):
                yield self._progress(loop.time())
        if self.problem_count > PROBLEMS_MAX:
            self._problems.append(("", f"{self.problem_count - PROBLEMS_MAX} more problems"))
        last = self._progress(loop.time())
        last.done = True
        yield last

    async def _check(self, sealed: SealedCommit) -> None:
        self.commit_count += 1
        stream = sealed.stream
        digest = hashlib.sha256(sealed.data).digest()
        self._meet(sealed, digest)
        chain = self._chain(stream)
        try:
            commit = events_pb2.Commit.FromString(sealed.data)
        except DecodeError:
            self._found(stream, f"the commit at position {sealed.position} doesn't parse")
            return
        for problem in _misplaced(commit, stream, chain.head if chain else Head(0, 0, b"")):
            self._found(stream, problem)
        erased = await self._opens(sealed, commit)
        state = chain.state if chain else _READABLE
        if any(event.type == _ERASED for event in commit.events):
            state = _STATED
            self.erased_count += 1
        elif erased and state == _READABLE:
            state = _UNREADABLE
        revision = commit.revision + len(commit.events) - 1
        self.stream_count += chain is None
        self._tables.execute(
            "INSERT OR REPLACE INTO found VALUES (?, ?, ?, ?, ?)",
            (stream, revision, sealed.position, digest, state),
        )

    async def _opens(self, sealed: SealedCommit, commit: events_pb2.Commit) -> bool:
        """Whether what it holds was erased."""
        try:
            return (await self.store.open(sealed)).erased
        except DataDamaged as error:
            self._found(sealed.stream, f"revision {commit.revision}: {error.message}")
            return False

    def _meet(self, sealed: SealedCommit, digest: bytes) -> None:
        place = (sealed.stream, sealed.position)
        for expected, source in self._tables.execute(
            "DELETE FROM expected WHERE stream = ? AND position = ? RETURNING hash, source", place
        ).fetchall():
            if expected != digest:
                self._found(
                    sealed.stream,
                    f"the commit at position {sealed.position} isn't the one that {source} had"
                    " seen",
                )

    async def _check_snapshots(self) -> None:
        """The last snapshot of a stream stands at a commit that the stream has."""
        for stream, position in self._long_streams():
            try:
                snapshot = await self.store.snapshot(StreamName.parse(stream))
            except (DataDamaged, DataErased, ValueError) as error:
                self._found(stream, f"its snapshot can't be read, and isn't used: {error}")
                continue
            if snapshot is None or snapshot.position > position:
                continue
            head = Head(snapshot.revision, snapshot.position, snapshot.head_hash)
            self._expect(stream, head, "a snapshot")
            scan = self.store.scan(Selection(stream), head.position - 1, head.position)
            async with contextlib.aclosing(scan) as commits:
                async for sealed in commits:
                    self._meet(sealed, hashlib.sha256(sealed.data).digest())

    def _long_streams(self) -> Iterator[tuple[str, int]]:
        """The streams that may have a snapshot, each with the position of its end."""
        after = ""
        while rows := self._tables.execute(
            "SELECT stream, position FROM found"
            " WHERE revision >= ? AND state = ? AND stream > ? ORDER BY stream LIMIT ?",
            (SNAPSHOT_COMMITS, _READABLE, after, ROWS_MAX),
        ).fetchall():
            yield from rows
            after = rows[-1][0]

    async def _check_ends(self) -> None:
        """Erased while we looked, a stream says so behind what was seen."""
        rows = self._tables.execute(
            "SELECT stream, revision, position, hash FROM found WHERE state = ?", (_UNREADABLE,)
        ).fetchall()
        for stream, *head in rows:
            if await self._erased_since(stream, Head(*head)):
                self.erased_count += 1
            else:
                self._found(stream, "its data key is gone, but nothing says that it was erased")

    async def _erased_since(self, stream: str, head: Head) -> bool:
        until = await self.store.last_position()
        scan = self.store.scan(Selection(stream), head.position, until)
        async with contextlib.aclosing(scan) as commits:
            async for sealed in commits:
                commit = events_pb2.Commit.FromString(sealed.data)
                if any(event.type == _ERASED for event in commit.events):
                    return True
        return False

    def _expect(self, stream: str, head: Head, source: str) -> None:
        self._tables.execute(
            "INSERT OR REPLACE INTO expected VALUES (?, ?, ?, ?, ?)",
            (stream, head.position, head.revision, head.hash, source),
        )

    def _chain(self, stream: str) -> _Chain | None:
        row = self._tables.execute(
            "SELECT revision, position, hash, state FROM found WHERE stream = ?", (stream,)
        ).fetchone()
        return _Chain(Head(*row[:3]), row[3]) if row else None

    def _found(self, stream: str, problem: str) -> None:
        self.problem_count += 1
        if self.problem_count <= PROBLEMS_MAX:
            self._problems.append((stream, problem))

    def _is_due(self, now: float) -> bool:
        return bool(
            self._problems
            or self.commit_count % PROGRESS_COMMITS == 0
            or now - self._told >= PROGRESS_SECONDS
        )

    def _progress(self, now: float) -> state_service_pb2.VerifyLogResponse:
        response = state_service_pb2.VerifyLogResponse(
            stream_count=self.stream_count,
            commit_count=self.commit_count,
            erased_count=self.erased_count,
        )
        for stream, problem in self._problems:
            response.problems.add(stream=stream, problem=problem)
        self._problems.clear()
        self._told = now
        return response


def _misplaced(commit: events_pb2.Commit, stream: str, before: Head) -> Iterator[str]:
    """What of a commit isn't as one of `stream` behind that head has it."""
    place = f"revision {commit.revision}"
    if commit.stream != stream:
        yield f"{place} says that it is of the stream {commit.stream!r}"
    if commit.tenant != stream.split(".")[1]:
        yield f"{place} says that it is of the tenant {commit.tenant!r}"
    if not commit.events:
        yield f"{place} has no events"
    if commit.revision != before.revision + 1:
        yield f"revision {before.revision + 1} comes next, but the log has {commit.revision}"
    elif commit.previous_hash != before.hash:
        yield f"the hash chain breaks at {place}"
    # Commits of the first version don't tell where the one before them stands.
    if commit.previous_position not in (0, before.position):
        yield f"{place} says that the commit before it stands at {commit.previous_position}"
