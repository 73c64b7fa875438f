"""Folds a queue's facts into its state: the tasks that aren't final, and the dead letters."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.events.fold import Fold, Place
from weft.scheduler.v1 import events_pb2 as facts
from weft.scheduler.v1 import queues_pb2, tasks_pb2

FOLD_VERSION = 1
"""Grows whenever the same events would fold into another state."""
REQUESTS_MAX = 20_000
"""Requests that a queue remembers, beside those of its open tasks."""
PART_RECORDS = 250
"""Tasks or requests in a part of a snapshot: about a millisecond's work."""

QUEUED = tasks_pb2.TASK_STATE_QUEUED
RUNNING = tasks_pb2.TASK_STATE_RUNNING
SUCCEEDED = tasks_pb2.TASK_STATE_SUCCEEDED
FAILED = tasks_pb2.TASK_STATE_FAILED
CANCELLED = tasks_pb2.TASK_STATE_CANCELLED


@dataclass(frozen=True, slots=True)
class Entry:
    """A task. `attempts_before` are those before it was last redriven. It isn't changed: what
    happens to the task puts another one in its place, so that a snapshot can be made of
    those that it saw while the queue goes on."""

    task: tasks_pb2.Task
    attempts_before: int = 0

    @property
    def attempt(self) -> int:
        """Number of the last attempt; 0 before the first."""
        return len(self.task.attempts)

    @property
    def worker(self) -> str:
        """Id of the worker of the last attempt."""
        return self.task.attempts[-1].worker

    @property
    def attempts_counted(self) -> int:
        """How many count against the policy."""
        return len(self.task.attempts) - self.attempts_before


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was answered with a task."""

    task: str
    hash: bytes


@dataclass(slots=True)
class QueueState:
    """A tenant's queue. `tasks` are by id, in the order in which they came; `open_count`
    of them aren't dead letters."""

    limits: queues_pb2.QueueLimits = field(default_factory=queues_pb2.QueueLimits)
    paused: bool = False
    create_time: Timestamp | None = None
    tasks: dict[str, Entry] = field(default_factory=dict)
    # A plain dict looks for its first key past all that were deleted before it.
    requests: OrderedDict[str, Request] = field(default_factory=OrderedDict)
    open_count: int = 0

    @property
    def exists(self) -> bool:
        """Whether the queue was made."""
        return self.create_time is not None


def _queue_created(state: QueueState, event: facts.QueueCreated, place: Place) -> None:
    state.create_time = Timestamp()
    state.create_time.CopyFrom(place.time)
    state.limits.CopyFrom(event.limits)


def _limits_changed(state: QueueState, event: facts.QueueLimitsChanged, place: Place) -> None:
    state.limits.CopyFrom(event.limits)


def _paused(state: QueueState, event: facts.QueuePaused, place: Place) -> None:
    state.paused = True


def _resumed(state: QueueState, event: facts.QueueResumed, place: Place) -> None:
    state.paused = False


def _submitted(state: QueueState, event: facts.TaskSubmitted, place: Place) -> None:
    task = tasks_pb2.Task(state=QUEUED, creator=event.creator)
    task.spec.CopyFrom(event.spec)
    task.create_time.CopyFrom(place.time)
    task.update_time.CopyFrom(place.time)
    if event.spec.HasField("not_before"):
        task.next_time.CopyFrom(event.spec.not_before)
    state.tasks[event.task] = Entry(task)
    state.open_count += 1
    if event.request_id:
        state.requests[event.request_id] = Request(event.task, event.request_hash)
        if len(state.requests) > REQUESTS_MAX:
            state.requests.popitem(last=False)


def _started(state: QueueState, event: facts.TaskStarted, place: Place) -> None:
    task = _changed(state, event.task, place)
    attempt = tasks_pb2.TaskAttempt(
        attempt=event.attempt,
        worker=event.worker,
        start_time=place.time,
        instance=event.instance,
    )
    task.attempts.append(attempt)
    task.state = RUNNING
    task.ClearField("next_time")


def _attempt_failed(state: QueueState, event: facts.TaskAttemptFailed, place: Place) -> None:
    task = _changed(state, event.task, place)
    _end_attempt(task, event.code, event.message, place)
    task.state = QUEUED
    task.next_time.CopyFrom(event.next_time)


def _released(state: QueueState, event: facts.TaskReleased, place: Place) -> None:
    before = state.tasks[event.task].attempts_before + 1
    task = _changed(state, event.task, place, attempts_before=before)
    _end_attempt(task, 0, "given back before it began", place)
    task.state = QUEUED


def _final(state: QueueState, event: Any, place: Place) -> None:
    entry = state.tasks.pop(event.task)
    if entry.task.state != FAILED:
        state.open_count -= 1


def _failed(state: QueueState, event: facts.TaskFailed, place: Place) -> None:
    task = _changed(state, event.task, place)
    if task.state == RUNNING:
        _end_attempt(task, event.code, event.message, place)
    task.state = FAILED
    task.reason = event.message
    task.cancelling = False
    task.ClearField("next_time")
    state.open_count -= 1


def _cancel_requested(state: QueueState, event: facts.TaskCancelRequested, place: Place) -> None:
    task = _changed(state, event.task, place)
    task.cancelling = True
    task.reason = event.reason


def _redriven(state: QueueState, event: facts.TaskRedriven, place: Place) -> None:
    before = state.tasks[event.task].attempt
    task = _changed(state, event.task, place, attempts_before=before)
    task.state = QUEUED
    task.reason = ""
    state.open_count += 1


def _changed(
    state: QueueState, task: str, place: Place, *, attempts_before: int | None = None
) -> tasks_pb2.Task:
    """A copy of the task in its place, to be changed."""
    entry = state.tasks[task]
    copy = tasks_pb2.Task()
    copy.CopyFrom(entry.task)
    copy.update_time.CopyFrom(place.time)
    before = entry.attempts_before if attempts_before is None else attempts_before
    state.tasks[task] = Entry(copy, before)
    return copy


def _end_attempt(task: tasks_pb2.Task, code: int, message: str, place: Place) -> None:
    last = task.attempts[-1]
    last.end_time.CopyFrom(place.time)
    last.code, last.message = code, message


_HANDLERS: dict[type[Message], Callable[[QueueState, Any, Place], None]] = {
    facts.QueueCreated: _queue_created,
    facts.QueueLimitsChanged: _limits_changed,
    facts.QueuePaused: _paused,
    facts.QueueResumed: _resumed,
    facts.TaskSubmitted: _submitted,
    facts.TaskStarted: _started,
    facts.TaskAttemptFailed: _attempt_failed,
    facts.TaskReleased: _released,
    facts.TaskSucceeded: _final,
    facts.TaskFailed: _failed,
    facts.TaskCancelRequested: _cancel_requested,
    facts.TaskCancelled: _final,
    facts.TaskRedriven: _redriven,
    facts.TaskDiscarded: _final,
}


def evolve(state: QueueState, event: Message, place: Place) -> QueueState:
    """The state after `event`. Takes `state` over: the caller must not use it again."""
    _HANDLERS[type(event)](state, event, place)
    return state


def encode(state: QueueState) -> bytes:
    """The state's bytes, for a snapshot."""
    return b"".join(parts(state))


def parts(state: QueueState) -> Iterator[bytes]:
    """The state's bytes as it is when the first part is asked for. Parts of a message that
    are joined are the message, with all that they repeat."""
    # Lists of their own: pairs of so many would wake the garbage collector.
    tasks, entries = list(state.tasks), list(state.tasks.values())
    names, requests = list(state.requests), list(state.requests.values())
    yield facts.QueueState(
        limits=state.limits, paused=state.paused, create_time=state.create_time
    ).SerializeToString()
    for some in _slices(len(tasks)):
        part = facts.QueueState()
        for task, entry in zip(tasks[some], entries[some], strict=True):
            record = part.tasks.add(task=task, attempts_before=entry.attempts_before)
            record.value.CopyFrom(entry.task)
        yield part.SerializeToString()
    for some in _slices(len(names)):
        part = facts.QueueState()
        for name, request in zip(names[some], requests[some], strict=True):
            part.requests.add(request_id=name, task=request.task, request_hash=request.hash)
        yield part.SerializeToString()


def _slices(count: int) -> Iterator[slice]:
    for start in range(0, count, PART_RECORDS):
        yield slice(start, start + PART_RECORDS)


def decode(data: bytes) -> QueueState:
    """The state in a snapshot's bytes."""
    kept = facts.QueueState.FromString(data)
    state = QueueState(kept.limits, kept.paused)
    if kept.HasField("create_time"):
        state.create_time = kept.create_time
    for record in kept.tasks:
        state.tasks[record.task] = Entry(record.value, record.attempts_before)
        state.open_count += record.value.state != FAILED
    for request in kept.requests:
        state.requests[request.request_id] = Request(request.task, request.request_hash)
    return state


QUEUE_FOLD = Fold(
    version=FOLD_VERSION,
    events=tuple(_HANDLERS),
    initial=QueueState,
    evolve=evolve,
    encode=encode,
    decode=decode,
    parts=parts,
)
