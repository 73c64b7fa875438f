"""Running batches, and following them through what can happen to them."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mesh.cli import batch_sending
from tests.support.command_line import ROOT, Weft, command_line, environment_for
from tests.support.memory_platform import MemoryPlatform
from weft.scheduler.v1 import batches_pb2, tasks_pb2

IN_DEFAULT = "tenants/default/queues/default"


def written(tmp_path: Path, *lines: object) -> str:
    path = tmp_path / "items.ndjson"
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{line}\n" for line in text))
    return str(path)


def test_a_task_is_run_for_each_line(platform: MemoryPlatform, weft: Weft, tmp_path: Path) -> None:
    file = written(
        tmp_path,
        {"payload": "grün", "id": "first", "priority": 0, "max_attempts": 7, "timeout": "2m"},
        "",
        {"payload": {"a": [1]}, "capability": "other", "labels": {"gpu": "a100"}, "cost": "10s"},
        {
            "payload_base64": "/w==",
            "not_before": "2090-01-01T00:00:00Z",
            "zone": "north",
            "cpu": 0.5,
            "memory": "1MiB",
            "backoff": "500ms",
            "max_backoff": "5s",
        },
    )
    ran = weft("batch", "run", file, "resize", "--id", "b1", "--concurrency", "3")
    assert ran.code == 0, ran.err
    assert ran.items == [
        {"index": 0, "id": "first", "number": 1, "state": "succeeded", "result": "grün"},
        {"index": 1, "id": "t1", "number": 2, "state": "succeeded", "result": '{"a":[1]}'},
        {"index": 2, "id": "t2", "number": 3, "state": "succeeded", "result_base64": "/w=="},
    ]
    assert "3 succeeded" in ran.err
    begin, sent, close = platform.batches.requests
    assert (begin.parent, begin.batch_id, begin.running_tasks_max) == (IN_DEFAULT, "b1", 3)
    assert (begin.open, sent.open, close.open) == (True, True, False)
    first, second, third = sent.items
    expected = tasks_pb2.TaskSpec(
        capability="resize",
        payload="grün".encode(),
        priority=0,
        retry=tasks_pb2.RetryPolicy(max_attempts=7),
    )
    expected.attempt_timeout.FromSeconds(120)
    assert (first.task_id, first.spec) == ("first", expected)
    assert second.spec.capability == "other"
    assert second.spec.labels == [tasks_pb2.Label(key="gpu", value="a100")]
    assert second.spec.estimated_cost.seconds == 10
    assert third.spec.not_before.ToJsonString() == "2090-01-01T00:00:00Z"
    assert third.spec.preferred_zone == "north"
    assert third.spec.resources == tasks_pb2.Resources(cpu_millis=500, memory_bytes=1024**2)
    assert third.spec.retry.initial_backoff.ToMilliseconds() == 500
    assert third.spec.retry.max_backoff.ToMilliseconds() == 5_000


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "isn't JSON"),
        ("\x00", "isn't JSON"),
        ("[" * 100_000, "isn't JSON"),
        ("7", "isn't a JSON object"),
        ({"playload": ""}, "unknown key 'playload'"),
        ({"payload": "", "payload_base64": ""}, "give one of payload and payload_base64"),
        ({"payload_base64": "?"}, "payload_base64"),
        ({"payload": "x" * 262_145}, "payload: "),
        ({"priority": 10}, "priority: "),
        ({"priority": "high"}, "priority: "),
        ({"priority": True}, "priority: "),
        ({"priority": 2**40}, "priority: "),
        ({"id": "Not An Id"}, "id: "),
        ({"id": 7}, "id: "),
        ({"id": "\ud800"}, "id: "),
        ({"labels": ["gpu"]}, "labels: "),
        ({"labels": {"gpu": 1}}, "labels: "),
        ({"deadline": "10m"}, "'10m' isn't a time"),
        ({"cpu": True}, "cpu: true can't be one"),
        ({"memory": "much"}, "memory: 'much' isn't a number of bytes"),
        ({"timeout": "soon"}, "timeout: 'soon' isn't a span of time"),
        ({"capability": "No Capability"}, "capability: "),
        ({"capability": ""}, "names no capability"),
        ({"id": "good"}, "id: is that of line 1 too"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_line_is_told_before_anything_is_sent(
    platform: MemoryPlatform, weft: Weft, tmp_path: Path, line: object, problem: str
) -> None:
    file = written(tmp_path, {"payload": "good", "id": "good"}, "", line)
    ran = weft("batch", "run", file, "resize")
    assert ran.code == 2
    assert f"{file}, line 3: " in ran.err
    assert problem in ran.err
    assert platform.batches.requests == []


def test_what_cant_be_a_batch_is_a_usage_error(
    platform: MemoryPlatform, weft: Weft, tmp_path: Path
) -> None:
    assert weft("batch", "run", written(tmp_path), "resize").code == 2
    assert weft("batch", "run", str(tmp_path / "none"), "resize").code == 1
    file = written(tmp_path, {})
    assert weft("batch", "run", file, "resize", "--id", "No Id").code == 2
    assert weft("batch", "run", file, "resize", "--queue", "missing").code == 3
    assert weft("batch", "run", file, "resize", "--to", str(tmp_path)).code == 1
    assert not any(request.items for request in platform.batches.requests)


def test_items_come_from_standard_input(platform: MemoryPlatform, weft_process: Weft) -> None:
    ran = weft_process("batch", "run", "-", "resize", stdin='{"payload":"a"}\n{"payload":"b"}')
    assert (ran.code, [item["result"] for item in ran.items]) == (0, ["a", "b"])


def test_items_that_fail_or_are_refused_are_told(weft: Weft, tmp_path: Path) -> None:
    file = written(tmp_path, {"payload": "a"}, {"payload": "fail"}, {"capability": "refused"})
    ran = weft("batch", "run", file, "resize")
    assert ran.code == 6
    by_index = {item["index"]: item for item in ran.items}
    assert by_index[1]["state"] == "failed"
    assert (by_index[1]["code"], by_index[1]["error"]) == ("INVALID_ARGUMENT", "no good")
    assert (by_index[2]["state"], by_index[2]["code"]) == ("refused", "INVALID_ARGUMENT")
    assert "1 succeeded, 1 failed, 1 refused" in ran.err
    assert f"`weft deadletter redrive --batch {ran.err.split()[1]}` tries" in ran.err
    assert "item 2: no such capability here" in ran.err


def test_items_wait_for_room(
    platform: MemoryPlatform, weft: Weft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_sending, "DELAY_SECONDS_FIRST", 0.01)
    lines = [{"capability": "late" if n in (1, 3) else "resize"} for n in range(5)]
    ran = weft("batch", "run", written(tmp_path, *lines))
    assert (ran.code, sorted(item["index"] for item in ran.items)) == (0, list(range(5)))
    assert "items wait for room" in ran.err
    again = platform.batches.requests[2]
    assert (again.first_index, len(again.items)) == (1, 3)


def test_a_request_whose_answer_is_lost_is_sent_again(
    platform: MemoryPlatform, weft: Weft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_sending, "DELAY_SECONDS_FIRST", 0.01)
    monkeypatch.setattr(batch_sending, "CHUNK_ITEMS_MAX", 2)
    platform.batches.lost = 2
    ran = weft("batch", "run", written(tmp_path, *[{"payload": "x"}] * 5), "resize")
    assert (ran.code, sorted(item["index"] for item in ran.items)) == (0, list(range(5)))
    firsts = [request.first_index for request in platform.batches.requests if request.items]
    assert firsts == [0, 0, 0, 2, 4]


def test_large_items_go_in_several_requests(
    platform: MemoryPlatform, weft: Weft, tmp_path: Path
) -> None:
    ran = weft("batch", "run", written(tmp_path, *[{"payload": "x" * 250_000}] * 9), "resize")
    assert (ran.code, len(ran.items)) == (0, 9)
    requests = [request for request in platform.batches.requests if request.items]
    assert [request.first_index for request in requests] == [0, 4, 8]


def test_the_same_id_goes_on_with_the_same_batch(
    platform: MemoryPlatform, weft: Weft, tmp_path: Path
) -> None:
    file = written(tmp_path, {"payload": "a"}, {"payload": "b"})
    first = weft("batch", "run", file, "resize", "--id", "b1")
    assert weft("batch", "run", file, "resize", "--id", "b1").items == first.items
    assert weft("batch", "show", "b1", "-o", "json").data["counts"]["items"] == "2"


def test_results_go_to_a_file_of_ones_own(weft: Weft, tmp_path: Path) -> None:
    to = tmp_path / "results.ndjson"
    ran = weft("batch", "run", written(tmp_path, {"payload": "a"}), "resize", "--to", str(to))
    assert (ran.code, ran.out) == (0, "")
    assert json.loads(to.read_text())["result"] == "a"
    assert to.stat().st_mode & 0o077 == 0


def test_a_watch_goes_on_after_its_connection_is_lost(
    platform: MemoryPlatform, weft: Weft, tmp_path: Path
) -> None:
    lines = [{"payload": str(number)} for number in range(7)]
    assert weft("batch", "run", written(tmp_path, *lines), "resize", "--id", "b1").code == 0
    platform.batches.watched.clear()
    platform.batches.cut_after = 2
    ran = weft("batch", "watch", "b1")
    assert [item["number"] for item in ran.items] == list(range(1, 8))
    assert (ran.code, platform.batches.watched) == (0, [0, 4])
    assert [item["number"] for item in weft("batch", "watch", "b1", "--after", "5").items] == [6, 7]


def test_a_batch_that_isnt_there_is_not_found(weft: Weft) -> None:
    for verb in ("show", "watch", "cancel"):
        assert weft("batch", verb, "none").code == 3
    assert weft("batch", "list", "--queue", "missing").code == 3
    assert weft("batch", "show", "a/b/c").code == 2
    assert weft("batch", "show", "images/b1", "--queue", "default").code == 2


def test_batches_are_listed_and_cancelled(
    platform: MemoryPlatform, weft: Weft, tmp_path: Path
) -> None:
    assert weft("batch", "run", written(tmp_path, {}), "resize", "--id", "done").code == 0
    request: Any = {"parent": IN_DEFAULT, "batch_id": "open", "open": True}
    assert weft("call", "BatchService/SubmitBatch", "-d", json.dumps(request)).code == 0
    listed = weft("batch", "list", "-o", "json").data
    assert [batch["name"].rpartition("/")[2] for batch in listed] == ["open", "done"]
    ran = weft("batch", "cancel", "default/open", "--reason", "enough")
    assert (ran.code, "cancelled" in ran.out, "enough" in ran.out) == (0, True, True)
    assert weft("batch", "cancel", "done").code == 1
    assert "completed" in weft("batch", "list").out


def test_without_the_permission_the_command_exits_4(
    platform: MemoryPlatform, weft: Weft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.access.demands = True
    monkeypatch.setenv("WEFT_API_KEY", platform.access.add_key("tenants/default/apiKeys/ci"))
    file = written(tmp_path, {"payload": "a"})
    for permission in ("scheduler.submit", "scheduler.get"):
        platform.access.denied.add(permission)
        ran = weft("batch", "run", file, "resize")
        assert (ran.code, f"needed: {permission}" in ran.err) == (4, True), ran.err
        platform.access.denied.discard(permission)


def test_ctrl_c_tells_how_to_go_on(platform: MemoryPlatform, tmp_path: Path) -> None:
    file = written(tmp_path, *[{"payload": "x", "capability": "late"}] * 3)
    process = subprocess.Popen(
        command_line("batch", "run", file, "--id", "b1"),
        env=environment_for(platform.address),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    # Said once it waits before it sends again what found no room.
    seen = ""
    while "wait for room" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "0 of 3 items are sent." in rest
    assert "--id b1" in rest
    assert "weft batch watch default/b1" in rest
    batch = platform.batches._batches[f"{IN_DEFAULT}/batches/b1"]
    assert batch.state == batches_pb2.BATCH_STATE_OPEN
