"""Batches in memory: just what a client sees of them."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from mesh.call import Call
from mesh.errors import FailedPrecondition, NotFound, NotServing
from tests.support.memory_catalogues import page_of
from tests.support.memory_tasks import MemoryTasks
from weft.scheduler.v1 import batch_service_pb2 as pb
from weft.scheduler.v1 import batches_pb2, tasks_pb2

INVALID_ARGUMENT, RESOURCE_EXHAUSTED = 3, 8
PAGE = 2
FINAL = (batches_pb2.BATCH_STATE_COMPLETED, batches_pb2.BATCH_STATE_CANCELLED)


class MemoryBatches:
    """An item ends as soon as it is accepted: with its payload, or as failed where that is
    `fail`. One of the capability `refused` is refused, one of `late` finds room when it comes
    again.

    `cut_after` ends the first watch after that many of its messages, as a server does that
    drains; `lost` makes so many requests that have items fail after they were taken;
    `at_submit` is done with each.
    """

    def __init__(self, tasks: MemoryTasks) -> None:
        self.requests: list[pb.SubmitBatchRequest] = []
        self.watched: list[int] = []
        self.cut_after: int | None = None
        self.lost = 0
        self.at_submit: Callable[[pb.SubmitBatchRequest], None] = lambda request: None
        self._tasks = tasks
        self._batches: dict[str, batches_pb2.Batch] = {}
        self._items: dict[str, set[int]] = {}
        self._results: dict[str, list[batches_pb2.BatchResult]] = {}
        self._late: set[tuple[str, int]] = set()
        self._changed = asyncio.Event()

    async def submit_batch(self, request: pb.SubmitBatchRequest, _: Call) -> pb.SubmitBatchResponse:
        self._tasks.require(request.parent)
        self.requests.append(request)
        self.at_submit(request)
        name = f"{request.parent}/batches/{request.batch_id}"
        batch = self._batches.setdefault(
            name,
            batches_pb2.Batch(
                name=name,
                state=batches_pb2.BATCH_STATE_OPEN,
                running_tasks_max=request.running_tasks_max,
            ),
        )
        response = pb.SubmitBatchResponse(batch=batch)
        for index, item in enumerate(request.items, request.first_index):
            refused = self._refused(name, index, item)
            if refused:
                response.errors.append(refused)
            else:
                self._accept(name, index, item)
        if not request.open and batch.state == batches_pb2.BATCH_STATE_OPEN:
            batch.state = batches_pb2.BATCH_STATE_COMPLETED
        self._tell()
        if request.items and self.lost:
            self.lost -= 1
            raise NotServing("the answer is lost")
        return response

    async def get_batch(self, request: pb.GetBatchRequest, _: Call) -> pb.GetBatchResponse:
        return pb.GetBatchResponse(batch=self._of(request.name))

    async def list_batches(self, request: pb.ListBatchesRequest, _: Call) -> pb.ListBatchesResponse:
        self._tasks.require(request.parent)
        found = [b for name, b in self._batches.items() if name.startswith(f"{request.parent}/")]
        page, token = page_of(found[::-1], request.page_size, request.page_token)
        return pb.ListBatchesResponse(batches=page, next_page_token=token)

    async def cancel_batch(self, request: pb.CancelBatchRequest, _: Call) -> pb.CancelBatchResponse:
        batch = self._of(request.name)
        if batch.state == batches_pb2.BATCH_STATE_COMPLETED:
            raise FailedPrecondition("all items of the batch have ended already")
        batch.state, batch.reason = batches_pb2.BATCH_STATE_CANCELLED, request.reason
        self._tell()
        return pb.CancelBatchResponse(batch=batch)

    async def watch_batch(
        self, request: pb.WatchBatchRequest, _: Call
    ) -> AsyncGenerator[pb.WatchBatchResponse, None]:
        batch = self._of(request.name)
        self.watched.append(request.after)
        cut_after, self.cut_after = self.cut_after, None
        after, sent = request.after, 0
        while True:
            changed = self._changed
            results = [r for r in self._results.get(request.name, []) if r.number > after][:PAGE]
            yield pb.WatchBatchResponse(batch=batch, results=results)
            sent += 1
            if sent == cut_after:
                raise NotServing("draining")
            if results:
                after = results[-1].number
            elif batch.state in FINAL:
                return
            else:
                await changed.wait()

    def _refused(
        self, name: str, index: int, item: batches_pb2.BatchItem
    ) -> batches_pb2.BatchItemError | None:
        if item.spec.capability == "refused":
            return batches_pb2.BatchItemError(
                index=index, code=INVALID_ARGUMENT, message="no such capability here"
            )
        if item.spec.capability == "late" and (name, index) not in self._late:
            self._late.add((name, index))
            return batches_pb2.BatchItemError(
                index=index, code=RESOURCE_EXHAUSTED, message="the queue is full"
            )
        return None

    def _accept(self, name: str, index: int, item: batches_pb2.BatchItem) -> None:
        accepted = self._items.setdefault(name, set())
        if index in accepted:
            return
        accepted.add(index)
        results = self._results.setdefault(name, [])
        queue = name.rpartition("/batches/")[0]
        task = f"{queue}/tasks/{item.task_id or f't{index}'}"
        result: Any = batches_pb2.BatchResult(number=len(results) + 1, index=index, task=task)
        counts = self._batches[name].counts
        counts.items += 1
        if item.spec.payload == b"fail":
            result.state, result.code = tasks_pb2.TASK_STATE_FAILED, INVALID_ARGUMENT
            result.reason = "no good"
            counts.failed += 1
        else:
            result.state, result.result = tasks_pb2.TASK_STATE_SUCCEEDED, item.spec.payload
            counts.succeeded += 1
        results.append(result)

    def _of(self, name: str) -> batches_pb2.Batch:
        if name not in self._batches:
            raise NotFound.of("batch", name)
        return self._batches[name]

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
