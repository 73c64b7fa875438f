"""Submitting tasks, and following them through what can happen to them."""

import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.command_line import ROOT, Weft, command_line, environment_for
from tests.support.memory_platform import MemoryPlatform
from tests.support.memory_tasks import ended, running, succeeded
from weft.scheduler.v1 import tasks_pb2

QUEUED = tasks_pb2.TASK_STATE_QUEUED
UNSCHEDULABLE = tasks_pb2.TASK_STATE_UNSCHEDULABLE
RUNNING = tasks_pb2.TASK_STATE_RUNNING
FAILED = tasks_pb2.TASK_STATE_FAILED
CANCELLED = tasks_pb2.TASK_STATE_CANCELLED
IN_DEFAULT = "tenants/default/queues/default/tasks"


def test_a_task_is_submitted_with_all_that_was_said(platform: MemoryPlatform, weft: Weft) -> None:
    ran = weft(
        *("task", "submit", "resize", "--payload", "grün", "--id", "t1", "--priority", "0"),
        *("--label", "gpu=a100", "--label", "zone=", "--timeout", "2m", "--cost", "10s"),
        *("--not-before", "2090-01-01T00:00:00Z", "--deadline", "2090-01-02T00:00:00+02:00"),
        *("--max-attempts", "7", "--backoff", "1s500ms", "--max-backoff", "1m"),
        *("--cpu", "0.5", "--memory", "512MiB", "--zone", "north"),
        *("--request-id", "r1", "-o", "json"),
    )
    assert ran.data["name"] == f"{IN_DEFAULT}/t1"
    (request,) = platform.tasks.submitted
    expected = tasks_pb2.TaskSpec(
        capability="resize",
        payload="grün".encode(),
        priority=0,
        labels=[
            tasks_pb2.Label(key="gpu", value="a100"),
            tasks_pb2.Label(key="zone", value=""),
        ],
        preferred_zone="north",
        resources=tasks_pb2.Resources(cpu_millis=500, memory_bytes=512 * 1024**2),
        retry=tasks_pb2.RetryPolicy(max_attempts=7),
    )
    expected.retry.initial_backoff.FromMilliseconds(1_500)
    expected.retry.max_backoff.FromSeconds(60)
    expected.attempt_timeout.FromSeconds(120)
    expected.estimated_cost.FromSeconds(10)
    expected.not_before.FromJsonString("2090-01-01T00:00:00Z")
    expected.deadline.FromJsonString("2090-01-01T22:00:00Z")
    assert request.spec == expected
    assert request.request_id == "r1"


def test_what_wasnt_said_is_left_to_the_server(platform: MemoryPlatform, weft: Weft) -> None:
    assert weft("task", "submit", "resize").code == 0
    (request,) = platform.tasks.submitted
    assert request.spec == tasks_pb2.TaskSpec(capability="resize")
    assert (request.task_id, request.request_id) == ("", "")


def test_a_repeated_request_finds_the_same_task(weft: Weft) -> None:
    submit = ("task", "submit", "resize", "--request-id", "r1", "-o", "json")
    assert weft(*submit).data["name"] == weft(*submit).data["name"]


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_payload_is_read_as_it_is(
    platform: MemoryPlatform, weft: Weft, tmp_path: Path, source: str
) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"\x89PNG\r\n\xff")
    if source == "file":
        ran = weft("task", "submit", "resize", "--payload-file", str(photo))
        assert "(7 bytes)" in ran.out
    else:
        subprocess.run(
            command_line("task", "submit", "resize", "--payload-file", "-"),
            stdin=photo.open("rb"),
            env=environment_for(platform.address),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            check=True,
        )
    assert [r.spec.payload for r in platform.tasks.submitted] == [b"\x89PNG\r\n\xff"]


@pytest.mark.parametrize("option", ["--not-before", "--start-deadline", "--deadline"])
def test_a_time_may_be_said_from_now_on(platform: MemoryPlatform, weft: Weft, option: str) -> None:
    before = datetime.now(UTC)
    assert weft("task", "submit", "resize", option, "1h30m").code == 0
    spec = platform.tasks.submitted[0].spec
    time = getattr(spec, option.removeprefix("--").replace("-", "_")).ToDatetime(UTC)
    assert before <= time - timedelta(minutes=90) <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--payload", "a", "--payload-file", "b"], "give one of --payload and --payload-file"),
        (["--label", "gpu"], "--label: 'gpu' isn't a label"),
        (["--label", "=a100"], "--label: '=a100' isn't a label"),
        (["--deadline", "soon"], "--deadline: 'soon' isn't a time"),
        (["--not-before", "9999999999999d"], "--not-before: '9999999999999d' isn't a time"),
        (["--timeout", "1.5"], "--timeout: '1.5' isn't a span of time"),
        (["--cost", "-1s"], "--cost: '-1s' isn't a span of time"),
        (["--priority", "10"], "'--priority'"),
        (["--max-attempts", "0"], "'--max-attempts'"),
        (["--backoff", "soon"], "--backoff: 'soon' isn't a span of time"),
        (["--cpu", "half"], "--cpu: 'half' isn't a number of processors"),
        (["--cpu", "0.5m"], "--cpu: '0.5m' isn't a number of processors"),
        (["--memory", "2 GB"], "--memory: '2 GB' isn't a number of bytes"),
        (["--payload", "x" * 262_145], "--payload is larger than 256 KiB"),
        (["--id", "Not An Id"], "--id: 'Not An Id' isn't an id"),
        (["--queue", "a/b"], "'a/b' is no queue name"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_task_that_cant_be_meant_is_a_usage_error(
    platform: MemoryPlatform, weft: Weft, options: list[str], problem: str
) -> None:
    ran = weft("task", "submit", "resize", *options)
    assert ran.code == 2
    assert problem in ran.err
    assert platform.tasks.submitted == []


def test_what_the_contract_doesnt_take_is_a_usage_error(weft: Weft, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"x" * 262_145)
    assert weft("task", "submit", "No Capability").code == 2
    ran = weft("task", "submit", "resize", "--payload-file", str(large))
    assert (ran.code, ran.err) == (2, f"weft: {large} is larger than 256 KiB\n")
    assert weft("task", "submit", "resize", "--payload-file", str(tmp_path / "no")).code == 1
    assert weft("task", "submit", "resize", "--queue", "missing").code == 3


def test_without_the_permission_the_command_exits_4(
    platform: MemoryPlatform, weft: Weft, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.access.demands = True
    platform.access.denied.add("scheduler.submit")
    assert weft("task", "submit", "resize").code == 4
    monkeypatch.setenv("WEFT_API_KEY", platform.access.add_key("tenants/default/apiKeys/ci"))
    ran = weft("task", "submit", "resize")
    assert (ran.code, "needed: scheduler.submit" in ran.err) == (4, True)
    assert weft("task", "list").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["t1", "--queue", "images"],
        ["images/t1"],
        ["images/t1", "--queue", "images"],
        ["tenants/default/queues/images/tasks/t1"],
        ["tenants/default/queues/images/tasks/t1", "--queue", "tenants/default/queues/images"],
    ],
    ids=" ".join,
)
def test_a_task_is_named_in_any_form(
    platform: MemoryPlatform, weft: Weft, arguments: list[str]
) -> None:
    platform.tasks.add("images/t1", RUNNING)
    assert weft("task", "show", *arguments).code == 0
    assert weft("task", "show", "t1").code == 3


@pytest.mark.parametrize("arguments", [["a/b/c"], ["T!"], ["images/t1", "--queue", "other"]])
def test_a_name_that_cant_be_meant_is_a_usage_error(weft: Weft, arguments: list[str]) -> None:
    assert weft("task", "show", *arguments).code == 2


def test_tasks_are_listed_newest_first_and_filtered(platform: MemoryPlatform, weft: Weft) -> None:
    platform.tasks.add("default/t1", QUEUED)
    platform.tasks.add("default/t2", UNSCHEDULABLE, reason="no worker can resize")
    platform.tasks.add("default/t3", RUNNING)
    platform.tasks.add("other/t4", RUNNING)

    def listed(*options: str) -> list[str]:
        names = [task["name"] for task in weft("task", "list", *options, "-o", "json").data]
        return [name.removeprefix(f"{IN_DEFAULT}/") for name in names]

    assert listed() == ["t3", "t2", "t1"]
    assert listed("--state", "running") == ["t3"]
    assert listed("--state", "queued") == ["t2", "t1"]
    assert listed("--state", "unschedulable") == ["t2"]
    assert listed("--capability", "other") == []
    assert listed("--limit", "2") == ["t3", "t2"]
    _, _, row, _ = weft("task", "list").out.splitlines()
    assert row.split() == [
        "default/t2",
        "unschedulable",
        "resize",
        "5",
        "0",
        "no",
        "worker",
        "can",
        "resize",
    ]
    assert weft("task", "list", "--queue", "missing").code == 3


def test_a_list_is_asked_for_what_was_said(platform: MemoryPlatform, weft: Weft) -> None:
    ran = weft(
        *("task", "list", "--creator", "apiKeys/ci", "--batch", "photos", "--priority", "0"),
        *("--since", "2026-01-01T00:00:00Z", "--until", "2026-01-02T00:00:00Z"),
    )
    assert ran.code == 0
    (request,) = platform.tasks.listed
    assert request.creator == "tenants/default/apiKeys/ci"
    assert request.batch == "tenants/default/queues/default/batches/photos"
    assert (request.HasField("priority"), request.priority) == (True, 0)
    assert request.create_start_time.ToJsonString() == "2026-01-01T00:00:00Z"
    assert request.create_end_time.ToJsonString() == "2026-01-02T00:00:00Z"
    assert weft("task", "list", "--batch", "other/photos").code == 2


def test_a_task_is_shown_with_its_attempts(platform: MemoryPlatform, weft: Weft) -> None:
    task = platform.tasks.add("default/t1", FAILED, reason="out of paper")
    task.attempts.add(attempt=1, worker="w1", code=10, message="jam").start_time.FromSeconds(100)
    task.attempts[0].end_time.FromMilliseconds(101_500)
    task.attempts.add(attempt=2, worker="w2", message="given back before it began")
    task.attempts[1].end_time.FromSeconds(200)
    task.attempts.add(attempt=3, worker="w3")
    shown = weft("task", "show", "t1").out
    assert "1 on w1, 1970-01-01 00:01:40.000Z, 1.500 s, ABORTED: jam\n" in shown
    assert "2 on w2, , 200.000 s, given back before it began\n" in shown
    assert "3 on w3, , runs\n" in shown
    assert "out of paper" in shown


def test_a_task_is_cancelled_and_a_failed_one_tried_again(
    platform: MemoryPlatform, weft: Weft
) -> None:
    platform.tasks.add("default/t1", QUEUED)
    platform.tasks.add("default/t2", FAILED)
    cancelled = weft("task", "cancel", "t1", "--reason", "wrong photo", "-o", "json").data
    assert (cancelled["state"], cancelled["reason"]) == ("TASK_STATE_CANCELLED", "wrong photo")
    assert weft("task", "retry", "t2", "-o", "json").data["state"] == "TASK_STATE_QUEUED"
    refused = weft("task", "retry", "t1")
    assert (refused.code, refused.err.splitlines()[0]) == (1, "weft: the task hasn't failed")
    assert weft("task", "cancel", "t3").code == weft("task", "retry", "t3").code == 3


def test_stalled_tasks_are_listed_and_ended(platform: MemoryPlatform, weft: Weft) -> None:
    for task in ("t1", "t2"):
        added = platform.tasks.add(f"default/{task}", RUNNING)
        added.stalled_time.FromSeconds(100)
        added.stalled_reason = "worker w1 has it"
    platform.tasks.add("default/t3", RUNNING)
    stalled = weft("task", "list", "--stalled", "-o", "json").data
    assert [task["name"] for task in stalled] == [f"{IN_DEFAULT}/t2", f"{IN_DEFAULT}/t1"]
    assert "stalled since 1970-01-01 00:01:40.000Z: worker w1 has it" in weft("task", "list").out
    assert "worker w1 has it" in weft("task", "show", "t1").out
    skipped = weft("task", "skip", "t1", "--reason", "hangs", "-o", "json").data
    assert (skipped["state"], skipped["reason"]) == ("TASK_STATE_CANCELLED", "hangs")
    failed = weft("task", "fail", "default/t2", "--reason", "hangs", "-o", "json").data
    assert (failed["state"], failed["reason"]) == ("TASK_STATE_FAILED", "hangs")
    assert weft("task", "skip", "t4").code == weft("task", "fail", "t4").code == 3


def test_a_watched_task_prints_its_result_and_nothing_else_on_stdout(
    platform: MemoryPlatform, weft: Weft
) -> None:
    platform.tasks.scripts["resize"] = [running(), running(progress=0.4), succeeded(b"small")]
    ran = weft("task", "submit", "resize", "--id", "t1", "--watch")
    assert (ran.code, ran.out) == (0, "small")
    assert ran.err.splitlines() == [
        "task default/t1",
        "queued",
        "running on w1, attempt 1",
        "running on w1, attempt 1, 40%",
        "succeeded",
    ]
    assert weft("task", "watch", "t1").out == "small"


def test_a_result_goes_into_a_pipe_as_it_is(platform: MemoryPlatform) -> None:
    platform.tasks.scripts["resize"] = [succeeded(b"\x89PNG\r\n\x1b[2J\xff")]
    written = subprocess.run(
        command_line("task", "submit", "resize", "--watch"),
        env=environment_for(platform.address),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    assert written.stdout == b"\x89PNG\r\n\x1b[2J\xff"


@pytest.mark.parametrize(
    ("state", "said"),
    [(FAILED, "weft: the task failed: jam"), (CANCELLED, "weft: the task was cancelled: jam")],
)
@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_a_watched_task_without_a_result_exits_6(
    platform: MemoryPlatform,
    weft: Weft,
    state: "tasks_pb2.TaskState.ValueType",
    said: str,
    output: str,
) -> None:
    platform.tasks.scripts["resize"] = [running(), ended(state, "jam")]
    ran = weft("task", "submit", "resize", "--watch", "-o", output)
    assert ran.code == 6
    # Why is said once, at the end.
    assert [line for line in ran.err.splitlines() if "jam" in line] == [said]
    assert bool(ran.out) == (output != "table")


def test_a_watch_as_json_is_one_task_a_line(platform: MemoryPlatform, weft: Weft) -> None:
    platform.tasks.scripts["resize"] = [running(), succeeded(b"small")]
    ran = weft("task", "submit", "resize", "--watch", "-o", "json")
    assert [item["state"] for item in ran.items] == [
        "TASK_STATE_QUEUED",
        "TASK_STATE_RUNNING",
        "TASK_STATE_SUCCEEDED",
    ]


@pytest.mark.parametrize("cut_after", [1, 2])
def test_a_lost_watch_is_attached_again_and_each_change_shown_once(
    platform: MemoryPlatform, weft: Weft, cut_after: int
) -> None:
    platform.tasks.scripts["resize"] = [running(), succeeded(b"small")]
    platform.tasks.cut_after = cut_after
    ran = weft("task", "submit", "resize", "--watch", "-o", "json")
    assert ran.code == 0
    assert [item["state"].rsplit("_", 1)[1] for item in ran.items] == [
        "QUEUED",
        "RUNNING",
        "SUCCEEDED",
    ]
    assert platform.tasks.watches == 2


def test_the_commands_own_time_runs_out_beside_the_attempts(
    platform: MemoryPlatform, weft: Weft
) -> None:
    ran = weft("--timeout", "0.5", "task", "submit", "resize", "--timeout", "9s", "--watch")
    assert ran.code == 124
    assert platform.tasks.submitted[0].spec.attempt_timeout.seconds == 9


def test_ctrl_c_exits_130_and_says_that_the_task_goes_on(platform: MemoryPlatform) -> None:
    process = subprocess.Popen(
        command_line("task", "submit", "resize", "--id", "t1", "--watch"),
        env=environment_for(platform.address),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process:
        assert process.stderr.readline() == "task default/t1\n"
        assert process.stderr.readline() == "queued\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "`weft task cancel default/t1` ends it." in said
    assert "Traceback" not in said
