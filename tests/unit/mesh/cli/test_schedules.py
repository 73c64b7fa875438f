"""Schedules: made, shown, changed and taken away."""

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support.command_line import Weft
from tests.support.memory_platform import MemoryPlatform
from weft.scheduler.v1 import schedules_pb2, tasks_pb2

DEFAULT = "tenants/default/queues/default"
REPORT = "tenants/default/schedules/report"
CREATE = ("schedule", "create", "report", "report.daily")
DAILY = (*CREATE, "--cron", "0 9 * * MON-FRI", "--time-zone", "Europe/Berlin")


def test_a_schedule_is_made_with_all_that_was_said(platform: MemoryPlatform, weft: Weft) -> None:
    made = weft(
        *DAILY,
        *("--queue", "images", "--payload", "grün", "--priority", "0", "--label", "gpu=a100"),
        *("--zone", "north", "--cpu", "0.5", "--memory", "512MiB", "--cost", "10s"),
        *("--backoff", "1s500ms", "--max-backoff", "1m"),
        *("--attempt-timeout", "2m", "--max-attempts", "7", "--start-within", "10m"),
        *("--complete-within", "1h", "--missed", "all", "--overlap", "skip"),
        *("--start", "2090-01-01T00:00:00Z", "--end", "2091-01-01T00:00:00+02:00", "-o", "json"),
    )
    assert made.data["name"] == REPORT
    expected = schedules_pb2.ScheduleSpec(
        cron="0 9 * * MON-FRI",
        time_zone="Europe/Berlin",
        queue="tenants/default/queues/images",
        task=tasks_pb2.TaskSpec(
            capability="report.daily",
            payload="grün".encode(),
            priority=0,
            labels=[tasks_pb2.Label(key="gpu", value="a100")],
            preferred_zone="north",
            resources=tasks_pb2.Resources(cpu_millis=500, memory_bytes=512 * 1024**2),
            estimated_cost=Duration(seconds=10),
            attempt_timeout=Duration(seconds=120),
            retry=tasks_pb2.RetryPolicy(
                max_attempts=7,
                initial_backoff=Duration(seconds=1, nanos=500_000_000),
                max_backoff=Duration(seconds=60),
            ),
        ),
        start_within=Duration(seconds=600),
        complete_within=Duration(seconds=3600),
        missed_ticks=schedules_pb2.MISSED_TICKS_POLICY_ALL,
        overlap=schedules_pb2.OVERLAP_POLICY_SKIP,
    )
    expected.start_time.FromJsonString("2090-01-01T00:00:00Z")
    expected.end_time.FromJsonString("2090-12-31T22:00:00Z")
    assert platform.schedules.kept[REPORT].spec == expected


def test_what_wasnt_said_is_left_to_the_server(platform: MemoryPlatform, weft: Weft) -> None:
    assert weft(*CREATE, "--every", "1h30m").code == 0
    task = tasks_pb2.TaskSpec(capability="report.daily")
    expected = schedules_pb2.ScheduleSpec(interval=Duration(seconds=5400), queue=DEFAULT, task=task)
    assert platform.schedules.kept[REPORT].spec == expected


@pytest.mark.parametrize(
    "arguments",
    [
        CREATE,
        (*DAILY, "--every", "5m"),
        (*CREATE, "--every", "often"),
        (*CREATE, "--every", "5m", "--start", "soon"),
        (*CREATE, "--every", "5m", "--label", "gpu"),
        (*CREATE, "--every", "5m", "--cpu", "many"),
        (*CREATE, "--every", "5m", "--backoff", "often"),
        (*CREATE, "--every", "5m", "--missed", "some"),
        (*CREATE, "--every", "5m", "--payload", "a", "--payload-file", "b"),
        ("schedule", "create", "Not An Id", "x", "--every", "5m"),
        ("schedule", "show", "a/b"),
    ],
    ids=" ".join,
)
def test_schedules_that_cant_be_meant_are_a_usage_error(
    weft: Weft, arguments: tuple[str, ...]
) -> None:
    assert weft(*arguments).code == 2


def test_the_next_ticks_are_shown_on_the_clock_of_the_zone(weft: Weft) -> None:
    weft(*DAILY)
    shown = weft("schedule", "show", "report").out
    assert "when        0 9 * * MON-FRI  Europe/Berlin\n" in shown
    assert shown.count("09:00 CET") == 5
    assert "next        2026-11-26 08:00:00.000Z  Thu 09:00 CET\n" in shown
    assert len(weft("schedule", "show", REPORT, "-o", "json").data["next_tick_times"]) == 5


def test_schedules_are_listed_with_why_they_fail(platform: MemoryPlatform, weft: Weft) -> None:
    weft(*DAILY)
    weft("schedule", "create", "beat", "heart.beat", "--every", "90s")
    platform.schedules.kept["tenants/default/schedules/beat"].last_error = "the queue is full"
    header, beat, report = weft("schedule", "list").out.splitlines()
    assert header.split()[:3] == ["SCHEDULE", "STATE", "WHEN"]
    assert beat.split()[:5] == ["beat", "active", "every", "1m30s", "heart.beat"]
    assert beat.endswith("the queue is full")
    assert report.split()[0] == "report"
    assert len(weft("schedule", "list", "-o", "json").data) == 2


def test_a_change_keeps_what_isnt_named(platform: MemoryPlatform, weft: Weft) -> None:
    weft(*DAILY, "--payload", "x", "--missed", "all", "--cpu", "2", "--memory", "1GiB")
    changes = ("--every", "5m", "--missed", "skip", "--cpu", "500m", "--backoff", "3s")
    assert weft("schedule", "update", "report", *changes).code == 0
    spec = platform.schedules.kept[REPORT].spec
    assert spec.task.resources == tasks_pb2.Resources(cpu_millis=500, memory_bytes=1024**3)
    assert spec.task.retry.initial_backoff == Duration(seconds=3)
    assert (spec.WhichOneof("timing"), spec.interval.seconds) == ("interval", 300)
    assert (spec.task.payload, spec.missed_ticks) == (
        b"x",
        schedules_pb2.MISSED_TICKS_POLICY_SKIP,
    )
    nothing = weft("schedule", "update", "report")
    assert (nothing.code, "nothing to change" in nothing.err) == (2, True)


def test_a_schedule_is_paused_and_goes_on(weft: Weft) -> None:
    weft(*DAILY)
    assert "state       paused" in weft("schedule", "pause", "report").out
    assert weft("schedule", "resume", "report", "-o", "json").data["paused"] is False


def test_a_task_is_submitted_out_of_turn(platform: MemoryPlatform, weft: Weft) -> None:
    weft(*DAILY)
    ran = weft("schedule", "trigger", "report", "--request-id", "r1", "-o", "json")
    assert ran.data["name"] == f"{DEFAULT}/tasks/t1"
    assert [request.request_id for request in platform.schedules.triggered] == ["r1"]


def test_a_schedule_is_deleted(platform: MemoryPlatform, weft: Weft) -> None:
    weft(*DAILY)
    assert weft("schedule", "delete", "report").err == "deleted schedule report\n"
    assert platform.schedules.kept == {}


@pytest.mark.parametrize("verb", ["show", "pause", "resume", "trigger", "delete"])
def test_a_schedule_that_isnt_there_exits_3(weft: Weft, verb: str) -> None:
    assert weft("schedule", verb, "no").code == 3
