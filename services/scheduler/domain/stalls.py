"""When a task has stalled, and how an operator ends one. Times are Unix nanoseconds.

A task has stalled when nothing has happened to it for longer than its bound: one that waits
for a worker, though neither for its time, nor in a paused queue, nor for others of its
batch, and one that runs and whose worker says nothing new. One that is being cancelled has a
bound of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from mesh.errors import FailedPrecondition, NotFound
from services.scheduler.domain.codes import Code
from services.scheduler.domain.state import FAILED, QUEUED, RUNNING, Batch, Entry, QueueState
from weft.scheduler.v1 import events_pb2 as facts

Facts = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long nothing may happen to a task: while it waits for a worker, and while it
    runs, where its estimated cost isn't more."""

    queued_ns: int
    running_ns: int


def idle_since_ns(state: QueueState, entry: Entry, moved_ns: int = 0) -> int | None:
    """Since when nothing has happened to the task; None where nothing should. `moved_ns` is
    when its worker last said something new, 0 where it never did."""
    task = entry.task
    if entry.batch and task.state == QUEUED and _holds_back(state.batches[entry.batch]):
        return None
    if task.state == QUEUED and not state.paused:
        resumed_ns = state.resume_time.ToNanoseconds() if state.resume_time is not None else 0
        return max(task.next_time.ToNanoseconds(), task.update_time.ToNanoseconds(), resumed_ns)
    if task.state == RUNNING and not task.cancelling:
        return max(task.update_time.ToNanoseconds(), moved_ns)
    return None


def _holds_back(batch: Batch) -> bool:
    """Whether items of the batch wait for others of it, or for their end."""
    limit = batch.running_tasks_max
    return batch.cancelled or bool(limit and batch.counts[RUNNING] >= limit)


def bound_ns(entry: Entry, bounds: Bounds) -> int:
    """How long nothing may happen to the task as it stands."""
    if entry.task.state == RUNNING:
        return max(bounds.running_ns, entry.task.spec.estimated_cost.ToNanoseconds())
    return bounds.queued_ns


def stall(
    state: QueueState,
    task: str,
    attempt: int,
    reason: str,
    bounds: Bounds,
    now_ns: int,
    moved_ns: int = 0,
) -> Facts:
    """Says that the task has stalled in that attempt, where it has and wasn't said to have."""
    entry = state.tasks.get(task)
    if entry is None or entry.attempt != attempt or has_stalled(entry):
        return []
    since_ns = idle_since_ns(state, entry, moved_ns)
    if since_ns is None or now_ns - since_ns < bound_ns(entry, bounds):
        return []
    stalled = facts.TaskStalled(task=task, attempt=attempt, reason=reason)
    stalled.idle.FromNanoseconds(now_ns - since_ns)
    return [stalled]


def progress(state: QueueState, task: str, attempt: int) -> Facts:
    """The worker of a task that had stalled says something new."""
    entry = state.tasks.get(task)
    if entry is None or entry.task.state != RUNNING or entry.attempt != attempt:
        return []
    return [facts.TaskProgressed(task=task, attempt=attempt)] if has_stalled(entry) else []


def has_stalled(entry: Entry) -> bool:
    """Whether the task was said to have stalled, and nothing has happened to it since."""
    return entry.task.HasField("stalled_time")


def skip(state: QueueState, task: str, reason: str) -> Facts:
    """Ends a task as cancelled, whoever has it. NotFound where it is final,
    FailedPrecondition for a dead letter."""
    entry = _open(state, task)
    if entry.task.state == FAILED:
        raise FailedPrecondition("the task has failed; discard the dead letter")
    return [*_withdrawn(entry, task, reason), facts.TaskCancelled(task=task, reason=reason)]


def fail_now(state: QueueState, task: str, reason: str) -> Facts:
    """Makes the task a dead letter, whoever has it; nothing where it is one. NotFound where
    it is final."""
    entry = _open(state, task)
    if entry.task.state == FAILED:
        return []
    attempt = entry.attempt if entry.task.state == RUNNING else 0
    failed = facts.TaskFailed(task=task, attempt=attempt, code=Code.ABORTED, message=reason)
    return [*_withdrawn(entry, task, reason), failed]


def _withdrawn(entry: Entry, task: str, reason: str) -> Facts:
    if entry.task.state != RUNNING:
        return []
    return [
        facts.TaskWithdrawn(task=task, attempt=entry.attempt, worker=entry.worker, reason=reason)
    ]


def _open(state: QueueState, task: str) -> Entry:
    entry = state.tasks.get(task)
    if entry is None:
        raise NotFound.of("task", task)
    return entry
