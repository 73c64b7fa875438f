"""Which sessions there are, and which were erased: a read model of the log."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mesh.clock import SYSTEM, Clock
from mesh.events.aggregate import FORK_DEPTH_MAX
from mesh.events.projection import Observe, Projection
from mesh.events.store import EventStore, Selection, StoredCommit
from mesh.security.sealing import RowSeal
from mesh.security.secrets import Secrets
from services.state.domain import session_name
from weft.state.v1 import events_pb2, session_pb2

_TABLES = """
CREATE TABLE sessions (
  name TEXT PRIMARY KEY, tenant TEXT NOT NULL, agent TEXT NOT NULL, made INTEGER NOT NULL,
  session BLOB NOT NULL, origin TEXT NOT NULL, complete_revision INTEGER NOT NULL,
  is_there INTEGER NOT NULL, stored_ns INTEGER NOT NULL
);
CREATE INDEX newest ON sessions (tenant, made DESC) WHERE is_there;
CREATE INDEX forks ON sessions (origin) WHERE origin != '';
CREATE INDEX coming ON sessions (stored_ns) WHERE NOT is_there;
CREATE TABLE erasures (
  session TEXT PRIMARY KEY, position INTEGER NOT NULL, request_id TEXT NOT NULL,
  request_hash BLOB NOT NULL, is_finished INTEGER NOT NULL
);
CREATE INDEX requests ON erasures (request_id);
CREATE INDEX unfinished ON erasures (position) WHERE NOT is_finished;
"""
ROWS_MAX = 1_000
"""Most that one look takes up; the next look takes the next."""

_CREATED = events_pb2.SessionCreated.DESCRIPTOR.full_name
_FORKED = events_pb2.SessionForked.DESCRIPTOR.full_name
_IMPORTED = events_pb2.SessionImported.DESCRIPTOR.full_name
_BEGINS = frozenset((_CREATED, _FORKED, _IMPORTED))
_ERASED = events_pb2.SessionErased.DESCRIPTOR.full_name
_ACCEPTED = events_pb2.TurnAccepted.DESCRIPTOR.full_name
_STARTED = events_pb2.TurnStarted.DESCRIPTOR.full_name
_ENDED = frozenset(
    event.DESCRIPTOR.full_name
    for event in (events_pb2.TurnCompleted, events_pb2.TurnFailed, events_pb2.TurnCancelled)
)


class Erasure(NamedTuple):
    """A session that was erased, and the request that did it."""

    session: str
    request_id: str
    request_hash: bytes


class SessionsReadModel:
    """Follows the sessions' streams; what it copies of them is sealed. `observe` is told of
    what came."""

    def __init__(
        self,
        store: EventStore,
        path: Path,
        secrets: Secrets,
        observe: Observe | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._secrets = secrets
        self._seal: RowSeal
        self._observe = observe
        self._clock = clock
        self._projection = Projection(
            store,
            path,
            tables=_TABLES,
            selections=(Selection("state"),),
            apply=self._apply,
            observe=self._observed,
        )

    async def start(self) -> None:
        """Returns once it has caught up with the log."""
        self._seal = await RowSeal.of(self._secrets, "sessions")
        await self._projection.start(self._seal.id)

    async def stop(self) -> None:
        """Ends following."""
        await self._projection.stop()

    async def catch_up(self) -> None:
        """Returns once it holds all that is stored by now."""
        await self._projection.catch_up()

    async def sessions(
        self, tenant: str, agent: str, before: int | None, count: int
    ) -> list[tuple[int, session_pb2.Session]]:
        """The newest `count` sessions made before position `before`, each with the
        position at which it was made; of every agent where `agent` is `-`."""
        await self.catch_up()

        def page(connection: sqlite3.Connection) -> list[tuple[int, session_pb2.Session]]:
            rows = connection.execute(
                "SELECT made, name, session FROM sessions WHERE is_there AND tenant = ?"
                " AND made < ? AND (? = '-' OR agent = ?) ORDER BY made DESC LIMIT ?",
                (tenant, before if before is not None else 2**62, agent, agent, count),
            )
            return [(made, self._opened(name, blob)) for made, name, blob in rows]

        return await self._projection.read(page)

    def forks(self, session: str, count: int) -> list[str]:
        """At most `count` of the forks of a session, of their forks and so on, each behind
        its own forks."""
        rows = self._projection.connection.execute(
            "WITH RECURSIVE tree (name, depth) AS ("
            " SELECT name, 1 FROM sessions WHERE origin = ?"
            " UNION SELECT child.name, depth + 1 FROM sessions child"
            " JOIN tree ON child.origin = tree.name WHERE depth < ?"
            ") SELECT name FROM tree GROUP BY name ORDER BY max(depth) DESC, name LIMIT ?",
            (session, 2 * FORK_DEPTH_MAX, count),
        )
        return [name for (name,) in rows]

    def erasure(self, session: str) -> Erasure | None:
        """How the session was erased, if it was."""
        row = self._projection.connection.execute(
            "SELECT session, request_id, request_hash FROM erasures WHERE session = ?", (session,)
        ).fetchone()
        return Erasure(*row) if row else None

    def erased_by(self, erasure: Erasure, count: int) -> list[str]:
        """The sessions that the same request erased, in that order."""
        rows = self._projection.connection.execute(
            "SELECT session FROM erasures WHERE request_id = ? AND request_hash = ?"
            " ORDER BY position LIMIT ?",
            (erasure.request_id, erasure.request_hash, count),
        )
        return [session for (session,) in rows]

    def unfinished(self) -> list[Erasure]:
        """Erasures that aren't known to be finished."""
        rows = self._projection.connection.execute(
            "SELECT session, request_id, request_hash FROM erasures WHERE NOT is_finished"
            " ORDER BY position"
        )
        return [Erasure(*row) for row in rows]

    def finish(self, session: str) -> None:
        """Remembers that all that came from the session is scrubbed."""
        with self._projection.connection as transaction:
            transaction.execute("UPDATE erasures SET is_finished = 1 WHERE session = ?", (session,))

    def orphans(self) -> list[tuple[str, Erasure]]:
        """Some forks whose origin was erased, each with how that was."""
        rows = self._projection.connection.execute(
            "SELECT name, erasures.session, request_id, request_hash FROM erasures"
            " JOIN sessions ON origin = erasures.session LIMIT ?",
            (ROWS_MAX,),
        )
        return [(row[0], Erasure(*row[1:])) for row in rows]

    def stalled_imports(self, before_ns: int) -> list[str]:
        """Some imports that aren't whole, and of which nothing was stored since that time."""
        rows = self._projection.connection.execute(
            "SELECT name FROM sessions WHERE NOT is_there AND stored_ns < ? LIMIT ?",
            (before_ns, ROWS_MAX),
        )
        return [name for (name,) in rows]

    def _opened(self, name: str, blob: bytes) -> session_pb2.Session:
        return session_pb2.Session.FromString(self._seal.open(name, blob))

    def _apply(self, connection: sqlite3.Connection, stored: StoredCommit) -> None:
        commit = stored.commit
        name = session_name(commit.stream)
        if erases(stored):
            erased = events_pb2.SessionErased.FromString(commit.events[0].payload.value)
            connection.execute("DELETE FROM sessions WHERE name = ?", (name,))
            connection.execute(
                "INSERT OR IGNORE INTO erasures VALUES (?, ?, ?, ?, 0)",
                (name, stored.position, erased.request_id, erased.request_hash),
            )
            return
        row = connection.execute(
            "SELECT session, complete_revision FROM sessions WHERE name = ?", (name,)
        ).fetchone()
        if not row:
            row = (b"", _insert(connection, stored, name))
        session = self._opened(name, row[0]) if row[0] else session_pb2.Session(name=name)
        for event in commit.events:
            _evolve(session, event.type, event.payload.value)
            if event.type in _BEGINS:
                session.create_time.CopyFrom(commit.time)
        session.revision = commit.revision + len(commit.events) - 1
        session.update_time.CopyFrom(commit.time)
        blob = self._seal.seal(name, session.SerializeToString())
        # When it came, since imported commits tell when they were first made.
        connection.execute(
            "UPDATE sessions SET session = ?, is_there = ?, stored_ns = ? WHERE name = ?",
            (blob, session.revision >= row[1], self._clock.now_ns(), name),
        )

    def _observed(self, batch: Sequence[StoredCommit]) -> None:
        if any(erases(stored) for stored in batch):
            self._projection.scrub()
        if self._observe is not None:
            self._observe(batch)


def erases(stored: StoredCommit) -> bool:
    """Whether the commit erases its session."""
    return any(event.type == _ERASED for event in stored.commit.events)


def _insert(connection: sqlite3.Connection, stored: StoredCommit, name: str) -> int:
    """Makes the row; returns the revision from which on the session is there."""
    first = stored.commit.events[0]
    origin, complete_revision = "", 0
    if first.type == _FORKED:
        origin = events_pb2.SessionForked.FromString(first.payload.value).origin.session
    elif first.type == _IMPORTED:
        imported = events_pb2.SessionImported.FromString(first.payload.value)
        complete_revision = stored.commit.revision + imported.event_count
    _, tenant, agent, _ = stored.commit.stream.split(".")
    connection.execute(
        "INSERT INTO sessions VALUES (?, ?, ?, ?, X'', ?, ?, 0, 0)",
        (name, tenant, agent, stored.position, origin, complete_revision),
    )
    return complete_revision


def _evolve(session: session_pb2.Session, event_type: str, value: bytes) -> None:
    if event_type == _CREATED:
        created = events_pb2.SessionCreated.FromString(value)
        session.agent_revision = created.agent_revision
        session.submit_policy = created.submit_policy
    elif event_type == _FORKED:
        forked = events_pb2.SessionForked.FromString(value)
        if forked.HasField("origin"):
            session.forked_from.CopyFrom(forked.origin)
            session.turn_count = forked.turn_count
        # What was open there is abandoned here.
        session.active_turn = ""
        session.agent_revision = forked.agent_revision
        session.submit_policy = forked.submit_policy
    elif event_type == _ACCEPTED:
        accepted = events_pb2.TurnAccepted.FromString(value)
        session.turn_count += 1
        if not accepted.queued:
            session.active_turn = accepted.turn
    elif event_type == _STARTED:
        session.active_turn = events_pb2.TurnStarted.FromString(value).turn
    elif event_type in _ENDED and _ended_turn(value) == session.active_turn:
        session.active_turn = ""


def _ended_turn(value: bytes) -> str:
    # The three events that end a turn have the field and its number in common.
    return events_pb2.TurnCompleted.FromString(value).turn
