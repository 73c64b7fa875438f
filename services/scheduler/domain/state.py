"""Folds a queue's facts into its state: the tasks that aren't final, and the dead letters."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.events.aggregate import Fold, Place
from weft.scheduler.v1 import events_pb2 as facts
from weft.scheduler.v1 import queues_pb2, tasks_pb2

FOLD_VERSION = 2
"""Grows whenever the same events would fold into another state."""
REQUESTS_MAX = 20_000
"""Requests that a queue remembers, beside those of its open tasks."""

QUEUED = tasks_pb2.TASK_STATE_QUEUED
RUNNING = tasks_pb2.TASK_STATE_RUNNING
SUCCEEDED = tasks_pb2.TASK_STATE_SUCCEEDED
FAILED = tasks_pb2.TASK_STATE_FAILED
CANCELLED = tasks_pb2.TASK_STATE_CANCELLED


@dataclass(slots=True)
class Entry:
    """A task. `attempts_before` are those before it was last redriven; `request_id` is
    empty where its client didn't name the request."""

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
    resume_time: Timestamp | None = None
    tasks: dict[str, Entry] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
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
    for entry in state.tasks.values():
        if entry.task.state == QUEUED:
            # It waits since somebody wants it to.
            _clear_stall(entry)


def _resumed(state: QueueState, event: facts.QueueResumed, place: Place) -> None:
    state.paused = False
    state.resume_time = Timestamp()
    state.resume_time.CopyFrom(place.time)


def _submitted(state: QueueState, event: facts.TaskSubmitted, place: Place) -> None:
    task = tasks_pb2.Task(
        spec=event.spec,
        state=QUEUED,
        create_time=place.time,
        update_time=place.time,
        creator=event.creator,
    )
    if event.spec.HasField("not_before"):
        task.next_time.CopyFrom(event.spec.not_before)
    state.tasks[event.task] = Entry(task)
    state.open_count += 1
    if event.request_id:
        state.requests[event.request_id] = Request(event.task, event.request_hash)
        if len(state.requests) > REQUESTS_MAX:
            del state.requests[next(iter(state.requests))]


def _started(state: QueueState, event: facts.TaskStarted, place: Place) -> None:
    entry = state.tasks[event.task]
    attempt = tasks_pb2.TaskAttempt(
        attempt=event.attempt,
        worker=event.worker,
        start_time=place.time,
        instance=event.instance,
    )
    entry.task.attempts.append(attempt)
    entry.task.state = RUNNING
    entry.task.ClearField("next_time")
    _updated(entry, place)


def _attempt_failed(state: QueueState, event: facts.TaskAttemptFailed, place: Place) -> None:
    entry = state.tasks[event.task]
    _end_attempt(entry, event.code, event.message, place)
    entry.task.state = QUEUED
    entry.task.next_time.CopyFrom(event.next_time)
    _updated(entry, place)


def _released(state: QueueState, event: facts.TaskReleased, place: Place) -> None:
    entry = state.tasks[event.task]
    _end_attempt(entry, 0, "given back before it began", place)
    entry.attempts_before += 1
    entry.task.state = QUEUED
    _updated(entry, place)


def _final(state: QueueState, event: Any, place: Place) -> None:
    entry = state.tasks.pop(event.task)
    if entry.task.state != FAILED:
        state.open_count -= 1


def _failed(state: QueueState, event: facts.TaskFailed, place: Place) -> None:
    entry = state.tasks[event.task]
    if entry.task.state == RUNNING:
        _end_attempt(entry, event.code, event.message, place)
    entry.task.state = FAILED
    entry.task.reason = event.message
    entry.task.cancelling = False
    entry.task.ClearField("next_time")
    state.open_count -= 1
    _updated(entry, place)


def _cancel_requested(state: QueueState, event: facts.TaskCancelRequested, place: Place) -> None:
    entry = state.tasks[event.task]
    entry.task.cancelling = True
    entry.task.reason = event.reason
    _updated(entry, place)


def _redriven(state: QueueState, event: facts.TaskRedriven, place: Place) -> None:
    entry = state.tasks[event.task]
    entry.attempts_before = len(entry.task.attempts)
    entry.task.state = QUEUED
    entry.task.reason = ""
    state.open_count += 1
    _updated(entry, place)


def _stalled(state: QueueState, event: facts.TaskStalled, place: Place) -> None:
    task = state.tasks[event.task].task
    task.stalled_time.CopyFrom(place.time)
    task.stalled_reason = event.reason


def _moved(
    state: QueueState, event: facts.TaskProgressed | facts.TaskWithdrawn, place: Place
) -> None:
    _updated(state.tasks[event.task], place)


def _end_attempt(entry: Entry, code: int, message: str, place: Place) -> None:
    last = entry.task.attempts[-1]
    last.end_time.CopyFrom(place.time)
    last.code, last.message = code, message


def _updated(entry: Entry, place: Place) -> None:
    entry.task.update_time.CopyFrom(place.time)
    _clear_stall(entry)


def _clear_stall(entry: Entry) -> None:
    entry.task.ClearField("stalled_time")
    entry.task.ClearField("stalled_reason")


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
    facts.TaskStalled: _stalled,
    facts.TaskProgressed: _moved,
    facts.TaskWithdrawn: _moved,
}


def evolve(state: QueueState, event: Message, place: Place) -> QueueState:
    """The state after `event`. Takes `state` over: the caller must not use it again."""
    _HANDLERS[type(event)](state, event, place)
    return state


def encode(state: QueueState) -> bytes:
    """The state's bytes, for a snapshot."""
    kept = facts.QueueState(
        limits=state.limits,
        paused=state.paused,
        create_time=state.create_time,
        resume_time=state.resume_time,
        tasks=(
            facts.TaskRecord(task=task, value=entry.task, attempts_before=entry.attempts_before)
            for task, entry in state.tasks.items()
        ),
        requests=(
            facts.SubmittedRequest(request_id=name, task=request.task, request_hash=request.hash)
            for name, request in state.requests.items()
        ),
    )
    return kept.SerializeToString()


def decode(data: bytes) -> QueueState:
    """The state in a snapshot's bytes."""
    kept = facts.QueueState.FromString(data)
    state = QueueState(kept.limits, kept.paused)
    if kept.HasField("create_time"):
        state.create_time = kept.create_time
    if kept.HasField("resume_time"):
        state.resume_time = kept.resume_time
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
)
