"""Which worker a module has, and as whom it is attached to what."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mesh.cli.failures import CommandFailed
from mesh.cli.worker_module import find_worker
from tests.support.command_line import Ran, Weft, command_line, environment_for
from tests.support.memory_access import new_secret
from tests.support.memory_platform import MemoryPlatform
from weft.scheduler.v1 import tasks_pb2, workers_pb2

WORKER = 'from mesh.worker import Worker\nworker = other = Worker("images")\n'
WITH_TASK = f'{WORKER}@worker.task("crop")\nasync def crop(task):\n    return b""\n'

RunWorker = Callable[..., Ran]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, whose module `shop` is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


@pytest.fixture
def run_worker(platform: MemoryPlatform, folder: Path) -> RunWorker:
    """`weft worker run shop`, in a process of its own since it changes how all logs go."""
    (folder / "shop.py").write_text(WITH_TASK)

    def run(*arguments: str, **environment: str) -> Ran:
        finished = subprocess.run(
            command_line("worker", "run", "shop", *arguments),
            env=environment_for(platform.address, **environment),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in finished.stderr
        return Ran(finished.returncode, finished.stdout, finished.stderr)

    return run


@pytest.mark.parametrize(
    ("source", "named", "code", "said"),
    [
        (None, "shop", 2, "there is no module shop"),
        (None, "shop.images", 2, "there is no module shop"),
        ("", "shop.images", 2, "there is no module shop.images"),
        ("", "shop.py", 2, "'shop.py' is no module"),
        ("", "./shop", 2, "'./shop' is no module"),
        ("", "shop:", 2, "'shop:' is no module"),
        ("", "shop", 2, "module shop has no worker"),
        ("", "shop:worker", 2, "shop:worker is not there"),
        ("worker = 7", "shop:worker", 2, "shop:worker is no worker"),
        ("import nonsuch", "shop", 1, "module shop can't be imported: ModuleNotFoundError: "),
        ("import shop.x.y", "shop", 1, "module shop can't be imported: ModuleNotFoundError: "),
        ("x = 1\n1 / 0", "shop", 1, "module shop can't be imported: ZeroDivisionError: "),
        ("def", "shop", 1, "module shop can't be imported: SyntaxError: "),
        (f"{WORKER}second = Worker('b')", "shop", 2, "module shop has 2 workers; name one of them"),
    ],
)
def test_it_is_said_what_is_wrong_with_the_module(
    folder: Path, source: str | None, named: str, code: int, said: str
) -> None:
    if source is not None:
        (folder / "shop.py").write_text(source)
    with pytest.raises(CommandFailed) as failed:
        find_worker(named)
    assert failed.value.exit_code == code
    assert failed.value.message.startswith(said)


def test_of_several_workers_each_is_offered(folder: Path) -> None:
    (folder / "shop.py").write_text(f"{WORKER}second = Worker('b')")
    with pytest.raises(CommandFailed) as failed:
        find_worker("shop")
    assert failed.value.notes == ("weft worker run shop:worker", "weft worker run shop:second")


def test_the_place_of_a_modules_error_is_told(folder: Path) -> None:
    (folder / "shop.py").write_text("x = 1\n1 / 0")
    with pytest.raises(CommandFailed) as failed:
        find_worker("shop")
    assert failed.value.notes == (f"{folder / 'shop.py'}:2: 1 / 0",)


@pytest.mark.parametrize(
    ("source", "named", "queue"),
    [
        (WORKER, "shop.images", "images"),
        (WORKER, "shop.images:other", "images"),
        (f"{WORKER}second = Worker('b')", "shop.images:second", "b"),
    ],
)
def test_the_worker_of_a_module_in_the_current_folder_is_found(
    folder: Path, source: str, named: str, queue: str
) -> None:
    (folder / "shop").mkdir()
    (folder / "shop" / "images.py").write_text(source)
    assert find_worker(named).queue == queue


@pytest.mark.parametrize(
    ("options", "queue", "worker_id", "slots"),
    [
        (["--queue", "default", "--id", "w1", "--slots", "7"], "default", "w1", 7),
        (["--queue", "tenants/default/queues/default"], "default", "", 4),
        ([], "images", "", 4),
    ],
    ids=["named", "in-full", "the-modules-own"],
)
def test_a_worker_is_attached_with_the_commands_access(
    platform: MemoryPlatform,
    run_worker: RunWorker,
    options: list[str],
    queue: str,
    worker_id: str,
    slots: int,
) -> None:
    platform.tasks.make_queue("tenants/default/queues/images")
    platform.access.demands = True
    key = platform.access.add_key("tenants/default/apiKeys/ci")
    ran = run_worker(*options, "--timeout", "2", WEFT_API_KEY=key)
    assert ran.code == 124
    assert f"is attached to {platform.address}: queue {queue}, {slots} slots." in ran.err
    assert key not in ran.err + ran.out
    hello = platform.tasks.hellos[0]
    assert hello.queue == f"tenants/default/queues/{queue}"
    assert hello.hello.capabilities == ["crop"]
    assert worker_id in ("", hello.hello.worker_id)
    assert ("Attach", f"Bearer {key}") in platform.access.authorizations


def test_a_worker_says_of_itself_what_was_typed(
    platform: MemoryPlatform, run_worker: RunWorker
) -> None:
    ran = run_worker(
        *("--queue", "default", "--label", "gpu=a100", "--label", "disk=", "--zone", "north"),
        *("--cpu", "1500m", "--memory", "8GiB", "--timeout", "2"),
    )
    assert ran.code == 124
    hello = platform.tasks.hellos[0].hello
    assert [(label.key, label.value) for label in hello.labels] == [("gpu", "a100"), ("disk", "")]
    assert hello.zone == "north"
    assert (hello.resources.cpu_millis, hello.resources.memory_bytes) == (1_500, 8 * 1024**3)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--cpu", "many"], 2, "--cpu: 'many' isn't a number of processors"),
        (["--label", "gpu"], 2, "--label: 'gpu' isn't a label"),
        (["--address", "127.0.0.1:1"], 5, "can't reach Weft at 127.0.0.1:1"),
        (["--queue", "missing"], 3, "no queue tenants/default/queues/missing"),
        (["--queue", "No Queue"], 2, "'No Queue' is no queue name"),
        (["--slots", "0"], 2, "'--slots'"),
    ],
    ids=["no-processors", "no-label", "no-server", "no-queue", "no-name", "no-slots"],
)
def test_what_keeps_a_worker_from_its_queue_is_told(
    run_worker: RunWorker, options: list[str], code: int, said: str
) -> None:
    ran = run_worker(*options)
    assert (ran.code, said in ran.err) == (code, True)


def test_a_worker_without_a_task_is_told(folder: Path, run_worker: RunWorker) -> None:
    (folder / "shop.py").write_text(WORKER)
    ran = run_worker()
    assert (ran.code, ran.err) == (2, "weft: a worker needs a task\n")


def test_a_worker_needs_a_key_that_is_let_in(
    platform: MemoryPlatform, run_worker: RunWorker
) -> None:
    platform.access.demands = True
    assert run_worker("--queue", "tenants/default/queues/default").code == 4
    other = new_secret()
    ran = run_worker(WEFT_API_KEY=other)
    assert (ran.code, other in ran.err) == (4, False)


def test_a_key_isnt_sent_where_others_could_read_it(run_worker: RunWorker) -> None:
    ran = run_worker("--address", "192.0.2.1:50051", WEFT_API_KEY=new_secret())
    assert (ran.code, "that connection isn't encrypted" in ran.err) == (4, True)


def test_attached_workers_are_listed_of_all_queues_or_one(
    platform: MemoryPlatform, weft: Weft
) -> None:
    queues = [f"tenants/default/queues/{each}" for each in ("default", "images", "turns")]
    platform.tasks.make_queue(queues[1])
    platform.tasks.workers += [
        workers_pb2.Worker(
            worker_id=f"w{number}",
            queue=queue,
            capabilities=["crop", "resize"],
            labels=[tasks_pb2.Label(key="gpu", value="a100")],
            resources=tasks_pb2.Resources(cpu_millis=500),
            slots=8,
            free_slots=5,
            running_tasks=3,
            load=0.25,
            shared=number == 2,
            instance="instances/i1",
        )
        for number, queue in enumerate(queues)
    ]
    _, default, images, turns = weft("worker", "list").out.splitlines()
    assert default.split()[:2] == ["w0", "default"]
    shown = ["w1", "images", "crop", "resize", "gpu=a100", "8", "5", "3", "25%", "0.5"]
    assert images.split()[: len(shown)] == shown
    assert (images.split()[-1], "all" in images, "all" in turns) == ("i1", False, True)
    one = weft("worker", "list", "--queue", "images", "-o", "json").data
    assert [each["worker_id"] for each in one] == ["w1"]
    few = weft("worker", "list", "--limit", "2")
    assert len(few.out.splitlines()) == 3
    assert "--limit shows more than 2" in few.err
    assert weft("worker", "list", "--queue", "none").code == 3
