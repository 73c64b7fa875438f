"""When a task has stalled, and what an operator's word leads to."""

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.errors import FailedPrecondition, NotFound
from mesh.events.fold import Place
from services.scheduler.domain import decide, stalls
from services.scheduler.domain.state import (
    FAILED,
    QUEUED,
    RUNNING,
    QueueState,
    decode,
    encode,
    evolve,
)
from weft.scheduler.v1 import events_pb2 as facts
from weft.scheduler.v1 import queues_pb2, tasks_pb2

SECOND = 1_000_000_000
BOUNDS = stalls.Bounds(queued_ns=600 * SECOND, running_ns=120 * SECOND)


class Queue:
    """A queue with the task `t`, on a clock that is moved."""

    def __init__(self, **spec: object) -> None:
        self.state = QueueState()
        self.now_ns = 1_000_000 * SECOND
        self.do(decide.create(self.state, queues_pb2.QueueLimits()))
        made = tasks_pb2.TaskSpec(capability="c", **spec)  # type: ignore[arg-type]
        self.do(decide.submit(self.state, decide.Submission("t", made, "", b"", "somebody")))

    @property
    def task(self) -> tasks_pb2.Task:
        return self.state.tasks["t"].task

    def do(self, found: decide.Facts) -> list[Message]:
        time = Timestamp()
        time.FromNanoseconds(self.now_ns)
        for fact in found:
            self.state = evolve(self.state, fact, Place(1, time))
        return list(found)

    def wait(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)

    def start(self) -> None:
        self.do(decide.start(self.state, "t", "w", "i"))

    def stall(self, moved_ns: int = 0) -> list[Message]:
        """What is said of the task's stall now."""
        entry = self.state.tasks["t"]
        found = stalls.stall(
            self.state, "t", entry.attempt, "why", BOUNDS, self.now_ns, moved_ns=moved_ns
        )
        return self.do(found)


def test_a_task_that_waits_stalls_once_at_its_bound() -> None:
    queue = Queue()
    queue.wait(599)
    assert queue.stall() == []
    queue.wait(1)
    (fact,) = queue.stall()
    assert isinstance(fact, facts.TaskStalled)
    assert (fact.attempt, fact.reason, fact.idle.ToSeconds()) == (0, "why", 600)
    assert queue.task.stalled_time.ToNanoseconds() == queue.now_ns
    assert queue.task.stalled_reason == "why"
    queue.wait(10_000)
    assert queue.stall() == []
    queue.state = decode(encode(queue.state))
    assert queue.stall() == []


def test_a_task_that_runs_stalls_when_its_worker_says_nothing_new() -> None:
    queue = Queue()
    queue.wait(1_000)
    queue.start()
    moved_ns = queue.now_ns + 100 * SECOND
    queue.wait(219)
    assert queue.stall(moved_ns) == []
    queue.wait(1)
    (fact,) = queue.stall(moved_ns)
    assert isinstance(fact, facts.TaskStalled)
    assert (fact.attempt, fact.idle.ToSeconds()) == (1, 120)


def test_a_task_that_is_known_to_take_longer_may() -> None:
    queue = Queue(estimated_cost={"seconds": 300})
    queue.start()
    queue.wait(299)
    assert queue.stall() == []
    queue.wait(1)
    assert queue.stall()


def test_a_stall_is_of_one_attempt() -> None:
    queue = Queue()
    queue.start()
    queue.wait(1_000)
    assert stalls.stall(queue.state, "t", 0, "why", BOUNDS, queue.now_ns) == []
    assert stalls.stall(queue.state, "other", 0, "why", BOUNDS, queue.now_ns) == []


@pytest.mark.parametrize("kind", ["start", "progress", "cancel", "fail", "release"])
def test_whatever_happens_next_ends_a_stall(kind: str) -> None:
    queue = Queue()
    if kind != "start":
        queue.start()
    queue.wait(1_000)
    assert queue.stall()
    nexts = {
        "start": lambda: decide.start(queue.state, "t", "w", "i"),
        "progress": lambda: stalls.progress(queue.state, "t", 1),
        "cancel": lambda: decide.cancel(queue.state, "t", "enough"),
        "fail": lambda: decide.fail(
            queue.state, "t", 1, decide.Failure(10, "no", 0.5), queue.now_ns
        ),
        "release": lambda: decide.release(queue.state, "t", 1),
    }
    assert queue.do(nexts[kind]())
    assert not queue.task.HasField("stalled_time")
    assert not queue.task.stalled_reason


def test_progress_is_told_only_of_what_had_stalled() -> None:
    queue = Queue()
    queue.start()
    assert stalls.progress(queue.state, "t", 1) == []
    queue.wait(120)
    queue.stall()
    assert stalls.progress(queue.state, "t", 2) == []
    assert queue.do(stalls.progress(queue.state, "t", 1))
    queue.wait(120)
    assert queue.stall(), "it may stall again"


def test_what_waits_for_its_time_has_not_stalled() -> None:
    not_before = Timestamp()
    not_before.FromNanoseconds(1_010_000 * SECOND)
    queue = Queue(not_before=not_before)
    queue.wait(10_599)
    assert queue.stall() == []
    queue.wait(1)
    assert queue.stall()


def test_a_pause_ends_stalls_and_its_time_does_not_count() -> None:
    queue = Queue()
    queue.wait(600)
    assert queue.stall()
    queue.do(decide.pause(queue.state))
    assert not queue.task.HasField("stalled_time")
    queue.wait(10_000)
    assert queue.stall() == []
    queue.do(decide.resume(queue.state))
    queue.state = decode(encode(queue.state))
    queue.wait(599)
    assert queue.stall() == []
    queue.wait(1)
    assert queue.stall()


def test_an_item_that_waits_for_others_of_its_batch_has_not_stalled() -> None:
    queue = Queue()
    queue.do([facts.BatchCreated(batch="b", running_tasks_max=1)])
    item = tasks_pb2.TaskSpec(capability="c")
    for index, task in enumerate(("one", "two")):
        queue.do([facts.TaskSubmitted(task=task, spec=item, batch="b", batch_index=index)])
    queue.do(decide.start(queue.state, "one", "w", "i"))
    queue.wait(1_000)
    assert stalls.stall(queue.state, "two", 0, "why", BOUNDS, queue.now_ns) == []
    queue.do(decide.succeed(queue.state, "one", 1, b""))
    assert stalls.stall(queue.state, "two", 0, "why", BOUNDS, queue.now_ns)
    queue.do([facts.BatchCancelled(batch="b")])
    assert stalls.idle_since_ns(queue.state, queue.state.tasks["two"]) is None


def test_what_is_being_cancelled_has_not_stalled() -> None:
    queue = Queue()
    queue.start()
    queue.do(decide.cancel(queue.state, "t", "enough"))
    queue.wait(10_000)
    assert queue.stall() == []


@pytest.mark.parametrize("state", [QUEUED, RUNNING])
def test_a_task_is_skipped_where_it_stands(state: int) -> None:
    queue = Queue()
    if state == RUNNING:
        queue.start()
    kinds = [type(fact).__name__ for fact in queue.do(stalls.skip(queue.state, "t", "why"))]
    assert kinds == ["TaskWithdrawn"] * (state == RUNNING) + ["TaskCancelled"]
    assert queue.state.open_count == 0
    with pytest.raises(NotFound):
        stalls.skip(queue.state, "t", "why")
    assert decide.succeed(queue.state, "t", 1, b"late") == []


@pytest.mark.parametrize("state", [QUEUED, RUNNING])
def test_a_task_is_failed_where_it_stands_whatever_its_policy(state: int) -> None:
    queue = Queue(retry={"max_attempts": 50})
    if state == RUNNING:
        queue.start()
        queue.do(decide.cancel(queue.state, "t", "enough"))
    *withdrawn, failed = queue.do(stalls.fail_now(queue.state, "t", "why"))
    assert len(withdrawn) == (state == RUNNING)
    assert isinstance(failed, facts.TaskFailed)
    assert failed.attempt == (state == RUNNING)
    assert (queue.task.state, queue.task.reason) == (FAILED, "why")
    assert queue.stall() == []
    assert stalls.fail_now(queue.state, "t", "why") == []
    with pytest.raises(FailedPrecondition):
        stalls.skip(queue.state, "t", "why")
    assert queue.do(decide.redrive(queue.state, "t"))
