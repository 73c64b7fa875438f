"""The servicer of `weft.scheduler.v1.BatchService`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from functools import partial

from mesh.call import Call
from mesh.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    NotServing,
    Unavailable,
    WeftError,
)
from mesh.events.store import EventStore
from mesh.ids import new_id
from mesh.rpc.pages import read_page_number, write_page_token
from mesh.rpc.status import code_of
from services.scheduler.batch_rows import RESULTS_MAX
from services.scheduler.domain import batches, decide, names
from services.scheduler.domain.state import BATCH_ITEMS_MAX
from services.scheduler.journal import Facts
from services.scheduler.queues import Queues
from services.scheduler.submitting import Submitter
from services.scheduler.task_service import NUMBER_MAX, PAGE_SIZE
from services.scheduler.tenant_queue import TenantQueue
from services.scheduler.turn_tasks import check_turn_task, refuse_absent_session
from weft.scheduler.v1 import batch_service_pb2 as pb
from weft.scheduler.v1 import batches_pb2

WATCH_SECONDS = 0.05
"""What happens to a batch within it is sent together."""
LOOK_SECONDS = 1.0
"""How often a watch looks, where it is told of nothing."""
MESSAGE_LENGTH_MAX = 4_096
FINAL = (batches_pb2.BATCH_STATE_COMPLETED, batches_pb2.BATCH_STATE_CANCELLED)
OF_THE_ITEM = (AlreadyExists, FailedPrecondition, InvalidArgument, LimitExceeded)
"""Errors for which one item isn't accepted; others concern the whole request."""


class BatchService:
    """Takes many tasks at once and tells what became of them."""

    def __init__(self, queues: Queues, submitter: Submitter, store: EventStore) -> None:
        self._queues = queues
        self._submitter = submitter
        self._store = store

    async def submit_batch(
        self, request: pb.SubmitBatchRequest, call: Call
    ) -> pb.SubmitBatchResponse:
        """Returns once the items are stored; all of them go to the journal at once.

        Raises NotFound for a queue that wasn't made, AlreadyExists for a batch that was
        begun with another limit, InvalidArgument for too many items, LimitExceeded where
        the queue has too much to store, or too many batches. What is wrong with one item
        is told in the response.
        """
        if request.first_index + len(request.items) > BATCH_ITEMS_MAX:
            raise InvalidArgument.of("items", f"a batch has at most {BATCH_ITEMS_MAX}")
        queue = await self._submitter.queue(request.parent)
        name = names.batch_name(queue.stream, request.batch_id)
        await self._begin(queue, name, request, call)
        submission = _Submission(self._queues, queue, name, request, call, self._store)
        errors = await submission.errors()
        later = any(isinstance(error, LimitExceeded) for error in errors.values())
        if not request.open and not later and request.batch_id in queue.state.batches:
            close = partial(batches.close, batch=request.batch_id)
            await queue.journal.put(f"batch {request.batch_id}", close, actor=call.actor)
        response = pb.SubmitBatchResponse(batch=await self._batch(name))
        for index, error in sorted(errors.items()):
            response.errors.add(
                index=index,
                code=code_of(error).value[0],
                message=error.message[:MESSAGE_LENGTH_MAX],
            )
        return response

    async def get_batch(self, request: pb.GetBatchRequest, call: Call) -> pb.GetBatchResponse:
        """NotFound where there is none."""
        await self._queues.existing(request.name)
        return pb.GetBatchResponse(batch=await self._batch(request.name))

    async def list_batches(
        self, request: pb.ListBatchesRequest, call: Call
    ) -> pb.ListBatchesResponse:
        """Newest first."""
        await self._queues.existing(request.parent)
        before = read_page_number(request.page_token, request.parent, NUMBER_MAX)
        size = request.page_size or PAGE_SIZE
        rows = await self._queues.read_model.batches(request.parent, before or NUMBER_MAX, size + 1)
        response = pb.ListBatchesResponse(batches=[batch for _, batch in rows[:size]])
        if len(rows) > size:
            response.next_page_token = write_page_token(str(rows[size - 1][0]), request.parent)
        return response

    async def cancel_batch(
        self, request: pb.CancelBatchRequest, call: Call
    ) -> pb.CancelBatchResponse:
        """Does nothing to a batch that is cancelled already. FailedPrecondition for one
        whose items have all ended."""
        queue = await self._queues.existing(request.name)
        batch = names.batch_id(request.name)
        reason = request.reason or f"cancelled by {call.actor}"
        try:
            await queue.journal.put(
                f"batch {batch}",
                partial(batches.cancel, batch=batch, reason=reason),
                actor=call.actor,
            )
        except NotFound:
            found = await self._batch(request.name)
            if found.state != batches_pb2.BATCH_STATE_CANCELLED:
                raise FailedPrecondition("all items of the batch have ended already") from None
            return pb.CancelBatchResponse(batch=found)
        return pb.CancelBatchResponse(batch=await self._batch(request.name))

    async def watch_batch(
        self, request: pb.WatchBatchRequest, call: Call
    ) -> AsyncGenerator[pb.WatchBatchResponse, None]:
        """Begins with the batch as it is. Nothing is kept for who reads slowly: results are
        read from the read model as they are taken. NotServing once the process ends."""
        queue = await self._queues.existing(request.name)
        # So that a caller sees what it did before.
        await self._batch(request.name)
        last, after = None, request.after
        dispatcher = self._queues.dispatcher(queue.stream.key[0])
        with dispatcher.watchers.watching(names.queue_name(queue.stream)) as changed:
            while True:
                changed.clear()
                if self._queues.draining:
                    raise NotServing("the process ends: watch again")
                batch, results = await self._queues.read_model.batch_results(request.name, after)
                if batch is None:
                    raise NotFound.of("batch", request.name)
                if results or batch != last:
                    yield pb.WatchBatchResponse(batch=batch, results=results)
                last = batch
                if results:
                    after = results[-1].number
                elif batch.state in FINAL:
                    return
                if len(results) < RESULTS_MAX:
                    await asyncio.sleep(WATCH_SECONDS)
                if not results:
                    await _changed(changed)

    async def _begin(
        self, queue: TenantQueue, name: str, request: pb.SubmitBatchRequest, call: Call
    ) -> None:
        if request.batch_id not in queue.state.batches:
            known = await self._queues.read_model.batch(name)
            if known is not None and request.batch_id not in queue.state.batches:
                # It was over so long ago that the queue has forgotten it.
                return
        create = partial(
            batches.create,
            batch=request.batch_id,
            running_tasks_max=request.running_tasks_max,
            creator=call.actor,
        )
        # Alone in its commit, so that the bound on batches is exact.
        await queue.journal.put("", create, actor=call.actor)

    async def _batch(self, name: str) -> batches_pb2.Batch:
        found = await self._queues.read_model.batch(name)
        if found is None:
            raise NotFound.of("batch", name)
        return found


class _Submission:
    """The items of one request, on their way into the queue."""

    def __init__(
        self,
        queues: Queues,
        queue: TenantQueue,
        name: str,
        request: pb.SubmitBatchRequest,
        call: Call,
        store: EventStore,
    ) -> None:
        self._store = store
        self._queues = queues
        self._queue = queue
        self._name = name
        self._request = request
        self._call = call

    async def errors(self) -> dict[int, WeftError]:
        """Stores the items; why some weren't accepted, by index."""
        items = dict(enumerate(self._request.items, self._request.first_index))
        if not items:
            return {}
        errors = await self._refused_at_once(items) | await self._refused_ids(items)
        wanted = {index: item for index, item in items.items() if index not in errors}
        stored = await self._stored(wanted)
        known = {}
        for (index, item), outcome in zip(wanted.items(), stored, strict=True):
            if isinstance(outcome, OF_THE_ITEM):
                errors[index] = outcome
            elif isinstance(outcome, BaseException) and not isinstance(outcome, NotFound):
                raise outcome
            elif isinstance(outcome, NotFound) or not outcome:
                known[index] = item
        return errors | await self._changed_items(known)

    async def _refused_at_once(
        self, items: dict[int, batches_pb2.BatchItem]
    ) -> dict[int, WeftError]:
        errors: dict[int, WeftError] = {}
        there = {""}
        for index, item in items.items():
            try:
                session = check_turn_task(self._queue.stream, item.spec, self._call)
                if session not in there:
                    await refuse_absent_session(self._store, session)
                    there.add(session)
                self._queue.refuse_shape(item.spec)
            except Unavailable:
                # The log's, and so of the whole request.
                raise
            except WeftError as error:
                errors[index] = error
        return errors

    async def _refused_ids(self, items: dict[int, batches_pb2.BatchItem]) -> dict[int, WeftError]:
        named = {item.task_id: index for index, item in items.items() if item.task_id}
        if not named:
            return {}
        taken = await self._queues.read_model.taken_ids(self._request.parent, list(named))
        return {
            named[task]: AlreadyExists("a task of that id is there already")
            for task, owner in taken.items()
            if owner != (self._request.batch_id, named[task])
        }

    async def _stored(
        self, items: dict[int, batches_pb2.BatchItem]
    ) -> "Sequence[Facts | BaseException]":
        if self._queue.journal.full:
            raise LimitExceeded("the queue has too much to store already", retry_seconds=0.25)
        size_bytes = sum(len(item.spec.payload) for item in items.values())
        with self._queues.payloads.coming(size_bytes):
            return await asyncio.gather(
                *(self._put(index, item) for index, item in items.items()), return_exceptions=True
            )

    def _put(self, index: int, item: batches_pb2.BatchItem) -> "asyncio.Future[Facts]":
        batch = self._request.batch_id
        submission = decide.Submission(
            task=item.task_id or new_id(),
            spec=item.spec,
            request_id="",
            request_hash=b"",
            creator=self._call.actor,
            batch=batch,
            batch_index=index,
        )
        submit = partial(batches.submit, submission=submission, now_ns=self._queues.clock.now_ns())
        return self._queue.journal.put(
            submission.task,
            submit,
            # The same item isn't decided on twice in one commit.
            request_id=f"{batch}/{index}",
            actor=self._call.actor,
        )

    async def _changed_items(self, known: dict[int, batches_pb2.BatchItem]) -> dict[int, WeftError]:
        """Those of the items that were accepted before as other ones, or came too late."""
        if not known:
            return {}
        first, last = min(known), max(known)
        stored = await self._queues.read_model.batch_items(self._name, first, last - first + 1)
        errors: dict[int, WeftError] = {}
        for index, item in known.items():
            found = stored.get(index)
            if found is None and self._request.batch_id not in self._queue.state.batches:
                errors[index] = FailedPrecondition("the batch is over: it takes no more items")
            elif found is None:
                # It ended so long ago that it was forgotten.
                continue
            elif found.spec != item.spec or item.task_id not in ("", found.task):
                errors[index] = AlreadyExists("the item was accepted before as another one")
        return errors


async def _changed(changed: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOOK_SECONDS):
            await changed.wait()
