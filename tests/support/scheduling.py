"""Tasks of a running Weft, and workers for them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from mesh.worker import Worker, WorkerTask
from tests.support.platform import TENANT, Platform
from weft.scheduler.v1 import dead_letter_service_pb2 as dead_pb
from weft.scheduler.v1 import queue_service_pb2 as queue_pb
from weft.scheduler.v1 import queues_pb2, tasks_pb2
from weft.scheduler.v1 import task_service_pb2 as task_pb
from weft.scheduler.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from weft.scheduler.v1.queue_service_pb2_grpc import QueueServiceStub
from weft.scheduler.v1.task_service_pb2_grpc import TaskServiceStub
from weft.scheduler.v1.worker_service_pb2_grpc import WorkerServiceStub

DEFAULT = f"{TENANT}/queues/default"
SECONDS_MAX = 30.0
FINAL = (
    tasks_pb2.TASK_STATE_SUCCEEDED,
    tasks_pb2.TASK_STATE_FAILED,
    tasks_pb2.TASK_STATE_CANCELLED,
)


def spec(capability: str = "echo", payload: bytes = b"", **fields: Any) -> tasks_pb2.TaskSpec:
    """What is to be done; tried again after ten milliseconds, unless `retry` says else."""
    made = tasks_pb2.TaskSpec(capability=capability, payload=payload, **fields)
    if not made.HasField("retry"):
        made.retry.initial_backoff.FromMilliseconds(10)
    return made


@dataclass
class Scheduling:
    """The scheduler of a platform, which may be killed and started again."""

    platform: Platform
    queue: str = DEFAULT

    @property
    def tasks(self) -> Any:
        return TaskServiceStub(self.platform.channel)  # type: ignore[arg-type]

    @property
    def queues(self) -> Any:
        return QueueServiceStub(self.platform.channel)  # type: ignore[arg-type]

    @property
    def dead_letters(self) -> Any:
        return DeadLetterServiceStub(self.platform.channel)  # type: ignore[arg-type]

    @property
    def workers(self) -> Any:
        return WorkerServiceStub(self.platform.channel)  # type: ignore[arg-type]

    async def submit(self, wanted: tasks_pb2.TaskSpec, **fields: Any) -> tasks_pb2.Task:
        """Submits a task."""
        request = task_pb.SubmitTaskRequest(parent=self.queue, spec=wanted, **fields)
        response: task_pb.SubmitTaskResponse = await self.tasks.SubmitTask(
            request, timeout=SECONDS_MAX
        )
        return response.task

    async def submit_surely(self, wanted: tasks_pb2.TaskSpec, request_id: str) -> tasks_pb2.Task:
        """Submits a task, again and again under the same request, until it is accepted."""
        deadline = time.monotonic() + SECONDS_MAX
        while True:
            try:
                return await self.submit(wanted, request_id=request_id)
            except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def get(self, name: str) -> tasks_pb2.Task:
        """The task as it is."""
        request = task_pb.GetTaskRequest(name=name)
        response: task_pb.GetTaskResponse = await self.tasks.GetTask(request)
        return response.task

    async def done(self, name: str) -> tasks_pb2.Task:
        """The task once it is final."""
        last: tasks_pb2.Task | None = None
        async for message in self.tasks.WatchTask(
            task_pb.WatchTaskRequest(name=name), timeout=SECONDS_MAX
        ):
            last = message.task
        assert last is not None
        assert last.state in FINAL
        return last

    async def until(self, name: str, holds: Callable[[tasks_pb2.Task], bool]) -> tasks_pb2.Task:
        """The task once that holds of it."""
        deadline = time.monotonic() + SECONDS_MAX
        while True:
            task = await self.get(name)
            if holds(task):
                return task
            assert time.monotonic() < deadline, task
            await asyncio.sleep(0.01)

    async def stats(self) -> queues_pb2.QueueStats:
        """How full the queue is."""
        request = queue_pb.GetQueueRequest(name=self.queue)
        response: queue_pb.GetQueueResponse = await self.queues.GetQueue(request)
        return response.queue.stats

    async def all_dead_letters(self) -> list[tasks_pb2.Task]:
        """All failed tasks of the queue."""
        found: list[tasks_pb2.Task] = []
        token = ""
        while True:
            page = await self.dead_letters.ListDeadLetters(
                dead_pb.ListDeadLettersRequest(parent=self.queue, page_size=1000, page_token=token)
            )
            found.extend(page.tasks)
            token = page.next_page_token
            if not token:
                return found

    def worker(self, **fields: Any) -> Worker:
        """A worker of the queue that isn't attached yet."""
        channel: Any = self.platform.channel
        fields.setdefault("address", self.platform.addresses["grpc"])
        return Worker(self.queue, api_key=channel.key, **fields)

    @asynccontextmanager
    async def working(
        self, handlers: Mapping[str, Callable[[WorkerTask], Any]], **fields: Any
    ) -> AsyncIterator[Worker]:
        """A worker with these handlers, attached."""
        worker = self.worker(**fields)
        for capability, handler in handlers.items():
            worker.task(capability)(handler)
        running = asyncio.create_task(worker.work())
        try:
            await attached(worker)
            yield worker
        finally:
            worker.stop()
            await asyncio.wait({running}, timeout=1)
            running.cancel()
            await asyncio.wait({running})


async def attached(worker: Worker) -> None:
    """Returns once the worker is attached."""
    deadline = time.monotonic() + SECONDS_MAX
    while not worker.attached:
        assert time.monotonic() < deadline, "the worker wasn't attached"
        await asyncio.sleep(0.005)


@dataclass
class Echo:
    """A handler that answers with the payload and notes what it ran."""

    ran: list[tuple[str, int]] = field(default_factory=list)

    async def __call__(self, task: WorkerTask) -> bytes:
        self.ran.append((task.name, task.attempt))
        return task.payload
