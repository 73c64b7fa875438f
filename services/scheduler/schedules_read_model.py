"""Which schedules there are: a read model of the log."""

import sqlite3
from pathlib import Path

from mesh.events.projection import Observe, Projection
from mesh.events.store import EventStore, Selection, StoredCommit, StreamName
from services.scheduler.domain import names
from weft.scheduler.v1 import schedule_events_pb2 as facts

_TABLES = """
CREATE TABLE schedules (
  tenant TEXT NOT NULL, schedule TEXT NOT NULL, PRIMARY KEY (tenant, schedule)
) WITHOUT ROWID;
"""
_CREATED = facts.ScheduleCreated.DESCRIPTOR.full_name
_DELETED = facts.ScheduleDeleted.DESCRIPTOR.full_name


class SchedulesReadModel:
    """Follows the log; `observe` is told of commits to schedules."""

    def __init__(self, store: EventStore, path: Path, observe: Observe) -> None:
        self._projection = Projection(
            store,
            path,
            tables=_TABLES,
            selections=(Selection(names.SCHEDULES_AREA),),
            apply=_apply,
            observe=observe,
        )

    async def start(self) -> None:
        """Returns once it has caught up with the log."""
        await self._projection.start()

    async def stop(self) -> None:
        """Ends following."""
        await self._projection.stop()

    def schedules(self) -> list[StreamName]:
        """The streams of all schedules, as far as the log was followed."""
        rows = self._projection.connection.execute("SELECT tenant, schedule FROM schedules")
        return [StreamName(names.SCHEDULES_AREA, tenant, (schedule,)) for tenant, schedule in rows]

    async def schedules_of(self, tenant: str, after: str, count: int) -> list[StreamName]:
        """The first `count` schedules of a tenant behind the id `after`, by id."""
        await self._projection.catch_up()

        def page(connection: sqlite3.Connection) -> list[StreamName]:
            rows = connection.execute(
                "SELECT schedule FROM schedules WHERE tenant = ? AND schedule > ?"
                " ORDER BY schedule LIMIT ?",
                (tenant, after, count),
            )
            return [StreamName(names.SCHEDULES_AREA, tenant, (key,)) for (key,) in rows]

        return await self._projection.read(page)


def _apply(connection: sqlite3.Connection, stored: StoredCommit) -> None:
    stream = StreamName.parse(stored.commit.stream)
    key = (stream.tenant, stream.key[0])
    for event in stored.commit.events:
        if event.type == _CREATED:
            connection.execute("INSERT OR IGNORE INTO schedules VALUES (?, ?)", key)
        elif event.type == _DELETED:
            connection.execute("DELETE FROM schedules WHERE tenant = ? AND schedule = ?", key)
