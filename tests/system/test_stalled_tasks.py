"""Tasks that have stalled: how they are found, told, and ended by an operator."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.message import Message

from mesh.ids import new_id
from mesh.worker import WorkerTask
from tests.support.keyed import KeyedChannel
from tests.support.platform import TENANT, Platform, platform
from tests.support.scheduling import Echo, Scheduling, spec
from tests.support.weft_up import weft
from weft.auth.v1 import api_key_service_pb2
from weft.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from weft.scheduler.v1 import events_pb2 as facts
from weft.scheduler.v1 import queue_service_pb2 as queue_pb
from weft.scheduler.v1 import task_service_pb2 as task_pb
from weft.scheduler.v1 import tasks_pb2
from weft.scheduler.v1.task_service_pb2_grpc import TaskServiceStub
from weft.state.v1 import state_service_pb2

QUEUED_SECONDS = 0.5
RUNNING_SECONDS = 0.4
SETTINGS = {
    "WEFT_SCHEDULER_LEASE_SECONDS": "1",
    "WEFT_SCHEDULER_HEARTBEAT_SECONDS": "0.05",
    "WEFT_SCHEDULER_STALLED_QUEUED_SECONDS": str(QUEUED_SECONDS),
    "WEFT_SCHEDULER_STALLED_RUNNING_SECONDS": str(RUNNING_SECONDS),
}
FAILED = tasks_pb2.TASK_STATE_FAILED
CANCELLED = tasks_pb2.TASK_STATE_CANCELLED
RUNNING = tasks_pb2.TASK_STATE_RUNNING


@pytest.fixture(scope="module")
async def scheduling(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scheduling]:
    folder = tmp_path_factory.mktemp("stalled") / "data"
    async with platform(folder, **SETTINGS) as running:
        yield Scheduling(running)


@pytest.fixture
async def queue(scheduling: Scheduling) -> Scheduling:
    """A queue of this test's own."""
    return await made_queue(scheduling.platform)


async def made_queue(running: Platform) -> Scheduling:
    queue_id = f"q{new_id()}"
    made = Scheduling(running, f"{TENANT}/queues/{queue_id}")
    await made.queues.CreateQueue(queue_pb.CreateQueueRequest(parent=TENANT, queue_id=queue_id))
    return made


async def stalled(queue: Scheduling, name: str) -> tasks_pb2.Task:
    """The task once it has stalled."""
    return await queue.until(name, lambda task: task.HasField("stalled_time"))


async def listed(queue: Scheduling) -> list[str]:
    request = task_pb.ListTasksRequest(parent=queue.queue, stalled=True)
    return [task.name for task in (await queue.tasks.ListTasks(request)).tasks]


async def told(queue: Scheduling, kind: type[Message], task: str) -> list[Any]:
    """The facts of that kind of a task, as who watches all events of the tenant sees them."""
    # A last event behind what is looked for.
    marker = await queue.submit(spec("marker"))
    request = state_service_pb2.WatchEventsRequest(
        name=TENANT,
        types=[kind.DESCRIPTOR.full_name, facts.TaskSubmitted.DESCRIPTOR.full_name],
        after_position=0,
    )
    found = []
    async for response in queue.platform.state.WatchEvents(request, timeout=30):
        packed = response.event.payload
        if packed.Is(facts.TaskSubmitted.DESCRIPTOR):
            submitted = facts.TaskSubmitted.FromString(packed.value)
            if submitted.task == marker.name.rpartition("/")[2]:
                break
        else:
            fact: Any = kind.FromString(packed.value)
            if fact.task == task.rpartition("/")[2]:
                found.append(fact)
    return found


async def refused(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code()


class Deaf:
    """A handler that says nothing and doesn't end when it is told to, until it may."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.told_to_end = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, task: WorkerTask) -> bytes:
        while not self.may_end.is_set():
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                self.told_to_end.set()
        self.ended.set()
        return b"late"


async def test_a_handler_that_hangs_is_found_and_failed_and_its_result_is_stale(
    queue: Scheduling,
) -> None:
    deaf = Deaf()
    async with queue.working({"echo": deaf}, worker_id="deaf") as worker:
        task = await queue.submit(spec())
        found = await stalled(queue, task.name)
        assert found.state == RUNNING
        assert "deaf" in found.stalled_reason
        assert await listed(queue) == [task.name]
        assert (await queue.stats()).stalled == 1
        (fact,) = await told(queue, facts.TaskStalled, task.name)
        assert (fact.attempt, fact.reason) == (1, found.stalled_reason)
        assert fact.idle.ToNanoseconds() >= RUNNING_SECONDS * 1e9
        request = task_pb.FailTaskRequest(name=task.name, reason="hangs")
        failed = (await queue.tasks.FailTask(request)).task
        assert (failed.state, failed.reason, len(failed.attempts)) == (FAILED, "hangs", 1)
        assert not failed.HasField("stalled_time")
        await asyncio.wait_for(deaf.told_to_end.wait(), 10)
        deaf.may_end.set()
        await asyncio.wait_for(deaf.ended.wait(), 10)
        while worker._running:  # noqa: ASYNC110 - pytest bounds it
            await asyncio.sleep(0.01)
        assert (await queue.get(task.name)).state == FAILED
        assert (await queue.tasks.FailTask(request)).task == await queue.get(task.name)
        assert await refused(queue.tasks.SkipTask(task_pb.SkipTaskRequest(name=task.name))) is (
            grpc.StatusCode.FAILED_PRECONDITION
        )
        assert (await queue.stats()).dead_letters == 1
        assert await listed(queue) == []


async def test_what_has_stalled_is_told_by_the_doctor_and_among_the_events(
    queue: Scheduling,
) -> None:
    task = await queue.submit(spec("resize"))
    await stalled(queue, task.name)
    address = queue.platform.addresses["grpc"]
    name = "/".join(task.name.split("/")[3::2])

    async def ran(*arguments: str) -> str:
        found = await asyncio.to_thread(weft, "--address", address, *arguments)
        assert found.code == 0, found.err
        return found.out

    said = await ran("doctor")
    assert f"{name}: unschedulable: no worker is attached; `weft task show {name}`" in said
    events = await ran("events", "tail", "--all", "--type", "TaskStalled", "-n", "1")
    assert "TaskStalled" in events
    assert name in await ran("task", "list", "--queue", name.partition("/")[0], "--stalled")
    assert "cancelled" in await ran("task", "skip", name, "--reason", "nobody resizes")
    assert name not in await ran("doctor")


async def test_a_skipped_task_is_over_at_once_and_its_worker_told(queue: Scheduling) -> None:
    deaf = Deaf()
    async with queue.working({"echo": deaf}):
        task = await queue.submit(spec())
        await queue.until(task.name, lambda each: each.state == RUNNING)
        request = task_pb.SkipTaskRequest(name=task.name, reason="not worth it")
        skipped = (await queue.tasks.SkipTask(request)).task
        assert (skipped.state, skipped.reason) == (CANCELLED, "not worth it")
        assert skipped.attempts[0].HasField("end_time")
        await asyncio.wait_for(deaf.told_to_end.wait(), 10)
        deaf.may_end.set()
        assert (await queue.tasks.SkipTask(request)).task.state == CANCELLED
        done = await queue.done((await queue.submit(spec())).name)
        assert done.result == b"late", "the worker is of use again"
        for call in (
            queue.tasks.SkipTask(task_pb.SkipTaskRequest(name=done.name)),
            queue.tasks.FailTask(task_pb.FailTaskRequest(name=done.name)),
        ):
            assert await refused(call) is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_task_that_waits_too_long_says_for_what(queue: Scheduling) -> None:
    waits = await queue.submit(spec("resize"))
    assert (await stalled(queue, waits.name)).stalled_reason == (
        "unschedulable: no worker is attached"
    )
    deaf = Deaf()
    async with queue.working({"echo": deaf}, slots=1):
        running = await queue.submit(spec())
        await queue.until(running.name, lambda each: each.state == RUNNING)
        behind = await queue.submit(spec())
        assert "busy" in (await stalled(queue, behind.name)).stalled_reason
        await queue.tasks.SkipTask(task_pb.SkipTaskRequest(name=waits.name))
        failed = (await queue.tasks.FailTask(task_pb.FailTaskRequest(name=behind.name))).task
        assert (failed.state, len(failed.attempts)) == (FAILED, 0)
        assert "failed by tenants/default/apiKeys/" in failed.reason
        deaf.may_end.set()
        await queue.done(running.name)


async def test_progress_ends_a_stall_and_the_next_one_is_told_again(queue: Scheduling) -> None:
    go_on, end = asyncio.Event(), asyncio.Event()

    async def halting(task: WorkerTask) -> None:
        await go_on.wait()
        task.progress(0.5, "half of it")
        await end.wait()

    async with queue.working({"echo": halting}):
        task = await queue.submit(spec())
        await stalled(queue, task.name)
        go_on.set()
        await queue.until(task.name, lambda each: each.progress > 0)
        await queue.until(task.name, lambda each: not each.HasField("stalled_time"))
        assert len(await told(queue, facts.TaskProgressed, task.name)) == 1
        await stalled(queue, task.name)
        assert len(await told(queue, facts.TaskStalled, task.name)) == 2
        end.set()
        assert not (await queue.done(task.name)).HasField("stalled_time")
        assert task.name not in await listed(queue)


async def test_a_task_that_says_how_far_it_is_does_not_stall(queue: Scheduling) -> None:
    end = asyncio.Event()

    async def steady(task: WorkerTask) -> None:
        step = 0
        while not end.is_set():
            task.progress(0.1, f"step {step}")
            step += 1
            await asyncio.sleep(0.05)

    async with queue.working({"echo": steady, "hang": (deaf := Deaf())}):
        task = await queue.submit(spec())
        long = await queue.submit(spec("hang", estimated_cost={"seconds": 3600}))
        await queue.until(task.name, lambda each: each.progress > 0)
        for _ in range(2):
            hanging = await queue.submit(spec("hang"))
            await stalled(queue, hanging.name)
        assert not (await queue.get(task.name)).HasField("stalled_time")
        assert not (await queue.get(long.name)).HasField("stalled_time")
        end.set()
        deaf.may_end.set()
        await queue.done(task.name)


async def test_what_waits_for_its_time_or_in_a_paused_queue_does_not_stall(
    queue: Scheduling,
) -> None:
    later = tasks_pb2.Task().create_time
    later.FromNanoseconds(time.time_ns() + 3600 * 10**9)
    delayed = await queue.submit(spec(not_before=later))
    paused = await made_queue(queue.platform)
    was_stalled = await paused.submit(spec())
    await stalled(paused, was_stalled.name)
    await paused.queues.PauseQueue(queue_pb.PauseQueueRequest(name=paused.queue))
    waits = await paused.submit(spec())
    for _ in range(2):
        await stalled(queue, (await queue.submit(spec())).name)
    assert not (await queue.get(delayed.name)).HasField("stalled_time")
    for task in (was_stalled, waits):
        assert not (await paused.get(task.name)).HasField("stalled_time")
    assert await listed(paused) == []
    await paused.queues.ResumeQueue(queue_pb.ResumeQueueRequest(name=paused.queue))
    for task in (was_stalled, waits):
        await stalled(paused, task.name)
    assert len(await told(paused, facts.TaskStalled, was_stalled.name)) == 2
    assert len(await told(paused, facts.TaskStalled, waits.name)) == 1


async def test_a_restart_does_not_tell_of_a_stall_again(tmp_path: Path) -> None:
    settings = {**SETTINGS, "WEFT_SCHEDULER_LEASE_SECONDS": "30"}
    async with platform(tmp_path / "data", **settings) as running:
        queue = await made_queue(running)
        end = asyncio.Event()

        async def halting(task: WorkerTask) -> bytes:
            task.progress(0.5, "half of it")
            await end.wait()
            return b"done"

        async with queue.working({"echo": halting}) as worker:
            runs = await queue.submit(spec())
            waits = await queue.submit(spec("other"))
            before = [await stalled(queue, task.name) for task in (runs, waits)]
            await running.kill()
            await running.start()
            worker.address = running.addresses["grpc"]
            after = [await queue.get(task.name) for task in (runs, waits)]
            assert [task.stalled_time for task in after] == [task.stalled_time for task in before]
            for _ in range(2):
                await stalled(queue, (await queue.submit(spec("other"))).name)
            for task in (runs, waits):
                assert len(await told(queue, facts.TaskStalled, task.name)) == 1
            assert await told(queue, facts.TaskProgressed, runs.name) == []


async def test_who_may_not_end_tasks_is_refused(scheduling: Scheduling) -> None:
    queue = await made_queue(scheduling.platform)
    task = await queue.submit(spec())
    channel: Any = scheduling.platform.open_channel
    for role, code in (
        ("viewer", grpc.StatusCode.PERMISSION_DENIED),
        ("developer", grpc.StatusCode.PERMISSION_DENIED),
        ("operator", None),
    ):
        made = await ApiKeyServiceStub(channel).CreateApiKey(
            api_key_service_pb2.CreateApiKeyRequest(
                parent=TENANT, api_key_id=f"{role}-{new_id()}", roles=[f"{TENANT}/roles/{role}"]
            ),
            timeout=10,
        )
        keyed: Any = KeyedChannel(channel.bare, made.secret)
        tasks: Any = TaskServiceStub(keyed)
        skip = tasks.SkipTask(task_pb.SkipTaskRequest(name=task.name))
        if code is None:
            assert (await skip).task.state == CANCELLED
        else:
            assert await refused(skip) is code


async def test_what_is_not_there_is_not_found(queue: Scheduling) -> None:
    for name in (f"{queue.queue}/tasks/none", "tenants/globex/queues/default/tasks/none"):
        for call in (
            queue.tasks.SkipTask(task_pb.SkipTaskRequest(name=name)),
            queue.tasks.FailTask(task_pb.FailTaskRequest(name=name)),
        ):
            assert await refused(call) is grpc.StatusCode.NOT_FOUND


async def test_workers_that_hold_tasks_back_do_not_hide_others(queue: Scheduling) -> None:
    async with queue.working({"echo": Echo()}):
        hidden = await queue.submit(spec("other"))
        for _ in range(20):
            await queue.done((await queue.submit(spec())).name)
        assert (await stalled(queue, hidden.name)).stalled_reason == (
            "unschedulable: no worker can do other"
        )
