"""What may happen to a batch: each function gives the facts that a command leads to, none
where there is nothing to do."""

from collections.abc import Sequence

from google.protobuf.message import Message

from mesh.errors import AlreadyExists, FailedPrecondition, LimitExceeded, NotFound
from services.scheduler.domain import decide
from services.scheduler.domain.state import BATCHES_MAX, FAILED, Batch, QueueState
from weft.scheduler.v1 import events_pb2 as facts

Facts = Sequence[Message]


def create(state: QueueState, batch: str, running_tasks_max: int, creator: str) -> Facts:
    """Begins a batch. AlreadyExists where there is one of that id with another limit, unless
    none is asked for,
    LimitExceeded where the queue holds too many that aren't over."""
    decide.refuse_absent(state)
    known = state.batches.get(batch)
    if known is not None:
        if running_tasks_max not in (0, known.running_tasks_max):
            raise AlreadyExists("the batch is there already, with another running_tasks_max")
        return []
    if len(state.batches) >= BATCHES_MAX and not any(
        each.is_over for each in state.batches.values()
    ):
        raise LimitExceeded(
            f"the queue holds {BATCHES_MAX} batches that have items, or dead letters, left"
        )
    return [facts.BatchCreated(batch=batch, running_tasks_max=running_tasks_max, creator=creator)]


def submit(state: QueueState, submission: decide.Submission, now_ns: int) -> Facts:
    """Accepts an item; nothing where it was accepted before. FailedPrecondition where the
    batch takes no more items; else as a task of the queue."""
    batch = _batch(state, submission.batch)
    if batch.has(submission.batch_index):
        return []
    if batch.cancelled:
        raise FailedPrecondition("the batch was cancelled")
    if batch.closed:
        raise FailedPrecondition("the batch is closed: it takes no more items")
    decide.check_spec(submission.spec, now_ns)
    return decide.submit(state, submission)


def close(state: QueueState, batch: str) -> Facts:
    """Lets no more items come."""
    found = _batch(state, batch)
    return [] if found.closed or found.cancelled else [facts.BatchClosed(batch=batch)]


def cancel(state: QueueState, batch: str, reason: str) -> Facts:
    """Ends a batch; its tasks end by `cancel_task`. FailedPrecondition where all of them
    have ended."""
    found = _batch(state, batch)
    if found.cancelled:
        return []
    if found.closed and not found.open_count:
        raise FailedPrecondition("all items of the batch have ended already")
    return [facts.BatchCancelled(batch=batch, reason=reason)]


def cancel_task(state: QueueState, task: str) -> Facts:
    """Ends a task of a cancelled batch, or asks for its end; nothing where it has ended."""
    entry = state.tasks.get(task)
    if entry is None or entry.task.state == FAILED:
        return []
    return decide.cancel(state, task, state.batches[entry.batch].reason)


def expect(state: QueueState, found: Facts) -> None:
    """Counts tasks that are started against the limits of their batches, ahead of the
    commit in which they are."""
    for fact in found:
        entry = state.tasks.get(fact.task) if isinstance(fact, facts.TaskStarted) else None
        if entry is not None and entry.batch:
            state.starting[entry.batch] += 1


def _batch(state: QueueState, batch: str) -> Batch:
    found = state.batches.get(batch)
    if found is None:
        raise NotFound.of("batch", batch)
    return found
