"""A schedule: what its facts fold into, and what may happen to it. Pure; times are Unix
nanoseconds.

The state is `ScheduleState` itself. `handled_time` moves on with each tick that is dealt
with, so a tick leads to facts once, whoever finds it due and however often.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.errors import AlreadyExists, InvalidArgument, NotFound
from mesh.events.fold import Fold, Place
from services.scheduler.domain import timing
from services.scheduler.domain.timing import Timing, timing_of
from weft.scheduler.v1 import schedule_events_pb2 as facts
from weft.scheduler.v1 import schedules_pb2 as pb
from weft.scheduler.v1 import tasks_pb2

FOLD_VERSION = 1
"""Grows whenever the same events would fold into another state."""
LOOKED_AT_MAX = 200
"""Ticks found due at once that are looked at: the most recent ones."""
ALL_MAX = 100
"""Missed ticks that make a task each, where the policy is ALL."""
ERROR_LENGTH_MAX = 512

_KEPT = {
    pb.MISSED_TICKS_POLICY_SKIP: 0,
    pb.MISSED_TICKS_POLICY_UNSPECIFIED: 1,
    pb.MISSED_TICKS_POLICY_ONCE: 1,
    pb.MISSED_TICKS_POLICY_ALL: ALL_MAX,
}
"""How many missed ticks make a task."""
_TIMING_FIELDS = frozenset({"cron", "interval", "time_zone", "start_time", "end_time"})
_INSTEAD = {
    "not_before": "start_time",
    "start_deadline": "start_within",
    "deadline": "complete_within",
}
"""Times that a task has once, and what says the like of all tasks of a schedule."""

State = facts.ScheduleState
Facts = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Skipped:
    """Ticks that make no task: when the last of them was due, how many, and why."""

    last_ns: int
    count: int
    reason: facts.SkipReason.ValueType = facts.SKIP_REASON_MISSED


@dataclass(frozen=True, slots=True)
class Step:
    """What is due: ticks to pass over, then one that makes a task, None where there is only
    the former."""

    tick_ns: int | None
    skipped: Skipped | None = None


def exists(state: State) -> bool:
    """Whether the schedule is there."""
    return state.HasField("create_time")


def refuse_absent(state: State) -> None:
    """Raises NotFound where the schedule isn't there."""
    if not exists(state):
        raise NotFound("the schedule doesn't exist; `weft schedule create` makes one")


def state_timing(state: State) -> Timing:
    """When the schedule ticks."""
    return timing_of(state.spec, state.anchor_time.ToNanoseconds())


def next_ticks(state: State, now_ns: int, count: int) -> list[int]:
    """Its first ticks from now on; none while it is paused."""
    if state.paused or not exists(state):
        return []
    after_ns = max(now_ns, state.handled_time.ToNanoseconds())
    found = timing.ticks(state_timing(state), after_ns)
    return [tick for _, tick in zip(range(count), found, strict=False)]


def due_ns(state: State) -> int | None:
    """When there is something to do next, which may be past; None where there isn't."""
    if state.paused or not exists(state):
        return None
    return timing.next_tick(state_timing(state), state.handled_time.ToNanoseconds())


def due(state: State, now_ns: int, grace_ns: int) -> list[Step]:
    """What is to be done by now, in order. Ticks that are late by more than `grace_ns` are
    missed: the policy says which of them make a task."""
    if state.paused or not exists(state):
        return []
    handled_ns = state.handled_time.ToNanoseconds()
    found = timing.last_ticks(state_timing(state), handled_ns, now_ns, LOOKED_AT_MAX)
    missed_count = sum(tick < now_ns - grace_ns for tick in found)
    skipped_count = max(0, missed_count - _KEPT[state.spec.missed_ticks])
    steps = [Step(tick) for tick in found[skipped_count:]]
    if skipped_count:
        skipped = Skipped(found[skipped_count - 1], skipped_count)
        # With the tick behind it, so that it is one commit.
        steps[:1] = [Step(steps[0].tick_ns if steps else None, skipped)]
    return steps


# Decisions


def check_spec(spec: pb.ScheduleSpec, parent: str, now_ns: int) -> None:
    """Raises InvalidArgument for what a schedule of the tenant `parent` can't do."""
    if not spec.queue.startswith(f"{parent}/"):
        raise InvalidArgument.of("spec.queue", "isn't of the schedule's tenant")
    for field, _ in spec.task.ListFields():
        if field.name in _INSTEAD:
            raise InvalidArgument.of(
                f"spec.task.{field.name}",
                f"isn't for tasks that come again: see spec.{_INSTEAD[field.name]}",
            )
    for name, time in (("start_time", spec.start_time), ("end_time", spec.end_time)):
        if time.ToNanoseconds() > timing.TIME_NS_MAX:
            raise InvalidArgument.of(f"spec.{name}", "is behind the year 2199")
    found = timing_of(spec, now_ns)
    if timing.next_tick(found, now_ns) is None:
        at_fault = "spec.cron" if found.end_ns is None else "spec.end_time"
        raise InvalidArgument.of(at_fault, "leaves no tick from now on")


def create(state: State, spec: pb.ScheduleSpec, creator: str) -> Facts:
    """Makes it. AlreadyExists where there is one with another spec."""
    if not exists(state):
        return [facts.ScheduleCreated(spec=spec, creator=creator)]
    if state.spec != spec:
        raise AlreadyExists("the schedule is there already, with another spec")
    return []


def update(state: State, spec: pb.ScheduleSpec) -> Facts:
    """Changes its spec."""
    refuse_absent(state)
    return [] if state.spec == spec else [facts.ScheduleUpdated(spec=spec)]


def pause(state: State) -> Facts:
    """Lets it tick no more."""
    refuse_absent(state)
    return [] if state.paused else [facts.SchedulePaused()]


def resume(state: State) -> Facts:
    """Lets it tick again."""
    refuse_absent(state)
    return [facts.ScheduleResumed()] if state.paused else []


def delete(state: State) -> Facts:
    """Deletes it; nothing where it was deleted before."""
    if state.deleted:
        return []
    refuse_absent(state)
    return [facts.ScheduleDeleted()]


def tick(state: State, step: Step, task: str) -> Facts:
    """Records the step, whose task was submitted; nothing where somebody else was faster."""
    assert step.tick_ns is not None, "there is a task"
    if not _is_open(state, step.tick_ns):
        return []
    return [
        *_skipped(state, step.skipped),
        facts.ScheduleTicked(tick_time=_time(step.tick_ns), task=task),
    ]


def skip(state: State, step: Step, reason: facts.SkipReason.ValueType) -> Facts:
    """Records the step without a task, for that reason."""
    found = _skipped(state, step.skipped)
    if step.tick_ns is not None and _is_open(state, step.tick_ns):
        found += _skipped(state, Skipped(step.tick_ns, 1, reason))
    return found


def fail(state: State, step: Step, message: str) -> Facts:
    """Records why the step's task couldn't be submitted, once for each reason in a row."""
    message = message[:ERROR_LENGTH_MAX] or "unknown"
    if step.tick_ns is None or not _is_open(state, step.tick_ns) or state.last_error == message:
        return []
    return [facts.ScheduleTickFailed(tick_time=_time(step.tick_ns), message=message)]


def trigger(state: State, task: str) -> Facts:
    """Records a task that was submitted out of turn."""
    refuse_absent(state)
    return [] if state.last_triggered == task else [facts.ScheduleTriggered(task=task)]


def task_spec(spec: pb.ScheduleSpec, now_ns: int) -> tasks_pb2.TaskSpec:
    """What is submitted now."""
    made = tasks_pb2.TaskSpec()
    made.CopyFrom(spec.task)
    for deadline, span in (
        (made.start_deadline, spec.start_within),
        (made.deadline, spec.complete_within),
    ):
        if span.ToNanoseconds():
            deadline.FromNanoseconds(now_ns + span.ToNanoseconds())
    return made


def _skipped(state: State, skipped: Skipped | None) -> list[Message]:
    if skipped is None or not _is_open(state, skipped.last_ns):
        return []
    return [
        facts.ScheduleTicksSkipped(
            last_tick_time=_time(skipped.last_ns), count=skipped.count, reason=skipped.reason
        )
    ]


def _is_open(state: State, tick_ns: int) -> bool:
    return exists(state) and tick_ns > state.handled_time.ToNanoseconds()


def _time(time_ns: int) -> Timestamp:
    made = Timestamp()
    made.FromNanoseconds(time_ns)
    return made


# Folding


def _created(state: State, event: facts.ScheduleCreated, place: Place) -> None:
    state.Clear()
    state.spec.CopyFrom(event.spec)
    state.creator = event.creator
    for time in (state.create_time, state.update_time, state.anchor_time, state.handled_time):
        time.CopyFrom(place.time)


def _updated(state: State, event: facts.ScheduleUpdated, place: Place) -> None:
    if _differ(state.spec, event.spec, _TIMING_FIELDS):
        state.anchor_time.CopyFrom(place.time)
    if _differ(state.spec, event.spec, _TIMING_FIELDS | {"queue"}):
        # The task of a tick that isn't recorded may be in the queue that it had.
        _go_on_from(state, place)
    state.spec.CopyFrom(event.spec)
    state.update_time.CopyFrom(place.time)
    state.last_error = ""


def _paused(state: State, event: facts.SchedulePaused, place: Place) -> None:
    state.paused = True
    state.update_time.CopyFrom(place.time)
    state.last_error = ""


def _resumed(state: State, event: facts.ScheduleResumed, place: Place) -> None:
    state.paused = False
    state.update_time.CopyFrom(place.time)
    _go_on_from(state, place)


def _deleted(state: State, event: facts.ScheduleDeleted, place: Place) -> None:
    state.Clear()
    state.deleted = True


def _ticked(state: State, event: facts.ScheduleTicked, place: Place) -> None:
    _handled(state, event.tick_time)
    state.last_task = event.task
    state.submitted_count += 1


def _ticks_skipped(state: State, event: facts.ScheduleTicksSkipped, place: Place) -> None:
    _handled(state, event.last_tick_time)
    state.skipped_count += event.count


def _tick_failed(state: State, event: facts.ScheduleTickFailed, place: Place) -> None:
    state.last_error = event.message


def _triggered(state: State, event: facts.ScheduleTriggered, place: Place) -> None:
    state.last_triggered = event.task


def _handled(state: State, tick_time: Timestamp) -> None:
    state.handled_time.CopyFrom(tick_time)
    state.last_tick_time.CopyFrom(tick_time)
    state.last_error = ""


def _go_on_from(state: State, place: Place) -> None:
    # Never back: with a clock that was set back, ticks would come again.
    if place.time.ToNanoseconds() > state.handled_time.ToNanoseconds():
        state.handled_time.CopyFrom(place.time)


def _differ(one: pb.ScheduleSpec, other: pb.ScheduleSpec, fields: frozenset[str]) -> bool:
    return bool(_only(one, fields) != _only(other, fields))


def _only(spec: pb.ScheduleSpec, fields: frozenset[str]) -> pb.ScheduleSpec:
    kept = pb.ScheduleSpec()
    kept.MergeFrom(spec)
    for field, _ in spec.ListFields():
        if field.name not in fields:
            kept.ClearField(field.name)
    return kept


_HANDLERS: dict[type[Message], Callable[[State, Any, Place], None]] = {
    facts.ScheduleCreated: _created,
    facts.ScheduleUpdated: _updated,
    facts.SchedulePaused: _paused,
    facts.ScheduleResumed: _resumed,
    facts.ScheduleDeleted: _deleted,
    facts.ScheduleTicked: _ticked,
    facts.ScheduleTicksSkipped: _ticks_skipped,
    facts.ScheduleTickFailed: _tick_failed,
    facts.ScheduleTriggered: _triggered,
}


def evolve(state: State, event: Message, place: Place) -> State:
    """The state after `event`. Takes `state` over: the caller must not use it again."""
    _HANDLERS[type(event)](state, event, place)
    return state


SCHEDULE_FOLD = Fold(
    version=FOLD_VERSION,
    events=tuple(_HANDLERS),
    initial=State,
    evolve=evolve,
    encode=State.SerializeToString,
    decode=State.FromString,
)
