"""Tasks and workers, as their users see them."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from mesh.worker import TaskFailure, WorkerTask
from tests.support.platform import TENANT, platform
from tests.support.scheduling import DEFAULT, Echo, Scheduling, spec
from weft.scheduler.v1 import dead_letter_service_pb2 as dead_pb
from weft.scheduler.v1 import queue_service_pb2 as queue_pb
from weft.scheduler.v1 import queues_pb2, tasks_pb2
from weft.scheduler.v1 import task_service_pb2 as task_pb
from weft.scheduler.v1 import worker_service_pb2 as worker_pb

LEASE_SECONDS = 1.0
SUCCEEDED = tasks_pb2.TASK_STATE_SUCCEEDED
FAILED = tasks_pb2.TASK_STATE_FAILED
CANCELLED = tasks_pb2.TASK_STATE_CANCELLED
QUEUED = tasks_pb2.TASK_STATE_QUEUED
RUNNING = tasks_pb2.TASK_STATE_RUNNING
UNSCHEDULABLE = tasks_pb2.TASK_STATE_UNSCHEDULABLE


@pytest.fixture(scope="module")
async def scheduling(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scheduling]:
    folder = tmp_path_factory.mktemp("tasks") / "data"
    settings = {
        "WEFT_SCHEDULER_LEASE_SECONDS": str(LEASE_SECONDS),
        "WEFT_SCHEDULER_HEARTBEAT_SECONDS": "0.1",
        "WEFT_SCHEDULER_CANCEL_GRACE_SECONDS": "0.5",
    }
    async with platform(folder, **settings) as running:
        yield Scheduling(running)


@pytest.fixture
async def queue(scheduling: Scheduling, request: pytest.FixtureRequest) -> Scheduling:
    """A queue of this test's own."""
    queue_id = f"q{abs(hash(request.node.name)) % 10**10}"
    await scheduling.queues.CreateQueue(
        queue_pb.CreateQueueRequest(parent=TENANT, queue_id=queue_id)
    )
    return Scheduling(scheduling.platform, f"{TENANT}/queues/{queue_id}")


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


async def read_on(stream: Any) -> None:
    while await stream.read():
        continue


def seconds_from_now(seconds: float) -> Any:
    made = tasks_pb2.Task().create_time
    made.FromNanoseconds(time.time_ns() + int(seconds * 1e9))
    return made


async def test_a_task_of_the_default_queue_is_run_and_its_result_kept(
    scheduling: Scheduling,
) -> None:
    task = await scheduling.submit(spec(payload=b"hello"))
    assert task.name.startswith(f"{DEFAULT}/tasks/")
    async with scheduling.working({"echo": Echo()}):
        done = await scheduling.done(task.name)
    assert (done.state, done.result) == (SUCCEEDED, b"hello")
    assert [attempt.attempt for attempt in done.attempts] == [1]
    assert done.creator.startswith(f"{TENANT}/apiKeys/")


async def test_a_repeated_request_gets_the_same_task(queue: Scheduling) -> None:
    one = await queue.submit(spec(payload=b"x"), request_id="r1")
    again = await queue.submit(spec(payload=b"x"), request_id="r1")
    assert one.name == again.name
    error = await refused(queue.submit(spec(payload=b"y"), request_id="r1"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    racing = await asyncio.gather(
        *(queue.submit(spec(payload=b"z"), request_id="r2") for _ in range(20))
    )
    assert len({task.name for task in racing}) == 1
    async with queue.working({"echo": Echo()}):
        await queue.done(one.name)
    late = await queue.submit(spec(payload=b"x"), request_id="r1")
    assert (late.name, late.state) == (one.name, SUCCEEDED)


async def test_an_id_is_used_once(queue: Scheduling) -> None:
    racing = await asyncio.gather(
        *(queue.submit(spec(), task_id="mine") for _ in range(10)), return_exceptions=True
    )
    codes = [each.code() for each in racing if isinstance(each, grpc.aio.AioRpcError)]
    assert codes == [grpc.StatusCode.ALREADY_EXISTS] * 9
    async with queue.working({"echo": Echo()}):
        await queue.done(f"{queue.queue}/tasks/mine")
    error = await refused(queue.submit(spec(), task_id="mine"))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (spec(deadline=seconds_from_now(-1)), grpc.StatusCode.INVALID_ARGUMENT),
        (spec(start_deadline=seconds_from_now(-1)), grpc.StatusCode.INVALID_ARGUMENT),
        (
            spec(not_before=seconds_from_now(90), deadline=seconds_from_now(80)),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (spec(payload=b"x" * 262_145), grpc.StatusCode.INVALID_ARGUMENT),
        (spec(capability=""), grpc.StatusCode.INVALID_ARGUMENT),
        (spec(capability="No Such!"), grpc.StatusCode.INVALID_ARGUMENT),
        (spec(priority=10), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_what_can_not_be_kept_is_refused_at_submit(
    scheduling: Scheduling, wanted: tasks_pb2.TaskSpec, code: grpc.StatusCode
) -> None:
    assert (await refused(scheduling.submit(wanted))).code() is code


async def test_an_unknown_queue_is_not_found(scheduling: Scheduling) -> None:
    nowhere = Scheduling(scheduling.platform, f"{TENANT}/queues/nowhere")
    for call in (
        nowhere.submit(spec()),
        nowhere.stats(),
        nowhere.get(f"{nowhere.queue}/tasks/t"),
        nowhere.all_dead_letters(),
        anext(aiter(nowhere.workers.Attach(iter([hello(nowhere)])))),
    ):
        assert (await refused(call)).code() is grpc.StatusCode.NOT_FOUND


async def test_a_queue_that_names_its_capabilities_takes_no_others(scheduling: Scheduling) -> None:
    limits = queues_pb2.QueueLimits(capabilities=["echo"])
    await scheduling.queues.CreateQueue(
        queue_pb.CreateQueueRequest(parent=TENANT, queue_id="narrow", limits=limits)
    )
    narrow = Scheduling(scheduling.platform, f"{TENANT}/queues/narrow")
    await narrow.submit(spec())
    error = await refused(narrow.submit(spec("resize")))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "echo" in (error.details() or "")


async def test_a_full_queue_takes_no_more(scheduling: Scheduling) -> None:
    limits = queues_pb2.QueueLimits(open_tasks_max=5)
    await scheduling.queues.CreateQueue(
        queue_pb.CreateQueueRequest(parent=TENANT, queue_id="small", limits=limits)
    )
    small = Scheduling(scheduling.platform, f"{TENANT}/queues/small")
    results = await asyncio.gather(
        *(small.submit(spec()) for _ in range(20)), return_exceptions=True
    )
    codes = [each.code() for each in results if isinstance(each, grpc.aio.AioRpcError)]
    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 15


async def test_why_no_worker_can_run_a_task_is_told(queue: Scheduling) -> None:
    wanted = spec("resize", labels=[tasks_pb2.Label(key="gpu", value="yes")])
    task = await queue.submit(wanted)
    assert (task.state, task.reason) == (UNSCHEDULABLE, "no worker is attached")
    async with queue.working({"echo": Echo()}):
        assert (await queue.get(task.name)).reason == "no worker can do resize"
        assert (await queue.stats()).unschedulable == 1
    async with queue.working({"resize": Echo()}):
        assert "gpu=yes" in (await queue.get(task.name)).reason
    async with queue.working({"resize": Echo()}, labels={"gpu": "yes"}):
        assert (await queue.done(task.name)).state == SUCCEEDED


async def test_what_waits_for_its_time_counts_as_unschedulable_too(queue: Scheduling) -> None:
    await queue.submit(spec("resize", not_before=seconds_from_now(600)))
    await queue.submit(spec("resize"))
    stats = await queue.stats()
    assert (stats.ready, stats.delayed, stats.unschedulable) == (1, 1, 2)
    async with queue.working({"resize": Echo()}):
        assert (await queue.stats()).unschedulable == 0


async def test_urgent_tasks_go_first_and_equals_in_their_order(queue: Scheduling) -> None:
    names = {}
    for number, priority in enumerate((0, 5, 9, 5, 0, 9)):
        names[(await queue.submit(spec(priority=priority))).name] = (9 - priority, number)
    echo = Echo()
    async with queue.working({"echo": echo}, slots=1):
        for name in names:
            await queue.done(name)
    order = [names[name] for name, _ in echo.ran]
    assert order == sorted(order)


async def test_a_task_waits_for_its_time(queue: Scheduling) -> None:
    async with queue.working({"echo": Echo()}):
        began = time.monotonic()
        task = await queue.submit(spec(not_before=seconds_from_now(0.4)))
        assert (await queue.stats()).delayed == 1
        assert (await queue.done(task.name)).state == SUCCEEDED
        assert time.monotonic() - began > 0.35


async def test_what_fails_is_tried_again_and_then_a_dead_letter(queue: Scheduling) -> None:
    tries: list[int] = []

    async def failing(task: WorkerTask) -> None:
        tries.append(task.attempt)
        if task.payload == b"final":
            raise TaskFailure("never", 3)
        raise ValueError("not yet")

    async with queue.working({"echo": failing}):
        task = await queue.submit(spec())
        dead = await queue.done(task.name)
        assert (dead.state, tries) == (FAILED, [1, 2, 3])
        assert [attempt.code for attempt in dead.attempts] == [13, 13, 13]
        assert "not yet" in dead.reason
        final = await queue.submit(spec(payload=b"final"))
        assert len((await queue.done(final.name)).attempts) == 1
    listed = await queue.all_dead_letters()
    assert {each.name for each in listed} == {task.name, final.name}
    inspected = await queue.dead_letters.InspectDeadLetter(
        dead_pb.InspectDeadLetterRequest(name=final.name)
    )
    assert inspected.task.spec.payload == b"final"


async def test_dead_letters_are_redriven_or_discarded(queue: Scheduling) -> None:
    broken = True

    async def sometimes(task: WorkerTask) -> bytes:
        if broken:
            raise TaskFailure("broken", 3)
        return b"well"

    async with queue.working({"echo": sometimes}):
        names = [(await queue.submit(spec())).name for _ in range(4)]
        for name in names:
            await queue.done(name)
        broken = False
        redrive = dead_pb.RedriveDeadLettersRequest(parent=queue.queue, names=names[:1])
        assert (await queue.dead_letters.RedriveDeadLetters(redrive)).count == 1
        assert (await queue.done(names[0])).result == b"well"
        discard = dead_pb.DiscardDeadLettersRequest(
            parent=queue.queue, names=names[1:2], reason="old"
        )
        assert (await queue.dead_letters.DiscardDeadLetters(discard)).count == 1
        thrown = await queue.get(names[1])
        assert (thrown.state, thrown.reason) == (CANCELLED, "old")
        rest = dead_pb.RedriveDeadLettersRequest(parent=queue.queue)
        assert (await queue.dead_letters.RedriveDeadLetters(rest)).count == 2
        for name in names[2:]:
            assert (await queue.done(name)).state == SUCCEEDED
    error = await refused(queue.dead_letters.RedriveDeadLetters(redrive))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_failed_task_is_tried_again_on_demand(queue: Scheduling) -> None:
    broken = True

    async def sometimes(task: WorkerTask) -> bytes:
        if broken:
            raise TaskFailure("broken", 3)
        return b"well"

    async with queue.working({"echo": sometimes}):
        task = await queue.submit(spec())
        await queue.done(task.name)
        broken = False
        await queue.tasks.RetryTask(task_pb.RetryTaskRequest(name=task.name))
        done = await queue.done(task.name)
    assert (done.state, [each.attempt for each in done.attempts]) == (SUCCEEDED, [1, 2])
    error = await refused(queue.tasks.RetryTask(task_pb.RetryTaskRequest(name=task.name)))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_cancelling_reaches_the_handler(queue: Scheduling) -> None:
    heard = asyncio.Event()

    async def slow(task: WorkerTask) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            heard.set()
            raise

    async with queue.working({"echo": slow}):
        task = await queue.submit(spec())
        await queue.until(task.name, lambda each: each.state == RUNNING)
        await queue.tasks.CancelTask(task_pb.CancelTaskRequest(name=task.name, reason="enough"))
        done = await queue.done(task.name)
        assert (done.state, done.reason) == (CANCELLED, "enough")
        await asyncio.wait_for(heard.wait(), 5)
        assert (await queue.stats()).free_slots == 4
    again = await queue.tasks.CancelTask(task_pb.CancelTaskRequest(name=task.name))
    assert again.task.state == CANCELLED


async def test_a_handler_that_does_not_end_is_not_waited_for(queue: Scheduling) -> None:
    may_end = asyncio.Event()

    async def deaf(task: WorkerTask) -> None:
        while not may_end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await may_end.wait()

    async with queue.working({"echo": deaf}):
        task = await queue.submit(spec())
        await queue.until(task.name, lambda each: each.state == RUNNING)
        try:
            await queue.tasks.CancelTask(task_pb.CancelTaskRequest(name=task.name))
            assert (await queue.done(task.name)).state == CANCELLED
        finally:
            may_end.set()


async def test_a_task_that_waits_is_cancelled_at_once(queue: Scheduling) -> None:
    task = await queue.submit(spec())
    answer = await queue.tasks.CancelTask(task_pb.CancelTaskRequest(name=task.name))
    assert answer.task.state == CANCELLED


async def test_an_attempt_that_takes_too_long_is_ended(queue: Scheduling) -> None:
    async def slow_at_first(task: WorkerTask) -> bytes:
        if task.attempt == 1:
            await asyncio.sleep(60)
        return b"in time"

    wanted = spec()
    wanted.attempt_timeout.FromMilliseconds(200)
    async with queue.working({"echo": slow_at_first}):
        done = await queue.done((await queue.submit(wanted)).name)
    assert (done.state, done.result) == (SUCCEEDED, b"in time")
    assert done.attempts[0].code == 4


async def test_deadlines_of_tasks_that_wait_are_kept(queue: Scheduling) -> None:
    begun = await queue.submit(spec(start_deadline=seconds_from_now(0.2)))
    ended = await queue.submit(spec(deadline=seconds_from_now(0.2)))
    for name, word in ((begun.name, "begun"), (ended.name, "done")):
        failed = await queue.done(name)
        assert failed.state == FAILED
        assert word in failed.reason


async def test_a_paused_queue_gives_out_nothing(queue: Scheduling) -> None:
    await queue.queues.PauseQueue(queue_pb.PauseQueueRequest(name=queue.queue))
    async with queue.working({"echo": Echo()}):
        task = await queue.submit(spec())
        await asyncio.sleep(0.2)
        assert (await queue.stats()).ready == 1
        waiting = await queue.get(task.name)
        assert (waiting.state, waiting.reason) == (QUEUED, "the queue is paused")
        await queue.queues.ResumeQueue(queue_pb.ResumeQueueRequest(name=queue.queue))
        done = await queue.done(task.name)
        assert (done.state, done.reason) == (SUCCEEDED, "")


async def test_no_more_run_at_once_than_the_queue_allows(queue: Scheduling) -> None:
    limits = queues_pb2.QueueLimits(running_tasks_max=2)
    await queue.queues.UpdateQueue(queue_pb.UpdateQueueRequest(name=queue.queue, limits=limits))
    now = most = 0

    async def counting(task: WorkerTask) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1

    async with queue.working({"echo": counting}, slots=16):
        names = [(await queue.submit(spec())).name for _ in range(12)]
        for name in names:
            await queue.done(name)
    assert most == 2


async def test_resources_and_slots_of_a_worker_are_kept(queue: Scheduling) -> None:
    now = most = 0

    async def counting(task: WorkerTask) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1

    heavy = spec(resources=tasks_pb2.Resources(cpu_millis=400))
    async with queue.working({"echo": counting}, slots=16, cpu_millis=1_000):
        names = [(await queue.submit(heavy)).name for _ in range(8)]
        for name in names:
            await queue.done(name)
    assert most == 2
    task = await queue.submit(spec(resources=tasks_pb2.Resources(cpu_millis=2_000)))
    async with queue.working({"echo": counting}, cpu_millis=1_000):
        assert "2000 thousandths" in (await queue.get(task.name)).reason


async def test_progress_is_seen_while_a_task_runs(queue: Scheduling) -> None:
    go = asyncio.Event()

    async def reporting(task: WorkerTask) -> None:
        task.progress(0.5, "half of it")
        await go.wait()

    async with queue.working({"echo": reporting}):
        task = await queue.submit(spec())
        seen = await queue.until(task.name, lambda each: each.progress > 0)
        assert (seen.progress, seen.progress_note) == (0.5, "half of it")
        go.set()
        await queue.done(task.name)


def compute(task: WorkerTask) -> str:
    return f"{os.getpid()} {sum(range(100_000))}"


async def test_what_computes_runs_in_another_process(queue: Scheduling) -> None:
    async with queue.working({"echo": compute}):
        done = await queue.done((await queue.submit(spec())).name)
    pid, total = done.result.split()
    assert int(total) == sum(range(100_000))
    assert int(pid) != os.getpid()


async def test_a_worker_that_stops_finishes_what_it_has(queue: Scheduling) -> None:
    begun = asyncio.Event()

    async def slow(task: WorkerTask) -> bytes:
        begun.set()
        await asyncio.sleep(0.3)
        return b"finished"

    async with queue.working({"echo": slow}, slots=1) as worker:
        one, other = [await queue.submit(spec()) for _ in range(2)]
        await begun.wait()
        worker.stop()
        assert (await queue.done(one.name)).result == b"finished"
    assert not (await queue.get(other.name)).attempts


def hello(queue: Scheduling, **fields: Any) -> worker_pb.AttachRequest:
    said = worker_pb.WorkerHello(capabilities=["echo"], slots=1, **fields)
    return worker_pb.AttachRequest(queue=queue.queue, hello=said)


async def test_a_worker_that_is_paused_takes_nothing_new(queue: Scheduling) -> None:
    async def who(task: WorkerTask) -> str:
        return "paused"

    async def other(task: WorkerTask) -> str:
        return "other"

    async with queue.working({"echo": who}, worker_id="w1") as worker:
        first = await queue.submit(spec("echo"))
        assert (await queue.done(first.name)).result == b"paused"
        worker.pause(True)
        async with queue.working({"echo": other}, worker_id="w2"):
            tasks = [await queue.submit(spec("echo")) for _ in range(8)]
            assert {(await queue.done(task.name)).result for task in tasks} == {b"other"}
        waiting = await queue.submit(spec("echo"))
        worker.pause(False)
        assert (await queue.done(waiting.name)).result == b"paused"


async def test_tasks_of_a_worker_that_vanishes_are_given_to_another(queue: Scheduling) -> None:
    stream = queue.workers.Attach()
    await stream.write(hello(queue, worker_id="gone"))
    assert (await stream.read()).HasField("welcome")
    task = await queue.submit(spec(payload=b"x"))
    assert (await stream.read()).assignment.task == task.name
    stream.cancel()
    async with queue.working({"echo": Echo()}):
        done = await queue.done(task.name)
    assert (done.state, done.attempts[0].worker) == (SUCCEEDED, "gone")
    assert done.attempts[0].code == 14


async def test_a_worker_that_falls_silent_loses_its_tasks(queue: Scheduling) -> None:
    stream = queue.workers.Attach()
    await stream.write(hello(queue, worker_id="silent"))
    await stream.read()
    task = await queue.submit(spec(payload=b"x"))
    assignment = (await stream.read()).assignment
    async with queue.working({"echo": Echo()}):
        done = await queue.done(task.name)
    assert [each.attempt for each in done.attempts] == [1, 2]
    assert assignment.attempt == 1
    error = await refused(stream.read())
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_worker_goes_on_after_its_connection_broke(queue: Scheduling) -> None:
    stream = queue.workers.Attach()
    await stream.write(hello(queue, worker_id="back"))
    await stream.read()
    task = await queue.submit(spec(payload=b"x"))
    await stream.read()
    stream.cancel()
    again = queue.workers.Attach()
    running = [worker_pb.TaskProgress(task=task.name, attempt=1)]
    await again.write(hello(queue, worker_id="back", running=running))
    assert not (await again.read()).welcome.lost
    done = worker_pb.WorkerSucceeded(task=task.name, attempt=1, result=b"went on")
    await again.write(worker_pb.AttachRequest(queue=queue.queue, succeeded=done))
    recorded = (await again.read()).recorded
    assert (recorded.task, recorded.stale) == (task.name, False)
    assert (await queue.get(task.name)).result == b"went on"
    await again.write(worker_pb.AttachRequest(queue=queue.queue, succeeded=done))
    assert (await again.read()).recorded.stale
    again.cancel()


async def test_a_worker_reports_only_what_it_has(queue: Scheduling) -> None:
    task = await queue.submit(spec("other"))
    stream = queue.workers.Attach()
    await stream.write(hello(queue, running=[worker_pb.TaskProgress(task=task.name, attempt=1)]))
    assert list((await stream.read()).welcome.lost) == [task.name]
    for name in (task.name, "tenants/globex/queues/default/tasks/x", "nonsense"):
        done = worker_pb.WorkerSucceeded(task=name, attempt=1, result=b"forged")
        await stream.write(worker_pb.AttachRequest(queue=queue.queue, succeeded=done))
        assert (await stream.read()).recorded.stale
    stream.cancel()
    assert (await queue.get(task.name)).state == UNSCHEDULABLE


@pytest.mark.parametrize(
    "messages",
    [
        [worker_pb.WorkerHeartbeat()],
        [],
    ],
)
async def test_a_worker_says_hello_first(queue: Scheduling, messages: list[Any]) -> None:
    sent = [worker_pb.AttachRequest(queue=queue.queue, heartbeat=each) for each in messages]
    error = await refused(anext(aiter(queue.workers.Attach(iter(sent)))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_poison_task_blocks_nobody(queue: Scheduling) -> None:
    async def poisoned(task: WorkerTask) -> bytes:
        if task.payload == b"poison":
            raise TaskFailure("poison")
        return task.payload

    async with queue.working({"echo": poisoned}, slots=8):
        names = []
        for number in range(200):
            payload = b"poison" if number % 20 == 0 else b"fine"
            names.append((payload, (await queue.submit(spec(payload=payload))).name))
        ends = [(payload, await queue.done(name)) for payload, name in names]
    assert {payload: task.state for payload, task in ends} == {
        b"poison": FAILED,
        b"fine": SUCCEEDED,
    }
    assert len(await queue.all_dead_letters()) == 10


async def test_tasks_are_listed_by_pages_and_filters(queue: Scheduling) -> None:
    for number in range(5):
        await queue.submit(spec("echo" if number % 2 else "other", payload=b"secret"))
    seen, token = [], ""
    while True:
        page = await queue.tasks.ListTasks(
            task_pb.ListTasksRequest(parent=queue.queue, page_size=2, page_token=token)
        )
        seen.extend(page.tasks)
        token = page.next_page_token
        if not token:
            break
    assert len({task.name for task in seen}) == 5
    assert [task.name for task in seen] == sorted((task.name for task in seen), reverse=True)
    assert not any(task.spec.payload for task in seen)
    request = task_pb.ListTasksRequest(parent=queue.queue, capability="echo")
    assert len((await queue.tasks.ListTasks(request)).tasks) == 2
    request = task_pb.ListTasksRequest(parent=queue.queue, state=SUCCEEDED)
    assert not (await queue.tasks.ListTasks(request)).tasks


async def test_a_queue_that_is_made_by_use_is_empty_before(scheduling: Scheduling) -> None:
    unused = f"{TENANT}/queues/turns"
    listed = await scheduling.tasks.ListTasks(task_pb.ListTasksRequest(parent=unused))
    assert not listed.tasks
    dead = dead_pb.RedriveDeadLettersRequest(parent=unused)
    assert (await scheduling.dead_letters.RedriveDeadLetters(dead)).count == 0
    error = await refused(scheduling.get(f"{unused}/tasks/none"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.NOT_FOUND,
        f"no task {unused}/tasks/none",
    )
    error = await refused(scheduling.queues.PauseQueue(queue_pb.PauseQueueRequest(name=unused)))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_queues_are_listed(queue: Scheduling) -> None:
    listed = await queue.queues.ListQueues(queue_pb.ListQueuesRequest(parent=TENANT))
    assert queue.queue in {each.name for each in listed.queues}


async def test_a_scheduler_that_ends_lets_workers_and_watchers_go(tmp_path: Path) -> None:
    """It would wait for their streams for ten minutes, and the test not so long."""

    async def slow(task: WorkerTask) -> None:
        await asyncio.sleep(600)

    async with platform(tmp_path / "data", WEFT_RUNTIME_GRACE_SECONDS="600") as weft:
        scheduling = Scheduling(weft)
        async with scheduling.working({"echo": slow}):
            task = await scheduling.submit(spec())
            watching = scheduling.tasks.WatchTask(task_pb.WatchTaskRequest(name=task.name))
            await watching.read()
            assert await weft.stop() == 0
            assert (await refused(read_on(watching))).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_repeated_submit_leaves_the_running_task_alone(queue: Scheduling) -> None:
    stream = queue.workers.Attach()
    once = worker_pb.WorkerHello(capabilities=["echo"], slots=4, worker_id="once")
    await stream.write(worker_pb.AttachRequest(queue=queue.queue, hello=once))
    await stream.read()
    wanted = spec(retry=tasks_pb2.RetryPolicy(max_attempts=1))
    task = await queue.submit(wanted, task_id="mine", request_id="r1")
    assert (await stream.read()).assignment.task == task.name
    assert (await queue.submit(wanted, task_id="mine", request_id="r1")).name == task.name
    error = await refused(queue.submit(wanted, task_id="mine"))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    done = worker_pb.WorkerSucceeded(task=task.name, attempt=1, result=b"hello")
    await stream.write(worker_pb.AttachRequest(queue=queue.queue, succeeded=done))
    assert not (await stream.read()).recorded.stale
    assert (await queue.get(task.name)).result == b"hello"
    stream.cancel()


async def test_a_caller_that_goes_away_takes_no_accepted_task_along(queue: Scheduling) -> None:
    async with queue.working({"echo": Echo()}):
        wanted = spec(retry=tasks_pb2.RetryPolicy(max_attempts=1))
        for number in range(30):
            submitting = asyncio.create_task(queue.submit(wanted, task_id=f"t{number}"))
            await asyncio.sleep(number / 4_000)
            submitting.cancel()
            await asyncio.wait({submitting})
        found = await queue.tasks.ListTasks(task_pb.ListTasksRequest(parent=queue.queue))
        assert found.tasks
        for task in found.tasks:
            assert (await queue.done(task.name)).state == SUCCEEDED


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (b"x" * 262_145, 11, "262145 bytes"),
        (SystemExit(1), 13, "SystemExit: 1"),
        (ValueError("bad \udc80 name"), 13, "bad ? name"),
        (object(), 13, "TypeError"),
    ],
    ids=["too-large", "exit", "no-text", "no-bytes"],
)
async def test_what_a_handler_does_wrong_fails_its_attempt_and_not_its_worker(
    queue: Scheduling, answer: object, code: int, said: str
) -> None:
    async def wrong(task: WorkerTask) -> object:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async with queue.working({"wrong": wrong, "echo": Echo()}):
        wanted = spec("wrong", retry=tasks_pb2.RetryPolicy(max_attempts=1))
        failed = await queue.done((await queue.submit(wanted)).name)
        assert failed.state == FAILED
        assert failed.attempts[0].code == code
        assert said in failed.attempts[0].message
        after = await queue.done((await queue.submit(spec(payload=b"x"))).name)
        assert (after.state, len(after.attempts)) == (SUCCEEDED, 1)


class Peculiar(Exception):
    """One that can't be made anew where it is sent to."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(f"{words} ({code})")


def raise_peculiar(task: WorkerTask) -> None:
    raise Peculiar(7, "no paper")


async def test_what_a_plain_function_raises_is_told_whatever_it_is(queue: Scheduling) -> None:
    async with queue.working({"peculiar": raise_peculiar}):
        wanted = spec("peculiar", retry=tasks_pb2.RetryPolicy(max_attempts=1))
        failed = await queue.done((await queue.submit(wanted)).name)
    (attempt,) = failed.attempts
    assert (attempt.code, attempt.message) == (13, "Peculiar: no paper (7)")


async def test_failures_with_long_messages_are_kept(queue: Scheduling) -> None:
    async def fail(task: WorkerTask) -> None:
        raise TaskFailure("\U0001f600" * 4_096, 3)

    async with queue.working({"fail": fail}, slots=300):
        await queue.submit(spec("other"))
        await queue.queues.PauseQueue(queue_pb.PauseQueueRequest(name=queue.queue))
        tasks = [await queue.submit(spec("fail")) for _ in range(120)]
        await queue.queues.ResumeQueue(queue_pb.ResumeQueueRequest(name=queue.queue))
        for task in tasks:
            failed = await queue.done(task.name)
            assert (failed.state, len(failed.attempts)) == (FAILED, 1)
    page = await queue.dead_letters.ListDeadLetters(
        dead_pb.ListDeadLettersRequest(parent=queue.queue, page_size=1_000)
    )
    assert 1 < len(page.tasks) < 120, "a page is bounded by its bytes"
    assert len(await queue.all_dead_letters()) == 120
