"""Batches, as their users see them."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from mesh.worker import TaskFailure, WorkerTask
from tests.support.batches import Batches, items
from tests.support.command_line import command_line, environment_for
from tests.support.keyed import KeyedChannel
from tests.support.platform import TENANT, platform
from tests.support.processes import ROOT
from tests.support.scheduling import Echo, Scheduling, spec
from weft.auth.v1 import tenant_service_pb2
from weft.auth.v1.tenant_service_pb2_grpc import TenantServiceStub
from weft.scheduler.v1 import batch_service_pb2 as pb
from weft.scheduler.v1 import batches_pb2, queues_pb2, tasks_pb2
from weft.scheduler.v1 import dead_letter_service_pb2 as dead_pb
from weft.scheduler.v1 import queue_service_pb2 as queue_pb
from weft.scheduler.v1 import task_service_pb2 as task_pb
from weft.scheduler.v1.batch_service_pb2_grpc import BatchServiceStub

SUCCEEDED = tasks_pb2.TASK_STATE_SUCCEEDED
FAILED = tasks_pb2.TASK_STATE_FAILED
CANCELLED = tasks_pb2.TASK_STATE_CANCELLED
CHUNK = 500
PAUSE_SECONDS = 0.05
SECONDS_MAX = 180.0
Code = grpc.StatusCode


@pytest.fixture(scope="module")
async def scheduling(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scheduling]:
    folder = tmp_path_factory.mktemp("batches") / "data"
    settings = {
        "WEFT_SCHEDULER_LEASE_SECONDS": "1",
        "WEFT_SCHEDULER_HEARTBEAT_SECONDS": "0.2",
        "WEFT_SCHEDULER_CANCEL_GRACE_SECONDS": "0.5",
    }
    async with platform(folder, **settings) as running:
        yield Scheduling(running)


@pytest.fixture
async def queue(scheduling: Scheduling, request: pytest.FixtureRequest) -> Batches:
    """The batches of a queue of this test's own."""
    return await made(scheduling, f"q{abs(hash(request.node.name)) % 10**10}")


async def made(scheduling: Scheduling, queue_id: str, open_tasks_max: int = 0) -> Batches:
    limits = queues_pb2.QueueLimits(open_tasks_max=open_tasks_max)
    request = queue_pb.CreateQueueRequest(parent=TENANT, queue_id=queue_id, limits=limits)
    await scheduling.queues.CreateQueue(request)
    return Batches(Scheduling(scheduling.platform, f"{TENANT}/queues/{queue_id}"))


async def refused(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    code: grpc.StatusCode = raised.value.code()
    return code


async def failing_sometimes(task: WorkerTask) -> bytes:
    if int(task.payload) % 100 == 7:
        raise TaskFailure("unlucky", 3)
    return task.payload


async def test_thousands_of_items_have_one_result_each(queue: Batches) -> None:
    payloads = [str(number).encode() for number in range(2_000)]
    async with queue.scheduling.working({"echo": failing_sometimes}, slots=64):
        await asyncio.gather(
            *(
                queue.submit(
                    "many", items(payloads[first : first + CHUNK]), first_index=first, open=True
                )
                for first in range(0, len(payloads), CHUNK)
            )
        )
        closed = await queue.submit("many", [])
        assert closed.batch.counts.items == 2_000
        results = await queue.results("many")
    assert [result.number for result in results] == list(range(1, 2_001))
    assert sorted(result.index for result in results) == list(range(2_000))
    for result in results:
        if result.index % 100 == 7:
            assert (result.state, result.code, result.reason) == (FAILED, 3, "unlucky")
        else:
            assert (result.state, result.result) == (SUCCEEDED, payloads[result.index])
    counts = (await queue.get("many")).counts
    assert (counts.items, counts.succeeded, counts.failed) == (2_000, 1_980, 20)
    assert (counts.queued, counts.running, counts.cancelled) == (0, 0, 0)


async def test_results_come_while_items_are_still_sent(queue: Batches) -> None:
    async with queue.scheduling.working({"echo": Echo()}):
        await queue.submit("open", items([b"0", b"1"]), open=True)
        seen = queue.each("open")
        assert {(await anext(seen)).result for _ in range(2)} == {b"0", b"1"}
        assert (await queue.get("open")).state == batches_pb2.BATCH_STATE_OPEN
        last = await queue.submit("open", items([b"2"]), first_index=2)
        assert last.batch.state != batches_pb2.BATCH_STATE_OPEN
        assert [result.result async for result in seen] == [b"2"]


async def test_no_more_run_at_once_than_the_batch_allows(queue: Batches) -> None:
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def counting(task: WorkerTask) -> None:
        kind = task.payload.decode()
        running[kind] += 1
        most[kind] = max(most[kind], running[kind])
        await asyncio.sleep(0.01)
        running[kind] -= 1

    async with (
        queue.scheduling.working({"echo": counting}, slots=16, worker_id="one"),
        queue.scheduling.working({"echo": counting}, slots=16, worker_id="other"),
    ):
        await asyncio.gather(
            queue.submit("narrow", items([b"narrow"] * 60), running_tasks_max=3),
            queue.submit("wide", items([b"wide"] * 200)),
        )
        # A task of no batch isn't held up by one that is at its limit.
        single = await queue.scheduling.submit(spec(payload=b"single"))
        await asyncio.gather(queue.results("narrow"), queue.results("wide"))
        assert (await queue.scheduling.done(single.name)).state == SUCCEEDED
    assert most["narrow"] == 3
    assert most["wide"] > 3


async def test_the_limit_holds_over_attempts_that_fail(queue: Batches) -> None:
    running = most = 0

    async def failing_at_first(task: WorkerTask) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        if task.attempt == 1:
            raise ValueError("not yet")

    async with queue.scheduling.working({"echo": failing_at_first}, slots=16):
        await queue.submit("again", items([b""] * 30), running_tasks_max=2)
        results = await queue.results("again")
    assert most == 2
    assert {result.state for result in results} == {SUCCEEDED}


async def test_a_watch_goes_on_behind_what_was_seen(queue: Batches) -> None:
    async with queue.scheduling.working({"echo": Echo()}):
        await queue.submit("seen", items([b"x"] * 300))
        seen: list[int] = []
        while len(seen) < 300:
            # Each stream is cut after some results.
            stream = queue.watch("seen", after=seen[-1] if seen else 0)
            async for message in stream:
                seen.extend(result.number for result in message.results[:50])
                if len(message.results) >= 50:
                    break
            stream.cancel()
    assert seen == list(range(1, 301))
    assert [result.number for result in await queue.results("seen", after=290)] == list(
        range(291, 301)
    )
    assert await queue.results("seen", after=300) == []


async def test_what_is_sent_again_is_accepted_once(queue: Batches) -> None:
    wanted = items([b"0", b"1", b"2"])
    again = await asyncio.gather(*(queue.submit("twice", wanted) for _ in range(8)))
    assert {response.batch.counts.items for response in again} == {3}
    changed = await queue.submit("twice", items([b"0", b"other", b"2", b"new"]))
    assert [(error.index, error.code) for error in changed.errors] == [
        (1, Code.ALREADY_EXISTS.value[0]),
        (3, Code.FAILED_PRECONDITION.value[0]),
    ]
    async with queue.scheduling.working({"echo": Echo()}):
        results = await queue.results("twice")
    assert {result.index: result.result for result in results} == {0: b"0", 1: b"1", 2: b"2"}
    assert not (await queue.submit("twice", wanted)).errors
    other = queue.submit("twice", wanted, running_tasks_max=5)
    assert await refused(other) is Code.ALREADY_EXISTS


async def test_what_is_wrong_with_an_item_is_told_and_the_others_go_on(
    scheduling: Scheduling, queue: Batches
) -> None:
    limits = queues_pb2.QueueLimits(capabilities=["echo"])
    await scheduling.queues.UpdateQueue(
        queue_pb.UpdateQueueRequest(name=queue.scheduling.queue, limits=limits)
    )
    await queue.scheduling.submit(spec(), task_id="mine")
    late = spec()
    late.deadline.FromSeconds(1)
    wanted = [
        batches_pb2.BatchItem(spec=spec(payload=b"good")),
        batches_pb2.BatchItem(spec=spec("resize")),
        batches_pb2.BatchItem(spec=late),
        batches_pb2.BatchItem(spec=spec(), task_id="mine"),
        batches_pb2.BatchItem(spec=spec(), task_id="own"),
        batches_pb2.BatchItem(spec=spec(), task_id="own"),
    ]
    response = await queue.submit("mixed", wanted)
    assert [(error.index, error.code) for error in response.errors] == [
        (1, Code.INVALID_ARGUMENT.value[0]),
        (2, Code.INVALID_ARGUMENT.value[0]),
        (3, Code.ALREADY_EXISTS.value[0]),
        (5, Code.ALREADY_EXISTS.value[0]),
    ]
    async with queue.scheduling.working({"echo": Echo()}):
        results = await queue.results("mixed")
    assert sorted(result.index for result in results) == [0, 4]
    task = await queue.scheduling.get(f"{queue.scheduling.queue}/tasks/own")
    assert (task.batch, task.batch_index) == (queue.name("mixed"), 4)


async def test_items_for_which_there_is_no_room_may_be_sent_again(scheduling: Scheduling) -> None:
    small = await made(scheduling, "small-batches", open_tasks_max=5)
    wanted = items([b"x"] * 12)
    async with small.scheduling.working({"echo": Echo()}):
        response = await small.submit("full", wanted)
        codes = {error.code for error in response.errors}
        assert codes == {Code.RESOURCE_EXHAUSTED.value[0]}
        assert response.batch.state == batches_pb2.BATCH_STATE_OPEN
        while response.errors:
            await asyncio.sleep(0.02)
            response = await small.submit("full", wanted)
        results = await small.results("full")
    assert sorted(result.index for result in results) == list(range(12))


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_id": "No Id"},
        {"batch_id": ""},
        {"first_index": -1},
        {"first_index": 99_999, "items": items([b"", b""])},
        {"items": items([b""] * 1_001)},
        {"items": [batches_pb2.BatchItem()]},
        {"items": [batches_pb2.BatchItem(spec=spec(capability=""))]},
        {"items": items([b""], priority=10)},
        {"running_tasks_max": -1},
    ],
    ids=lambda fields: " ".join(fields),
)
async def test_a_request_that_cant_be_meant_is_refused(
    queue: Batches, fields: dict[str, Any]
) -> None:
    request = {"parent": queue.scheduling.queue, "batch_id": "b"} | fields
    call = queue.stub.SubmitBatch(pb.SubmitBatchRequest(**request))
    assert await refused(call) is Code.INVALID_ARGUMENT


async def test_what_isnt_there_is_not_found(scheduling: Scheduling, queue: Batches) -> None:
    nowhere = Batches(Scheduling(scheduling.platform, f"{TENANT}/queues/nowhere"))
    for where in (queue, nowhere):
        name = where.name("none")
        for call in (
            where.get("none"),
            anext(aiter(where.watch("none"))),
            where.stub.CancelBatch(pb.CancelBatchRequest(name=name)),
        ):
            assert await refused(call) is Code.NOT_FOUND
    assert await refused(nowhere.submit("b", items([b""]))) is Code.NOT_FOUND
    listing = nowhere.stub.ListBatches(pb.ListBatchesRequest(parent=nowhere.scheduling.queue))
    assert await refused(listing) is Code.NOT_FOUND


async def test_another_tenants_batch_is_not_found(queue: Batches) -> None:
    await queue.submit("ours", items([b"x"]))
    channel: Any = queue.scheduling.platform.channel
    answer = await TenantServiceStub(channel).CreateTenant(
        tenant_service_pb2.CreateTenantRequest(tenant_id="globex")
    )
    their_channel: Any = KeyedChannel(channel.bare, answer.api_key_secret)
    theirs: Any = BatchServiceStub(their_channel)
    name, parent = queue.name("ours"), queue.scheduling.queue
    for call in (
        theirs.GetBatch(pb.GetBatchRequest(name=name)),
        theirs.CancelBatch(pb.CancelBatchRequest(name=name)),
        theirs.ListBatches(pb.ListBatchesRequest(parent=parent)),
        theirs.SubmitBatch(pb.SubmitBatchRequest(parent=parent, batch_id="ours")),
        anext(aiter(theirs.WatchBatch(pb.WatchBatchRequest(name=name)))),
    ):
        assert await refused(call) is Code.NOT_FOUND
    assert (await queue.get("ours")).state == batches_pb2.BATCH_STATE_RUNNING


async def test_items_of_the_queue_of_turns_are_turns_that_the_caller_may_run(
    scheduling: Scheduling,
) -> None:
    turns = Batches(Scheduling(scheduling.platform, f"{TENANT}/queues/turns"))
    payloads = [b"no turn", b'{"session": "tenants/globex/agents/a/sessions/s", "input": "x"}']
    wanted = [
        batches_pb2.BatchItem(spec=spec("echo")),
        *(batches_pb2.BatchItem(spec=spec("agent-turn", payload)) for payload in payloads),
    ]
    response = await turns.submit("forged", wanted)
    assert [error.code for error in response.errors] == [
        *(Code.INVALID_ARGUMENT.value[0], Code.INVALID_ARGUMENT.value[0]),
        Code.NOT_FOUND.value[0],
    ]
    assert response.batch.counts.items == 0


async def test_cancelling_ends_what_waits_and_what_runs(queue: Batches) -> None:
    begun = asyncio.Event()

    async def slow(task: WorkerTask) -> None:
        begun.set()
        await asyncio.sleep(60)

    async with queue.scheduling.working({"echo": slow}, slots=4):
        await queue.submit("long", items([b"x"] * 1_000), running_tasks_max=2)
        await begun.wait()
        request = pb.CancelBatchRequest(name=queue.name("long"), reason="enough")
        await queue.stub.CancelBatch(request)
        results = await queue.results("long")
    assert len(results) == 1_000
    assert {(result.state, result.reason) for result in results} == {(CANCELLED, "enough")}
    again = (await queue.stub.CancelBatch(request)).batch
    assert (again.state, again.reason) == (batches_pb2.BATCH_STATE_CANCELLED, "enough")
    late = await queue.submit("long", items([b"x"]), first_index=1_000)
    assert [error.code for error in late.errors] == [Code.FAILED_PRECONDITION.value[0]]


async def test_a_batch_that_is_complete_isnt_cancelled(queue: Batches) -> None:
    async with queue.scheduling.working({"echo": Echo()}):
        await queue.submit("done", items([b"x"]))
        await queue.results("done")
    cancel = queue.stub.CancelBatch(pb.CancelBatchRequest(name=queue.name("done")))
    assert await refused(cancel) is Code.FAILED_PRECONDITION


async def test_a_redriven_item_ends_again(queue: Batches) -> None:
    broken = True

    async def sometimes(task: WorkerTask) -> bytes:
        if broken and task.payload == b"1":
            raise TaskFailure("broken", 3)
        return b"well"

    async with queue.scheduling.working({"echo": sometimes}):
        await queue.submit("mended", items([b"0", b"1", b"2"]))
        first = await queue.results("mended")
        assert Counter(result.state for result in first) == {SUCCEEDED: 2, FAILED: 1}
        broken = False
        redrive = dead_pb.RedriveDeadLettersRequest(parent=queue.scheduling.queue)
        await queue.scheduling.dead_letters.RedriveDeadLetters(redrive)
        (again,) = await queue.results("mended", after=3)
    assert (again.number, again.index, again.result) == (4, 1, b"well")
    counts = (await queue.get("mended")).counts
    assert (counts.succeeded, counts.failed) == (3, 0)


async def test_dead_letters_of_one_batch_are_redriven_in_one_go(queue: Batches) -> None:
    async with queue.scheduling.working({"echo": failing_sometimes}):
        for batch in ("one", "other"):
            await queue.submit(batch, items([b"7", b"1"]))
            await queue.results(batch)
    answer = await queue.scheduling.dead_letters.RedriveDeadLetters(
        dead_pb.RedriveDeadLettersRequest(parent=queue.scheduling.queue, batch=queue.name("one"))
    )
    assert answer.count == 1
    one, other = (await queue.get("one")).counts, (await queue.get("other")).counts
    assert (one.queued, one.failed, other.queued, other.failed) == (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"batch": "tenants/default/queues/elsewhere/batches/one"}, Code.INVALID_ARGUMENT),
        ({"batch": "{queue}/batches/none"}, Code.NOT_FOUND),
        ({"batch": "{queue}/batches/one", "names": ["{queue}/tasks/t1"]}, Code.INVALID_ARGUMENT),
    ],
)
async def test_dead_letters_of_what_cant_be_meant_are_refused(
    queue: Batches, fields: dict[str, Any], code: Code
) -> None:
    await queue.submit("one", [])
    parent = queue.scheduling.queue
    meant = json.loads(json.dumps(fields).replace("{queue}", parent))
    request = dead_pb.DiscardDeadLettersRequest(parent=parent, **meant)
    assert await refused(queue.scheduling.dead_letters.DiscardDeadLetters(request)) is code


async def test_discarding_dead_letters_leaves_what_became_of_a_batch(queue: Batches) -> None:
    async with queue.scheduling.working({"echo": failing_sometimes}):
        await queue.submit("over", items([b"7", b"1", b"107"]))
        before = await queue.results("over")
    counted = (await queue.get("over")).counts
    answer = await queue.scheduling.dead_letters.DiscardDeadLetters(
        dead_pb.DiscardDeadLettersRequest(parent=queue.scheduling.queue, batch=queue.name("over"))
    )
    assert answer.count == 2
    after = await queue.get("over")
    assert (after.state, after.counts) == (batches_pb2.BATCH_STATE_COMPLETED, counted)
    assert [(each.number, each.index, each.state, each.code) for each in before] == [
        (each.number, each.index, each.state, each.code) for each in await queue.results("over")
    ]
    listed = await queue.scheduling.tasks.ListTasks(
        task_pb.ListTasksRequest(parent=queue.scheduling.queue, state=CANCELLED)
    )
    assert len(listed.tasks) == 2


async def test_batches_are_listed_by_pages_newest_first(queue: Batches) -> None:
    for number in range(5):
        await queue.submit(f"b{number}", [])
    listed: list[str] = []
    request = pb.ListBatchesRequest(parent=queue.scheduling.queue, page_size=2)
    while True:
        page = await queue.stub.ListBatches(request)
        listed.extend(batch.name for batch in page.batches)
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert listed == [queue.name(f"b{number}") for number in reversed(range(5))]


async def test_a_batch_of_no_items_is_complete(queue: Batches) -> None:
    response = await queue.submit("nothing", [])
    assert response.batch.state == batches_pb2.BATCH_STATE_COMPLETED
    assert await queue.results("nothing") == []


async def test_a_watch_that_isnt_read_keeps_nothing_and_misses_nothing(queue: Batches) -> None:
    large = b"x" * 100_000
    async with queue.scheduling.working({"echo": Echo()}, slots=16):
        await queue.submit("large", [], open=True)
        stream = queue.watch("large")
        reading = aiter(stream)
        await anext(reading)
        for first in range(0, 300, 30):
            await queue.submit("large", items([large] * 30), first_index=first, open=True)
        await queue.submit("large", [])
        assert len(await queue.results("large")) == 300
        late: list[int] = []
        async for message in reading:
            assert message.ByteSize() < 2 << 20
            late.extend(result.number for result in message.results)
    assert late == list(range(1, 301))


async def test_a_file_that_was_interrupted_is_run_again(queue: Batches, tmp_path: Path) -> None:
    file, to = tmp_path / "items.ndjson", tmp_path / "results.ndjson"
    file.write_text("".join(f'{{"payload":"{number}"}}\n' for number in range(1_200)))
    weft = queue.scheduling.platform
    environment = environment_for(weft.addresses["grpc"], WEFT_API_KEY=weft.key)
    run = ("batch", "run", str(file), "echo", "--queue", queue.scheduling.queue, "--id", "again")

    async def command() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *command_line(*run, "--to", str(to)),
            cwd=ROOT,
            env=environment,
            stderr=asyncio.subprocess.PIPE,
        )

    ran: Counter[bytes] = Counter()
    enough = asyncio.Event()

    async def counted(task: WorkerTask) -> bytes:
        ran[task.payload] += 1
        if len(ran) > 100:
            enough.set()
        await asyncio.sleep(0.005)
        return task.payload

    async with queue.scheduling.working({"echo": counted}, slots=8):
        first = await command()
        await asyncio.wait_for(enough.wait(), SECONDS_MAX)
        first.send_signal(signal.SIGINT)
        _, said = await asyncio.wait_for(first.communicate(), SECONDS_MAX)
        assert first.returncode == 130
        assert b"weft batch watch" in said
        again = await command()
        _, said = await asyncio.wait_for(again.communicate(), SECONDS_MAX)
    assert (again.returncode, b"1200 succeeded" in said) == (0, True)
    lines = [json.loads(line) for line in to.read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(1, 1_201))
    assert {line["index"]: line["result"] for line in lines} == {n: str(n) for n in range(1_200)}
    assert set(ran.values()) == {1}


LOST = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError, AssertionError)
"""What a call ends with whose server was killed, or isn't there yet."""


async def send(queue: Batches, batch: str, payloads: list[bytes]) -> None:
    """As a client that doesn't give up: what isn't answered is sent again."""
    last = (len(payloads) - 1) // CHUNK
    gives_up = time.monotonic() + SECONDS_MAX
    for chunk in range(last + 1):
        first = chunk * CHUNK
        wanted = items(payloads[first : first + CHUNK])
        while True:
            try:
                await queue.submit(batch, wanted, first_index=first, open=chunk < last)
                break
            except LOST:
                assert time.monotonic() < gives_up, "the items weren't accepted"
                await asyncio.sleep(PAUSE_SECONDS)


async def followed(queue: Batches, batch: str) -> list[batches_pb2.BatchResult]:
    """All results, over as many connections as it takes."""
    found: list[batches_pb2.BatchResult] = []
    gives_up = time.monotonic() + SECONDS_MAX
    while time.monotonic() < gives_up:
        with contextlib.suppress(*LOST):
            async for message in queue.watch(batch, found[-1].number if found else 0):
                found.extend(message.results)
                is_complete = message.batch.state == batches_pb2.BATCH_STATE_COMPLETED
                if is_complete and len(found) == message.batch.counts.items:
                    return found
        await asyncio.sleep(PAUSE_SECONDS)
    raise AssertionError("the batch didn't end")


async def test_kills_in_the_middle_lose_and_double_nothing(tmp_path: Path) -> None:
    payloads = [str(number).encode() for number in range(1_500)]
    settings = {
        "WEFT_SCHEDULER_LEASE_SECONDS": "1",
        "WEFT_SCHEDULER_HEARTBEAT_SECONDS": "0.2",
    }
    async with platform(tmp_path / "weft", **settings) as weft:
        queue = await made(Scheduling(weft), "q")
        address = tmp_path / "address"
        address.write_text(weft.addresses["grpc"])
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.task_worker"),
            *(queue.scheduling.queue, str(address), str(tmp_path / "ran")),
            cwd=ROOT,
            env={**os.environ, "WEFT_API_KEY": weft.key},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(SECONDS_MAX):
                sending = asyncio.create_task(send(queue, "killed", payloads))
                following = asyncio.create_task(followed(queue, "killed"))
                for _ in range(3):
                    await asyncio.sleep(0.5)
                    await weft.kill()
                    await weft.start()
                    fresh = tmp_path / "address.new"
                    fresh.write_text(weft.addresses["grpc"])
                    fresh.replace(address)
                await sending
                results = await following
        finally:
            assert worker.returncode is None, "the worker has ended by itself"
            worker.kill()
            await worker.wait()
        assert [result.number for result in results] == list(range(1, 1_501))
        assert {result.index: result.result for result in results} == dict(enumerate(payloads))
        assert len({result.task for result in results}) == 1_500
        # And the same items again change nothing.
        await send(queue, "killed", payloads)
        assert (await queue.get("killed")).counts.succeeded == 1_500
        tasks = await queue.scheduling.tasks.ListTasks(
            task_pb.ListTasksRequest(parent=queue.scheduling.queue, page_size=1)
        )
        assert len(tasks.tasks) == 1
