"""The servicer of `weft.scheduler.v1.WorkerService`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from mesh.call import Call
from mesh.errors import InvalidArgument, Unavailable
from mesh.events.store import StreamName
from mesh.ids import new_id
from services.scheduler.dispatcher import Dispatcher
from services.scheduler.domain import names
from services.scheduler.queues import Queues
from services.scheduler.settings import SchedulerSettings
from services.scheduler.workers import Worker, failure_of
from weft.scheduler.v1 import worker_service_pb2 as pb


class WorkerService:
    """Attaches workers."""

    def __init__(self, queues: Queues, settings: SchedulerSettings) -> None:
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
        if first.hello.running:
            # It may have been another instance's until now, whose last commits aren't here yet.
            await (await self._queues.queue(queue)).aggregate.load()
        dispatcher = self._queues.dispatcher(queue.key[0])
        worker_id = first.hello.worker_id or new_id()
        worker = dispatcher.attach(first.hello, worker_id, queue.tenant)
        reader = asyncio.create_task(self._read(dispatcher, worker, requests, first.queue))
        try:
            while (message := await worker.outbox.get()) is not None:
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

    async def _first(self, requests: AsyncIterator[pb.AttachRequest]) -> pb.AttachRequest:
        try:
            async with asyncio.timeout(self._settings.hello_seconds):
                first = await anext(requests, None)
        except TimeoutError:
            raise InvalidArgument.of("hello", "didn't come in time") from None
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidArgument.of("hello", "must be the first message")
        return first

    async def _queue(self, name: str) -> StreamName:
        stream = names.queue_stream(name)
        if stream.key[0] == names.DEFAULT_QUEUE:
            # Workers may be there before the first task.
            await self._queues.queue(stream)
        else:
            await self._queues.existing(name)
        return stream

    async def _read(
        self,
        dispatcher: Dispatcher,
        worker: Worker,
        requests: AsyncIterator[pb.AttachRequest],
        queue: str,
    ) -> None:
        try:
            async for request in requests:
                if request.queue != queue:
                    raise InvalidArgument.of("queue", "isn't the one of the first message")
                worker.seen = self._queues.clock.monotonic()
                self._take(dispatcher, worker, request)
        finally:
            worker.outbox.put_nowait(None)

    def _take(self, dispatcher: Dispatcher, worker: Worker, request: pb.AttachRequest) -> None:
        kind = request.WhichOneof("message")
        if kind == "succeeded":
            done = request.succeeded
            dispatcher.report(worker, done.task, done.attempt, done.result)
        elif kind == "failed" and request.failed.released:
            dispatcher.release(worker, request.failed.task, request.failed.attempt)
        elif kind == "failed":
            failed = request.failed
            failure = failure_of(failed.code, failed.message)
            dispatcher.report(worker, failed.task, failed.attempt, failure)
        elif kind == "heartbeat":
            dispatcher.heartbeat(worker, request.heartbeat)
        elif kind == "slots":
            dispatcher.change_slots(worker, request.slots.slots)
        else:
            raise InvalidArgument.of("message", "is none, or a second hello")
