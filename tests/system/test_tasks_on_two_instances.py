"""Tasks of one queue with two instances on one nats-server: either takes and gives them, and
when one is killed the other goes on."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from mesh.worker import WorkerTask
from tests.support.platform import SPLIT, TENANT, Platform, two_instances
from tests.support.scheduling import Echo, Scheduling, spec
from tests.support.task_log import ends_in_the_log
from weft.scheduler.v1 import queue_service_pb2 as queue_pb
from weft.scheduler.v1 import task_service_pb2 as task_pb
from weft.scheduler.v1 import tasks_pb2
from weft.scheduler.v1 import worker_service_pb2 as worker_pb

# Fourteen processes on two cores can be still for a second.
LEASE_SECONDS = 5 if SPLIT else 1
SETTINGS = {
    "WEFT_SCHEDULER_LEASE_SECONDS": str(LEASE_SECONDS),
    "WEFT_SCHEDULER_HEARTBEAT_SECONDS": "0.1",
}
SUCCEEDED = tasks_pb2.TASK_STATE_SUCCEEDED
CANCELLED = tasks_pb2.TASK_STATE_CANCELLED
RUNNING = tasks_pb2.TASK_STATE_RUNNING
TASKS = 300
HELD = 8
SECONDS_MAX = 60.0
Pair = tuple[Scheduling, Scheduling]
Handlers = dict[str, Callable[[WorkerTask], Any]]


@pytest.fixture(scope="module")
async def platforms(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Platform, Platform]]:
    async with two_instances(tmp_path_factory.mktemp("tasks"), **SETTINGS) as running:
        yield running


@pytest.fixture
async def pair(platforms: tuple[Platform, Platform], request: pytest.FixtureRequest) -> Pair:
    """A queue of this test's own, as each instance has it."""
    queue_id = f"q{abs(hash(request.node.name)) % 10**10}"
    one, other = (Scheduling(each, f"{TENANT}/queues/{queue_id}") for each in platforms)
    await one.queues.CreateQueue(queue_pb.CreateQueueRequest(parent=TENANT, queue_id=queue_id))
    return one, other


def address_of(*pair: Scheduling) -> str:
    """Of several instances: whoever connects takes the first one that answers."""
    return "ipv4:" + ",".join(each.platform.addresses["grpc"] for each in pair)


async def surely_submitted(pair: Pair, number: int) -> str:
    """Name of a task that one of them accepted, whoever is there."""
    wanted = spec(payload=b"%d" % number)
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            for scheduling in (pair[number % 2], pair[1 - number % 2]):
                if scheduling.platform.channel is None:
                    continue
                with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.UsageError):
                    return (await scheduling.submit(wanted, request_id=f"r{number}")).name
            await asyncio.sleep(0.02)


async def test_what_one_takes_a_worker_of_the_other_runs(pair: Pair) -> None:
    one, other = pair
    async with other.working({"echo": Echo()}):
        task = await one.submit(spec(payload=b"hello"))
        done = await one.done(task.name)
    assert (done.state, done.result) == (SUCCEEDED, b"hello")
    assert (await other.get(task.name)).state == SUCCEEDED


async def test_a_request_that_comes_to_both_is_one_task(pair: Pair) -> None:
    racing = await asyncio.gather(
        *(pair[n % 2].submit(spec(payload=b"x"), request_id="r") for n in range(20))
    )
    assert len({task.name for task in racing}) == 1


async def test_both_give_each_task_once(pair: Pair) -> None:
    ran = [Echo(), Echo()]
    # Both are the owner's, where two of one id would be one.
    async with (
        pair[0].working({"echo": ran[0]}, worker_id="one"),
        pair[1].working({"echo": ran[1]}, worker_id="two"),
    ):
        names = await asyncio.gather(*(surely_submitted(pair, n) for n in range(TASKS)))
        for name in names:
            assert (await pair[0].done(name)).state == SUCCEEDED
    assert Counter(ran[0].ran + ran[1].ran) == Counter((name, 1) for name in names)
    assert all(each.ran for each in ran)


async def test_cancelling_at_one_reaches_a_handler_of_the_other(pair: Pair) -> None:
    one, other = pair

    async def slow(task: WorkerTask) -> None:
        await asyncio.sleep(60)

    async with other.working({"echo": slow}):
        task = await one.submit(spec())
        await one.until(task.name, lambda each: each.state == RUNNING)
        await one.tasks.CancelTask(task_pb.CancelTaskRequest(name=task.name, reason="enough"))
        assert (await one.done(task.name)).state == CANCELLED


async def test_the_other_knows_at_once_what_one_has_stored(pair: Pair) -> None:
    one, other = pair
    for _ in range(20):
        task = await one.submit(spec())
        assert (await other.get(task.name)).name == task.name
        cancel = task_pb.CancelTaskRequest(name=(await one.submit(spec())).name)
        assert (await other.tasks.CancelTask(cancel)).task.state == CANCELLED


async def test_when_one_is_killed_its_workers_go_on_at_the_other(tmp_path: Path) -> None:
    """Under load, and with tasks that run: those keep their attempt."""
    go_on = asyncio.Event()

    async def held(task: WorkerTask) -> bytes:
        await go_on.wait()
        return task.payload

    echo = Echo()
    async with two_instances(tmp_path, **SETTINGS) as platforms:
        pair = (Scheduling(platforms[0]), Scheduling(platforms[1]))
        handlers: Handlers = {"echo": echo, "held": held}
        first, second = address_of(*pair), address_of(*reversed(pair))
        async with (
            pair[0].working(handlers, worker_id="one", address=first, slots=2 * HELD),
            pair[1].working(handlers, worker_id="two", address=second, slots=2 * HELD),
        ):
            running = [(await pair[0].submit(spec("held", b"h"))).name for _ in range(HELD)]
            for name in running:
                await pair[1].until(name, lambda each: each.state == RUNNING)
            load = [asyncio.create_task(surely_submitted(pair, n)) for n in range(TASKS)]
            await load[TASKS // 3]
            await pair[0].platform.kill()
            names = await asyncio.gather(*load)
            for name in names:
                assert (await pair[1].done(name)).state == SUCCEEDED
            go_on.set()
            for name in running:
                done = await pair[1].done(name)
                assert (done.state, len(done.attempts)) == (SUCCEEDED, 1)
        ends = await ends_in_the_log(platforms[1])
    assert ends == Counter(name.rpartition("/")[2] for name in (*names, *running))


async def test_when_one_is_killed_with_its_workers_the_other_runs_their_tasks_again(
    tmp_path: Path,
) -> None:
    async def never(task: WorkerTask) -> None:
        await asyncio.sleep(600)

    async with two_instances(tmp_path, **SETTINGS) as platforms:
        pair = (Scheduling(platforms[0]), Scheduling(platforms[1]))
        async with pair[0].working({"echo": never}, worker_id="one", slots=HELD) as lost:
            names = [(await pair[0].submit(spec(payload=b"x"))).name for _ in range(HELD)]
            for name in names:
                await pair[1].until(name, lambda each: each.state == RUNNING)
            await pair[0].platform.kill()
            # It isn't heard of again, as if it had died too.
            assert lost.address == pair[0].platform.addresses["grpc"]
            async with pair[1].working({"echo": Echo()}, worker_id="two"):
                for name in names:
                    done = await pair[1].done(name)
                    assert [each.worker for each in done.attempts] == ["one", "two"]
                    assert (done.state, done.result) == (SUCCEEDED, b"x")
        ends = await ends_in_the_log(platforms[1])
    assert ends == Counter(name.rpartition("/")[2] for name in names)


async def test_a_worker_that_goes_on_at_the_other_instance_keeps_its_task(pair: Pair) -> None:
    one, other = pair
    hello = worker_pb.WorkerHello(capabilities=["echo"], slots=1, worker_id=f"w-{one.queue[-5:]}")
    stream = one.workers.Attach()
    await stream.write(worker_pb.AttachRequest(queue=one.queue, hello=hello))
    await stream.read()
    task = await one.submit(spec(payload=b"x"))
    assert (await stream.read()).assignment.task == task.name
    stream.cancel()
    hello.running.add(task=task.name, attempt=1)
    again = other.workers.Attach()
    await again.write(worker_pb.AttachRequest(queue=one.queue, hello=hello))
    assert not (await again.read()).welcome.lost
    # Longer than the lease, after which the first would take it for lost.
    for _ in range(25 * LEASE_SECONDS):
        await asyncio.sleep(0.1)
        beat = worker_pb.WorkerHeartbeat()
        await again.write(worker_pb.AttachRequest(queue=one.queue, heartbeat=beat))
    done = worker_pb.WorkerSucceeded(task=task.name, attempt=1, result=b"went on")
    await again.write(worker_pb.AttachRequest(queue=one.queue, succeeded=done))
    assert not (await again.read()).recorded.stale
    again.cancel()
    # The other has stored it; here it is seen as soon as the log is followed that far.
    found = await one.done(task.name)
    assert (found.state, found.result, len(found.attempts)) == (SUCCEEDED, b"went on", 1)
