"""What becomes of a schedule's ticks, whoever finds them and whatever dies in between."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.errors import AlreadyExists, InvalidArgument, NotFound, WeftError
from mesh.events.fold import Place
from services.scheduler.domain import schedule
from services.scheduler.domain.schedule import SCHEDULE_FOLD, Skipped, State, Step
from services.scheduler.domain.timing import NANOSECONDS
from weft.scheduler.v1 import schedule_events_pb2 as facts
from weft.scheduler.v1 import schedules_pb2 as pb
from weft.scheduler.v1 import tasks_pb2

BEGIN = 1_700_000_000
GRACE_SECONDS = 5
PARENT = "tenants/acme"
SKIP, ONCE, ALL = (
    pb.MISSED_TICKS_POLICY_SKIP,
    pb.MISSED_TICKS_POLICY_ONCE,
    pb.MISSED_TICKS_POLICY_ALL,
)
policies = st.sampled_from([SKIP, ONCE, ALL])


def spec(seconds: int = 1, **fields: Any) -> pb.ScheduleSpec:
    task = tasks_pb2.TaskSpec(capability="echo")
    wanted: dict[str, Any] = {"queue": f"{PARENT}/queues/q", "task": task}
    return pb.ScheduleSpec(interval=Duration(seconds=seconds), **wanted | fields)


class Log:
    """A schedule with the facts that were stored of it; times are in seconds."""

    def __init__(self) -> None:
        self.state = State()
        self.facts: list[Message] = []
        self.now = BEGIN

    def do(self, change: Callable[[State], Sequence[Message]]) -> Sequence[Message]:
        """What the change leads to, stored; nothing where it is refused."""
        before = self.state.SerializeToString(deterministic=True)
        try:
            found = change(self.state)
        except WeftError:
            found = ()
        assert self.state.SerializeToString(deterministic=True) == before
        time = Timestamp(seconds=self.now)
        for fact in found:
            self.facts.append(fact)
            self.state = SCHEDULE_FOLD.evolve(self.state, fact, Place(len(self.facts), time))
        return found

    def due(self) -> list[Step]:
        """What is due now."""
        return schedule.due(self.state, self.now * NANOSECONDS, GRACE_SECONDS * NANOSECONDS)

    def tick_all(self) -> None:
        """All that is due is done."""
        for step in self.due():
            if step.tick_ns is None:
                self.do(partial(schedule.skip, step=step, reason=facts.SKIP_REASON_OVERLAP))
            else:
                self.do(partial(schedule.tick, step=step, task="t"))

    def ticked(self) -> list[int]:
        """When those were due that made a task, in seconds since it was made."""
        return [
            fact.tick_time.seconds - BEGIN
            for fact in self.facts
            if isinstance(fact, facts.ScheduleTicked)
        ]


def made(wanted: pb.ScheduleSpec) -> Log:
    log = Log()
    log.do(lambda state: schedule.create(state, wanted, "somebody"))
    return log


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (SKIP, [55, 60]),
        (ONCE, [50, 55, 60]),
        (pb.MISSED_TICKS_POLICY_UNSPECIFIED, [50, 55, 60]),
        (ALL, [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60]),
    ],
)
def test_the_policy_says_what_becomes_of_missed_ticks(policy: int, expected: list[int]) -> None:
    log = made(spec(5, missed_ticks=policy))
    log.now += 60
    log.tick_all()
    assert log.ticked() == expected
    assert log.state.submitted_count + log.state.skipped_count == 12
    assert log.due() == []


def test_no_more_than_a_hundred_missed_ticks_are_made_up_for() -> None:
    log = made(spec(10, missed_ticks=ALL))
    log.now += 100_000
    log.tick_all()
    assert log.ticked() == list(range(99_000, 100_001, 10))[-101:]
    assert log.state.skipped_count == schedule.LOOKED_AT_MAX - 101


def test_what_was_missed_and_what_follows_is_one_commit() -> None:
    log = made(spec(5, missed_ticks=ONCE))
    log.now += 21
    first, *rest = log.due()
    assert first == Step((BEGIN + 15) * NANOSECONDS, Skipped((BEGIN + 10) * NANOSECONDS, 2))
    assert rest == [Step((BEGIN + 20) * NANOSECONDS)]
    found = log.do(lambda state: schedule.tick(state, first, "t"))
    assert [type(fact).__name__ for fact in found] == ["ScheduleTicksSkipped", "ScheduleTicked"]


@given(policies, st.lists(st.integers(1, 90), min_size=1, max_size=20), st.integers(1, 7))
def test_each_tick_is_dealt_with_once_however_late(
    policy: Any, pauses: list[int], seconds: int
) -> None:
    """`pauses` are how long nobody looks."""
    log = made(spec(seconds, missed_ticks=policy))
    expected: list[int] = []
    handled = 0
    for pause in pauses:
        log.now += pause
        now = log.now - BEGIN
        found = [tick for tick in range(seconds, now + 1, seconds) if tick > handled]
        missed = [tick for tick in found if tick < now - GRACE_SECONDS]
        kept = {SKIP: 0, ONCE: 1, ALL: 100}[policy]
        expected += [*(missed[-kept:] if kept else []), *found[len(missed) :]]
        handled = found[-1] if found else handled
        log.tick_all()
    assert log.ticked() == expected
    total = (log.now - BEGIN) // seconds
    assert log.state.submitted_count + log.state.skipped_count == total


def test_ticks_while_it_is_paused_are_no_missed_ones() -> None:
    log = made(spec(10, missed_ticks=ALL))
    log.do(schedule.pause)
    log.now += 35
    assert log.due() == []
    assert schedule.next_ticks(log.state, log.now * NANOSECONDS, 5) == []
    log.do(schedule.resume)
    assert log.due() == []
    log.now += 5
    log.tick_all()
    assert log.ticked() == [40]


def test_another_timing_counts_from_when_it_was_changed() -> None:
    log = made(spec(10, missed_ticks=ALL))
    log.now += 25
    log.do(lambda state: schedule.update(state, spec(4, missed_ticks=ALL)))
    assert log.due() == []
    log.now += 9
    log.tick_all()
    assert log.ticked() == [29, 33]


def test_another_queue_gets_no_tick_whose_task_may_be_in_the_old_one() -> None:
    log = made(spec(10, missed_ticks=ALL))
    log.now += 25
    log.do(lambda state: schedule.update(state, spec(10, queue=f"{PARENT}/queues/other")))
    assert log.due() == []
    log.now += 5
    log.tick_all()
    assert log.ticked() == [30]


def test_another_task_is_that_of_ticks_that_are_still_due() -> None:
    log = made(spec(10))
    log.now += 10
    other = tasks_pb2.TaskSpec(capability="other")
    log.do(lambda state: schedule.update(state, spec(10, task=other)))
    log.tick_all()
    assert log.ticked() == [10]


def test_why_a_tick_failed_is_kept_once_until_it_is_dealt_with() -> None:
    log = made(spec(10))
    log.now += 10
    (step,) = log.due()
    assert log.do(lambda state: schedule.fail(state, step, "full"))
    assert not log.do(lambda state: schedule.fail(state, step, "full"))
    assert log.do(lambda state: schedule.fail(state, step, "x" * 2_000))
    assert len(log.state.last_error) == schedule.ERROR_LENGTH_MAX
    log.tick_all()
    assert log.state.last_error == ""
    assert not log.do(lambda state: schedule.fail(state, step, "late"))


def test_spans_are_counted_from_when_a_task_is_submitted() -> None:
    wanted = spec(start_within=Duration(seconds=5), complete_within=Duration(seconds=9))
    submitted = schedule.task_spec(wanted, BEGIN * NANOSECONDS)
    assert submitted.start_deadline.seconds == BEGIN + 5
    assert submitted.deadline.seconds == BEGIN + 9
    assert not schedule.task_spec(spec(), BEGIN * NANOSECONDS).HasField("deadline")


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (spec(queue="tenants/globex/queues/q"), "spec.queue"),
        (spec(queue="tenants/acme2/queues/q"), "spec.queue"),
        (spec(task=tasks_pb2.TaskSpec(not_before=Timestamp(seconds=1))), "spec.task.not_before"),
        (spec(task=tasks_pb2.TaskSpec(deadline=Timestamp(seconds=1))), "spec.task.deadline"),
        (spec(end_time=Timestamp(seconds=BEGIN)), "spec.end_time"),
        (spec(start_time=Timestamp(seconds=253_402_300_799)), "spec.start_time"),
        (
            spec(start_time=Timestamp(seconds=BEGIN + 9), end_time=Timestamp(seconds=BEGIN + 8)),
            "spec.end_time",
        ),
        (pb.ScheduleSpec(queue=f"{PARENT}/queues/q", cron="0 0 31 2 *"), "spec.cron"),
    ],
)
def test_what_a_schedule_cant_do_is_refused(wanted: pb.ScheduleSpec, field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        schedule.check_spec(wanted, PARENT, BEGIN * NANOSECONDS)
    assert [violation.field for violation in raised.value.violations] == [field]


def test_creating_it_again_is_the_same_schedule_or_refused() -> None:
    log = made(spec())
    assert schedule.create(log.state, spec(), "another") == []
    with pytest.raises(AlreadyExists):
        schedule.create(log.state, spec(2), "another")


def test_what_was_deleted_may_be_made_anew_with_another_spec() -> None:
    log = made(spec())
    log.do(schedule.delete)
    assert schedule.delete(log.state) == []
    with pytest.raises(NotFound):
        schedule.pause(log.state)
    assert log.do(lambda state: schedule.create(state, spec(2), "another"))
    assert not log.state.deleted
    with pytest.raises(NotFound):
        schedule.delete(State())


class Ticking(RuleBasedStateMachine):
    """Instances that find ticks due on states that may be old, submit tasks to a queue that
    knows a task's id again, and die before they record it."""

    def __init__(self) -> None:
        super().__init__()
        self.log = made(spec(2))
        self.tasks: list[int] = []
        self.old = State()

    def submit(self, step: Step) -> None:
        assert step.tick_ns is not None
        if step.tick_ns not in self.tasks:
            self.tasks.append(step.tick_ns)

    @rule(seconds=st.integers(1, 40))
    def wait(self, seconds: int) -> None:
        self.log.now += seconds

    @rule(dies=st.booleans(), behind=st.booleans(), overlaps=st.booleans(), steps=st.integers(1, 9))
    def tick(self, dies: bool, behind: bool, overlaps: bool, steps: int) -> None:
        state = self.old if behind else self.log.state
        now_ns = self.log.now * NANOSECONDS
        for step in schedule.due(state, now_ns, GRACE_SECONDS * NANOSECONDS)[:steps]:
            if step.tick_ns is None or (overlaps and not behind):
                self.log.do(partial(schedule.skip, step=step, reason=facts.SKIP_REASON_OVERLAP))
                continue
            self.submit(step)
            if dies:
                return
            self.log.do(partial(schedule.tick, step=step, task="t"))

    @rule()
    def fall_behind(self) -> None:
        self.old = State()
        self.old.CopyFrom(self.log.state)

    @rule(policy=policies, seconds=st.integers(1, 3))
    def update(self, policy: Any, seconds: int) -> None:
        self.log.do(lambda state: schedule.update(state, spec(seconds, missed_ticks=policy)))

    @rule()
    def pause(self) -> None:
        self.log.do(schedule.pause)

    @rule()
    def resume(self) -> None:
        self.log.do(schedule.resume)

    @invariant()
    def a_tick_is_dealt_with_once_and_in_order(self) -> None:
        handled = [
            fact.tick_time if isinstance(fact, facts.ScheduleTicked) else fact.last_tick_time
            for fact in self.log.facts
            if isinstance(fact, facts.ScheduleTicked | facts.ScheduleTicksSkipped)
        ]
        assert all(one.seconds < other.seconds for one, other in pairwise(handled))

    @invariant()
    def what_ticked_has_its_task(self) -> None:
        assert {BEGIN + tick for tick in self.log.ticked()} <= {
            tick // NANOSECONDS for tick in self.tasks
        }

    @invariant()
    def a_snapshot_holds_all(self) -> None:
        data = SCHEDULE_FOLD.encode(self.log.state)
        assert SCHEDULE_FOLD.decode(data) == self.log.state


TestTicking = Ticking.TestCase
