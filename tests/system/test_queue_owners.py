"""Each queue has one owner among several instances: calls and workers come to it from all,
and whatever becomes of it, another goes on."""

import asyncio
import contextlib
import itertools
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from mesh.worker import WorkerTask
from services.scheduler.owners import owner_of
from tests.support.batches import Batches
from tests.support.nats import NatsServer, running_nats
from tests.support.platform import TENANT, Platform, one_process
from tests.support.scheduling import Echo, Scheduling, spec
from tests.support.task_log import ends_in_the_log
from weft.control.v1 import instances_pb2
from weft.control.v1 import registry_service_pb2 as registry_pb
from weft.control.v1.registry_service_pb2_grpc import RegistryServiceStub
from weft.scheduler.v1 import batches_pb2, queues_pb2, tasks_pb2, workers_pb2
from weft.scheduler.v1 import queue_service_pb2 as queue_pb
from weft.scheduler.v1 import task_service_pb2 as task_pb
from weft.scheduler.v1 import worker_service_pb2 as worker_pb

SETTINGS = {
    "WEFT_SCHEDULER_LEASE_SECONDS": "1",
    "WEFT_SCHEDULER_HEARTBEAT_SECONDS": "0.1",
    "WEFT_ZONE": "here",
}
SUCCEEDED = tasks_pb2.TASK_STATE_SUCCEEDED
RUNNING = tasks_pb2.TASK_STATE_RUNNING
TASKS = 200
SECONDS_MAX = 60.0
_numbers = itertools.count(1)


def name_of(weft: Platform) -> str:
    """The instance's name in the registry."""
    return f"instances/{weft.addresses['instance']}"


def owner(platforms: Sequence[Platform], queue_id: str) -> Platform:
    """Whose the queue is, where these take calls."""
    by_name = {name_of(each): each for each in platforms}
    found = owner_of(queue_id, by_name)
    assert found is not None
    return by_name[found]


def queue_of(weft: Platform, platforms: Sequence[Platform]) -> str:
    """Id of a queue of this test's own that the instance owns."""
    ids = (f"q{next(_numbers)}" for _ in range(1_000))
    return next(each for each in ids if owner(platforms, each) is weft)


async def made(queue_id: str, platforms: Sequence[Platform]) -> list[Scheduling]:
    """A new queue, as each instance has it."""
    several = [Scheduling(each, f"{TENANT}/queues/{queue_id}") for each in platforms]
    request = queue_pb.CreateQueueRequest(parent=TENANT, queue_id=queue_id)
    await several[0].queues.CreateQueue(request)
    return several


async def instances_of(weft: Platform) -> list[instances_pb2.Instance]:
    """The registry as an instance has it."""
    stub: Any = RegistryServiceStub(weft.open_channel)
    response: registry_pb.ListInstancesResponse = await stub.ListInstances(
        registry_pb.ListInstancesRequest(service="scheduler")
    )
    return list(response.instances)


async def know_each_other(platforms: Sequence[Platform]) -> None:
    """Returns once all know that all of these take calls, and nobody else does."""
    wanted = {name_of(each) for each in platforms}
    for weft in platforms:
        await _until(partial(_knows, weft, wanted))


async def _knows(weft: Platform, wanted: set[str]) -> bool:
    serving = instances_pb2.INSTANCE_STATE_SERVING
    return {each.name for each in await instances_of(weft) if each.state == serving} == wanted


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Returns once it holds; TimeoutError where it doesn't."""
    async with asyncio.timeout(SECONDS_MAX):
        while not await holds():  # noqa: ASYNC110 - it happens in other processes
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def instances(folder: Path, count: int) -> AsyncIterator[tuple[NatsServer, list[Platform]]]:
    """So many instances on one nats-server, which know each other."""
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(running_nats(folder))
        started = [
            stack.enter_async_context(one_process(folder / f"p{n}", NATS_URL=nats.url, **SETTINGS))
            for n in range(count)
        ]
        platforms = [await each for each in started]
        await know_each_other(platforms)
        yield nats, platforms


@pytest.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Platform]]:
    async with instances(tmp_path_factory.mktemp("owners"), 2) as (_, platforms):
        yield platforms


@pytest.fixture
async def two(pair: list[Platform]) -> list[Scheduling]:
    """A new queue: as its owner has it, and as the other instance does."""
    return await made(queue_of(pair[0], pair), pair)


class Held:
    """A handler whose tasks wait until they were seen to run."""

    def __init__(self) -> None:
        self._seen: dict[str, asyncio.Event] = {}

    async def __call__(self, task: WorkerTask) -> bytes:
        await self._seen.setdefault(task.name, asyncio.Event()).wait()
        return task.payload

    async def instance(self, scheduling: Scheduling, name: str) -> str:
        """Name of the instance that gave the task to its worker; the task then ends."""
        task = await scheduling.until(name, lambda each: each.state == RUNNING)
        self._seen.setdefault(name, asyncio.Event()).set()
        return f"instances/{task.attempts[-1].instance}"


async def submitted(scheduling: Scheduling, count: int) -> list[str]:
    """Names of so many new tasks, each submitted once."""
    slots = asyncio.Semaphore(16)

    async def one(number: int) -> str:
        async with slots:
            return (await scheduling.submit(spec(payload=b"%d" % number))).name

    return await asyncio.gather(*(one(number) for number in range(count)))


async def _has_run(echo: Echo) -> bool:
    return len(echo.ran) > TASKS // 3


async def all_done(scheduling: Scheduling, names: Sequence[str]) -> None:
    for name in names:
        assert (await scheduling.done(name)).state == SUCCEEDED


async def test_instances_are_in_the_registry_of_each(pair: list[Platform]) -> None:
    for weft in pair:
        for each in await instances_of(weft):
            assert each.target in {one.addresses["grpc"] for one in pair}
            assert (each.zone, each.weight) == ("here", 100)
            assert {"agents", "control", "gateway", "scheduler"} <= set(each.services)


async def test_what_comes_to_the_other_instance_is_the_owners(two: list[Scheduling]) -> None:
    mine, other = two
    held = Held()
    async with other.working({"held": held}):
        for scheduling in two:
            task = await scheduling.submit(spec("held", payload=b"x"))
            assert await held.instance(scheduling, task.name) == name_of(mine.platform)
            done = await other.done(task.name)
            assert (done.state, done.result) == (SUCCEEDED, b"x")


async def test_both_tell_the_same_of_a_queue(two: list[Scheduling]) -> None:
    async with two[1].working({"echo": Echo()}, slots=7):
        for scheduling in two:
            assert (await scheduling.stats()).workers == 1
            listed = await scheduling.queues.ListQueues(
                queue_pb.ListQueuesRequest(parent=TENANT, page_size=1000)
            )
            stats = {each.name: each.stats for each in listed.queues}[scheduling.queue]
            assert (stats.workers, stats.free_slots) == (1, 7)
            waiting = await scheduling.submit(spec("nobody-can"))
            found = await scheduling.get(waiting.name)
            assert found.state == tasks_pb2.TASK_STATE_UNSCHEDULABLE


async def test_both_list_the_workers_of_a_queue(two: list[Scheduling]) -> None:
    mine, other = two
    held = Held()
    fields = {"slots": 7, "zone": "north", "labels": {"gpu": "a100"}, "cpu_millis": 500}
    async with (
        mine.working({"echo": Echo()}, worker_id="w2"),
        other.working({"held": held, "echo": Echo()}, worker_id="w1", **fields),
    ):
        task = await other.submit(spec("held"))
        await other.until(task.name, lambda each: each.state == RUNNING)
        pages = []
        for scheduling in two:
            first, second = await _worker_pages(scheduling)
            assert (first.worker_id, second.worker_id) == ("w1", "w2")
            pages.append((first, second))
        assert pages[0] == pages[1]
        found = pages[0][0]
        assert found.queue == mine.queue
        assert found.instance == name_of(mine.platform)
        assert list(found.capabilities) == ["echo", "held"]
        assert {each.key: each.value for each in found.labels} == {"gpu": "a100", "zone": "north"}
        assert (found.resources.cpu_millis, found.zone, found.shared) == (500, "north", False)
        assert (found.slots, found.free_slots, found.running_tasks) == (7, 6, 1)
        assert found.attach_time.seconds >= task.create_time.seconds - 60
        await held.instance(other, task.name)
        await other.done(task.name)
    with pytest.raises(grpc.aio.AioRpcError) as absent:
        await other.workers.ListWorkers(worker_pb.ListWorkersRequest(parent=f"{other.queue}x"))
    assert absent.value.code() == grpc.StatusCode.NOT_FOUND


async def _worker_pages(scheduling: Scheduling) -> list[workers_pb2.Worker]:
    """The workers of a queue, from a page each."""
    found: list[workers_pb2.Worker] = []
    request = worker_pb.ListWorkersRequest(parent=scheduling.queue, page_size=1)
    while True:
        page = await scheduling.workers.ListWorkers(request)
        assert len(page.workers) == 1
        found.extend(page.workers)
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


async def test_a_watch_shows_progress_at_any_instance(two: list[Scheduling]) -> None:
    """How far a task is only the owner knows, who has its worker."""
    other = two[1]
    go = asyncio.Event()

    async def half(task: WorkerTask) -> bytes:
        task.progress(0.5, "half")
        await go.wait()
        return b"done"

    async with other.working({"half": half}):
        task = await other.submit(spec("half"))
        told = []
        watch = other.tasks.WatchTask(task_pb.WatchTaskRequest(name=task.name), timeout=SECONDS_MAX)
        async for message in watch:
            told.append(message.task)
            if message.task.progress == 0.5:
                go.set()
    assert ("half", 0.5) in [(each.progress_note, each.progress) for each in told]
    assert (told[-1].state, told[-1].result) == (SUCCEEDED, b"done")


async def test_a_watch_goes_on_where_it_is_when_the_owner_is_killed(tmp_path: Path) -> None:
    async with instances(tmp_path, 2) as (_, platforms):
        other = (await made(queue_of(platforms[0], platforms), platforms))[1]
        go = asyncio.Event()

        async def half(task: WorkerTask) -> bytes:
            task.progress(0.5)
            await go.wait()
            return b"done"

        async with other.working({"half": half}):
            task = await other.submit(spec("half"))
            watch = other.tasks.WatchTask(
                task_pb.WatchTaskRequest(name=task.name), timeout=SECONDS_MAX
            )
            async for message in watch:
                if message.task.progress == 0.5 and not go.is_set():
                    await platforms[0].kill()
                    go.set()
            assert (message.task.state, message.task.result) == (SUCCEEDED, b"done")


async def test_who_writes_at_one_instance_reads_it_there(two: list[Scheduling]) -> None:
    other = two[1]
    for number in range(20):
        task = await other.submit(spec(payload=b"%d" % number))
        assert (await other.get(task.name)).spec.payload == b"%d" % number
        cancel = task_pb.CancelTaskRequest(name=task.name)
        assert (await other.tasks.CancelTask(cancel)).task.name == task.name
        assert (await other.done(task.name)).state == tasks_pb2.TASK_STATE_CANCELLED


async def test_the_owners_errors_come_through_as_they_are(two: list[Scheduling]) -> None:
    update = queue_pb.UpdateQueueRequest(
        name=two[1].queue, limits=queues_pb2.QueueLimits(open_tasks_max=1, capabilities=["echo"])
    )
    await two[1].queues.UpdateQueue(update)
    await two[1].submit(spec(), task_id="first")
    said = []
    for scheduling in two:
        for wanted in (spec("other"), spec()):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await scheduling.submit(wanted, request_id=f"r-{wanted.capability}")
            error = refused.value
            details: list[Any] = [
                v for k, v in error.trailing_metadata() or () if k.endswith("details-bin")
            ]
            said.append((error.code(), error.details(), b"ErrorInfo" in details[0]))
    assert said[:2] == said[2:]
    assert [code for code, *_ in said[:2]] == [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ]


async def test_nobody_gets_turns_by_another_instance(pair: list[Platform]) -> None:
    turns = [Scheduling(each, f"{TENANT}/queues/turns") for each in pair]
    plain = [Scheduling(each) for each in pair]
    for ours, default in zip(turns, plain, strict=True):
        for scheduling, capability in ((ours, "other"), (default, "agent-turn")):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await scheduling.submit(spec(capability))
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            item = batches_pb2.BatchItem(spec=spec(capability))
            answer = await Batches(scheduling).submit(f"b{next(_numbers)}", [item])
            assert [each.code for each in answer.errors] == [3]
        hello = worker_pb.WorkerHello(capabilities=["agent-turn"], slots=1)
        stream = ours.workers.AttachShared()
        await stream.write(worker_pb.AttachSharedRequest(queue_id="turns", hello=hello))
        assert await stream.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_a_worker_that_says_wrong_things_hears_so_from_where_it_is(
    two: list[Scheduling],
) -> None:
    other = two[1]
    stream = other.workers.Attach()
    hello = worker_pb.WorkerHello(capabilities=["echo"], slots=1)
    slots = worker_pb.WorkerSlots(slots=1)
    await stream.write(worker_pb.AttachRequest(queue=other.queue, hello=hello))
    assert (await stream.read()).HasField("welcome")
    await stream.write(worker_pb.AttachRequest(queue=f"{other.queue}x", slots=slots))
    assert await stream.code() == grpc.StatusCode.INVALID_ARGUMENT
    stream = other.workers.Attach()
    await stream.write(worker_pb.AttachRequest(queue=other.queue, hello=hello))
    assert (await stream.read()).HasField("welcome")
    await stream.write(worker_pb.AttachRequest(queue="tenants/other/queues/q", slots=slots))
    assert await stream.code() == grpc.StatusCode.NOT_FOUND


async def test_a_worker_that_leaves_the_other_instance_leaves_the_owner(
    two: list[Scheduling],
) -> None:
    async with two[1].working({"echo": Echo()}):
        assert (await two[0].stats()).workers == 1

    async def has_none() -> bool:
        return (await two[0].stats()).workers == 0

    await _until(has_none)


@pytest.mark.parametrize("how", ["killed", "drained"])
async def test_when_the_owner_goes_under_load_the_others_go_on(tmp_path: Path, how: str) -> None:
    """Callers at the others hear of nothing, and each task ends once."""
    async with instances(tmp_path, 3) as (_, platforms):
        going, left = platforms[0], platforms[1:]
        several = await made(queue_of(going, platforms), platforms)
        echo, held = Echo(), Held()
        handlers: Any = {"echo": echo, "held": held}
        async with (
            several[1].working(handlers, worker_id="one", slots=16),
            several[2].working(handlers, worker_id="two", slots=16),
        ):
            load = [asyncio.create_task(submitted(each, TASKS)) for each in several[1:]]
            await _until(partial(_has_run, echo))
            if how == "killed":
                await going.kill()
            else:
                assert await going.stop() == 0
            names = [name for each in load for name in await each]
            await all_done(several[1], names)
            await know_each_other(left)
            last = (await several[2].submit(spec("held"))).name
            heir = owner(left, several[1].queue.rpartition("/")[2])
            assert await held.instance(several[1], last) == name_of(heir)
            assert (await several[2].done(last)).state == SUCCEEDED
        ends = await ends_in_the_log(left[0])
    assert ends == Counter(name.rpartition("/")[2] for name in (*names, last))


async def test_a_stopped_owner_is_gone_until_it_wakes(tmp_path: Path) -> None:
    """What it was asked and didn't answer is answered by the other; what it then does
    late, the log refuses."""
    async with instances(tmp_path, 2) as (_, platforms):
        several = await made(queue_of(platforms[0], platforms), platforms)
        other = several[1]
        async with other.working({"echo": Echo()}, slots=8):
            names = await submitted(other, 20)
            platforms[0].signal(signal.SIGSTOP)
            names += await submitted(other, TASKS)
            await all_done(other, names)
            platforms[0].signal(signal.SIGCONT)
            names += await submitted(other, TASKS)
            await know_each_other(platforms)
            names += await submitted(other, 20)
            await all_done(other, names)
        ends = await ends_in_the_log(platforms[1])
    assert ends == Counter(name.rpartition("/")[2] for name in names)


async def test_an_instance_that_joins_gets_its_queues_with_their_workers(tmp_path: Path) -> None:
    """Tasks that run keep their attempt, wherever their worker is attached."""
    held = Held()
    async with instances(tmp_path, 1) as (nats, platforms), AsyncExitStack() as stack:
        queues = [(await made(f"q{next(_numbers)}", platforms))[0] for _ in range(6)]
        for each in queues:
            await stack.enter_async_context(each.working({"held": held}, slots=4, worker_id="w"))
        running = [(await each.submit(spec("held", b"h"))).name for each in queues]
        for each, name in zip(queues, running, strict=True):
            await each.until(name, lambda task: task.state == RUNNING)
        joined = await stack.enter_async_context(
            one_process(tmp_path / "joined", NATS_URL=nats.url, **SETTINGS)
        )
        platforms.append(joined)
        await know_each_other(platforms)
        names = []
        for each in queues:
            wanted = owner(platforms, each.queue.rpartition("/")[2])
            names.append((await each.submit(spec("held"))).name)
            while await held.instance(each, names[-1]) != name_of(wanted):
                # What was given away just before was the former owner's.
                names.append((await each.submit(spec("held"))).name)
            await all_done(each, names)
        for each, name in zip(queues, running, strict=True):
            await held.instance(each, name)
            done = await each.done(name)
            assert (done.state, len(done.attempts)) == (SUCCEEDED, 1)
        ends = await ends_in_the_log(joined)
    assert ends == Counter(name.rpartition("/")[2] for name in (*running, *names))
