"""Which tasks a list shows, and which worker gets a task that prefers a zone."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.worker import WorkerTask
from tests.support.batches import Batches, items
from tests.support.platform import TENANT, platform
from tests.support.scheduling import Scheduling, spec
from weft.scheduler.v1 import queue_service_pb2 as queue_pb
from weft.scheduler.v1 import task_service_pb2 as pb
from weft.scheduler.v1 import tasks_pb2


@pytest.fixture(scope="module")
async def scheduling(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scheduling]:
    async with platform(tmp_path_factory.mktemp("choices") / "data") as running:
        yield Scheduling(running)


@pytest.fixture
async def queue(scheduling: Scheduling, request: pytest.FixtureRequest) -> Scheduling:
    """A queue of this test's own."""
    queue_id = f"q{abs(hash(request.node.name)) % 10**10}"
    await scheduling.queues.CreateQueue(
        queue_pb.CreateQueueRequest(parent=TENANT, queue_id=queue_id)
    )
    return Scheduling(scheduling.platform, f"{TENANT}/queues/{queue_id}")


async def listed(queue: Scheduling, **wanted: Any) -> list[str]:
    """Ids of the tasks that a list shows, in two pages."""
    found: list[str] = []
    token = ""
    while True:
        page = await queue.tasks.ListTasks(
            pb.ListTasksRequest(parent=queue.queue, page_size=2, page_token=token, **wanted)
        )
        found += [task.name.rpartition("/")[2] for task in page.tasks]
        token = page.next_page_token
        if not token:
            return found


async def test_tasks_are_listed_by_priority(queue: Scheduling) -> None:
    for number, priority in enumerate((0, 5, None, 9, 0, 0)):
        await queue.submit(spec(priority=priority), task_id=f"t{number}")
    assert await listed(queue, priority=9) == ["t3"]
    assert await listed(queue, priority=0) == ["t5", "t4", "t0"]
    assert await listed(queue, priority=5) == ["t2", "t1"]


async def test_tasks_are_listed_by_who_submitted_them(queue: Scheduling) -> None:
    task = await queue.submit(spec(), task_id="mine")
    creator = (await queue.get(task.name)).creator
    assert creator
    assert await listed(queue, creator=creator) == ["mine"]
    assert await listed(queue, creator=f"{TENANT}/apiKeys/somebody") == []


async def test_tasks_are_listed_by_their_batch(queue: Scheduling) -> None:
    batches = Batches(queue)
    await queue.submit(spec(), task_id="alone")
    await batches.submit("one", items([b"1", b"2", b"3"]))
    await batches.submit("two", items([b"4"]))
    assert len(await listed(queue, batch=batches.name("one"))) == 3
    assert len(await listed(queue, batch=batches.name("two"))) == 1
    for absent, code, said in (
        (batches.name("none"), "NOT_FOUND", f"no batch {batches.name('none')}"),
        (f"{TENANT}/queues/elsewhere/batches/one", "INVALID_ARGUMENT", "isn't of the queue"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await listed(queue, batch=absent)
        assert raised.value.code().name == code
        assert said in (raised.value.details() or "")


async def test_tasks_are_listed_by_when_they_were_accepted(queue: Scheduling) -> None:
    times: list[Timestamp] = []
    for name in ("first", "second", "third"):
        task = await queue.submit(spec(), task_id=name)
        times.append((await queue.get(task.name)).create_time)
    assert times[0].ToNanoseconds() < times[1].ToNanoseconds() < times[2].ToNanoseconds()
    assert await listed(queue, create_start_time=times[1]) == ["third", "second"]
    assert await listed(queue, create_end_time=times[1]) == ["first"]
    both = {"create_start_time": times[1], "create_end_time": times[2]}
    assert await listed(queue, **both) == ["second"]
    assert await listed(queue, **both, capability="other") == []


async def test_a_task_goes_to_the_zone_that_it_prefers_while_there_is_room(
    queue: Scheduling,
) -> None:
    go = asyncio.Event()
    ran: list[str] = []

    def handler(zone: str) -> Any:
        async def run(task: WorkerTask) -> None:
            ran.append(f"{task.payload.decode()} in {zone}")
            await go.wait()

        return run

    async with (
        queue.working({"echo": handler("north")}, zone="north", slots=9, worker_id="north"),
        queue.working({"echo": handler("south")}, zone="south", slots=2, worker_id="south"),
    ):
        # The one in the north is always the idler one.
        names = []
        for payload in (b"1", b"2", b"3"):
            task = await queue.submit(spec(payload=payload, preferred_zone="south"))
            await queue.until(task.name, lambda each: each.state == tasks_pb2.TASK_STATE_RUNNING)
            names.append(task.name)
        elsewhere = await queue.submit(spec(payload=b"4", preferred_zone="west"))
        names.append(elsewhere.name)
        await queue.until(elsewhere.name, lambda each: len(each.attempts) == 1)
        go.set()
        for name in names:
            await queue.done(name)
    assert sorted(ran) == ["1 in south", "2 in south", "3 in north", "4 in north"]
