"""What may happen to a queue and its tasks: each function gives the facts that a command
leads to, none where there is nothing to do. Times are Unix nanoseconds."""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    RequestIdReused,
)
from services.scheduler.domain.codes import FINAL, Code
from services.scheduler.domain.state import FAILED, QUEUED, RUNNING, Entry, QueueState
from weft.scheduler.v1 import events_pb2 as facts
from weft.scheduler.v1 import queues_pb2, tasks_pb2

NANOSECONDS = 1_000_000_000
OPEN_TASKS_MAX = 100_000
PAYLOADS_BYTES_MAX = 256 * 1024 * 1024
"""Of all tasks that a queue holds, dead letters among them: they are in memory."""
DEAD_LETTERS_MAX = 100_000
"""Dead letters of a queue; past it nothing more is taken until some are redriven or
discarded, so that none is lost."""
ATTEMPTS_MAX_DEFAULT = 3
ATTEMPTS_MAX = 200
"""Attempts of a task in all, however often it is redriven."""
BACKOFF_SECONDS = 1.0
BACKOFF_SECONDS_MAX = 300.0
ATTEMPT_SECONDS = 300.0

Facts = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Submission:
    """A task to accept. `request_id` is empty where the client didn't name the request,
    `batch` where the task is no item of one."""

    task: str
    spec: tasks_pb2.TaskSpec
    request_id: str
    request_hash: bytes
    creator: str
    batch: str = ""
    batch_index: int = 0


@dataclass(frozen=True, slots=True)
class Taker:
    """A worker with a slot for a task, and the instance of Weft that it is attached to."""

    worker: str
    instance: str


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt ended. `lost` says that its worker is gone. `jitter` is a random
    number from 0 to 1, of which the wait before the next attempt is made."""

    code: int
    message: str
    jitter: float
    lost: bool = False


def create(state: QueueState, limits: queues_pb2.QueueLimits) -> Facts:
    """Makes the queue. AlreadyExists where there is one with other limits."""
    if not state.exists:
        return [facts.QueueCreated(limits=limits)]
    if state.limits != limits:
        raise AlreadyExists("the queue is there already, with other limits")
    return []


def change_limits(state: QueueState, limits: queues_pb2.QueueLimits) -> Facts:
    """Changes its limits."""
    refuse_absent(state)
    return [] if state.limits == limits else [facts.QueueLimitsChanged(limits=limits)]


def pause(state: QueueState) -> Facts:
    """Gives no more tasks to workers."""
    refuse_absent(state)
    return [] if state.paused else [facts.QueuePaused()]


def resume(state: QueueState) -> Facts:
    """Gives tasks to workers again."""
    refuse_absent(state)
    return [facts.QueueResumed()] if state.paused else []


def refuse_absent(state: QueueState) -> None:
    """Raises NotFound where the queue wasn't made."""
    if not state.exists:
        raise NotFound("the queue doesn't exist; `weft queue create` makes one")


def known_request(state: QueueState, request_id: str, request_hash: bytes) -> str | None:
    """Id of the task that the request made before. RequestIdReused where it came with
    another body."""
    known = state.requests.get(request_id) if request_id else None
    if known is None:
        return None
    if known.hash != request_hash:
        raise RequestIdReused.of("request_id", "was used before with another body")
    return known.task


def check_spec(spec: tasks_pb2.TaskSpec, now_ns: int) -> None:
    """Raises InvalidArgument for times that can't be kept."""
    ends = {
        "start_deadline": spec.start_deadline if spec.HasField("start_deadline") else None,
        "deadline": spec.deadline if spec.HasField("deadline") else None,
    }
    for name, end in ends.items():
        if end is None:
            continue
        if end.ToNanoseconds() <= now_ns:
            raise InvalidArgument.of(f"spec.{name}", "is in the past")
        if spec.not_before.ToNanoseconds() >= end.ToNanoseconds():
            raise InvalidArgument.of("spec.not_before", f"isn't before {name}")


def check_capability(state: QueueState, capability: str, field: str) -> None:
    """Raises InvalidArgument, which names the field, for a capability that the queue
    doesn't take."""
    capabilities = state.limits.capabilities
    if capabilities and capability not in capabilities:
        known = ", ".join(sorted(capabilities))
        raise InvalidArgument.of(field, f"isn't among those of the queue: {known}")


def submit(state: QueueState, submission: Submission, taker: Taker | None = None) -> Facts:
    """Accepts a task, and gives it to `taker` at once, if there is one; nothing where its
    request was answered before."""
    refuse_absent(state)
    if known_request(state, submission.request_id, submission.request_hash) is not None:
        return []
    check_capability(state, submission.spec.capability, "spec.capability")
    if submission.task in state.tasks:
        raise AlreadyExists("a task of that id is there already")
    limit = state.limits.open_tasks_max or OPEN_TASKS_MAX
    if state.open_count >= limit:
        raise LimitExceeded(f"the queue holds {limit} open tasks already")
    if state.payload_bytes + len(submission.spec.payload) > PAYLOADS_BYTES_MAX:
        raise LimitExceeded(f"the queue holds {PAYLOADS_BYTES_MAX} bytes of payloads already")
    if len(state.tasks) - state.open_count >= DEAD_LETTERS_MAX:
        raise LimitExceeded("the queue is full of dead letters: redrive or discard some")
    submitted = facts.TaskSubmitted(
        task=submission.task,
        spec=submission.spec,
        request_id=submission.request_id,
        request_hash=submission.request_hash,
        creator=submission.creator,
        batch=submission.batch,
        batch_index=submission.batch_index,
    )
    if taker is None or state.paused:
        return [submitted]
    started = facts.TaskStarted(
        task=submission.task, attempt=1, worker=taker.worker, instance=taker.instance
    )
    return [submitted, started]


def start(state: QueueState, task: str, worker: str, instance: str) -> Facts:
    """Gives a task to a worker, where it waits for one and its batch allows it."""
    entry = state.tasks.get(task)
    if entry is None or entry.task.state != QUEUED or state.paused:
        return []
    if entry.batch and not _batch_allows(state, entry.batch):
        return []
    attempt = entry.attempt + 1
    return [facts.TaskStarted(task=task, attempt=attempt, worker=worker, instance=instance)]


def take_over(state: QueueState, task: str, attempt: int, instance: str) -> Facts:
    """The worker of the attempt that runs is attached to that instance from here on."""
    if not runs(state, task, attempt):
        return []
    if state.tasks[task].task.attempts[-1].instance == instance:
        return []
    return [facts.TaskTakenOver(task=task, attempt=attempt, instance=instance)]


def succeed(state: QueueState, task: str, attempt: int, result: bytes) -> Facts:
    """Records the result of the attempt that runs."""
    if not runs(state, task, attempt):
        return []
    return [facts.TaskSucceeded(task=task, attempt=attempt, result=result)]


def release(state: QueueState, task: str, attempt: int) -> Facts:
    """Takes back a task that a worker didn't begin."""
    if not runs(state, task, attempt):
        return []
    entry = state.tasks[task]
    if entry.task.cancelling:
        return [facts.TaskCancelled(task=task, reason=entry.task.reason)]
    if entry.attempt >= ATTEMPTS_MAX:
        message = f"given back {ATTEMPTS_MAX} times"
        return [facts.TaskFailed(task=task, attempt=attempt, code=Code.ABORTED, message=message)]
    return [facts.TaskReleased(task=task, attempt=attempt)]


def fail(state: QueueState, task: str, attempt: int, failure: Failure, now_ns: int) -> Facts:
    """Ends the attempt that runs: the task is tried again, or is a dead letter, or is
    cancelled where that was asked for."""
    if not runs(state, task, attempt):
        return []
    entry = state.tasks[task]
    if entry.task.cancelling:
        return [facts.TaskCancelled(task=task, reason=entry.task.reason)]
    next_ns = now_ns + _backoff_ns(entry, failure.jitter)
    if _tries_again(entry, failure, next_ns):
        again = facts.TaskAttemptFailed(
            task=task, attempt=attempt, code=failure.code, message=failure.message
        )
        again.next_time.FromNanoseconds(next_ns)
        return [again]
    return [_failed(task, attempt, failure)]


def expire(state: QueueState, task: str, now_ns: int) -> Facts:
    """Fails a task that waited past a deadline of its own."""
    entry = state.tasks.get(task)
    if entry is None or entry.task.state != QUEUED:
        return []
    end_ns = wait_end_ns(entry)
    if end_ns is None or end_ns > now_ns:
        return []
    spec = entry.task.spec
    done = spec.HasField("deadline") and spec.deadline.ToNanoseconds() == end_ns
    message = "wasn't done by its deadline" if done else "wasn't begun by its start deadline"
    return [_failed(task, 0, Failure(Code.DEADLINE_EXCEEDED, message, 0.0))]


def cancel(state: QueueState, task: str, reason: str) -> Facts:
    """Ends a task that waits, or asks for the end of one that runs."""
    entry = _entry(state, task)
    if entry.task.state == RUNNING:
        if entry.task.cancelling:
            return []
        return [facts.TaskCancelRequested(task=task, reason=reason)]
    if entry.task.state == FAILED:
        raise FailedPrecondition("the task has failed; discard the dead letter")
    return [facts.TaskCancelled(task=task, reason=reason)]


def redrive(state: QueueState, task: str) -> Facts:
    """Makes a dead letter a task again."""
    entry = _entry(state, task)
    if entry.task.state != FAILED:
        raise FailedPrecondition("the task hasn't failed")
    if entry.attempt >= ATTEMPTS_MAX:
        raise FailedPrecondition(f"the task had {ATTEMPTS_MAX} attempts: submit it anew")
    if entry.batch and state.batches[entry.batch].cancelled:
        raise FailedPrecondition("the task's batch was cancelled: submit it anew")
    return [facts.TaskRedriven(task=task)]


def discard(state: QueueState, task: str, reason: str) -> Facts:
    """Throws a dead letter away."""
    if _entry(state, task).task.state != FAILED:
        raise FailedPrecondition("the task hasn't failed")
    return [facts.TaskDiscarded(task=task, reason=reason)]


def runs(state: QueueState, task: str, attempt: int) -> bool:
    """Whether that attempt of the task is the one that runs."""
    entry = state.tasks.get(task)
    return entry is not None and entry.task.state == RUNNING and entry.attempt == attempt


def attempt_end_ns(entry: Entry) -> int:
    """When the attempt that runs is over, done or not."""
    spec = entry.task.spec
    seconds = _seconds(spec.attempt_timeout, ATTEMPT_SECONDS)
    end = entry.task.attempts[-1].start_time.ToNanoseconds() + int(seconds * NANOSECONDS)
    return min(end, spec.deadline.ToNanoseconds()) if spec.HasField("deadline") else end


def wait_end_ns(entry: Entry) -> int | None:
    """When a task that waits fails for having waited; None where it may wait for ever."""
    spec = entry.task.spec
    ends = [spec.deadline.ToNanoseconds()] if spec.HasField("deadline") else []
    if spec.HasField("start_deadline") and not entry.attempts_counted:
        ends.append(spec.start_deadline.ToNanoseconds())
    return min(ends, default=None)


def _batch_allows(state: QueueState, batch: str) -> bool:
    """Whether one more task of the batch may run."""
    found = state.batches[batch]
    running = found.counts[RUNNING] + state.starting[batch]
    limit = found.running_tasks_max
    return not found.cancelled and not (limit and running >= limit)


def _failed(task: str, attempt: int, failure: Failure) -> Message:
    return facts.TaskFailed(task=task, attempt=attempt, code=failure.code, message=failure.message)


def _entry(state: QueueState, task: str) -> Entry:
    entry = state.tasks.get(task)
    if entry is None:
        raise NotFound.of("task", task)
    return entry


def _tries_again(entry: Entry, failure: Failure, next_ns: int) -> bool:
    policy = entry.task.spec.retry
    if entry.attempts_counted >= (policy.max_attempts or ATTEMPTS_MAX_DEFAULT):
        return False
    if entry.attempt >= ATTEMPTS_MAX:
        return False
    deadline: Timestamp = entry.task.spec.deadline
    if entry.task.spec.HasField("deadline") and deadline.ToNanoseconds() <= next_ns:
        return False
    if failure.lost:
        return True
    if policy.retryable_codes:
        return failure.code in policy.retryable_codes
    return failure.code not in FINAL


def _backoff_ns(entry: Entry, jitter: float) -> int:
    """Full jitter: a random part of the exponential bound (Brooker: "Exponential Backoff
    And Jitter", AWS Architecture Blog, 2015)."""
    policy = entry.task.spec.retry
    first = _seconds(policy.initial_backoff, BACKOFF_SECONDS)
    most = _seconds(policy.max_backoff, BACKOFF_SECONDS_MAX)
    bound = min(most, first * 2.0 ** min(entry.attempts_counted - 1, 32))
    return int(jitter * bound * NANOSECONDS)


def _seconds(duration: Duration, default: float) -> float:
    return duration.ToNanoseconds() / NANOSECONDS or default
