"""Schedules, as their users see them, on real servers and a clock that is set ahead."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support.clocked import ClockedWeft, SetClock, clocked_weft
from tests.support.keyed import KeyedChannel
from tests.support.platform import TENANT, Platform
from tests.support.scheduling import DEFAULT, SECONDS_MAX, Echo, Scheduling
from weft.auth.v1 import api_key_service_pb2
from weft.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from weft.scheduler.v1 import queue_service_pb2 as queue_pb
from weft.scheduler.v1 import queues_pb2, schedules_pb2, tasks_pb2
from weft.scheduler.v1 import schedule_service_pb2 as pb
from weft.scheduler.v1 import task_service_pb2 as task_pb
from weft.scheduler.v1.schedule_service_pb2_grpc import ScheduleServiceStub

Code = grpc.StatusCode
BERLIN = ZoneInfo("Europe/Berlin")
SCHEDULES_MAX = 30
SKIP, ONCE, ALL = (
    schedules_pb2.MISSED_TICKS_POLICY_SKIP,
    schedules_pb2.MISSED_TICKS_POLICY_ONCE,
    schedules_pb2.MISSED_TICKS_POLICY_ALL,
)


def spec(queue: str = DEFAULT, **fields: Any) -> schedules_pb2.ScheduleSpec:
    """A hundred seconds apart, unless `fields` say else."""
    if not fields.keys() & {"cron", "interval"}:
        fields["interval"] = Duration(seconds=100)
    fields.setdefault("task", tasks_pb2.TaskSpec(capability="echo", payload=b"by the clock"))
    return schedules_pb2.ScheduleSpec(queue=queue, **fields)


class World:
    """A Weft with a clock, and its schedules."""

    def __init__(self, weft: ClockedWeft, clock: SetClock) -> None:
        self.weft = weft
        self.clock = clock
        self.schedules: Any = ScheduleServiceStub(weft.channel)
        self.made: list[str] = []

    def queue(self, name: str = DEFAULT) -> Scheduling:
        return Scheduling(cast(Platform, self.weft), name)

    async def make_queue(self, queue_id: str, **limits: Any) -> Scheduling:
        request = queue_pb.CreateQueueRequest(
            parent=TENANT, queue_id=queue_id, limits=queues_pb2.QueueLimits(**limits)
        )
        await self.queue().queues.CreateQueue(request)
        return self.queue(f"{TENANT}/queues/{queue_id}")

    async def create(
        self, schedule_id: str, wanted: schedules_pb2.ScheduleSpec
    ) -> schedules_pb2.Schedule:
        request = pb.CreateScheduleRequest(parent=TENANT, schedule_id=schedule_id, spec=wanted)
        response = await self.schedules.CreateSchedule(request, timeout=SECONDS_MAX)
        self.made.append(response.schedule.name)
        return cast(schedules_pb2.Schedule, response.schedule)

    async def get(self, name: str) -> schedules_pb2.Schedule:
        response = await self.schedules.GetSchedule(pb.GetScheduleRequest(name=name))
        return cast(schedules_pb2.Schedule, response.schedule)

    async def until(
        self, name: str, holds: Callable[[schedules_pb2.Schedule], bool]
    ) -> schedules_pb2.Schedule:
        """The schedule once that holds of it."""
        deadline = time.monotonic() + SECONDS_MAX
        while True:
            found = await self.get(name)
            if holds(found):
                return found
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.02)

    async def handled(self, name: str, count: int) -> schedules_pb2.Schedule:
        """The schedule once so many of its ticks are dealt with."""
        return await self.until(name, lambda s: s.submitted_count + s.skipped_count == count)

    async def next_tick(self, name: str) -> None:
        """Sets the clock to the next tick."""
        found = await self.get(name)
        self.clock.set(max(self.clock.now, found.next_tick_time.ToDatetime(UTC)))

    async def pause(self, name: str) -> None:
        await self.schedules.PauseSchedule(pb.PauseScheduleRequest(name=name))

    async def tasks(self, queue: str) -> list[tasks_pb2.Task]:
        request = task_pb.ListTasksRequest(parent=queue, page_size=1000)
        response = await self.queue().tasks.ListTasks(request)
        return list(response.tasks)


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    clock = SetClock()
    folder = tmp_path_factory.mktemp("schedules") / "data"
    limits = {"WEFT_SCHEDULER_SCHEDULES_MAX": str(SCHEDULES_MAX)}
    async with clocked_weft(folder, clock, **limits) as weft:
        yield World(weft, clock)


@pytest.fixture
async def world(shared: World) -> AsyncIterator[World]:
    """What a test made is deleted behind it."""
    yield shared
    for name in shared.made:
        await shared.schedules.DeleteSchedule(pb.DeleteScheduleRequest(name=name))
    shared.made.clear()


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


async def test_a_cron_expression_ticks_at_its_time_in_its_zone(world: World) -> None:
    queue = await world.make_queue("cron")
    local = world.clock.now.astimezone(BERLIN)
    sunday = local + timedelta(days=13 - local.weekday())
    world.clock.set(sunday.replace(hour=12, minute=0))
    wanted = spec(queue.queue, cron="0 9 * * MON-FRI", time_zone="Europe/Berlin")
    made = await world.create("weekdays", wanted)
    nine = (sunday + timedelta(days=1)).replace(hour=9, minute=0, second=0, microsecond=0)
    response = await world.schedules.GetSchedule(pb.GetScheduleRequest(name=made.name))
    assert [time.ToDatetime(UTC) for time in response.next_tick_times] == [
        (nine + timedelta(days=days)).astimezone(UTC) for days in range(5)
    ]
    await world.next_tick(made.name)
    ticked = await world.handled(made.name, 1)
    assert ticked.last_tick_time.ToDatetime(UTC) == nine.astimezone(UTC)
    assert ticked.next_tick_time.ToDatetime(UTC) == (nine + timedelta(days=1)).astimezone(UTC)
    (task,) = await world.tasks(queue.queue)
    assert (task.name, task.creator) == (ticked.last_task, made.name)
    async with queue.working({"echo": Echo()}):
        assert (await queue.done(task.name)).result == b"by the clock"


async def test_each_tick_of_an_interval_makes_one_task(world: World) -> None:
    queue = await world.make_queue("interval")
    made = await world.create("interval", spec(queue.queue))
    for count in range(1, 6):
        await world.next_tick(made.name)
        await world.handled(made.name, count)
    tasks = await world.tasks(queue.queue)
    assert len({task.name for task in tasks}) == len(tasks) == 5
    created = made.create_time.ToDatetime(UTC)
    last = (await world.get(made.name)).last_tick_time.ToDatetime(UTC)
    assert last == created + timedelta(seconds=500)


async def test_a_schedule_without_a_queue_of_its_own_makes_the_default_one(world: World) -> None:
    made = await world.create("default", spec())
    await world.next_tick(made.name)
    found = await world.handled(made.name, 1)
    assert found.last_task.startswith(f"{DEFAULT}/tasks/")


async def test_missed_ticks_after_a_restart_are_dealt_with_by_the_policy(tmp_path: Path) -> None:
    clock = SetClock()
    policies = {"skip": SKIP, "once": ONCE, "all": ALL}
    async with clocked_weft(tmp_path / "data", clock) as weft:
        world = World(weft, clock)
        for name, policy in policies.items():
            queue = await world.make_queue(name)
            await world.create(name, spec(queue.queue, missed_ticks=policy))
        paused = await world.create("paused", spec(missed_ticks=ALL))
        await world.pause(paused.name)
    clock.go_on(650)
    async with clocked_weft(tmp_path / "data", clock) as weft:
        world = World(weft, clock)
        for name, count in (("skip", 0), ("once", 1), ("all", 6)):
            found = await world.handled(f"{TENANT}/schedules/{name}", 6)
            assert (found.submitted_count, found.skipped_count) == (count, 6 - count)
            assert len(await world.tasks(f"{TENANT}/queues/{name}")) == count
            assert found.next_tick_time.ToDatetime(UTC) > clock.now
        assert (await world.get(paused.name)).submitted_count == 0


async def test_nothing_ticks_while_it_is_paused(world: World) -> None:
    queue = await world.make_queue("paused")
    made = await world.create("paused", spec(queue.queue, missed_ticks=ALL))
    await world.pause(made.name)
    await world.pause(made.name)
    found = await world.get(made.name)
    assert found.paused
    assert not found.HasField("next_tick_time")
    world.clock.go_on(350)
    other = await world.create("ticks", spec(queue.queue))
    await world.next_tick(other.name)
    await world.handled(other.name, 1)
    assert (await world.get(made.name)).submitted_count == 0
    await world.schedules.ResumeSchedule(pb.ResumeScheduleRequest(name=made.name))
    await world.next_tick(made.name)
    resumed = await world.until(made.name, lambda found: bool(found.submitted_count))
    assert (resumed.submitted_count, resumed.skipped_count) == (1, 0)


async def test_a_tick_is_passed_over_while_the_task_before_is_open(world: World) -> None:
    queue = await world.make_queue("overlap")
    overlap = schedules_pb2.OVERLAP_POLICY_SKIP
    made = await world.create("overlap", spec(queue.queue, overlap=overlap))
    for count in (1, 2, 3):
        await world.next_tick(made.name)
        found = await world.handled(made.name, count)
    assert (found.submitted_count, found.skipped_count) == (1, 2)
    async with queue.working({"echo": Echo()}):
        await queue.done(found.last_task)
    await world.next_tick(made.name)
    assert (await world.handled(made.name, 4)).submitted_count == 2


async def test_a_full_queue_stops_its_schedule_only_and_only_until_there_is_room(
    world: World,
) -> None:
    full = await world.make_queue("full", open_tasks_max=1)
    open_ = await world.make_queue("open")
    filler = await full.submit(tasks_pb2.TaskSpec(capability="filler"))
    stuck = await world.create("stuck", spec(full.queue))
    free = await world.create("free", spec(open_.queue))
    await world.next_tick(free.name)
    await world.handled(free.name, 1)
    failing = await world.until(stuck.name, lambda found: bool(found.last_error))
    assert "the queue holds 1 open tasks already" in failing.last_error
    assert failing.submitted_count == 0
    await full.tasks.CancelTask(task_pb.CancelTaskRequest(name=filler.name))
    recovered = await world.handled(stuck.name, 1)
    assert (recovered.submitted_count, recovered.last_error) == (1, "")


@pytest.mark.parametrize(
    ("wanted", "code", "said"),
    [
        (spec(cron="0 9 * *"), Code.INVALID_ARGUMENT, "write five fields such as"),
        (spec(cron="61 * * * *"), Code.INVALID_ARGUMENT, "bad minute"),
        (spec(cron="0 0 31 2 *"), Code.INVALID_ARGUMENT, "spec.cron"),
        (spec(cron="@daily", time_zone="Mars/Base"), Code.INVALID_ARGUMENT, "'Mars/Base'"),
        (spec(interval=Duration(nanos=999_999_999)), Code.INVALID_ARGUMENT, "at least 1 s"),
        (spec(end_time=Timestamp(seconds=1)), Code.INVALID_ARGUMENT, "leaves no tick"),
        (spec(f"{TENANT}/queues/nowhere"), Code.NOT_FOUND, "queues/nowhere"),
        (spec("tenants/globex/queues/default"), Code.NOT_FOUND, ""),
        (spec(task=tasks_pb2.TaskSpec(capability="No!")), Code.INVALID_ARGUMENT, "capability"),
        (
            spec(task=tasks_pb2.TaskSpec(capability="a", deadline=Timestamp(seconds=1))),
            Code.INVALID_ARGUMENT,
            "see spec.complete_within",
        ),
        (
            schedules_pb2.ScheduleSpec(queue=DEFAULT, task=spec().task),
            Code.INVALID_ARGUMENT,
            "needs cron or interval",
        ),
    ],
)
async def test_what_cant_be_kept_is_refused_when_it_is_made_or_changed(
    world: World, wanted: schedules_pb2.ScheduleSpec, code: grpc.StatusCode, said: str
) -> None:
    error = await refused(world.create("refused", wanted))
    assert error.code() is code
    assert said in (error.details() or "")
    made = await world.create("good", spec())
    change = pb.UpdateScheduleRequest(name=made.name, spec=wanted)
    assert (await refused(world.schedules.UpdateSchedule(change))).code() is code
    assert (await world.get(made.name)).spec == made.spec


async def test_a_capability_that_the_queue_doesnt_take_is_refused(world: World) -> None:
    queue = await world.make_queue("narrow", capabilities=["resize"])
    error = await refused(world.create("narrow", spec(queue.queue)))
    assert error.code() is Code.INVALID_ARGUMENT
    assert "spec.task.capability: isn't among those of the queue: resize" in (error.details() or "")


async def test_another_tenants_schedule_is_not_found(world: World) -> None:
    name = "tenants/globex/schedules/theirs"
    stub = world.schedules
    for call in (
        stub.GetSchedule(pb.GetScheduleRequest(name=name)),
        stub.UpdateSchedule(pb.UpdateScheduleRequest(name=name, spec=spec())),
        stub.PauseSchedule(pb.PauseScheduleRequest(name=name)),
        stub.ResumeSchedule(pb.ResumeScheduleRequest(name=name)),
        stub.DeleteSchedule(pb.DeleteScheduleRequest(name=name)),
        stub.TriggerSchedule(pb.TriggerScheduleRequest(name=name)),
        stub.ListSchedules(pb.ListSchedulesRequest(parent="tenants/globex")),
    ):
        assert (await refused(call)).code() is Code.NOT_FOUND


async def test_a_schedule_that_isnt_there_is_not_found(world: World) -> None:
    name = f"{TENANT}/schedules/none"
    stub = world.schedules
    for call in (
        stub.GetSchedule(pb.GetScheduleRequest(name=name)),
        stub.UpdateSchedule(pb.UpdateScheduleRequest(name=name, spec=spec())),
        stub.PauseSchedule(pb.PauseScheduleRequest(name=name)),
        stub.ResumeSchedule(pb.ResumeScheduleRequest(name=name)),
        stub.DeleteSchedule(pb.DeleteScheduleRequest(name=name)),
        stub.TriggerSchedule(pb.TriggerScheduleRequest(name=name)),
    ):
        error = await refused(call)
        assert (error.code(), error.details()) == (Code.NOT_FOUND, f"no schedule {name}")


async def test_who_may_not_submit_makes_no_schedule_that_does(world: World) -> None:
    keys: Any = ApiKeyServiceStub(world.weft.channel)
    request = api_key_service_pb2.CreateApiKeyRequest(
        parent=TENANT,
        roles=[f"{TENANT}/roles/admin"],
        scopes=["scheduler.create_schedule", "scheduler.update_schedule"],
    )
    key = (await keys.CreateApiKey(request)).secret
    narrow: Any = ScheduleServiceStub(cast(Any, KeyedChannel(world.weft.bare, key)))
    wanted = pb.CreateScheduleRequest(parent=TENANT, schedule_id="deputy", spec=spec())
    error = await refused(narrow.CreateSchedule(wanted))
    assert error.code() is Code.PERMISSION_DENIED
    assert f"scheduler.submit for {DEFAULT}" in (error.details() or "")


async def test_a_schedule_is_made_once(world: World) -> None:
    made = await world.create("once", spec())
    assert (await world.create("once", spec())).create_time == made.create_time
    error = await refused(world.create("once", spec(cron="@daily")))
    assert error.code() is Code.ALREADY_EXISTS


async def test_a_schedule_submits_its_task_on_demand(world: World) -> None:
    queue = await world.make_queue("demand")
    made = await world.create("demand", spec(queue.queue))
    await world.pause(made.name)
    request = pb.TriggerScheduleRequest(name=made.name, request_id="r1")
    one = (await world.schedules.TriggerSchedule(request)).task
    again = (await world.schedules.TriggerSchedule(request)).task
    other = pb.TriggerScheduleRequest(name=made.name)
    two = (await world.schedules.TriggerSchedule(other)).task
    assert one.name == again.name != two.name
    assert len(await world.tasks(queue.queue)) == 2
    async with queue.working({"echo": Echo()}):
        assert (await queue.done(one.name)).result == b"by the clock"
    assert (await world.schedules.TriggerSchedule(request)).task.name == one.name


async def test_what_is_changed_holds_from_the_next_tick_on(world: World) -> None:
    queue = await world.make_queue("changed")
    made = await world.create("changed", spec(queue.queue))
    wanted = spec(queue.queue, complete_within=Duration(seconds=30))
    wanted.task.payload = b"otherwise"
    changed = pb.UpdateScheduleRequest(name=made.name, spec=wanted)
    assert (await world.schedules.UpdateSchedule(changed)).schedule.spec == wanted
    await world.next_tick(made.name)
    task = await queue.get((await world.handled(made.name, 1)).last_task)
    assert task.spec.payload == b"otherwise"
    span = task.spec.deadline.ToDatetime() - task.create_time.ToDatetime()
    assert timedelta(seconds=25) < span <= timedelta(seconds=30)


async def test_what_is_deleted_ticks_no_more_and_may_be_made_anew(world: World) -> None:
    queue = await world.make_queue("deleted")
    made = await world.create("deleted", spec(queue.queue))
    for _ in range(2):
        await world.schedules.DeleteSchedule(pb.DeleteScheduleRequest(name=made.name))
    assert (await refused(world.get(made.name))).code() is Code.NOT_FOUND
    world.clock.go_on(150)
    anew = await world.create("deleted", spec(queue.queue))
    await world.next_tick(anew.name)
    await world.handled(anew.name, 1)
    assert len(await world.tasks(queue.queue)) == 1


async def test_schedules_are_listed_by_pages_and_their_number_is_bounded(world: World) -> None:
    racing = await asyncio.gather(
        *(world.create(f"s{number:02}", spec()) for number in range(SCHEDULES_MAX + 5)),
        return_exceptions=True,
    )
    names = [each.name for each in racing if isinstance(each, schedules_pb2.Schedule)]
    assert len(names) == SCHEDULES_MAX
    error = await refused(world.create("one-too-many", spec()))
    assert error.code() is Code.RESOURCE_EXHAUSTED
    seen: list[schedules_pb2.Schedule] = []
    token = ""
    while True:
        request = pb.ListSchedulesRequest(parent=TENANT, page_size=7, page_token=token)
        page = await world.schedules.ListSchedules(request)
        seen.extend(page.schedules)
        token = page.next_page_token
        if not token:
            break
    assert [each.name for each in seen] == sorted(names)
    assert not any(each.spec.task.payload for each in seen)
