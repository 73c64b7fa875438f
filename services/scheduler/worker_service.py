"""The servicer of `weft.scheduler.v1.WorkerService`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TypeVar

from mesh.call import Call
from mesh.errors import InvalidArgument, PermissionDenied, Unavailable
from mesh.events.store import StreamName
from mesh.ids import new_id
from mesh.rpc.pages import read_page_token, write_page_token
from services.scheduler.dispatcher import Dispatcher
from services.scheduler.domain import names
from services.scheduler.forwarding import first_message
from services.scheduler.pace import Pace, entries_of
from services.scheduler.queues import Queues
from services.scheduler.settings import SchedulerSettings
from services.scheduler.workers import Worker, failure_of
from weft.scheduler.v1 import tasks_pb2, workers_pb2
from weft.scheduler.v1 import worker_service_pb2 as pb

PAGE_SIZE = 100
PAGE_BYTES_MAX = 2_000_000
"""Whose last worker makes it larger is cut: clients receive 4 MiB where they aren't told else."""
_Request = pb.AttachRequest | pb.AttachSharedRequest
_R = TypeVar("_R", pb.AttachRequest, pb.AttachSharedRequest)


class WorkerService:
    """Attaches workers, and tells which are. `instance` is this one's name."""

    def __init__(self, queues: Queues, settings: SchedulerSettings, instance: str) -> None:
        self._instance = instance
        self._queues = queues
        self._settings = settings

    async def attach(
        self, requests: AsyncIterator[pb.AttachRequest], call: Call
    ) -> AsyncGenerator[pb.AttachResponse, None]:
        """Ends when the worker ends its side, or with an error.

        Raises NotFound for a queue that wasn't made, InvalidArgument where the first
        message isn't hello or a later one is, or names another queue, DeadlineExceeded where
        hello doesn't come, LimitExceeded where there are too many workers.
        """
        first = await self._first(requests)
        queue = await self._queue(first.queue)
        if queue.key[0] == names.TURNS_QUEUE:
            raise PermissionDenied("turns are run by Weft's own workers")
        dispatcher = self._queues.dispatcher(queue.key[0])

        async def later() -> AsyncIterator[pb.AttachRequest]:
            async for request in requests:
                if request.queue != first.queue:
                    raise InvalidArgument.of("queue", "isn't the one of the first message")
                yield request

        async with aclosing(
            self._serve(dispatcher, first, later(), queue.tenant, call)
        ) as messages:
            async for message in messages:
                yield message

    async def attach_shared(
        self, requests: AsyncIterator[pb.AttachSharedRequest], call: Call
    ) -> AsyncGenerator[pb.AttachSharedResponse, None]:
        """As `attach`, whether there is such a queue yet or not."""
        first = await self._first(requests)
        if first.queue_id == names.TURNS_QUEUE and call.peer and not call.caller:
            raise PermissionDenied("turns are run by Weft's own workers")
        dispatcher = self._queues.dispatcher(first.queue_id)

        async def later() -> AsyncIterator[pb.AttachSharedRequest]:
            async for request in requests:
                if request.queue_id != first.queue_id:
                    raise InvalidArgument.of("queue_id", "isn't the one of the first message")
                yield request

        async with aclosing(self._serve(dispatcher, first, later(), "", call)) as messages:
            async for message in messages:
                # The fields of both are the same.
                yield pb.AttachSharedResponse.FromString(message.SerializeToString())

    async def list_workers(
        self, request: pb.ListWorkersRequest, call: Call
    ) -> pb.ListWorkersResponse:
        """By id. NotFound for a queue that wasn't made."""
        after = read_page_token(request.page_token, request.parent)
        queue = await self._queues.existing(request.parent)
        dispatcher = self._queues.dispatcher(queue.stream.key[0])
        attached = {each.key: each for each in dispatcher.workers_of(queue.tenant)}
        keys = sorted(key for key in attached if key > after)
        response = pb.ListWorkersResponse()
        size_bytes = 0
        for count, key in enumerate(keys, 1):
            view = self._view(attached[key], request.parent)
            response.workers.append(view)
            size_bytes += view.ByteSize()
            full = count >= (request.page_size or PAGE_SIZE) or size_bytes >= PAGE_BYTES_MAX
            if full and count < len(keys):
                response.next_page_token = write_page_token(key, request.parent)
            if full:
                break
        return response

    def _view(self, worker: Worker, queue: str) -> workers_pb2.Worker:
        """What a tenant may know: of a worker of all tenants' not whose its other tasks are."""
        view = workers_pb2.Worker(
            worker_id=worker.id,
            queue=queue,
            capabilities=sorted(worker.capabilities),
            labels=[tasks_pb2.Label(key=key, value=value) for key, value in sorted(worker.labels)],
            zone=worker.zone,
            slots=worker.slots,
            free_slots=worker.free_slots,
            running_tasks=sum(task.startswith(f"{queue}/tasks/") for task, _ in worker.held),
            load=worker.load,
            shared=not worker.tenant,
            instance=self._instance,
        )
        if worker.cpu_millis or worker.memory_bytes:
            view.resources.cpu_millis = worker.cpu_millis
            view.resources.memory_bytes = worker.memory_bytes
        view.attach_time.FromNanoseconds(worker.attach_ns)
        return view

    async def _serve(
        self,
        dispatcher: Dispatcher,
        first: _Request,
        later: AsyncIterator[_Request],
        tenant: str,
        call: Call,
    ) -> AsyncGenerator[pb.AttachResponse, None]:
        await self._catch_up(dispatcher, first.hello)
        worker = dispatcher.attach(first.hello, first.hello.worker_id or new_id(), tenant)
        worker.attach_ns, worker.actor = self._queues.clock.now_ns(), call.actor
        reader = asyncio.create_task(self._read(dispatcher, worker, later))
        try:
            async with aclosing(worker.messages()) as messages:
                async for message in messages:
                    yield message
            if reader.done():
                # Raises what ended it, if something did.
                reader.result()
                return
            if not worker.attached:
                raise Unavailable("the worker was let go: attach again")
        finally:
            reader.cancel()
            dispatcher.detach(worker)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({reader})

    async def _catch_up(self, dispatcher: Dispatcher, hello: pb.WorkerHello) -> None:
        """What it goes on with may have been another instance's until now, whose last commits
        aren't here yet."""
        tasks = [progress.task for progress in hello.running]
        for queue in list(dispatcher.tenants.values()):
            prefix = f"{names.queue_name(queue.stream)}/tasks/"
            if any(task.startswith(prefix) for task in tasks):
                await queue.aggregate.load()

    async def _first(self, requests: AsyncIterator[_R]) -> _R:
        first: _R | None = await first_message(requests, self._settings.hello_seconds)
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidArgument.of("hello", "must be the first message")
        return first

    async def _queue(self, name: str) -> StreamName:
        stream = names.queue_stream(name)
        if stream.key[0] in names.MADE_BY_USE:
            # Workers may be there before the first task.
            await self._queues.queue(stream)
        else:
            await self._queues.existing(name)
        return stream

    async def _read(
        self, dispatcher: Dispatcher, worker: Worker, requests: AsyncIterator[_Request]
    ) -> None:
        pace = Pace(self._settings.worker_entries_per_second_max, self._queues.clock)
        try:
            async for request in requests:
                worker.seen = self._queues.clock.monotonic()
                self._take(dispatcher, worker, request)
                if wait_seconds := pace.wait_seconds(entries_of(request)):
                    # What isn't read fills the stream's window, and the worker waits.
                    await asyncio.sleep(wait_seconds)
        finally:
            worker.outbox.put_nowait(None)

    def _take(self, dispatcher: Dispatcher, worker: Worker, request: _Request) -> None:
        kind = request.WhichOneof("message")
        if kind == "succeeded":
            _succeeded(dispatcher, worker, request.succeeded)
        elif kind == "failed":
            _failed(dispatcher, worker, request.failed)
        elif kind == "reports":
            for report in request.reports.reports:
                if report.HasField("failed"):
                    _failed(dispatcher, worker, report.failed)
                else:
                    _succeeded(dispatcher, worker, report.succeeded)
        elif kind == "heartbeat":
            dispatcher.heartbeat(worker, request.heartbeat)
        elif kind == "slots":
            dispatcher.change_slots(worker, request.slots.slots)
        else:
            raise InvalidArgument.of("message", "is none, or a second hello")


def _succeeded(dispatcher: Dispatcher, worker: Worker, done: pb.WorkerSucceeded) -> None:
    dispatcher.report(worker, done.task, done.attempt, done.result)


def _failed(dispatcher: Dispatcher, worker: Worker, failed: pb.WorkerFailed) -> None:
    if failed.released:
        dispatcher.release(worker, failed.task, failed.attempt)
        return
    failure = failure_of(failed.code, failed.message)
    dispatcher.report(worker, failed.task, failed.attempt, failure)
