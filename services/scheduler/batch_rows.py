"""Batches in the read model: how many of their items stand where, and in which order they
ended.

Triggers keep both while the rows of tasks change, since only there it is known where a
task stood before. What they count follows from the facts in the order of the log, so a
read model that is built anew gives every end the same number.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mesh.security.sealing import RowSeal
from services.scheduler.domain.state import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED
from weft.scheduler.v1 import batches_pb2, tasks_pb2

RESULTS_MAX = 100
RESULTS_BYTES_MAX = 1 << 20
"""Results that are read at once: past either no more are added."""

_COUNTS = {
    "queued": QUEUED,
    "running": RUNNING,
    "succeeded": SUCCEEDED,
    "failed": FAILED,
    "cancelled": CANCELLED,
}
_MOVED = ", ".join(
    f"{name} = {name} + (NEW.state = {state}) - (OLD.state = {state})"
    for name, state in _COUNTS.items()
)
_ENDED = f"({SUCCEEDED}, {FAILED}, {CANCELLED})"

TABLES = f"""
CREATE TABLE batches (
  number INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, batch TEXT NOT NULL,
  running_tasks_max INTEGER NOT NULL, creator TEXT NOT NULL,
  create_ns INTEGER NOT NULL, update_ns INTEGER NOT NULL,
  closed INTEGER NOT NULL DEFAULT 0, was_cancelled INTEGER NOT NULL DEFAULT 0, reason BLOB,
  {" ".join(f"{name} INTEGER NOT NULL DEFAULT 0," for name in _COUNTS)}
  ends INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX batch_by_name ON batches (queue, batch);
CREATE INDEX batch_by_number ON batches (queue, number);
CREATE UNIQUE INDEX by_item ON tasks (queue, batch, batch_index) WHERE batch IS NOT NULL;
CREATE INDEX by_end ON tasks (queue, batch, end_number) WHERE end_number IS NOT NULL;
CREATE TRIGGER item_came AFTER INSERT ON tasks WHEN NEW.batch IS NOT NULL BEGIN
  UPDATE batches SET queued = queued + 1, update_ns = NEW.update_ns
    WHERE queue = NEW.queue AND batch = NEW.batch;
END;
CREATE TRIGGER item_moved AFTER UPDATE OF state ON tasks
WHEN NEW.batch IS NOT NULL AND NEW.state <> OLD.state
  AND (OLD.state, NEW.state) <> ({FAILED}, {CANCELLED}) BEGIN
  UPDATE batches SET {_MOVED}, update_ns = NEW.update_ns,
      ends = ends + (NEW.state IN {_ENDED} AND OLD.state NOT IN {_ENDED})
    WHERE queue = NEW.queue AND batch = NEW.batch;
  UPDATE tasks SET end_number = CASE
      WHEN NEW.state NOT IN {_ENDED} THEN NULL
      WHEN OLD.state IN {_ENDED} THEN end_number
      ELSE (SELECT ends FROM batches WHERE queue = NEW.queue AND batch = NEW.batch)
    END WHERE number = NEW.number;
END;
"""
"""Stands behind the table of tasks. `ends` counts how often an item
ended. A dead letter that is discarded, the only one that goes from failed to cancelled, stays
counted as failed: what became of a batch is history."""

COLUMNS = (
    "number, batch, running_tasks_max, creator, create_ns, update_ns, closed, was_cancelled,"
    f" reason, {', '.join(_COUNTS)}"
)


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item as it was accepted."""

    task: str
    spec: tasks_pb2.TaskSpec


def opened(seal: RowSeal, queue: str, row: Sequence[Any]) -> batches_pb2.Batch:
    """The batch of a row of COLUMNS, in the queue of that name."""
    batch, limit, creator, create_ns, update_ns, closed, was_cancelled, reason, *counts = row[1:]
    found = batches_pb2.Batch(
        name=f"{queue}/batches/{batch}", running_tasks_max=limit, creator=creator
    )
    found.create_time.FromNanoseconds(create_ns)
    found.update_time.FromNanoseconds(update_ns)
    for name, count in zip(_COUNTS, counts, strict=True):
        setattr(found.counts, name, count)
    found.counts.items = sum(counts)
    is_left = bool(found.counts.queued or found.counts.running)
    if was_cancelled:
        states = (batches_pb2.BATCH_STATE_CANCELLED, batches_pb2.BATCH_STATE_CANCELLING)
    elif closed:
        states = (batches_pb2.BATCH_STATE_COMPLETED, batches_pb2.BATCH_STATE_RUNNING)
    else:
        states = (batches_pb2.BATCH_STATE_OPEN, batches_pb2.BATCH_STATE_OPEN)
    found.state = states[is_left]
    if reason is not None:
        found.reason = seal.open(f"{queue}/{batch}/batch", reason).decode()
    return found


def find(
    connection: sqlite3.Connection, seal: RowSeal, queue: str, batch: str
) -> batches_pb2.Batch | None:
    """The batch of that id; None where there is none."""
    row = connection.execute(
        f"SELECT {COLUMNS} FROM batches WHERE queue = ? AND batch = ?", (queue, batch)
    ).fetchone()
    return opened(seal, queue, row) if row else None


def page(
    connection: sqlite3.Connection, seal: RowSeal, queue: str, before: int, count: int
) -> list[tuple[int, batches_pb2.Batch]]:
    """The first `count` batches before that number, newest first, with their numbers."""
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM batches WHERE queue = ? AND number < ?"
        " ORDER BY number DESC LIMIT ?",
        (queue, before, count),
    ).fetchall()
    return [(row[0], opened(seal, queue, row)) for row in rows]


def results(
    connection: sqlite3.Connection, seal: RowSeal, queue: str, batch: str, after: int
) -> list[batches_pb2.BatchResult]:
    """How items ended, behind the end of that number: as many as are read at once."""
    rows = connection.execute(
        "SELECT end_number, batch_index, task, state, result, code, reason FROM tasks"
        " WHERE queue = ? AND batch = ? AND end_number > ? ORDER BY end_number LIMIT ?",
        (queue, batch, after, RESULTS_MAX),
    )
    found, size_bytes = [], 0
    for number, index, task, state, result, code, reason in rows:
        # What was discarded has the code with which it failed; what was cancelled has none.
        ended = FAILED if state == CANCELLED and code else state
        each = batches_pb2.BatchResult(
            number=number, index=index, task=f"{queue}/tasks/{task}", state=ended, code=code
        )
        key = f"{queue}/{task}"
        if result is not None and state == SUCCEEDED:
            each.result = seal.open(f"{key}/result", result)
        if reason is not None:
            each.reason = seal.open(f"{key}/reason", reason).decode()
        found.append(each)
        size_bytes += each.ByteSize()
        if size_bytes >= RESULTS_BYTES_MAX:
            break
    return found


def items(
    connection: sqlite3.Connection, seal: RowSeal, queue: str, batch: str, first: int, count: int
) -> dict[int, StoredItem]:
    """The items of the batch from that index on, as they were accepted."""
    rows = connection.execute(
        "SELECT batch_index, task, spec FROM tasks"
        " WHERE queue = ? AND batch = ? AND batch_index >= ? AND batch_index < ?",
        (queue, batch, first, first + count),
    )
    found = {}
    for index, task, sealed in rows:
        spec = tasks_pb2.TaskSpec.FromString(seal.open(f"{queue}/{task}/spec", sealed))
        found[index] = StoredItem(task, spec)
    return found
