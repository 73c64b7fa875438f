"""Bounds of what a scheduler holds and takes in."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from tests.support.batches import Batches, items
from tests.support.platform import TENANT, platform
from tests.support.scheduling import SECONDS_MAX, Echo, Scheduling, spec
from weft.scheduler.v1 import queue_service_pb2 as queue_pb
from weft.scheduler.v1 import worker_service_pb2 as worker_pb

QUEUES_MAX = 4
ENTRIES_PER_SECOND = 50
PAYLOADS_BYTES_MAX = 1 << 20
LARGE = b"x" * (PAYLOADS_BYTES_MAX // 4)


@pytest.fixture(scope="module")
async def scheduling(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scheduling]:
    settings = {
        "WEFT_SCHEDULER_QUEUES_MAX": str(QUEUES_MAX),
        "WEFT_SCHEDULER_PAYLOADS_BYTES_MAX": str(PAYLOADS_BYTES_MAX),
        "WEFT_SCHEDULER_WORKER_ENTRIES_PER_SECOND_MAX": str(ENTRIES_PER_SECOND),
    }
    async with platform(tmp_path_factory.mktemp("bounds") / "data", **settings) as running:
        yield Scheduling(running)


async def test_racing_requests_make_no_more_queues_than_a_tenant_may_have(
    scheduling: Scheduling,
) -> None:
    made = await asyncio.gather(
        *(
            scheduling.queues.CreateQueue(
                queue_pb.CreateQueueRequest(parent=TENANT, queue_id=f"q{number}")
            )
            for number in range(3 * QUEUES_MAX)
        ),
        return_exceptions=True,
    )
    refused = [each for each in made if isinstance(each, grpc.aio.AioRpcError)]
    assert {each.code() for each in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    listed = await scheduling.queues.ListQueues(queue_pb.ListQueuesRequest(parent=TENANT))
    assert len(listed.queues) == len(made) - len(refused) == QUEUES_MAX


async def test_payloads_of_all_queues_together_are_bounded(scheduling: Scheduling) -> None:
    listed = await scheduling.queues.ListQueues(queue_pb.ListQueuesRequest(parent=TENANT))
    one, other = (Scheduling(scheduling.platform, each.name) for each in listed.queues[:2])
    waiting = [await queue.submit(spec(payload=LARGE)) for queue in (one, other, one, other)]
    for call in (
        one.submit(spec(payload=LARGE)),
        Batches(other).submit("large", items([LARGE])),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert retry_seconds(raised.value) == 1
    await one.submit(spec("small"))
    async with one.working({"echo": Echo()}), other.working({"echo": Echo()}):
        for task, queue in zip(waiting, (one, other, one, other), strict=True):
            await queue.done(task.name)
    end = time.monotonic() + SECONDS_MAX
    while True:
        try:
            await one.submit(spec(payload=LARGE))
            break
        except grpc.aio.AioRpcError:
            assert time.monotonic() < end, "there is room again"
            await asyncio.sleep(0.05)


def retry_seconds(error: grpc.aio.AioRpcError) -> int:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return int(info.retry_delay.seconds)


async def test_a_worker_that_says_too_much_waits_and_is_kept(scheduling: Scheduling) -> None:
    await scheduling.submit(spec("other"))
    count = 3 * ENTRIES_PER_SECOND
    stream: Any = scheduling.workers.Attach()
    hello = worker_pb.WorkerHello(worker_id="loud", capabilities=["echo"], slots=1)
    await stream.write(worker_pb.AttachRequest(queue=scheduling.queue, hello=hello))
    assert (await stream.read()).HasField("welcome")
    for slots in range(1, count + 1):
        message = worker_pb.WorkerSlots(slots=slots)
        await stream.write(worker_pb.AttachRequest(queue=scheduling.queue, slots=message))
    assert (await scheduling.stats()).free_slots < count, "it was read faster than it may be"
    end = time.monotonic() + SECONDS_MAX
    while (await scheduling.stats()).free_slots != count:
        assert time.monotonic() < end, "all is read at last"
        await asyncio.sleep(0.05)
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
