"""Which sessions there are: a read model of the log."""

import sqlite3
from pathlib import Path

from mesh.events.projection import Projection
from mesh.events.store import EventStore, Selection, StoredCommit
from mesh.security.sealing import RowSeal
from mesh.security.secrets import Secrets
from services.state.domain import session_name
from weft.state.v1 import events_pb2, session_pb2

_TABLES = """
CREATE TABLE sessions (
  name TEXT PRIMARY KEY, tenant TEXT NOT NULL, agent TEXT NOT NULL, made INTEGER NOT NULL,
  session BLOB NOT NULL
);
CREATE INDEX newest ON sessions (tenant, made DESC);
"""

_CREATED = events_pb2.SessionCreated.DESCRIPTOR.full_name
_FORKED = events_pb2.SessionForked.DESCRIPTOR.full_name
_ACCEPTED = events_pb2.TurnAccepted.DESCRIPTOR.full_name
_STARTED = events_pb2.TurnStarted.DESCRIPTOR.full_name
_ENDED = frozenset(
    event.DESCRIPTOR.full_name
    for event in (events_pb2.TurnCompleted, events_pb2.TurnFailed, events_pb2.TurnCancelled)
)


class SessionsReadModel:
    """Follows the sessions' streams; what it copies of them is sealed."""

    def __init__(self, store: EventStore, path: Path, secrets: Secrets) -> None:
        self._secrets = secrets
        self._seal: RowSeal
        self._projection = Projection(
            store, path, tables=_TABLES, selections=(Selection("state"),), apply=self._apply
        )

    async def start(self) -> None:
        """Returns once it has caught up with the log."""
        self._seal = await RowSeal.of(self._secrets, "sessions")
        await self._projection.start(self._seal.id)

    async def stop(self) -> None:
        """Ends following."""
        await self._projection.stop()

    async def sessions(
        self, tenant: str, agent: str, before: int | None, count: int
    ) -> list[tuple[int, session_pb2.Session]]:
        """The newest `count` sessions made before position `before`, each with the
        position at which it was made; of every agent where `agent` is `-`."""
        await self._projection.catch_up()

        def page(connection: sqlite3.Connection) -> list[tuple[int, session_pb2.Session]]:
            rows = connection.execute(
                "SELECT made, name, session FROM sessions WHERE tenant = ? AND made < ?"
                " AND (? = '-' OR agent = ?) ORDER BY made DESC LIMIT ?",
                (tenant, before if before is not None else 2**62, agent, agent, count),
            )
            return [(made, self._opened(name, blob)) for made, name, blob in rows]

        return await self._projection.read(page)

    def _opened(self, name: str, blob: bytes) -> session_pb2.Session:
        return session_pb2.Session.FromString(self._seal.open(name, blob))

    def _apply(self, connection: sqlite3.Connection, stored: StoredCommit) -> None:
        commit = stored.commit
        name = session_name(commit.stream)
        row = connection.execute("SELECT session FROM sessions WHERE name = ?", (name,)).fetchone()
        session = self._opened(name, row[0]) if row else session_pb2.Session(name=name)
        for event in commit.events:
            _evolve(session, event.type, event.payload.value)
        if not row:
            session.create_time.CopyFrom(commit.time)
            _, tenant, agent, _ = commit.stream.split(".")
            connection.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, X'')",
                (name, tenant, agent, stored.position),
            )
        session.revision = commit.revision + len(commit.events) - 1
        session.update_time.CopyFrom(commit.time)
        blob = self._seal.seal(name, session.SerializeToString())
        connection.execute("UPDATE sessions SET session = ? WHERE name = ?", (blob, name))


def _evolve(session: session_pb2.Session, event_type: str, value: bytes) -> None:
    if event_type == _CREATED:
        created = events_pb2.SessionCreated.FromString(value)
        session.agent_revision = created.agent_revision
        session.submit_policy = created.submit_policy
    elif event_type == _FORKED:
        forked = events_pb2.SessionForked.FromString(value)
        session.forked_from.CopyFrom(forked.origin)
        session.agent_revision = forked.agent_revision
        session.submit_policy = forked.submit_policy
        session.turn_count = forked.turn_count
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
