"""Batches of a running Weft."""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.scheduling import SECONDS_MAX, Scheduling, spec
from weft.scheduler.v1 import batch_service_pb2 as pb
from weft.scheduler.v1 import batches_pb2
from weft.scheduler.v1.batch_service_pb2_grpc import BatchServiceStub

FINAL = (batches_pb2.BATCH_STATE_COMPLETED, batches_pb2.BATCH_STATE_CANCELLED)


def items(payloads: Iterable[bytes], **fields: Any) -> list[batches_pb2.BatchItem]:
    """An item for each payload."""
    return [batches_pb2.BatchItem(spec=spec(payload=payload, **fields)) for payload in payloads]


@dataclass
class Batches:
    """The batches of one queue."""

    scheduling: Scheduling

    @property
    def stub(self) -> Any:
        return BatchServiceStub(self.scheduling.platform.open_channel)

    def name(self, batch: str) -> str:
        """The full name of the batch of that id."""
        return f"{self.scheduling.queue}/batches/{batch}"

    async def submit(
        self, batch: str, wanted: Sequence[batches_pb2.BatchItem], **fields: Any
    ) -> pb.SubmitBatchResponse:
        """Submits items in one request."""
        request = pb.SubmitBatchRequest(
            parent=self.scheduling.queue, batch_id=batch, items=wanted, **fields
        )
        response: pb.SubmitBatchResponse = await self.stub.SubmitBatch(request, timeout=SECONDS_MAX)
        return response

    async def get(self, batch: str) -> batches_pb2.Batch:
        """The batch as it is."""
        request = pb.GetBatchRequest(name=self.name(batch))
        response: pb.GetBatchResponse = await self.stub.GetBatch(request, timeout=SECONDS_MAX)
        return response.batch

    def watch(self, batch: str, after: int = 0) -> Any:
        """The stream of a watch."""
        request = pb.WatchBatchRequest(name=self.name(batch), after=after)
        return self.stub.WatchBatch(request, timeout=2 * SECONDS_MAX)

    async def results(self, batch: str, after: int = 0) -> list[batches_pb2.BatchResult]:
        """All results behind that one, once the batch is final."""
        found: list[batches_pb2.BatchResult] = []
        last = None
        async for message in self.watch(batch, after):
            found.extend(message.results)
            last = message.batch
        assert last is not None
        assert last.state in FINAL
        return found

    async def each(self, batch: str, after: int = 0) -> AsyncIterator[batches_pb2.BatchResult]:
        """The results one by one, as they come."""
        async for message in self.watch(batch, after):
            for result in message.results:
                yield result
