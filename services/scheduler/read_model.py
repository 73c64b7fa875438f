"""Which queues there are, and every task of them, final or not: a read model of the log."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from mesh.events.projection import Observe, Projection
from mesh.events.store import EventStore, Selection, StoredCommit, StreamName
from mesh.security.sealing import RowSeal
from mesh.security.secrets import Secrets
from services.scheduler import batch_rows
from services.scheduler.domain import names
from services.scheduler.domain.priority import PRIORITY_DEFAULT
from services.scheduler.domain.state import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED
from weft.scheduler.v1 import batches_pb2, tasks_pb2
from weft.scheduler.v1 import events_pb2 as facts

TABLES = f"""
CREATE TABLE queues (tenant TEXT NOT NULL, queue TEXT NOT NULL, PRIMARY KEY (tenant, queue));
CREATE TABLE tasks (
  number INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, task TEXT NOT NULL,
  state INTEGER NOT NULL, capability TEXT NOT NULL, creator TEXT NOT NULL,
  create_ns INTEGER NOT NULL, update_ns INTEGER NOT NULL,
  spec BLOB NOT NULL, result BLOB, reason BLOB, code INTEGER NOT NULL DEFAULT 0,
  batch TEXT, batch_index INTEGER, end_number INTEGER, stalled_ns INTEGER, stalled_reason BLOB,
  priority INTEGER NOT NULL
);
CREATE UNIQUE INDEX by_name ON tasks (queue, task);
CREATE INDEX by_queue ON tasks (queue);
CREATE INDEX by_state ON tasks (queue, state, number);
CREATE INDEX by_stall ON tasks (queue, number) WHERE stalled_ns IS NOT NULL;
CREATE TABLE attempts (
  queue TEXT NOT NULL, task TEXT NOT NULL, attempt INTEGER NOT NULL, worker TEXT NOT NULL,
  start_ns INTEGER NOT NULL, end_ns INTEGER, code INTEGER NOT NULL DEFAULT 0, message BLOB,
  PRIMARY KEY (queue, task, attempt)
) WITHOUT ROWID;
{batch_rows.TABLES}"""

_FACTS: dict[str, type[Message]] = {
    fact.DESCRIPTOR.full_name: fact
    for fact in (
        *(facts.QueueCreated, facts.TaskSubmitted, facts.TaskStarted, facts.TaskAttemptFailed),
        *(facts.TaskReleased, facts.TaskSucceeded, facts.TaskFailed, facts.TaskCancelled),
        *(facts.TaskRedriven, facts.TaskDiscarded, facts.TaskCancelRequested),
        *(facts.TaskStalled, facts.TaskProgressed, facts.QueuePaused),
        *(facts.BatchCreated, facts.BatchClosed, facts.BatchCancelled),
    )
}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which tasks to list: 0 and empty are all, and None; `batch` is an id. Times are Unix
    nanoseconds, of when they were accepted: from the one on, and before the other."""

    state: int = 0
    capability: str = ""
    creator: str = ""
    batch: str = ""
    priority: int | None = None
    start_ns: int = 0
    end_ns: int = 0
    stalled: bool = False

    def conditions(self) -> tuple[list[str], list[str | int]]:
        """Conditions on rows of tasks, and the values that they name."""
        wanted: list[tuple[str, str | int | None]] = [
            ("state = ?", self.state or None),
            ("capability = ?", self.capability or None),
            ("creator = ?", self.creator or None),
            ("batch = ?", self.batch or None),
            ("priority = ?", self.priority),
            ("create_ns >= ?", self.start_ns or None),
            ("create_ns < ?", self.end_ns or None),
        ]
        named = [(where, value) for where, value in wanted if value is not None]
        where = [where for where, _ in named]
        where += ["stalled_ns IS NOT NULL"] if self.stalled else []
        return where, [value for _, value in named]


class TasksReadModel:
    """Follows the log; `observe` is told of commits to queues. What it copies of them is
    sealed."""

    def __init__(self, store: EventStore, path: Path, observe: Observe, secrets: Secrets) -> None:
        self._secrets = secrets
        self._seal: RowSeal
        self._projection = Projection(
            store,
            path,
            tables=TABLES,
            selections=(Selection(names.AREA),),
            apply=self._apply,
            observe=observe,
        )

    async def start(self) -> None:
        """Returns once it has caught up with the log."""
        self._seal = await RowSeal.of(self._secrets, "scheduler")
        await self._projection.start(self._seal.id)

    async def stop(self) -> None:
        """Ends following."""
        await self._projection.stop()

    def queues(self) -> list[StreamName]:
        """The streams of all queues, as far as the log was followed."""
        rows = self._projection.connection.execute("SELECT tenant, queue FROM queues")
        return [StreamName(names.AREA, tenant, (queue,)) for tenant, queue in rows]

    async def has_queue(self, stream: StreamName) -> bool:
        """Whether the queue was made."""
        await self._projection.catch_up()
        key = (stream.tenant, stream.key[0])
        query = "SELECT 1 FROM queues WHERE tenant = ? AND queue = ?"
        return await self._projection.read(
            lambda connection: connection.execute(query, key).fetchone() is not None
        )

    async def queues_of(self, tenant: str, after: str, count: int) -> list[StreamName]:
        """The first `count` queues of a tenant behind the id `after`, by id."""
        await self._projection.catch_up()

        def page(connection: sqlite3.Connection) -> list[StreamName]:
            rows = connection.execute(
                "SELECT queue FROM queues WHERE tenant = ? AND queue > ? ORDER BY queue LIMIT ?",
                (tenant, after, count),
            )
            return [StreamName(names.AREA, tenant, (queue,)) for (queue,) in rows]

        return await self._projection.read(page)

    async def task(self, name: str) -> tasks_pb2.Task | None:
        """The task of that name; None where there is none."""
        await self._projection.catch_up()
        queue, task = _keys(name)

        def one(connection: sqlite3.Connection) -> tasks_pb2.Task | None:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM tasks WHERE queue = ? AND task = ?",
                (queue, task),
            ).fetchone()
            return self._opened(connection, queue, row, whole=True) if row else None

        return await self._projection.read(one)

    async def tasks(
        self, queue: str, wanted: Filter, before: int | None, count: int
    ) -> list[tuple[int, tasks_pb2.Task]]:
        """The first `count` tasks of a queue before the number `before`, newest first,
        with their numbers, and without payloads and results."""
        await self._projection.catch_up()

        def page(connection: sqlite3.Connection) -> list[tuple[int, tasks_pb2.Task]]:
            where, values = wanted.conditions()
            if before:
                where, values = [*where, "number < ?"], [*values, before]
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM tasks WHERE {' AND '.join(('queue = ?', *where))}"
                " ORDER BY number DESC LIMIT ?",
                (queue, *values, count),
            ).fetchall()
            return [(row[0], self._opened(connection, queue, row, whole=False)) for row in rows]

        return await self._projection.read(page)

    async def taken_ids(self, queue: str, tasks: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Those of the ids that tasks of the queue have, with the batch and index of each;
        an empty batch where the task is of none."""
        await self._projection.catch_up()
        query = (
            "SELECT task, ifnull(batch, ''), ifnull(batch_index, 0) FROM tasks"
            f" WHERE queue = ? AND task IN ({', '.join('?' * len(tasks))})"
        )
        return await self._projection.read(
            lambda connection: {
                task: (batch, index)
                for task, batch, index in connection.execute(query, (queue, *tasks))
            }
        )

    async def batch(self, name: str) -> batches_pb2.Batch | None:
        """The batch of that name; None where there is none."""
        await self._projection.catch_up()
        key = _batch_keys(name)
        return await self._projection.read(
            lambda connection: batch_rows.find(connection, self._seal, *key)
        )

    async def batches(
        self, queue: str, before: int, count: int
    ) -> list[tuple[int, batches_pb2.Batch]]:
        """The first `count` batches of a queue before the number `before`, newest first,
        with their numbers."""
        await self._projection.catch_up()
        return await self._projection.read(
            lambda connection: batch_rows.page(connection, self._seal, queue, before, count)
        )

    async def batch_items(
        self, name: str, first: int, count: int
    ) -> dict[int, batch_rows.StoredItem]:
        """The items of a batch from the index `first` on, as they were accepted."""
        await self._projection.catch_up()
        key = _batch_keys(name)
        return await self._projection.read(
            lambda connection: batch_rows.items(connection, self._seal, *key, first, count)
        )

    async def batch_results(
        self, name: str, after: int
    ) -> tuple[batches_pb2.Batch | None, list[batches_pb2.BatchResult]]:
        """A batch and how items of it ended behind the end `after`, both as far as the log
        was followed."""
        key = _batch_keys(name)
        return await self._projection.read(
            lambda connection: (
                batch_rows.find(connection, self._seal, *key),
                batch_rows.results(connection, self._seal, *key, after),
            )
        )

    def purge(self, before_ns: int) -> None:
        """Forgets tasks that were final before that time, and old batches of which no item is
        left."""
        connection = self._projection.connection
        old = "state IN (?, ?) AND update_ns < ?"
        values = (SUCCEEDED, CANCELLED, before_ns)
        with connection:
            connection.execute(
                "DELETE FROM attempts WHERE (queue, task) IN"
                f" (SELECT queue, task FROM tasks WHERE {old})",
                values,
            )
            connection.execute(f"DELETE FROM tasks WHERE {old}", values)
            connection.execute(
                "DELETE FROM batches WHERE (closed OR was_cancelled) AND update_ns < ?"
                " AND NOT EXISTS (SELECT 1 FROM tasks"
                " WHERE tasks.queue = batches.queue AND tasks.batch = batches.batch)",
                (before_ns,),
            )

    def _opened(
        self, connection: sqlite3.Connection, queue: str, row: Sequence[Any], *, whole: bool
    ) -> tasks_pb2.Task:
        _, task, state, creator, create_ns, update_ns, spec, result, reason, *others = row
        batch, index, *stall = others
        key = f"{queue}/{task}"
        found = tasks_pb2.Task(name=f"{queue}/tasks/{task}", state=state, creator=creator)
        found.spec.ParseFromString(self._seal.open(f"{key}/spec", spec))
        found.create_time.FromNanoseconds(create_ns)
        found.update_time.FromNanoseconds(update_ns)
        if reason is not None:
            found.reason = self._seal.open(f"{key}/reason", reason).decode()
        stalled_ns, stalled_reason = stall
        if stalled_ns is not None:
            found.stalled_time.FromNanoseconds(stalled_ns)
            sealed = self._seal.open(f"{key}/stalled_reason", stalled_reason)
            found.stalled_reason = sealed.decode()
        if whole and result is not None:
            found.result = self._seal.open(f"{key}/result", result)
        if not whole:
            found.spec.ClearField("payload")
        if batch is not None:
            found.batch, found.batch_index = f"{queue}/batches/{batch}", index
        for attempt in self._attempts(connection, queue, task):
            found.attempts.append(attempt)
        return found

    def _attempts(
        self, connection: sqlite3.Connection, queue: str, task: str
    ) -> list[tasks_pb2.TaskAttempt]:
        rows = connection.execute(
            "SELECT attempt, worker, start_ns, end_ns, code, message FROM attempts"
            " WHERE queue = ? AND task = ? ORDER BY attempt",
            (queue, task),
        )
        attempts = []
        for number, worker, start_ns, end_ns, code, message in rows:
            attempt = tasks_pb2.TaskAttempt(attempt=number, worker=worker, code=code)
            attempt.start_time.FromNanoseconds(start_ns)
            if end_ns is not None:
                attempt.end_time.FromNanoseconds(end_ns)
            if message is not None:
                key = f"{queue}/{task}/{number}"
                attempt.message = self._seal.open(key, message).decode()
            attempts.append(attempt)
        return attempts

    def _apply(self, connection: sqlite3.Connection, stored: StoredCommit) -> None:
        stream = StreamName.parse(stored.commit.stream)
        time_ns = stored.commit.time.ToNanoseconds()
        change = Change(connection, self._seal, stream, time_ns)
        for event in stored.commit.events:
            fact = _FACTS.get(event.type)
            if fact is not None:
                APPLY[fact](change, fact.FromString(event.payload.value))


_COLUMNS = (
    "number, task, state, creator, create_ns, update_ns, spec, result, reason, batch, batch_index,"
    " stalled_ns, stalled_reason"
)


class Change:
    """What one commit changes."""

    def __init__(
        self, connection: sqlite3.Connection, seal: RowSeal, stream: StreamName, time_ns: int
    ) -> None:
        self._connection = connection
        self._seal = seal
        self._stream = stream
        self._queue = names.queue_name(stream)
        self._time_ns = time_ns

    def created(self, fact: facts.QueueCreated) -> None:
        self._connection.execute(
            "INSERT OR IGNORE INTO queues VALUES (?, ?)", (self._stream.tenant, self._stream.key[0])
        )

    def submitted(self, fact: facts.TaskSubmitted) -> None:
        spec = self._sealed(fact.task, "spec", fact.spec.SerializeToString())
        self._connection.execute(
            "DELETE FROM attempts WHERE queue = ? AND task = ?", self._key(fact)
        )
        self._connection.execute(
            "INSERT OR REPLACE INTO tasks"
            " (queue, task, state, capability, creator, create_ns, update_ns, spec,"
            " batch, batch_index, priority)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(self._queue, fact.task, QUEUED, fact.spec.capability, fact.creator),
                *(self._time_ns, self._time_ns, spec),
                *((fact.batch, fact.batch_index) if fact.batch else (None, None)),
                fact.spec.priority if fact.spec.HasField("priority") else PRIORITY_DEFAULT,
            ),
        )

    def started(self, fact: facts.TaskStarted) -> None:
        self._stands(fact, RUNNING)
        self._connection.execute(
            "INSERT OR REPLACE INTO attempts (queue, task, attempt, worker, start_ns)"
            " VALUES (?, ?, ?, ?, ?)",
            (self._queue, fact.task, fact.attempt, fact.worker, self._time_ns),
        )

    def attempt_failed(self, fact: facts.TaskAttemptFailed) -> None:
        self._stands(fact, QUEUED)
        self._ended(fact, fact.attempt, fact.code, fact.message)

    def released(self, fact: facts.TaskReleased) -> None:
        self._stands(fact, QUEUED)
        self._ended(fact, fact.attempt, 0, "given back before it began")

    def succeeded(self, fact: facts.TaskSucceeded) -> None:
        self._stands(fact, SUCCEEDED)
        self._ended(fact, fact.attempt, 0, "")
        if fact.result:
            self._connection.execute(
                "UPDATE tasks SET result = ? WHERE queue = ? AND task = ?",
                (self._sealed(fact.task, "result", fact.result), *self._key(fact)),
            )

    def failed(self, fact: facts.TaskFailed) -> None:
        self._stands(fact, FAILED, fact.message, fact.code)
        if fact.attempt:
            self._ended(fact, fact.attempt, fact.code, fact.message)

    def cancelled(self, fact: facts.TaskCancelled) -> None:
        self._stands(fact, CANCELLED, fact.reason)
        self._connection.execute(
            "UPDATE attempts SET end_ns = ?, code = 1"
            " WHERE queue = ? AND task = ? AND end_ns IS NULL",
            (self._time_ns, *self._key(fact)),
        )

    def stalled(self, fact: facts.TaskStalled) -> None:
        sealed = self._sealed(fact.task, "stalled_reason", fact.reason.encode())
        self._connection.execute(
            "UPDATE tasks SET stalled_ns = ?, stalled_reason = ? WHERE queue = ? AND task = ?",
            (self._time_ns, sealed, *self._key(fact)),
        )

    def moved(self, fact: Any) -> None:
        self._connection.execute(
            "UPDATE tasks SET update_ns = ?, stalled_ns = NULL, stalled_reason = NULL"
            " WHERE queue = ? AND task = ?",
            (self._time_ns, *self._key(fact)),
        )

    def paused(self, fact: facts.QueuePaused) -> None:
        self._connection.execute(
            "UPDATE tasks SET stalled_ns = NULL, stalled_reason = NULL"
            " WHERE queue = ? AND stalled_ns IS NOT NULL AND state = ?",
            (self._queue, QUEUED),
        )

    def redriven(self, fact: facts.TaskRedriven) -> None:
        self._stands(fact, QUEUED)

    def discarded(self, fact: facts.TaskDiscarded) -> None:
        # With the code of its failure, as which it stays counted in its batch.
        self._stands(fact, CANCELLED, fact.reason or "discarded", None)

    def batch_created(self, fact: facts.BatchCreated) -> None:
        self._connection.execute(
            "INSERT OR IGNORE INTO batches"
            " (queue, batch, running_tasks_max, creator, create_ns, update_ns)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                *(self._queue, fact.batch, fact.running_tasks_max, fact.creator),
                *(self._time_ns, self._time_ns),
            ),
        )

    def batch_closed(self, fact: facts.BatchClosed) -> None:
        self._connection.execute(
            "UPDATE batches SET closed = 1, update_ns = ? WHERE queue = ? AND batch = ?",
            (self._time_ns, self._queue, fact.batch),
        )

    def batch_cancelled(self, fact: facts.BatchCancelled) -> None:
        sealed = self._sealed(fact.batch, "batch", fact.reason.encode()) if fact.reason else None
        self._connection.execute(
            "UPDATE batches SET was_cancelled = 1, reason = ?, update_ns = ?"
            " WHERE queue = ? AND batch = ?",
            (sealed, self._time_ns, self._queue, fact.batch),
        )

    def _stands(self, fact: Any, state: int, reason: str = "", code: int | None = 0) -> None:
        """The task stands there from here on; without a code it keeps the one it has."""
        sealed = self._sealed(fact.task, "reason", reason.encode()) if reason else None
        self._connection.execute(
            "UPDATE tasks SET state = ?, update_ns = ?, reason = ?, code = ifnull(?, code),"
            " stalled_ns = NULL, stalled_reason = NULL WHERE queue = ? AND task = ?",
            (state, self._time_ns, sealed, code, *self._key(fact)),
        )

    def _ended(self, fact: Any, attempt: int, code: int, message: str) -> None:
        sealed = self._sealed(fact.task, str(attempt), message.encode()) if message else None
        self._connection.execute(
            "UPDATE attempts SET end_ns = ?, code = ?, message = ?"
            " WHERE queue = ? AND task = ? AND attempt = ?",
            (self._time_ns, code, sealed, *self._key(fact), attempt),
        )

    def _key(self, fact: Any) -> tuple[str, str]:
        return (self._queue, fact.task)

    def _sealed(self, task: str, part: str, plain: bytes) -> bytes:
        return self._seal.seal(f"{self._queue}/{task}/{part}", plain)


APPLY: dict[type[Message], Callable[[Change, Any], None]] = {
    facts.QueueCreated: Change.created,
    facts.TaskSubmitted: Change.submitted,
    facts.TaskStarted: Change.started,
    facts.TaskAttemptFailed: Change.attempt_failed,
    facts.TaskReleased: Change.released,
    facts.TaskSucceeded: Change.succeeded,
    facts.TaskFailed: Change.failed,
    facts.TaskCancelled: Change.cancelled,
    facts.TaskRedriven: Change.redriven,
    facts.TaskDiscarded: Change.discarded,
    facts.BatchCreated: Change.batch_created,
    facts.BatchClosed: Change.batch_closed,
    facts.BatchCancelled: Change.batch_cancelled,
    facts.TaskCancelRequested: Change.moved,
    facts.TaskStalled: Change.stalled,
    facts.TaskProgressed: Change.moved,
    facts.QueuePaused: Change.paused,
}


def _keys(name: str) -> tuple[str, str]:
    queue, _, task = name.rpartition("/tasks/")
    return queue, task


def _batch_keys(name: str) -> tuple[str, str]:
    queue, _, batch = name.rpartition("/batches/")
    return queue, batch
