"""Queues, their tasks and dead letters in memory: just what a client sees of them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable

from google.protobuf.duration_pb2 import Duration

from mesh.call import Call
from mesh.errors import AlreadyExists, FailedPrecondition, NotFound, NotServing
from mesh.ids import new_id
from tests.support.memory_catalogues import page_of
from weft.scheduler.v1 import dead_letter_service_pb2 as dead_letters
from weft.scheduler.v1 import queue_service_pb2 as queues
from weft.scheduler.v1 import queues_pb2, tasks_pb2, workers_pb2
from weft.scheduler.v1 import task_service_pb2 as pb
from weft.scheduler.v1 import worker_service_pb2 as workers

DEFAULT = "tenants/default/queues/default"
WAITING = (tasks_pb2.TASK_STATE_QUEUED, tasks_pb2.TASK_STATE_UNSCHEDULABLE)
FINAL = (
    tasks_pb2.TASK_STATE_SUCCEEDED,
    tasks_pb2.TASK_STATE_FAILED,
    tasks_pb2.TASK_STATE_CANCELLED,
)

Change = Callable[[tasks_pb2.Task], None]


class MemoryTasks:
    """The services of `weft.scheduler.v1`.

    A task does what `scripts` has for its capability: one change after the other, each of
    which a watch sees. `cut_after` ends the first watch after that many of its messages, as
    a server does that drains. Workers are welcome and get nothing; `hellos` holds what they
    said of themselves.
    """

    def __init__(self) -> None:
        self.scripts: dict[str, list[Change]] = {}
        self.cut_after: int | None = None
        self.submitted: list[pb.SubmitTaskRequest] = []
        self.listed: list[pb.ListTasksRequest] = []
        self.watches = 0
        self.hellos: list[workers.AttachRequest] = []
        self.workers: list[workers_pb2.Worker] = []
        self._queues: dict[str, queues_pb2.Queue] = {}
        self._tasks: dict[str, tasks_pb2.Task] = {}
        self._requests: dict[str, str] = {}
        self.make_queue(DEFAULT)

    def require(self, queue: str) -> None:
        """NotFound where there is no queue of that name."""
        self._queue(queue)

    def add(
        self, task: str, state: "tasks_pb2.TaskState.ValueType", reason: str = ""
    ) -> tasks_pb2.Task:
        """Puts a task of the capability `resize`, named QUEUE/TASK, where it stands."""
        name = f"tenants/default/queues/{task.replace('/', '/tasks/')}"
        spec = tasks_pb2.TaskSpec(capability="resize")
        added = tasks_pb2.Task(name=name, spec=spec, state=state, reason=reason)
        self._tasks[name] = added
        return added

    def make_queue(self, name: str) -> None:
        """Makes a queue without limits."""
        self._queues[name] = queues_pb2.Queue(name=name)

    async def submit_task(self, request: pb.SubmitTaskRequest, _: Call) -> pb.SubmitTaskResponse:
        self._queue(request.parent)
        self.submitted.append(request)
        name = f"{request.parent}/tasks/{request.task_id or new_id()}"
        name = self._requests.setdefault(request.request_id or name, name)
        if name not in self._tasks:
            state = tasks_pb2.TASK_STATE_QUEUED
            self._tasks[name] = tasks_pb2.Task(name=name, spec=request.spec, state=state)
        return pb.SubmitTaskResponse(task=self._tasks[name])

    async def get_task(self, request: pb.GetTaskRequest, _: Call) -> pb.GetTaskResponse:
        return pb.GetTaskResponse(task=self._of(request.name))

    async def list_tasks(self, request: pb.ListTasksRequest, _: Call) -> pb.ListTasksResponse:
        self._queue(request.parent)
        self.listed.append(request)
        states = WAITING if request.state in WAITING else (request.state,)
        found = [
            task
            for task in self._in(request.parent)
            if (not request.state or task.state in states)
            and request.capability in ("", task.spec.capability)
            and request.batch in ("", task.batch)
            and (task.HasField("stalled_time") or not request.stalled)
        ]
        page, token = page_of(found, request.page_size, request.page_token)
        return pb.ListTasksResponse(tasks=page, next_page_token=token)

    async def cancel_task(self, request: pb.CancelTaskRequest, _: Call) -> pb.CancelTaskResponse:
        task = self._of(request.name)
        if task.state in FINAL:
            raise FailedPrecondition("the task is over already")
        task.state, task.reason = tasks_pb2.TASK_STATE_CANCELLED, request.reason
        return pb.CancelTaskResponse(task=task)

    async def skip_task(self, request: pb.SkipTaskRequest, _: Call) -> pb.SkipTaskResponse:
        task = self._of(request.name)
        ended(tasks_pb2.TASK_STATE_CANCELLED, request.reason)(task)
        return pb.SkipTaskResponse(task=task)

    async def fail_task(self, request: pb.FailTaskRequest, _: Call) -> pb.FailTaskResponse:
        task = self._of(request.name)
        ended(tasks_pb2.TASK_STATE_FAILED, request.reason)(task)
        return pb.FailTaskResponse(task=task)

    async def retry_task(self, request: pb.RetryTaskRequest, _: Call) -> pb.RetryTaskResponse:
        task = self._of(request.name)
        self._redrive(task)
        return pb.RetryTaskResponse(task=task)

    async def watch_task(
        self, request: pb.WatchTaskRequest, _: Call
    ) -> AsyncGenerator[pb.WatchTaskResponse, None]:
        task = self._of(request.name)
        self.watches += 1
        cut_after, self.cut_after = self.cut_after, None
        yield pb.WatchTaskResponse(task=task)
        script = self.scripts.get(task.spec.capability, [])
        sent = 1
        while task.state not in FINAL:
            if sent == cut_after:
                raise NotServing("draining")
            if not script:
                await asyncio.Event().wait()
            script.pop(0)(task)
            yield pb.WatchTaskResponse(task=task)
            sent += 1

    async def create_queue(
        self, request: queues.CreateQueueRequest, _: Call
    ) -> queues.CreateQueueResponse:
        name = f"{request.parent}/queues/{request.queue_id}"
        made = queues_pb2.Queue(name=name, limits=request.limits)
        queue = self._queues.setdefault(name, made)
        if queue.limits != request.limits:
            raise AlreadyExists("the queue is there already, with other limits")
        return queues.CreateQueueResponse(queue=queue)

    async def get_queue(self, request: queues.GetQueueRequest, _: Call) -> queues.GetQueueResponse:
        return queues.GetQueueResponse(queue=self._queue(request.name))

    async def list_queues(
        self, request: queues.ListQueuesRequest, _: Call
    ) -> queues.ListQueuesResponse:
        found = [self._queue(name) for name in sorted(self._queues)]
        page, token = page_of(found, request.page_size, request.page_token)
        return queues.ListQueuesResponse(queues=page, next_page_token=token)

    async def update_queue(
        self, request: queues.UpdateQueueRequest, _: Call
    ) -> queues.UpdateQueueResponse:
        self._queue(request.name).limits.CopyFrom(request.limits)
        return queues.UpdateQueueResponse(queue=self._queue(request.name))

    async def pause_queue(
        self, request: queues.PauseQueueRequest, _: Call
    ) -> queues.PauseQueueResponse:
        self._queue(request.name).paused = True
        return queues.PauseQueueResponse(queue=self._queue(request.name))

    async def resume_queue(
        self, request: queues.ResumeQueueRequest, _: Call
    ) -> queues.ResumeQueueResponse:
        self._queue(request.name).paused = False
        return queues.ResumeQueueResponse(queue=self._queue(request.name))

    async def list_workers(
        self, request: workers.ListWorkersRequest, _: Call
    ) -> workers.ListWorkersResponse:
        if request.parent != "tenants/default/queues/turns":
            self._queue(request.parent)
        found = [each for each in self.workers if each.queue == request.parent]
        page, token = page_of(found, request.page_size, request.page_token)
        return workers.ListWorkersResponse(workers=page, next_page_token=token)

    async def list_dead_letters(
        self, request: dead_letters.ListDeadLettersRequest, _: Call
    ) -> dead_letters.ListDeadLettersResponse:
        self._queue(request.parent)
        found = self._dead(request.parent, [])
        page, token = page_of(found, request.page_size, request.page_token)
        return dead_letters.ListDeadLettersResponse(tasks=page, next_page_token=token)

    async def inspect_dead_letter(
        self, request: dead_letters.InspectDeadLetterRequest, _: Call
    ) -> dead_letters.InspectDeadLetterResponse:
        return dead_letters.InspectDeadLetterResponse(task=self._of(request.name))

    async def redrive_dead_letters(
        self, request: dead_letters.RedriveDeadLettersRequest, _: Call
    ) -> dead_letters.RedriveDeadLettersResponse:
        meant = self._dead(request.parent, request.names, request.batch)
        for task in meant:
            self._redrive(task)
        return dead_letters.RedriveDeadLettersResponse(count=len(meant))

    async def discard_dead_letters(
        self, request: dead_letters.DiscardDeadLettersRequest, _: Call
    ) -> dead_letters.DiscardDeadLettersResponse:
        meant = self._dead(request.parent, request.names, request.batch)
        for task in meant:
            task.state, task.reason = tasks_pb2.TASK_STATE_CANCELLED, request.reason
        return dead_letters.DiscardDeadLettersResponse(count=len(meant))

    async def attach(
        self, requests: AsyncIterator[workers.AttachRequest], _: Call
    ) -> AsyncGenerator[workers.AttachResponse, None]:
        async for request in requests:
            if request.HasField("hello"):
                self._queue(request.queue)
                self.hellos.append(request)
                yield workers.AttachResponse(
                    welcome=workers.WorkerWelcome(
                        worker_id=request.hello.worker_id, heartbeat_interval=Duration(seconds=1)
                    )
                )

    def _queue(self, name: str) -> queues_pb2.Queue:
        if name not in self._queues:
            raise NotFound.of("queue", name)
        queue = self._queues[name]
        here = self._in(name)
        queue.stats.ready = sum(task.state in WAITING for task in here)
        queue.stats.stalled = sum(task.HasField("stalled_time") for task in here)
        queue.stats.dead_letters = len(self._dead(name, []))
        return queue

    def _of(self, name: str) -> tasks_pb2.Task:
        if name not in self._tasks:
            raise NotFound.of("task", name)
        return self._tasks[name]

    def _in(self, queue: str) -> list[tasks_pb2.Task]:
        found = [task for name, task in self._tasks.items() if name.startswith(f"{queue}/")]
        return found[::-1]

    def _dead(self, queue: str, names: Iterable[str], batch: str = "") -> list[tasks_pb2.Task]:
        meant = [self._of(name) for name in names]
        dead = [t for t in self._in(queue) if t.state == tasks_pb2.TASK_STATE_FAILED]
        return meant or [t for t in dead if batch in ("", t.batch)]

    def _redrive(self, task: tasks_pb2.Task) -> None:
        if task.state != tasks_pb2.TASK_STATE_FAILED:
            raise FailedPrecondition("the task hasn't failed")
        task.state = tasks_pb2.TASK_STATE_QUEUED
        task.ClearField("reason")


def running(worker: str = "w1", progress: float = 0.0) -> Change:
    """A worker has the task, and is that far."""

    def change(task: tasks_pb2.Task) -> None:
        task.state = tasks_pb2.TASK_STATE_RUNNING
        task.progress = progress
        del task.attempts[:]
        task.attempts.add(attempt=1, worker=worker).start_time.FromSeconds(1_700_000_000)

    return change


def succeeded(result: bytes) -> Change:
    """The task's result is recorded."""

    def change(task: tasks_pb2.Task) -> None:
        task.state, task.result = tasks_pb2.TASK_STATE_SUCCEEDED, result

    return change


def ended(state: "tasks_pb2.TaskState.ValueType", reason: str) -> Change:
    """The task ends without a result."""

    def change(task: tasks_pb2.Task) -> None:
        task.state, task.reason = state, reason

    return change
