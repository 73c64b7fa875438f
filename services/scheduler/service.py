"""Puts the scheduler together."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from mesh.call import Call
from mesh.clock import NANOSECONDS
from mesh.events.aggregate import Repository
from mesh.runtime.service import Mesh
from services.scheduler.batch_service import BatchService
from services.scheduler.dead_letter_service import DeadLetterService
from services.scheduler.domain.schedule import SCHEDULE_FOLD
from services.scheduler.domain.state import QUEUE_FOLD
from services.scheduler.forwarding import Forwarding
from services.scheduler.owners import Owners
from services.scheduler.queue_service import QueueService
from services.scheduler.queues import Queues
from services.scheduler.read_model import TasksReadModel
from services.scheduler.schedule_service import ScheduleService
from services.scheduler.schedules import Schedules
from services.scheduler.schedules_read_model import SchedulesReadModel
from services.scheduler.settings import SchedulerSettings
from services.scheduler.submitting import Submitter
from services.scheduler.task_service import TaskService
from services.scheduler.worker_service import WorkerService
from weft.scheduler.v1 import queue_service_pb2 as queue_pb
from weft.scheduler.v1 import queues_pb2

SNAPSHOT_COMMITS = 2_000
"""A queue's snapshot holds all its open tasks: it is made seldom."""
SCHEDULES_OPEN_MAX = 10_000
"""Schedules whose state stays in memory; others are read when they tick."""
DAY_SECONDS = 86_400
PURGE_SECONDS = 3_600.0
STOPPING_SECONDS = 0.1
"""How often it looks whether the process ends."""


class SchedulerService:
    """Queues, their tasks, the workers that run them, and schedules that submit some."""

    def __init__(self, mesh: Mesh, settings: SchedulerSettings) -> None:
        self._mesh = mesh
        self._settings = settings
        self._clock = mesh.clock
        repository = Repository(
            mesh.events,
            QUEUE_FOLD,
            clock=mesh.clock,
            snapshot_commits=SNAPSHOT_COMMITS,
            # Another instance's commit costs the reading of it, however large the queue is.
            ahead=False,
        )
        path = mesh.data_dir / "scheduler.sqlite3"
        self._read_model = TasksReadModel(
            mesh.events, path, lambda batch: self._queues.observe(batch), mesh.keyring
        )
        self._owners = Owners(mesh.registry, f"instances/{mesh.instance}")
        self._queues = Queues(
            repository, self._read_model, settings, mesh.leases, mesh.clock, self._owners
        )
        self._submitter = Submitter(self._queues)
        self._repository = Repository(
            mesh.events, SCHEDULE_FOLD, clock=mesh.clock, aggregates_max=SCHEDULES_OPEN_MAX
        )
        self._schedules = Schedules(
            self._repository, self._queues, self._submitter, settings, mesh.clock
        )
        self._schedules_read_model = SchedulesReadModel(
            mesh.events, mesh.data_dir / "schedules.sqlite3", self._schedules.observe
        )
        self._forwarding = Forwarding(
            mesh,
            self._owners,
            self._schedules.queue_id,
            self._queues.let_go,
            settings.hello_seconds,
        )
        self._handlers = {
            name: self._forwarding.around(name, each)
            for name, each in self._implementations().items()
        }
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def handlers(self) -> Mapping[str, object]:
        """What implements each contract, wherever the queue's owner is."""
        return self._handlers

    def _implementations(self) -> Mapping[str, object]:
        return {
            "weft.scheduler.v1.TaskService": TaskService(
                self._queues, self._submitter, self._mesh.events
            ),
            "weft.scheduler.v1.BatchService": BatchService(
                self._queues, self._submitter, self._mesh.events
            ),
            "weft.scheduler.v1.QueueService": QueueService(
                self._queues, self._settings, self._queue_view
            ),
            "weft.scheduler.v1.DeadLetterService": DeadLetterService(self._queues),
            "weft.scheduler.v1.WorkerService": WorkerService(
                self._queues, self._settings, f"instances/{self._mesh.instance}"
            ),
            "weft.scheduler.v1.ScheduleService": ScheduleService(
                self._mesh.events,
                self._repository,
                self._schedules_read_model,
                self._schedules,
                self._submitter,
                self._settings,
                self._clock,
            ),
        }

    async def _queue_view(self, name: str, call: Call) -> queues_pb2.Queue:
        service: Any = self._handlers["weft.scheduler.v1.QueueService"]
        found: queue_pb.GetQueueResponse = await service.get_queue(
            queue_pb.GetQueueRequest(name=name), call
        )
        return found.queue

    async def start(self) -> None:
        """Returns once every queue is in memory again; then schedules tick."""
        await self._read_model.start()
        await self._schedules_read_model.start()
        await self._queues.start()
        self._schedules.start(self._schedules_read_model.schedules())
        self._tasks = [asyncio.create_task(self._purge()), asyncio.create_task(self._drain())]

    async def stop(self) -> None:
        """Lets workers go; what they have is theirs until their lease is over."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._schedules.stop()
        await self._forwarding.stop()
        await self._queues.stop()
        await self._schedules_read_model.stop()
        await self._read_model.stop()

    async def _drain(self) -> None:
        """Streams don't end by themselves: the process would wait for them as long as it may."""
        while not self._mesh.stopping:  # noqa: ASYNC110 - the host sets no event
            await asyncio.sleep(STOPPING_SECONDS)
        self._queues.drain()
        self._forwarding.drain()

    async def _purge(self) -> None:
        kept_ns = int(self._settings.kept_days * DAY_SECONDS * NANOSECONDS)
        while True:
            self._read_model.purge(self._clock.now_ns() - kept_ns)
            await asyncio.sleep(PURGE_SECONDS)
