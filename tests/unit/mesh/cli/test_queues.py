"""Queues and dead letters."""

import pytest

from tests.support.command_line import Weft
from tests.support.memory_platform import MemoryPlatform
from weft.scheduler.v1 import tasks_pb2

RUNNING = tasks_pb2.TASK_STATE_RUNNING
FAILED = tasks_pb2.TASK_STATE_FAILED


def test_a_queue_is_made_with_its_limits(weft: Weft) -> None:
    create = (
        *("queue", "create", "images", "--open-tasks-max", "50", "--running-tasks-max", "5"),
        *("--weight", "200", "--capability", "resize", "--capability", "crop"),
    )
    made = weft(*create, "-o", "json").data
    assert made["name"] == "tenants/default/queues/images"
    assert made["limits"] == {
        "open_tasks_max": 50,
        "running_tasks_max": 5,
        "weight": 200,
        "capabilities": ["resize", "crop"],
    }
    assert weft(*create).code == 0
    assert "running tasks max  5\n" in weft("queue", "show", "images").out
    other = weft("queue", "create", "images", "--weight", "1")
    assert (other.code, "with other limits" in other.err) == (1, True)


def test_a_change_of_limits_keeps_those_that_arent_named(weft: Weft) -> None:
    weft("queue", "create", "images", "--weight", "200", "--capability", "resize")

    def changed(*options: str) -> tuple[int, int, list[str]]:
        limits = weft("queue", "update", "images", *options, "-o", "json").data["limits"]
        return limits["weight"], limits["running_tasks_max"], limits["capabilities"]

    assert changed("--running-tasks-max", "8") == (200, 8, ["resize"])
    assert changed("--weight", "0") == (0, 8, ["resize"])
    assert changed("--capability", "crop") == (0, 8, ["crop"])
    assert changed("--any-capability") == (0, 8, [])


@pytest.mark.parametrize(
    "arguments",
    [
        ["update", "default"],
        ["update", "default", "--any-capability", "--capability", "crop"],
        ["update", "default", "--weight", "-1"],
        ["update", "default", "--weight", "10001"],
        ["create", "Not An Id"],
        ["show", "a/b"],
    ],
    ids=" ".join,
)
def test_queues_that_cant_be_meant_are_a_usage_error(weft: Weft, arguments: list[str]) -> None:
    assert weft("queue", *arguments).code == 2


@pytest.mark.parametrize(
    "arguments",
    [["show", "no"], ["pause", "no"], ["resume", "no"], ["update", "no", "--weight", "1"]],
    ids=" ".join,
)
def test_a_queue_that_isnt_there_exits_3(weft: Weft, arguments: list[str]) -> None:
    assert weft("queue", *arguments).code == 3


def test_a_queue_is_paused_and_goes_on(platform: MemoryPlatform, weft: Weft) -> None:
    platform.tasks.add("default/t1", tasks_pb2.TASK_STATE_QUEUED)
    platform.tasks.add("default/t2", FAILED)
    assert weft("queue", "pause", "default", "-o", "json").data["paused"] is True
    header, row = weft("queue", "list").out.splitlines()
    assert header.split()[:3] == ["QUEUE", "STATE", "READY"]
    assert row.split()[:7] == ["default", "paused", "1", "0", "0", "0", "1"]
    resumed = weft("queue", "resume", "tenants/default/queues/default", "-o", "json").data
    assert resumed["paused"] is False


PHOTOS = "tenants/default/queues/default/batches/photos"


@pytest.fixture
def dead(platform: MemoryPlatform) -> MemoryPlatform:
    """A platform with dead letters in two queues."""
    for task in ("default/t1", "default/t2", "images/t3"):
        added = platform.tasks.add(task, FAILED, reason="jam")
        added.batch = PHOTOS if task == "default/t2" else ""
    platform.tasks.add("default/t4", RUNNING)
    return platform


def test_dead_letters_are_listed_and_shown(dead: MemoryPlatform, weft: Weft) -> None:
    _, *rows = weft("deadletter", "list").out.splitlines()
    assert [row.split() for row in rows] == [
        ["default/t2", "resize", "0", "default/photos", "jam"],
        ["default/t1", "resize", "0", "jam"],
    ]
    assert "jam" in weft("deadletter", "show", "images/t3").out
    assert weft("deadletter", "show", "t3").code == 3


@pytest.mark.parametrize(
    ("arguments", "count", "left"),
    [
        (["t1"], 1, ["default/t2"]),
        (["t1", "default/t2"], 2, []),
        (["--all"], 2, []),
        (["--all", "--queue", "images"], 1, ["default/t2", "default/t1"]),
        (["t3", "--queue", "images"], 1, ["default/t2", "default/t1"]),
        (["--batch", "photos"], 1, ["default/t1"]),
        (["--batch", "default/photos"], 1, ["default/t1"]),
        (["--batch", "photos", "--queue", "images"], 0, ["default/t2", "default/t1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
@pytest.mark.parametrize(
    ("verb", "done"), [(["redrive"], "redriven"), (["discard", "--yes"], "discarded")]
)
def test_dead_letters_are_decided_about_one_by_one_or_all(
    dead: MemoryPlatform,
    weft: Weft,
    verb: list[str],
    done: str,
    arguments: list[str],
    count: int,
    left: list[str],
) -> None:
    assert weft("deadletter", *verb, *arguments).out == f"{done}  {count}\n"
    rows = weft("deadletter", "list").out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == left


@pytest.mark.parametrize("verb", ["redrive", "discard"])
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["t1", "--all"],
        ["t1", "--batch", "b"],
        ["--all", "--batch", "b"],
        ["default/t1", "images/t3"],
    ],
)
def test_it_must_be_clear_which_dead_letters_are_meant(
    dead: MemoryPlatform, weft: Weft, verb: str, arguments: list[str]
) -> None:
    assert weft("deadletter", verb, *arguments, "-o", "json").code == 2
    assert len(weft("deadletter", "list", "-o", "json").data) == 2


def test_all_dead_letters_are_discarded_only_with_a_yes(dead: MemoryPlatform, weft: Weft) -> None:
    unsure = weft("deadletter", "discard", "--all")
    assert (unsure.code, "say --yes" in unsure.err) == (2, True)
    assert len(weft("deadletter", "list", "-o", "json").data) == 2
    assert weft("deadletter", "discard", "t1", "--reason", "known").code == 0
    assert "known" in weft("task", "show", "t1").out
