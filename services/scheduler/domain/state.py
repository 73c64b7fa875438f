"""Folds a queue's facts into its state: the tasks that aren't final, and the dead letters."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.events.fold import Fold, Place
from weft.scheduler.v1 import events_pb2 as facts
from weft.scheduler.v1 import queues_pb2, tasks_pb2

FOLD_VERSION = 2
"""Grows whenever the same events would fold into another state."""
REQUESTS_MAX = 20_000
"""Requests that a queue remembers, beside those of its tasks."""
REQUESTS_LOOKS = 8
BATCHES_MAX = 1_000
"""Batches that a queue remembers. The oldest that is over makes room for a new one."""
BATCH_ITEMS_MAX = 100_000
PART_RECORDS = 250
"""Tasks or requests in a part of a snapshot: about a millisecond's work."""

QUEUED = tasks_pb2.TASK_STATE_QUEUED
RUNNING = tasks_pb2.TASK_STATE_RUNNING
SUCCEEDED = tasks_pb2.TASK_STATE_SUCCEEDED
FAILED = tasks_pb2.TASK_STATE_FAILED
CANCELLED = tasks_pb2.TASK_STATE_CANCELLED


@dataclass(frozen=True, slots=True)
class Entry:
    """A task. `attempts_before` are those before it was last redriven; `batch` is the id of
    the one that it is an item of, empty where it is of none. It isn't changed: what happens
    to the task puts another one in its place, so that a snapshot can be made of those that
    it saw while the queue goes on."""

    task: tasks_pb2.Task
    attempts_before: int = 0
    batch: str = ""
    batch_index: int = 0

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
class Batch:
    """A batch. `accepted` has a bit for each item that was accepted; `counts` says how many
    of its tasks are in the queue's state, by where they stand."""

    running_tasks_max: int = 0
    closed: bool = False
    cancelled: bool = False
    reason: str = ""
    accepted: bytearray = field(default_factory=bytearray)
    counts: "Counter[int]" = field(default_factory=Counter)

    @property
    def open_count(self) -> int:
        """How many of its tasks wait or run."""
        return self.counts[QUEUED] + self.counts[RUNNING]

    @property
    def is_over(self) -> bool:
        """Whether nothing can happen to it any more."""
        return (self.closed or self.cancelled) and not self.open_count and not self.counts[FAILED]

    def has(self, index: int) -> bool:
        """Whether that item was accepted."""
        place, bit = divmod(index, 8)
        return place < len(self.accepted) and bool(self.accepted[place] >> bit & 1)

    def accept(self, index: int) -> None:
        """Notes that it was."""
        place, bit = divmod(index, 8)
        self.accepted.extend(bytes(max(0, place + 1 - len(self.accepted))))
        self.accepted[place] |= 1 << bit


@dataclass(slots=True)
class QueueState:
    """A tenant's queue. `tasks` are by id, in the order in which they came; `open_count`
    of them aren't dead letters. `starting` counts, by batch, those that the commit to be
    made starts."""

    limits: queues_pb2.QueueLimits = field(default_factory=queues_pb2.QueueLimits)
    paused: bool = False
    create_time: Timestamp | None = None
    resume_time: Timestamp | None = None
    tasks: dict[str, Entry] = field(default_factory=dict)
    # A plain dict looks for its first key past all that were deleted before it.
    requests: OrderedDict[str, Request] = field(default_factory=OrderedDict)
    open_count: int = 0
    payload_bytes: int = 0
    batches: dict[str, Batch] = field(default_factory=dict)
    starting: "Counter[str]" = field(default_factory=Counter)

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
    for task, entry in state.tasks.items():
        if entry.task.state == QUEUED and entry.task.HasField("stalled_time"):
            # It waits since somebody wants it to.
            _clear_stall(_copied(state, task))


def _resumed(state: QueueState, event: facts.QueueResumed, place: Place) -> None:
    state.paused = False
    state.resume_time = Timestamp()
    state.resume_time.CopyFrom(place.time)


def _submitted(state: QueueState, event: facts.TaskSubmitted, place: Place) -> None:
    task = tasks_pb2.Task(state=QUEUED, creator=event.creator)
    task.spec.CopyFrom(event.spec)
    task.create_time.CopyFrom(place.time)
    task.update_time.CopyFrom(place.time)
    if event.spec.HasField("not_before"):
        task.next_time.CopyFrom(event.spec.not_before)
    state.tasks[event.task] = Entry(task, batch=event.batch, batch_index=event.batch_index)
    state.open_count += 1
    state.payload_bytes += len(event.spec.payload)
    if event.batch:
        batch = state.batches[event.batch]
        batch.accept(event.batch_index)
        batch.counts[QUEUED] += 1
    if event.request_id:
        state.requests[event.request_id] = Request(event.task, event.request_hash)
        if len(state.requests) > REQUESTS_MAX:
            _forget_request(state)


def _forget_request(state: QueueState) -> None:
    """Forgets the oldest whose task isn't open; those that are go behind the others."""
    for _ in range(REQUESTS_LOOKS):
        name, request = state.requests.popitem(last=False)
        if request.task not in state.tasks:
            return
        state.requests[name] = request


def _started(state: QueueState, event: facts.TaskStarted, place: Place) -> None:
    task = _changed(state, event.task, place, RUNNING)
    attempt = tasks_pb2.TaskAttempt(
        attempt=event.attempt,
        worker=event.worker,
        start_time=place.time,
        instance=event.instance,
    )
    task.attempts.append(attempt)
    task.ClearField("next_time")


def _attempt_failed(state: QueueState, event: facts.TaskAttemptFailed, place: Place) -> None:
    task = _changed(state, event.task, place, QUEUED)
    _end_attempt(task, event.code, event.message, place)
    task.next_time.CopyFrom(event.next_time)


def _released(state: QueueState, event: facts.TaskReleased, place: Place) -> None:
    before = state.tasks[event.task].attempts_before + 1
    task = _changed(state, event.task, place, QUEUED, attempts_before=before)
    _end_attempt(task, 0, "given back before it began", place)


def _final(state: QueueState, event: Any, place: Place) -> None:
    entry = state.tasks.pop(event.task)
    state.payload_bytes -= len(entry.task.spec.payload)
    if entry.task.state != FAILED:
        state.open_count -= 1
    if entry.batch:
        state.batches[entry.batch].counts[entry.task.state] -= 1


def _failed(state: QueueState, event: facts.TaskFailed, place: Place) -> None:
    running = state.tasks[event.task].task.state == RUNNING
    task = _changed(state, event.task, place, FAILED)
    if running:
        _end_attempt(task, event.code, event.message, place)
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
    task = _changed(state, event.task, place, QUEUED, attempts_before=before)
    task.reason = ""
    state.open_count += 1


def _batch_created(state: QueueState, event: facts.BatchCreated, place: Place) -> None:
    if len(state.batches) >= BATCHES_MAX:
        over = next((name for name, batch in state.batches.items() if batch.is_over), None)
        state.batches.pop(over or "", None)
    state.batches[event.batch] = Batch(event.running_tasks_max)


def _batch_closed(state: QueueState, event: facts.BatchClosed, place: Place) -> None:
    state.batches[event.batch].closed = True


def _batch_cancelled(state: QueueState, event: facts.BatchCancelled, place: Place) -> None:
    batch = state.batches[event.batch]
    batch.cancelled, batch.reason = True, event.reason


def _stalled(state: QueueState, event: facts.TaskStalled, place: Place) -> None:
    # It didn't change for that.
    task = _copied(state, event.task)
    task.stalled_time.CopyFrom(place.time)
    task.stalled_reason = event.reason


def _taken_over(state: QueueState, event: facts.TaskTakenOver, place: Place) -> None:
    # It is no progress, and its time goes on.
    _copied(state, event.task).attempts[-1].instance = event.instance


def _moved(
    state: QueueState, event: facts.TaskProgressed | facts.TaskWithdrawn, place: Place
) -> None:
    _changed(state, event.task, place)


def _changed(
    state: QueueState,
    task: str,
    place: Place,
    stands: "tasks_pb2.TaskState.ValueType | None" = None,
    *,
    attempts_before: int | None = None,
) -> tasks_pb2.Task:
    """A copy of the task in its place, to which something happened; it stands there from
    here on."""
    entry = state.tasks[task]
    copy = _copied(state, task, attempts_before)
    copy.update_time.CopyFrom(place.time)
    _clear_stall(copy)
    if stands is not None:
        if entry.batch:
            counts = state.batches[entry.batch].counts
            counts[copy.state] -= 1
            counts[stands] += 1
        copy.state = stands
    return copy


def _copied(state: QueueState, task: str, attempts_before: int | None = None) -> tasks_pb2.Task:
    """A copy of the task in its place, to be changed."""
    entry = state.tasks[task]
    copy = tasks_pb2.Task()
    copy.CopyFrom(entry.task)
    before = entry.attempts_before if attempts_before is None else attempts_before
    state.tasks[task] = Entry(copy, before, entry.batch, entry.batch_index)
    return copy


def _clear_stall(task: tasks_pb2.Task) -> None:
    task.ClearField("stalled_time")
    task.ClearField("stalled_reason")


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
    facts.BatchCreated: _batch_created,
    facts.BatchClosed: _batch_closed,
    facts.BatchCancelled: _batch_cancelled,
    facts.TaskStalled: _stalled,
    facts.TaskProgressed: _moved,
    facts.TaskTakenOver: _taken_over,
    facts.TaskWithdrawn: _moved,
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
        limits=state.limits,
        paused=state.paused,
        create_time=state.create_time,
        resume_time=state.resume_time,
        batches=(
            facts.BatchRecord(
                batch=name,
                running_tasks_max=batch.running_tasks_max,
                closed=batch.closed,
                cancelled=batch.cancelled,
                reason=batch.reason,
                accepted=bytes(batch.accepted),
            )
            for name, batch in state.batches.items()
        ),
    ).SerializeToString()
    for some in _slices(len(tasks)):
        part = facts.QueueState()
        for task, entry in zip(tasks[some], entries[some], strict=True):
            record = part.tasks.add(
                task=task,
                attempts_before=entry.attempts_before,
                batch=entry.batch,
                batch_index=entry.batch_index,
            )
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
    if kept.HasField("resume_time"):
        state.resume_time = kept.resume_time
    for known in kept.batches:
        state.batches[known.batch] = Batch(
            known.running_tasks_max,
            known.closed,
            known.cancelled,
            known.reason,
            bytearray(known.accepted),
        )
    for record in kept.tasks:
        state.tasks[record.task] = Entry(
            record.value, record.attempts_before, record.batch, record.batch_index
        )
        state.open_count += record.value.state != FAILED
        state.payload_bytes += len(record.value.spec.payload)
        if record.batch:
            state.batches[record.batch].counts[record.value.state] += 1
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
