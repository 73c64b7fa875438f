"""The servicer of `weft.scheduler.v1.QueueService`."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial

from mesh.call import Call
from mesh.errors import LimitExceeded
from mesh.rpc.pages import read_page_token, write_page_token
from services.scheduler.domain import decide, names
from services.scheduler.journal import Decide
from services.scheduler.queues import Queues
from services.scheduler.settings import SchedulerSettings
from weft.scheduler.v1 import queue_service_pb2 as pb
from weft.scheduler.v1 import queues_pb2

PAGE_SIZE = 100
View = Callable[[str, Call], Awaitable[queues_pb2.Queue]]


class QueueService:
    """Keeps a tenant's queues. `view` gives a queue as its owner sees it."""

    def __init__(self, queues: Queues, settings: SchedulerSettings, view: View) -> None:
        self._queues = queues
        self._settings = settings
        self._view = view
        self._creating: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def create_queue(
        self, request: pb.CreateQueueRequest, call: Call
    ) -> pb.CreateQueueResponse:
        """AlreadyExists where there is one of that id with other limits, LimitExceeded past
        the bound on queues."""
        name = f"{request.parent}/queues/{request.queue_id}"
        stream = names.queue_stream(name)
        count = self._settings.queues_max
        # One at a time, so that the count counts those that were let through before.
        async with self._creating[stream.tenant]:
            others = await self._queues.read_model.queues_of(stream.tenant, "", count)
            if stream not in others and len(others) >= count:
                raise LimitExceeded(f"a tenant has at most {count} queues")
            queue = await self._queues.queue(stream)
            create = partial(decide.create, limits=request.limits)
            await queue.journal.put("", create, actor=call.actor)
        return pb.CreateQueueResponse(queue=self._queues.queue_view(queue))

    async def get_queue(self, request: pb.GetQueueRequest, call: Call) -> pb.GetQueueResponse:
        """NotFound where there is none."""
        queue = await self._queues.existing(request.name)
        return pb.GetQueueResponse(queue=self._queues.queue_view(queue))

    async def list_queues(self, request: pb.ListQueuesRequest, call: Call) -> pb.ListQueuesResponse:
        """By id."""
        after = read_page_token(request.page_token, request.parent)
        size = request.page_size or PAGE_SIZE
        tenant = request.parent.split("/")[1]
        streams = await self._queues.read_model.queues_of(tenant, after, size + 1)
        response = pb.ListQueuesResponse()
        for stream in streams[:size]:
            response.queues.append(await self._view(names.queue_name(stream), call))
        if len(streams) > size:
            last = streams[size - 1].key[0]
            response.next_page_token = write_page_token(last, request.parent)
        return response

    async def update_queue(
        self, request: pb.UpdateQueueRequest, call: Call
    ) -> pb.UpdateQueueResponse:
        """Tasks that are there already stay, also beyond the new limits."""
        change = partial(decide.change_limits, limits=request.limits)
        return pb.UpdateQueueResponse(queue=await self._changed(request.name, change, call))

    async def pause_queue(self, request: pb.PauseQueueRequest, call: Call) -> pb.PauseQueueResponse:
        """What runs goes on."""
        return pb.PauseQueueResponse(queue=await self._changed(request.name, decide.pause, call))

    async def resume_queue(
        self, request: pb.ResumeQueueRequest, call: Call
    ) -> pb.ResumeQueueResponse:
        """Does nothing where it isn't paused."""
        return pb.ResumeQueueResponse(queue=await self._changed(request.name, decide.resume, call))

    async def _changed(self, name: str, change: Decide, call: Call) -> queues_pb2.Queue:
        queue = await self._queues.existing(name)
        await queue.journal.put("", change, actor=call.actor)
        return self._queues.queue_view(queue)
