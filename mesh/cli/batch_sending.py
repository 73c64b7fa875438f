"""Sending the items of a batch, in as many requests as it takes."""

import random
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mesh.cli.connection import Client
from mesh.cli.failures import ServerLeft, is_exhausted, was_lost
from mesh.cli.output import note

if TYPE_CHECKING:
    from weft.scheduler.v1 import batch_service_pb2 as pb
    from weft.scheduler.v1 import batches_pb2

CHUNK_ITEMS_MAX = 1_000
CHUNK_BYTES_MAX = 1 << 20
"""A request stays well below what the server takes."""
SUBMIT_SECONDS = 60.0
DELAY_SECONDS_FIRST = 0.2
DELAY_SECONDS_MAX = 5.0
LOSSES_MAX = 10
"""Requests in a row that may be lost."""
WAITS_MAX = 1_000
"""Requests in a row that the queue may have no room for."""
LATER = frozenset({8, 14})
"""RESOURCE_EXHAUSTED and UNAVAILABLE: the item may be accepted later."""


class Sending:
    """Sends items to a batch. What isn't answered, or has no room yet, is sent again: an
    item is known by its index, so that none becomes two."""

    def __init__(self, client: Client, begin: "pb.SubmitBatchRequest") -> None:
        self._client = client
        self._begin = begin
        self._told = False
        self.accepted_count = 0

    def begin(self) -> None:
        """Begins the batch without an item, or finds it. RpcError where it can't be."""
        self._submit(0, ())

    def send(
        self, items: "Sequence[batches_pb2.BatchItem]"
    ) -> "Iterator[Sequence[batches_pb2.BatchItemError]]":
        """Sends items; after each request, which of them were refused for good."""
        for first, chunk in _chunks(items):
            yield self._send(first, chunk)
            self.accepted_count = first + len(chunk)

    def close(self) -> None:
        """Lets the batch end."""
        self._submit(0, (), is_open=False)

    def _send(
        self, first: int, chunk: "Sequence[batches_pb2.BatchItem]"
    ) -> "list[batches_pb2.BatchItemError]":
        refused: list[batches_pb2.BatchItemError] = []
        left = chunk
        waits = 0
        while left:
            errors = self._submit(first, left).errors
            refused += [error for error in errors if error.code not in LATER]
            later = [error.index - first for error in errors if error.code in LATER]
            if not later:
                break
            waits = waits + 1 if len(later) == len(left) else 0
            if waits > WAITS_MAX:
                refused += [error for error in errors if error.code in LATER]
                break
            # What is refused for good in between is refused again, and told once.
            left, first = left[later[0] : later[-1] + 1], first + later[0]
            self._wait(waits, "The queue is full; items wait for room.")
        return list({error.index: error for error in refused}.values())

    def _submit(
        self, first: int, items: "Sequence[batches_pb2.BatchItem]", *, is_open: bool = True
    ) -> "pb.SubmitBatchResponse":
        import grpc

        from weft.scheduler.v1 import batch_service_pb2 as pb
        from weft.scheduler.v1.batch_service_pb2_grpc import BatchServiceStub

        request = pb.SubmitBatchRequest()
        request.CopyFrom(self._begin)
        request.first_index, request.open = first, is_open
        request.items.extend(items)
        # A server that never was there is told of at once.
        is_begun = bool(items) or not is_open
        losses = waits = 0
        while True:
            stub: BatchServiceStub = self._client.stub(BatchServiceStub)
            try:
                return self._client.call(stub.SubmitBatch, request, SUBMIT_SECONDS)
            except (grpc.RpcError, ServerLeft) as error:
                losses += was_lost(error)
                waits += is_exhausted(error)
                may_help = was_lost(error) or is_exhausted(error)
                if not (is_begun and may_help) or losses > LOSSES_MAX or waits > WAITS_MAX:
                    raise
                if was_lost(error):
                    self._client.reconnect()
            self._wait(losses + waits, "The server doesn't take items just now; trying again.")

    def _wait(self, tries: int, why: str) -> None:
        if not self._told:
            note(why)
            self._told = True
        delay = min(DELAY_SECONDS_FIRST * 2.0 ** min(tries, 16), DELAY_SECONDS_MAX)
        remaining = self._client.remaining_seconds(DELAY_SECONDS_MAX)
        time.sleep(min(delay * random.uniform(0.75, 1.25), remaining))


def _chunks(
    items: "Sequence[batches_pb2.BatchItem]",
) -> "Iterator[tuple[int, Sequence[batches_pb2.BatchItem]]]":
    """Items that go together, with the index of the first."""
    first = size_bytes = 0
    for index, item in enumerate(items):
        item_bytes = item.ByteSize()
        is_full = index - first == CHUNK_ITEMS_MAX or size_bytes + item_bytes > CHUNK_BYTES_MAX
        if is_full and index > first:
            yield first, items[first:index]
            first, size_bytes = index, 0
        size_bytes += item_bytes
    if first < len(items):
        yield first, items[first:]
