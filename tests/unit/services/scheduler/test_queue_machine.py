"""A queue against a simple model, whatever is done to it and in whatever order."""

from collections.abc import Callable, Sequence
from functools import partial

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.errors import WeftError
from mesh.events.fold import Place
from services.scheduler.domain import decide, stalls
from services.scheduler.domain.codes import Code
from services.scheduler.domain.state import (
    FAILED,
    QUEUED,
    RUNNING,
    QueueState,
    decode,
    encode,
    evolve,
    parts,
)
from weft.scheduler.v1 import events_pb2 as facts
from weft.scheduler.v1 import queues_pb2, tasks_pb2

NAMES = ("a", "b", "c", "d")
SECOND = 1_000_000_000
names = st.sampled_from(NAMES)
codes = st.sampled_from([Code.INVALID_ARGUMENT, Code.ABORTED, Code.UNAVAILABLE])


class Queue(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.state = QueueState()
        self.revision = 0
        self.now_ns = 1_000 * SECOND
        self.finals: dict[str, list[str]] = {}
        self.submitted: dict[str, int] = {}
        self.do(lambda state: decide.create(state, queues_pb2.QueueLimits(open_tasks_max=3)))

    def do(self, change: Callable[[QueueState], Sequence[Message]]) -> Sequence[Message]:
        """What the change leads to; nothing where it is refused."""
        before = encode(self.state)
        try:
            found = change(self.state)
        except WeftError:
            assert encode(self.state) == before
            return ()
        assert encode(self.state) == before, "to decide changes nothing"
        snapshot = parts(self.state)
        begun = next(snapshot)
        time = Timestamp()
        time.FromNanoseconds(self.now_ns)
        for fact in found:
            self.revision += 1
            self.state = evolve(self.state, fact, Place(self.revision, time))
            if isinstance(fact, facts.TaskSucceeded | facts.TaskCancelled | facts.TaskDiscarded):
                self.finals[fact.task].append(type(fact).__name__)
        rest = b"".join(snapshot)
        assert begun + rest == before, "a snapshot that is being made isn't changed any more"
        return found

    @rule(task=names, attempts=st.integers(0, 3), seconds=st.integers(0, 4))
    def submit(self, task: str, attempts: int, seconds: int) -> None:
        spec = tasks_pb2.TaskSpec(capability="c")
        spec.retry.max_attempts = attempts
        if seconds:
            spec.start_deadline.FromNanoseconds(self.now_ns + seconds * SECOND)
        known = task in self.state.tasks
        full = self.state.open_count >= 3
        submission = decide.Submission(task, spec, "", b"", "somebody")
        found = self.do(lambda state: decide.submit(state, submission))
        assert bool(found) == (not known and not full)
        if found:
            self.finals[task] = []
            self.submitted[task] = attempts or decide.ATTEMPTS_MAX_DEFAULT

    @rule(task=names)
    def start(self, task: str) -> None:
        self.do(lambda state: decide.start(state, task, "w", "i"))

    @rule(task=names, attempt=st.integers(1, 4))
    def succeed(self, task: str, attempt: int) -> None:
        runs = decide.runs(self.state, task, attempt)
        found = self.do(lambda state: decide.succeed(state, task, attempt, b"r"))
        assert bool(found) == runs

    @rule(task=names, attempt=st.integers(1, 4), code=codes, lost=st.booleans())
    def fail(self, task: str, attempt: int, code: int, lost: bool) -> None:
        entry = self.state.tasks.get(task)
        runs = decide.runs(self.state, task, attempt)
        cancelling = entry is not None and entry.task.cancelling
        counted = entry.attempts_counted if entry is not None else 0
        failure = decide.Failure(code, "no", 0.5, lost)
        found = self.do(lambda state: decide.fail(state, task, attempt, failure, self.now_ns))
        if not runs:
            assert not found
        elif cancelling:
            assert isinstance(found[0], facts.TaskCancelled)
        else:
            again = counted < self.submitted[task] and (lost or code != Code.INVALID_ARGUMENT)
            assert isinstance(found[0], facts.TaskAttemptFailed) == again

    @rule(task=names, attempt=st.integers(1, 4))
    def release(self, task: str, attempt: int) -> None:
        entry = self.state.tasks.get(task)
        counted = entry.attempts_counted if entry is not None else 0
        found = self.do(lambda state: decide.release(state, task, attempt))
        if found and isinstance(found[0], facts.TaskReleased):
            assert self.state.tasks[task].attempts_counted == counted - 1

    @rule(task=names)
    def cancel(self, task: str) -> None:
        self.do(lambda state: decide.cancel(state, task, "enough"))

    @rule(task=names)
    def redrive(self, task: str) -> None:
        self.do(lambda state: decide.redrive(state, task))

    @rule(task=names)
    def discard(self, task: str) -> None:
        self.do(lambda state: decide.discard(state, task, "enough"))

    @rule(task=names)
    def stall(self, task: str) -> None:
        entry = self.state.tasks.get(task)
        attempt = entry.attempt if entry is not None else 0
        bounds = stalls.Bounds(2 * SECOND, SECOND)
        for repeated in (False, True):
            found = self.do(
                partial(
                    stalls.stall,
                    task=task,
                    attempt=attempt,
                    reason="why",
                    bounds=bounds,
                    now_ns=self.now_ns,
                )
            )
            assert not (found and repeated)

    @rule(task=names, attempt=st.integers(1, 4))
    def progress(self, task: str, attempt: int) -> None:
        self.do(lambda state: stalls.progress(state, task, attempt))

    @rule(task=names)
    def skip(self, task: str) -> None:
        self.do(lambda state: stalls.skip(state, task, "enough"))

    @rule(task=names)
    def fail_now(self, task: str) -> None:
        found = self.do(lambda state: stalls.fail_now(state, task, "enough"))
        assert not found or self.state.tasks[task].task.state == FAILED

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.now_ns += seconds * SECOND
        for task in NAMES:
            entry = self.state.tasks.get(task)
            late = (
                entry is not None
                and entry.task.state == QUEUED
                and (end := decide.wait_end_ns(entry)) is not None
                and end <= self.now_ns
            )
            found = self.do(partial(decide.expire, task=task, now_ns=self.now_ns))
            assert bool(found) == late

    @rule()
    def pause_and_resume(self) -> None:
        self.do(decide.pause)
        for task in NAMES:
            assert not self.do(partial(decide.start, task=task, worker="w", instance="i"))
        self.do(decide.resume)

    @invariant()
    def a_task_has_one_end_at_most(self) -> None:
        assert all(len(ends) <= 1 for ends in self.finals.values())

    @invariant()
    def no_task_is_lost(self) -> None:
        for task, ends in self.finals.items():
            assert (task in self.state.tasks) != bool(ends)

    @invariant()
    def open_tasks_are_counted(self) -> None:
        states = [entry.task.state for entry in self.state.tasks.values()]
        assert self.state.open_count == sum(state != FAILED for state in states)

    @invariant()
    def one_attempt_at_most_is_under_way(self) -> None:
        for entry in self.state.tasks.values():
            unfinished = [each for each in entry.task.attempts if not each.HasField("end_time")]
            assert len(unfinished) == (entry.task.state == RUNNING)
            assert [each.attempt for each in entry.task.attempts] == list(
                range(1, entry.attempt + 1)
            )

    @invariant()
    def only_what_could_go_on_has_stalled(self) -> None:
        for entry in self.state.tasks.values():
            if stalls.has_stalled(entry):
                assert stalls.idle_since_ns(self.state, entry) is not None

    @invariant()
    def a_snapshot_holds_all(self) -> None:
        assert encode(decode(encode(self.state))) == encode(self.state)
        assert decode(encode(self.state)).open_count == self.state.open_count


TestQueue = Queue.TestCase
