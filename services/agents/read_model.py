"""Which agents there are, which turns are open, and which request made which turn: a
read model of the log."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

from mesh.events.projection import Observe, Projection
from mesh.events.store import EventStore, Selection, StoredCommit
from mesh.security.sealing import RowSeal
from mesh.security.secrets import Secrets
from weft.agents.v1 import agent_pb2, events_pb2
from weft.events.v1 import events_pb2 as envelope_pb2
from weft.state.v1 import events_pb2 as facts_pb2

_TABLES = """
CREATE TABLE agents (name TEXT PRIMARY KEY, parent TEXT NOT NULL, agent BLOB NOT NULL);
CREATE TABLE open_turns (
  session TEXT PRIMARY KEY, turn TEXT NOT NULL, owner TEXT NOT NULL, revision INTEGER NOT NULL,
  update_ns INTEGER NOT NULL, is_stalled INTEGER NOT NULL
);
CREATE TABLE turns (
  session TEXT NOT NULL, turn TEXT NOT NULL, request_id TEXT NOT NULL, request_hash BLOB NOT NULL,
  PRIMARY KEY (session, turn)
);
CREATE INDEX requests ON turns (session, request_id);
CREATE TABLE imports (session TEXT PRIMARY KEY, last_revision INTEGER NOT NULL);
"""

ERASED = facts_pb2.SessionErased.DESCRIPTOR.full_name
_IMPORTED = facts_pb2.SessionImported.DESCRIPTOR.full_name
_AGENT_EVENTS: dict[str, type[Message]] = {
    event.DESCRIPTOR.full_name: event
    for event in (events_pb2.AgentCreated, events_pb2.AgentUpdated, events_pb2.AgentDeleted)
}
_TAKES: dict[str, type[Message]] = {
    event.DESCRIPTOR.full_name: event
    for event in (
        facts_pb2.TurnAccepted,
        facts_pb2.TurnStarted,
        facts_pb2.TurnResumed,
        facts_pb2.ApprovalDecided,
        facts_pb2.ToolCallResolved,
    )
}
_ENDS: dict[str, type[Message]] = {
    event.DESCRIPTOR.full_name: event
    for event in (facts_pb2.TurnCompleted, facts_pb2.TurnFailed, facts_pb2.TurnCancelled)
}


_STALLED = facts_pb2.TurnStalled.DESCRIPTOR.full_name
_OF_OTHERS = frozenset(
    fact.DESCRIPTOR.full_name
    for fact in (facts_pb2.TurnAccepted, facts_pb2.TurnCancelled, facts_pb2.TurnStalled)
)
"""Where they leave an open turn, nothing happened to it: they are of turns that wait behind
it, or say just that."""


@dataclass(frozen=True, slots=True)
class OpenTurnRow:
    """A turn that isn't ended: its session's stream, its owner, the revision of the
    session's last event, and when something last happened to it, in Unix nanoseconds."""

    session: str
    turn: str
    owner: str
    revision: int
    update_ns: int


@dataclass(frozen=True, slots=True)
class KnownTurn:
    """A turn, and the request that made it."""

    turn: str
    request_id: str
    request_hash: bytes


class AgentsReadModel:
    """Follows the log; `observe` is told of commits to agents and sessions. What it copies
    of them is sealed."""

    def __init__(self, store: EventStore, path: Path, observe: Observe, secrets: Secrets) -> None:
        self._secrets = secrets
        self._seal: RowSeal
        self._projection = Projection(
            store,
            path,
            tables=_TABLES,
            selections=(Selection("agents"), Selection("state")),
            apply=self._apply,
            observe=observe,
        )

    async def start(self) -> None:
        """Returns once it has caught up with the log."""
        self._seal = await RowSeal.of(self._secrets, "agents")
        await self._projection.start(self._seal.id)

    async def stop(self) -> None:
        """Ends following."""
        await self._projection.stop()

    def scrub(self) -> None:
        """Leaves no bytes of deleted rows on the disk."""
        self._projection.scrub()

    async def agents(self, parent: str, after: str, count: int) -> list[agent_pb2.Agent]:
        """The first `count` agents under `parent` behind the name `after`, by name."""
        await self._projection.catch_up()

        def page(connection: sqlite3.Connection) -> list[agent_pb2.Agent]:
            rows = connection.execute(
                "SELECT name, agent FROM agents WHERE parent = ? AND name > ?"
                " ORDER BY name LIMIT ?",
                (parent, after, count),
            )
            return [self._opened(name, sealed) for name, sealed in rows]

        return await self._projection.read(page)

    async def turn(self, session: str, *, turn: str = "", request_id: str = "") -> KnownTurn | None:
        """The turn of a session's stream with that id, or that request's: also those that
        the session's state has forgotten."""

        def known(connection: sqlite3.Connection) -> KnownTurn | None:
            row = connection.execute(
                "SELECT turn, request_id, request_hash FROM turns"
                " WHERE session = ? AND (turn = ? OR request_id = ?)",
                (session, turn, request_id),
            ).fetchone()
            if row is None:
                return None
            found, request, sealed = row
            return KnownTurn(found, request, self._seal.open(f"{session}/{found}", sealed))

        return await self._projection.read(known)

    def open_turns(self) -> list[OpenTurnRow]:
        """The turns that aren't ended, as far as the log was followed."""
        return self.idle_turns(2**62)

    def idle_turns(self, before_ns: int) -> list[OpenTurnRow]:
        """Those of them to which nothing has happened since that time."""
        rows = self._projection.connection.execute(
            "SELECT session, turn, owner, revision, update_ns FROM open_turns WHERE update_ns < ?",
            (before_ns,),
        )
        return [OpenTurnRow(*row) for row in rows]

    async def stalled_turns(self, tenant: str, after: str, count: int) -> list[str]:
        """The streams of the first `count` sessions of a tenant behind the stream `after`
        whose turn has stalled, by stream."""
        await self._projection.catch_up()
        query = (
            "SELECT session FROM open_turns WHERE is_stalled AND session > ? AND session < ?"
            " ORDER BY session LIMIT ?"
        )
        # "/" comes right behind the dot.
        values = (max(after, f"state.{tenant}."), f"state.{tenant}/", count)
        return await self._projection.read(
            lambda connection: [session for (session,) in connection.execute(query, values)]
        )

    def _opened(self, name: str, sealed: bytes) -> agent_pb2.Agent:
        return agent_pb2.Agent.FromString(self._seal.open(name, sealed))

    def _apply(self, connection: sqlite3.Connection, stored: StoredCommit) -> None:
        commit = stored.commit
        if commit.stream.startswith("agents."):
            for event in commit.events:
                self._apply_agent(connection, commit, event)
            return
        imported = _is_imported(connection, commit)
        for event in commit.events:
            if event.type == ERASED:
                _forget(connection, commit.stream)
            elif event.type in _TAKES:
                fact = _TAKES[event.type].FromString(event.payload.value)
                if isinstance(fact, facts_pb2.TurnAccepted):
                    self._know(connection, commit.stream, fact)
                if not imported:
                    _take(connection, commit, fact)
            elif event.type in _ENDS:
                ended = _ENDS[event.type].FromString(event.payload.value)
                connection.execute(
                    "DELETE FROM open_turns WHERE session = ? AND turn = ?",
                    (commit.stream, ended.turn),  # type: ignore[attr-defined]
                )
        last = commit.revision + len(commit.events) - 1
        connection.execute(
            "UPDATE open_turns SET revision = ? WHERE session = ?", (last, commit.stream)
        )
        types = {event.type for event in commit.events}
        if not types <= _OF_OTHERS:
            connection.execute(
                "UPDATE open_turns SET update_ns = ?, is_stalled = 0 WHERE session = ?",
                (commit.time.ToNanoseconds(), commit.stream),
            )
        if _STALLED in types:
            connection.execute(
                "UPDATE open_turns SET is_stalled = 1 WHERE session = ?", (commit.stream,)
            )

    def _know(
        self, connection: sqlite3.Connection, session: str, fact: facts_pb2.TurnAccepted
    ) -> None:
        # The hash too: short inputs could be guessed by it.
        sealed = self._seal.seal(f"{session}/{fact.turn}", fact.request_hash)
        connection.execute(
            "INSERT OR REPLACE INTO turns VALUES (?, ?, ?, ?)",
            (session, fact.turn, fact.request_id, sealed),
        )

    def _apply_agent(
        self,
        connection: sqlite3.Connection,
        commit: envelope_pb2.Commit,
        event: envelope_pb2.Event,
    ) -> None:
        event_type = _AGENT_EVENTS.get(event.type)
        if event_type is None:
            return
        fact = event_type.FromString(event.payload.value)
        _, tenant, agent_id = commit.stream.split(".")
        parent = f"tenants/{tenant}"
        name = f"{parent}/agents/{agent_id}"
        if isinstance(fact, events_pb2.AgentDeleted):
            connection.execute("DELETE FROM agents WHERE name = ?", (name,))
            return
        agent = agent_pb2.Agent(name=name, spec=fact.spec, update_time=commit.time)  # type: ignore[attr-defined]
        agent.revision = fact.request.agent_revision  # type: ignore[attr-defined]
        agent.etag = f"r{agent.revision}"
        created = (
            self._created(connection, name) if isinstance(fact, events_pb2.AgentUpdated) else None
        )
        agent.create_time.CopyFrom(created.create_time if created else commit.time)
        sealed = self._seal.seal(name, agent.SerializeToString())
        connection.execute("INSERT OR REPLACE INTO agents VALUES (?, ?, ?)", (name, parent, sealed))

    def _created(self, connection: sqlite3.Connection, name: str) -> agent_pb2.Agent | None:
        row: Sequence[bytes] | None = connection.execute(
            "SELECT agent FROM agents WHERE name = ?", (name,)
        ).fetchone()
        return self._opened(name, row[0]) if row else None


def _is_imported(connection: sqlite3.Connection, commit: envelope_pb2.Commit) -> bool:
    """Whether the commit is part of an import: its turns ended elsewhere, or are about to
    be ended, and nobody may take them up."""
    first = commit.events[0]
    if first.type == _IMPORTED:
        imported = facts_pb2.SessionImported.FromString(first.payload.value)
        last = commit.revision + imported.event_count
        connection.execute("INSERT OR REPLACE INTO imports VALUES (?, ?)", (commit.stream, last))
        return True
    row = connection.execute(
        "SELECT last_revision FROM imports WHERE session = ?", (commit.stream,)
    ).fetchone()
    if row is None:
        return False
    if commit.revision + len(commit.events) > row[0]:
        connection.execute("DELETE FROM imports WHERE session = ?", (commit.stream,))
    return commit.revision <= int(row[0])


def _forget(connection: sqlite3.Connection, session: str) -> None:
    """Deletes all that the session's events led to."""
    connection.execute("DELETE FROM open_turns WHERE session = ?", (session,))
    connection.execute("DELETE FROM turns WHERE session = ?", (session,))
    connection.execute("DELETE FROM imports WHERE session = ?", (session,))


def _take(connection: sqlite3.Connection, commit: envelope_pb2.Commit, fact: Message) -> None:
    owner: str = fact.owner  # type: ignore[attr-defined]
    turn: str = fact.turn  # type: ignore[attr-defined]
    if owner:
        connection.execute(
            "INSERT OR REPLACE INTO open_turns VALUES (?, ?, ?, 0, ?, 0)",
            (commit.stream, turn, owner, commit.time.ToNanoseconds()),
        )
