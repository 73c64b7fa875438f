"""Following one batch to its end, over as many connections as it takes."""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mesh.cli.attaching import Stream, reattached
from mesh.cli.batch_progress import BatchProgress
from mesh.cli.batch_results import Results
from mesh.cli.connection import Client

if TYPE_CHECKING:
    from weft.scheduler.v1 import batch_service_pb2, batches_pb2

JOIN_SECONDS = 0.2
"""How soon a signal is noticed while a batch is followed."""


class _Done(Exception):
    """There is nothing more to follow."""


class Following:
    """Writes the results of a batch as they come and shows how far it is, until it ends."""

    def __init__(
        self, client: Client, name: str, results: Results, progress: BatchProgress
    ) -> None:
        self._client = client
        self._name = name
        self._results = results
        self._progress = progress
        self._is_stopped = False
        self._is_final = False
        self._stream: Stream[batch_service_pb2.WatchBatchResponse] | None = None

    def run(self) -> None:
        """Returns once the batch has ended. RpcError or CommandFailed where it can't go on."""
        with contextlib.suppress(_Done):
            for response in reattached(self._client, self._open):
                for result in response.results:
                    self._results.ended(result)
                self._progress.show(response.batch, self._results.refused_count)
                self._is_final = _is_final(response.batch)

    def stop(self) -> None:
        """Has `run` end soon, from another thread."""
        self._is_stopped = True
        if self._stream is not None:
            self._stream.cancel()

    def _open(self, seconds: float) -> "Stream[batch_service_pb2.WatchBatchResponse]":
        from weft.scheduler.v1 import batch_service_pb2 as pb
        from weft.scheduler.v1.batch_service_pb2_grpc import BatchServiceStub

        if self._is_stopped:
            raise _Done
        stub: BatchServiceStub = self._client.stub(BatchServiceStub)
        request = pb.WatchBatchRequest(name=self._name, after=self._results.last)
        self._stream = stub.WatchBatch(request, timeout=seconds)
        return _Ending(self, self._stream)

    def each(
        self, stream: "Stream[batch_service_pb2.WatchBatchResponse]"
    ) -> "Iterator[batch_service_pb2.WatchBatchResponse]":
        """What the stream gives, and _Done once it ended since the batch did, or by `stop`."""
        import grpc

        try:
            yield from stream
        except grpc.RpcError:
            if self._is_stopped:
                raise _Done from None
            raise
        if self._is_final:
            raise _Done


class _Ending:
    """A stream whose end isn't taken for a lost connection where it is the batch's."""

    def __init__(
        self, following: Following, stream: "Stream[batch_service_pb2.WatchBatchResponse]"
    ) -> None:
        self._following = following
        self._stream = stream

    def __iter__(self) -> "Iterator[batch_service_pb2.WatchBatchResponse]":
        return self._following.each(self._stream)

    def cancel(self) -> bool:
        return self._stream.cancel()


class FollowingThread:
    """Follows a batch while its items are still sent, on a connection of its own."""

    def __init__(
        self, client: Client, name: str, results: Results, progress: BatchProgress
    ) -> None:
        self._client = client.another()
        self._following = Following(self._client, name, results, progress)
        self._error: BaseException | None = None
        # Ctrl-C ends the command, whatever this one waits for.
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FollowingThread":
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._following.stop()
        self._thread.join(JOIN_SECONDS)

    def check(self) -> None:
        """Raises what ended the following, if something did."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Returns once the batch has ended."""
        while self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)
        self.check()

    def _run(self) -> None:
        try:
            with self._client:
                self._following.run()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            self._error = error


def _is_final(batch: "batches_pb2.Batch") -> bool:
    from weft.scheduler.v1 import batches_pb2

    return batch.state in (
        batches_pb2.BATCH_STATE_COMPLETED,
        batches_pb2.BATCH_STATE_CANCELLED,
    )
