"""The servicer of `weft.scheduler.v1.DeadLetterService`."""

import asyncio
from collections.abc import Callable
from functools import partial

from mesh.call import Call
from mesh.errors import FailedPrecondition, InvalidArgument, NotFound
from mesh.rpc.pages import read_page_number, write_page_token
from services.scheduler.domain import decide, names
from services.scheduler.domain.state import FAILED
from services.scheduler.journal import Decide, Facts
from services.scheduler.queues import Queues
from services.scheduler.read_model import Filter
from services.scheduler.task_service import NUMBER_MAX, PAGE_SIZE, page_of
from services.scheduler.tenant_queue import TenantQueue
from weft.scheduler.v1 import dead_letter_service_pb2 as pb


class DeadLetterService:
    """Keeps the tasks that failed until somebody decides."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues

    async def list_dead_letters(
        self, request: pb.ListDeadLettersRequest, call: Call
    ) -> pb.ListDeadLettersResponse:
        """Newest first."""
        await self._queues.existing(request.parent)
        before = read_page_number(request.page_token, request.parent, NUMBER_MAX)
        size = request.page_size or PAGE_SIZE
        rows = await self._queues.read_model.tasks(request.parent, Filter(FAILED), before, size + 1)
        tasks, behind = page_of(rows, size)
        token = write_page_token(behind, request.parent) if behind else ""
        return pb.ListDeadLettersResponse(tasks=tasks, next_page_token=token)

    async def inspect_dead_letter(
        self, request: pb.InspectDeadLetterRequest, call: Call
    ) -> pb.InspectDeadLetterResponse:
        """FailedPrecondition for a task that hasn't failed, NotFound for none."""
        task = await self._queues.task(request.name)
        if task.state != FAILED:
            raise FailedPrecondition("the task hasn't failed")
        return pb.InspectDeadLetterResponse(task=task)

    async def redrive_dead_letters(
        self, request: pb.RedriveDeadLettersRequest, call: Call
    ) -> pb.RedriveDeadLettersResponse:
        """Of those named each must be a dead letter. Repeating it does no harm to those that
        are tasks again. NotFound for a batch that isn't there, InvalidArgument for one of
        another queue, or together with names."""
        count = await self._each(request, decide.redrive, call.actor)
        return pb.RedriveDeadLettersResponse(count=count)

    async def discard_dead_letters(
        self, request: pb.DiscardDeadLettersRequest, call: Call
    ) -> pb.DiscardDeadLettersResponse:
        """As redriving; they are listed as cancelled from then on."""
        reason = request.reason or f"discarded by {call.actor}"
        discard = partial(decide.discard, reason=reason)
        count = await self._each(request, discard, call.actor)
        return pb.DiscardDeadLettersResponse(count=count)

    async def _each(
        self,
        request: pb.RedriveDeadLettersRequest | pb.DiscardDeadLettersRequest,
        change: Callable[..., Facts],
        actor: str,
    ) -> int:
        parent, wanted = request.parent, request.names
        queue = await self._queues.existing(parent)
        for name in wanted:
            if not name.startswith(f"{parent}/tasks/"):
                raise InvalidArgument.of("names", f"{name} isn't of the queue")
        if wanted and request.batch:
            raise InvalidArgument.of("batch", "isn't said together with names")
        tasks = [names.task_id(name) for name in wanted]
        if request.batch:
            tasks = await self._of_batch(queue, request.batch)
        elif not wanted:
            tasks = list(queue.dead)
        changes: list[Decide] = [partial(change, task=task) for task in tasks]
        stored = await asyncio.gather(
            *(
                queue.journal.put(task, each, actor=actor)
                for task, each in zip(tasks, changes, strict=True)
            ),
            return_exceptions=True,
        )
        count = 0
        for found in stored:
            if isinstance(found, NotFound | FailedPrecondition) and not wanted:
                # Somebody else was faster.
                continue
            if isinstance(found, BaseException):
                raise found
            count += bool(found)
        return count

    async def _of_batch(self, queue: TenantQueue, name: str) -> list[str]:
        """The dead letters of the batch. NotFound where there is no such batch, and
        InvalidArgument for one of another queue."""
        if not name.startswith(f"{names.queue_name(queue.stream)}/batches/"):
            raise InvalidArgument.of("batch", "isn't of the queue")
        if await self._queues.read_model.batch(name) is None:
            raise NotFound.of("batch", name)
        batch = names.batch_id(name)
        return [task for task in queue.dead if queue.state.tasks[task].batch == batch]
