"""Budgets as they are, and what was used by hour, session and model: a read model of the log."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from mesh.errors import WeftError
from mesh.events.fold import evolved
from mesh.events.projection import Projection
from mesh.events.store import EventStore, Selection, StoredCommit, StreamName
from mesh.security.sealing import RowSeal
from mesh.security.secrets import Secrets
from services.models import domain
from weft.models.v1 import budget_service_pb2 as pb
from weft.models.v1 import budgets_pb2
from weft.models.v1 import events_pb2 as facts

KEPT_DAYS = 400
"""How long usage is told of; the log has it for longer."""
_SUMS = (
    *("calls", "estimated_calls", "unpriced_calls", "input_tokens", "cached_input_tokens"),
    *("output_tokens", "cost_micro_usd"),
)
_TABLES = f"""
CREATE TABLE budgets (name TEXT PRIMARY KEY, state BLOB NOT NULL);
CREATE TABLE usage (
  tenant TEXT NOT NULL, hour_ns INTEGER NOT NULL, agent TEXT NOT NULL, session TEXT NOT NULL,
  model TEXT NOT NULL, {", ".join(f"{name} INTEGER NOT NULL" for name in _SUMS)},
  PRIMARY KEY (tenant, hour_ns, agent, session, model)
) WITHOUT ROWID;
"""
SUM_MAX = 2**53
"""Where sums end: past SQLite's integers nothing could be stored, nor read."""
_INTEGER_MAX = 2**63 - 1
_RECORDED = facts.UsageRecorded.DESCRIPTOR.full_name
_GROUPS = {
    pb.USAGE_GROUPING_UNSPECIFIED: "''",
    pb.USAGE_GROUPING_AGENT: "agent",
    pb.USAGE_GROUPING_SESSION: "session",
    pb.USAGE_GROUPING_MODEL: "model",
    # As text of one width, so that pages go on behind it.
    pb.USAGE_GROUPING_DAY: f"printf('%020d', hour_ns / {domain.DAY_NS} * {domain.DAY_NS})",
    pb.USAGE_GROUPING_HOUR: "printf('%020d', hour_ns)",
}
_TIMES = (pb.USAGE_GROUPING_DAY, pb.USAGE_GROUPING_HOUR)
_FIELDS = {
    pb.USAGE_GROUPING_AGENT: "agent",
    pb.USAGE_GROUPING_SESSION: "session",
    pb.USAGE_GROUPING_MODEL: "model",
}


class Row(NamedTuple):
    """What was used, and the text that rows are ordered by."""

    key: str
    entry: budgets_pb2.UsageEntry


class ModelsReadModel:
    """Follows the log; `observe` is told of budgets that changed. What it copies of them is
    sealed."""

    def __init__(
        self,
        store: EventStore,
        path: Path,
        secrets: Secrets,
        observe: Callable[[Iterable[str]], None],
    ) -> None:
        self._secrets = secrets
        self._seal: RowSeal
        self._tell = observe
        self._projection = Projection(
            store,
            path,
            tables=_TABLES,
            selections=(Selection(domain.BUDGETS), Selection(domain.USAGE)),
            apply=self._apply,
            observe=self._observe,
        )

    @property
    def failure(self) -> WeftError | None:
        """Why it doesn't follow the log any more; None while it does."""
        return self._projection.failure

    async def start(self) -> None:
        """Returns once it holds all that is in the log by now. EventStoreUnavailable,
        DataDamaged."""
        self._seal = await RowSeal.of(self._secrets, "models")
        await self._projection.start(self._seal.id)

    async def stop(self) -> None:
        """Ends following."""
        await self._projection.stop()

    async def catch_up(self) -> None:
        """Returns once all that is stored by now is in it. EventStoreUnavailable."""
        await self._projection.catch_up()

    def budget(self, name: str) -> domain.State | None:
        """The budget's state, as far as the log was followed; None where there is none."""
        row = self._projection.connection.execute(
            "SELECT state FROM budgets WHERE name = ?", (name,)
        ).fetchone()
        return self._opened(name, row[0]) if row is not None else None

    async def budgets(self) -> dict[str, domain.State]:
        """All budgets' states, by name."""
        return await self._projection.read(
            lambda connection: {
                name: self._opened(name, sealed)
                for name, sealed in connection.execute("SELECT name, state FROM budgets")
            }
        )

    async def usage(self, request: pb.GetUsageRequest, after: str | None, size: int) -> list[Row]:
        """At most so many rows behind the one with that key, once all that is stored by now
        is in them. EventStoreUnavailable."""
        await self._projection.catch_up()
        return await self._projection.read(
            lambda connection: _select(connection, request, after, size)
        )

    def _apply(self, connection: sqlite3.Connection, stored: StoredCommit) -> None:
        stream = StreamName.parse(stored.commit.stream)
        if stream.area == domain.USAGE:
            _count(connection, stored)
            return
        name = domain.budget_name(stream)
        row = connection.execute("SELECT state FROM budgets WHERE name = ?", (name,)).fetchone()
        before = self._opened(name, row[0]) if row is not None else domain.State()
        state = evolved(domain.BUDGET_FOLD, before, stored)
        # Nothing is decided on it: who decides reads the log.
        state.ClearField("requests")
        if domain.exists(state):
            sealed = self._seal.seal(name, state.SerializeToString())
            connection.execute("INSERT OR REPLACE INTO budgets VALUES (?, ?)", (name, sealed))
        else:
            connection.execute("DELETE FROM budgets WHERE name = ?", (name,))

    def _observe(self, batch: Sequence[StoredCommit]) -> None:
        streams = {StreamName.parse(stored.commit.stream) for stored in batch}
        self._tell(domain.budget_name(each) for each in streams if each.area == domain.BUDGETS)

    def _opened(self, name: str, sealed: bytes) -> domain.State:
        return domain.State.FromString(self._seal.open(name, sealed))


def _count(connection: sqlite3.Connection, stored: StoredCommit) -> None:
    commit = stored.commit
    for event in commit.events:
        if event.type == _RECORDED:
            for entry in facts.UsageRecorded.FromString(event.payload.value).entries:
                _add(connection, commit.tenant, entry)
    oldest_ns = commit.time.ToNanoseconds() - KEPT_DAYS * domain.DAY_NS
    connection.execute(
        "DELETE FROM usage WHERE tenant = ? AND hour_ns < ?", (commit.tenant, oldest_ns)
    )


def _add(connection: sqlite3.Connection, tenant: str, entry: budgets_pb2.UsageEntry) -> None:
    names = ", ".join(_SUMS)
    places = ", ".join("?" * (5 + len(_SUMS)))
    added = ", ".join(f"{name} = min({name} + excluded.{name}, {SUM_MAX})" for name in _SUMS)
    connection.execute(
        f"INSERT INTO usage (tenant, hour_ns, agent, session, model, {names})"
        f" VALUES ({places}) ON CONFLICT DO UPDATE SET {added}",
        (
            tenant,
            entry.start_time.ToNanoseconds(),
            entry.agent,
            entry.session,
            entry.model,
            *(min(getattr(entry, name), SUM_MAX) for name in _SUMS),
        ),
    )


def _select(
    connection: sqlite3.Connection, request: pb.GetUsageRequest, after: str | None, size: int
) -> list[Row]:
    where, values = _conditions(request)
    key = _GROUPS[request.group_by]
    if after is not None:
        where.append(f"{key} > ?")
        values.append(after)
    sums = ", ".join(f"sum({name})" for name in _SUMS)
    found = connection.execute(
        f"SELECT {key} AS key, {sums} FROM usage WHERE {' AND '.join(where)}"
        " GROUP BY key ORDER BY key LIMIT ?",
        (*values, size),
    )
    return [_row(request.group_by, row[0], row[1:]) for row in found]


def _conditions(request: pb.GetUsageRequest) -> tuple[list[str], list[str | int]]:
    where, values = ["tenant = ?"], list[str | int]()
    values.append(request.parent.rpartition("/")[2])
    if "/agents/" in request.scope:
        where.append("session = ?" if "/sessions/" in request.scope else "agent = ?")
        values.append(request.scope)
    if request.model:
        where.append("model = ?")
        values.append(request.model)
    if request.HasField("start_time"):
        where.append("hour_ns >= ?")
        values.append(_ns(request.start_time))
    if request.HasField("end_time"):
        where.append("hour_ns < ?")
        values.append(_ns(request.end_time))
    return where, values


def _ns(moment: Timestamp) -> int:
    """The nearest that SQLite can compare with; a timestamp reaches from year 1 to 9999."""
    return max(-_INTEGER_MAX, min(moment.ToNanoseconds(), _INTEGER_MAX))


def _row(grouping: "pb.UsageGrouping.ValueType", key: str, sums: Sequence[int]) -> Row:
    entry = budgets_pb2.UsageEntry()
    for name, value in zip(_SUMS, sums, strict=True):
        setattr(entry, name, value)
    if grouping in _TIMES:
        entry.start_time.FromNanoseconds(int(key))
    elif grouping in _FIELDS:
        setattr(entry, _FIELDS[grouping], key)
    return Row(key, entry)
