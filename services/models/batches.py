"""Many calls in one: some at once, each answered as soon as it is."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import structlog

from mesh.errors import Internal, WeftError
from mesh.rpc.status import to_status
from weft.models.v1 import model_service_pb2 as pb

Generate = Callable[[pb.GenerateRequest], Awaitable[pb.GenerateResponse]]

_log = structlog.get_logger(__name__)


async def generate_each(
    requests: Sequence[pb.GenerateRequest], generate: Generate, concurrency_max: int
) -> AsyncGenerator[pb.BatchGenerateResponse, None]:
    """What became of each request, in the order in which they end; at most so many are under
    way, the next one begins when one ends. Closing the generator ends those under way."""
    numbered = iter(enumerate(requests))
    # One place for each that is under way: nobody generates far ahead of a slow reader.
    outcomes: asyncio.Queue[pb.BatchGenerateResponse] = asyncio.Queue(concurrency_max)

    async def work() -> None:
        for index, request in numbered:
            await outcomes.put(await _outcome(index, request, generate))

    workers = [
        asyncio.create_task(work(), name="batch")
        for _ in range(min(concurrency_max, len(requests)))
    ]
    try:
        for _ in range(len(requests)):
            yield await outcomes.get()
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _outcome(
    index: int, request: pb.GenerateRequest, generate: Generate
) -> pb.BatchGenerateResponse:
    outcome = pb.BatchGenerateResponse(index=index)
    try:
        outcome.response.CopyFrom(await generate(request))
    except WeftError as error:
        outcome.error.CopyFrom(to_status(error))
    except Exception:  # noqa: BLE001 - the other calls go on; what it was the log has
        _log.exception("call of a batch failed", index=index)
        outcome.error.CopyFrom(to_status(Internal("internal error")))
    return outcome
