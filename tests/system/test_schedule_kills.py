"""Schedules and kill -9: no tick is lost, and none makes two tasks."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support.nats import running_nats
from tests.support.platform import TENANT, Platform, one_process, platform
from tests.support.scheduling import DEFAULT, SECONDS_MAX
from weft.scheduler.v1 import events_pb2, schedule_events_pb2, schedules_pb2, tasks_pb2
from weft.scheduler.v1 import schedule_service_pb2 as pb
from weft.scheduler.v1.schedule_service_pb2_grpc import ScheduleServiceStub
from weft.state.v1 import state_service_pb2
from weft.state.v1.state_service_pb2_grpc import StateServiceStub

pytestmark = pytest.mark.timeout(600)

SETTINGS = {"WEFT_SCHEDULER_TICK_GRACE_SECONDS": "0.5"}
SEED = 20_261_127
ROUNDS = 4
POLICIES = {
    "skip": schedules_pb2.MISSED_TICKS_POLICY_SKIP,
    "once": schedules_pb2.MISSED_TICKS_POLICY_ONCE,
    "all": schedules_pb2.MISSED_TICKS_POLICY_ALL,
}
INTERVAL_NS = 1_000_000_000


def stub(weft: Platform) -> Any:
    return ScheduleServiceStub(weft.open_channel)


async def create(weft: Platform, schedule_id: str) -> None:
    """One that ticks each second, with the policy of that name."""
    spec = schedules_pb2.ScheduleSpec(
        interval=Duration(seconds=1),
        queue=DEFAULT,
        task=tasks_pb2.TaskSpec(capability="echo"),
        missed_ticks=POLICIES[schedule_id],
    )
    request = pb.CreateScheduleRequest(parent=TENANT, schedule_id=schedule_id, spec=spec)
    await stub(weft).CreateSchedule(request, timeout=SECONDS_MAX)


async def until(
    weft: Platform, schedule_id: str, holds: Callable[[schedules_pb2.Schedule], bool]
) -> schedules_pb2.Schedule:
    """The schedule once that holds of it."""
    deadline = time.monotonic() + SECONDS_MAX
    request = pb.GetScheduleRequest(name=f"{TENANT}/schedules/{schedule_id}")
    while True:
        found = (await stub(weft).GetSchedule(request, timeout=SECONDS_MAX)).schedule
        if holds(found):
            return cast(schedules_pb2.Schedule, found)
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)


async def pause_all(weft: Platform, *schedule_ids: str) -> None:
    for schedule_id in schedule_ids:
        name = f"{TENANT}/schedules/{schedule_id}"
        await stub(weft).PauseSchedule(pb.PauseScheduleRequest(name=name), timeout=SECONDS_MAX)


class Told:
    """What the log tells of schedules that tick no more, by the schedule's name: when its
    ticks were due with the tasks that they made, what was passed over, tasks as they were
    submitted."""

    def __init__(self) -> None:
        self.ticked: dict[str, list[tuple[int, str]]] = {}
        self.skipped: Counter[str] = Counter()
        self.submitted: Counter[tuple[str, str]] = Counter()

    def note(self, stream: str, payload: Any) -> None:
        """A fact."""
        schedule = f"{TENANT}/schedules/{stream.rpartition('.')[2]}"
        ticked = schedule_events_pb2.ScheduleTicked()
        skipped = schedule_events_pb2.ScheduleTicksSkipped()
        submitted = events_pb2.TaskSubmitted()
        if payload.Unpack(ticked):
            found = self.ticked.setdefault(schedule, [])
            found.append((ticked.tick_time.ToNanoseconds(), ticked.task))
        elif payload.Unpack(skipped):
            self.skipped[schedule] += skipped.count
        elif payload.Unpack(submitted):
            self.submitted[submitted.creator, f"{DEFAULT}/tasks/{submitted.task}"] += 1


async def told(weft: Platform) -> Told:
    """What the log tells by now, as of a log in which nothing moves any more."""
    state: Any = StateServiceStub(weft.open_channel)
    kinds = (
        schedule_events_pb2.ScheduleTicked,
        schedule_events_pb2.ScheduleTicksSkipped,
        events_pb2.TaskSubmitted,
    )
    types = [kind.DESCRIPTOR.full_name for kind in kinds]
    request = state_service_pb2.WatchEventsRequest(name=TENANT, types=types, after_position=0)
    found = Told()
    stream = state.WatchEvents(request)
    while True:
        try:
            message = await asyncio.wait_for(stream.read(), 2)
        except TimeoutError:
            stream.cancel()
            return found
        assert message is not grpc.aio.EOF
        found.note(message.event.stream, message.event.payload)


def check_one_task_for_each_tick(found: Told, name: str) -> None:
    """Each tick has one task, and no other tick has it."""
    ticked = found.ticked[name]
    times = [tick_ns for tick_ns, _ in ticked]
    assert times == sorted(set(times))
    tasks = [task for _, task in ticked]
    assert len(set(tasks)) == len(tasks)
    of_it = {task: count for (creator, task), count in found.submitted.items() if creator == name}
    assert set(of_it.values()) == {1}
    assert of_it.keys() >= set(tasks)


@pytest.mark.parametrize(
    "place",
    [
        "commit:TaskSubmitted:stored",
        "commit:ScheduleTicked:before_publish",
        "commit:ScheduleTicked:stored",
    ],
)
async def test_who_dies_between_task_and_record_leaves_one_task(tmp_path: Path, place: str) -> None:
    name = f"{TENANT}/schedules/all"
    async with one_process(tmp_path / "weft", **SETTINGS) as weft:
        await create(weft, "all")
        await until(weft, "all", lambda found: found.submitted_count >= 1)
        await weft.arm(f"{place}@1")
        await weft.gone()
        await weft.start()
        seen = await until(weft, "all", lambda found: found.submitted_count >= 4)
        assert seen.skipped_count == 0
        await pause_all(weft, "all")
        found = await told(weft)
    check_one_task_for_each_tick(found, name)
    times = [tick_ns for tick_ns, _ in found.ticked[name]]
    assert all(later - earlier == INTERVAL_NS for earlier, later in pairwise(times))
    assert len([creator for creator, _ in found.submitted if creator == name]) == len(times)


async def test_rounds_of_kills_lose_and_double_no_tick(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    async with platform(tmp_path / "weft", **SETTINGS) as weft:
        for schedule_id in POLICIES:
            await create(weft, schedule_id)
        for _ in range(ROUNDS):
            before = await until(weft, "all", lambda found: found.submitted_count >= 1)
            await asyncio.sleep(chance.uniform(0.0, 1.0))
            await weft.kill()
            await asyncio.sleep(chance.uniform(0.0, 2.0))
            await weft.start()
            count = before.submitted_count + 2
            await until(weft, "all", lambda found, count=count: found.submitted_count >= count)  # type: ignore[misc]
        await pause_all(weft, *POLICIES)
        found = await told(weft)
        # Behind what was under way as they were paused.
        last = {each: await until(weft, each, lambda found: found.paused) for each in POLICIES}
    for schedule_id, schedule in last.items():
        name = f"{TENANT}/schedules/{schedule_id}"
        check_one_task_for_each_tick(found, name)
        ticked = len(found.ticked[name])
        assert (ticked, found.skipped[name]) == (schedule.submitted_count, schedule.skipped_count)
        span_ns = schedule.last_tick_time.ToNanoseconds() - schedule.create_time.ToNanoseconds()
        assert ticked + found.skipped[name] == span_ns // INTERVAL_NS
    assert found.skipped[f"{TENANT}/schedules/all"] == 0
    assert found.skipped[f"{TENANT}/schedules/skip"] > 0


async def test_two_instances_make_one_task_of_a_tick_and_one_goes_on_alone(tmp_path: Path) -> None:
    async with (
        running_nats(tmp_path) as nats,
        platform(tmp_path / "one", NATS_URL=nats.url, **SETTINGS) as one,
        platform(tmp_path / "two", NATS_URL=nats.url, **SETTINGS) as two,
    ):
        await create(one, "all")
        await until(two, "all", lambda found: found.submitted_count >= 4)
        await one.kill()
        count = (await until(two, "all", lambda found: True)).submitted_count
        await until(two, "all", lambda found: found.submitted_count >= count + 3)
        await pause_all(two, "all")
        found = await told(two)
    name = f"{TENANT}/schedules/all"
    check_one_task_for_each_tick(found, name)
    times = [tick_ns for tick_ns, _ in found.ticked[name]]
    assert all(later - earlier == INTERVAL_NS for earlier, later in pairwise(times))
    assert len([creator for creator, _ in found.submitted if creator == name]) == len(times)
