"""Many calls of tools at once: a bounded number runs, each answer goes out as it comes.

Nothing waits for the slowest of a group: as one ends the next begins. A tool that takes
processor time takes it elsewhere: a function in a process of its own, a gRPC method on its
server; the calculator's bounds keep it below a millisecond.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import structlog

from mesh.errors import Internal, WeftError
from weft.tools.v1 import tool_service_pb2 as pb

_log = structlog.get_logger(__name__)
MESSAGE_LENGTH_MAX = 4_096
Invoke = Callable[[pb.BatchInvokeItem], Awaitable[pb.InvokeToolResponse]]


async def outcomes(
    items: Sequence[pb.BatchInvokeItem], invoke: Invoke, running_max: int
) -> AsyncGenerator[pb.BatchInvokeResponse, None]:
    """What became of each item, in the order in which that is known. Ended early it cancels the
    calls that run, and begins none of the others."""
    waiting = iter(enumerate(items))
    running: set[asyncio.Task[pb.BatchInvokeResponse]] = set()
    try:
        while True:
            while len(running) < running_max and (following := next(waiting, None)):
                running.add(asyncio.create_task(_outcome(*following, invoke)))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)


async def _outcome(index: int, item: pb.BatchInvokeItem, invoke: Invoke) -> pb.BatchInvokeResponse:
    try:
        return pb.BatchInvokeResponse(index=index, result=await invoke(item))
    except WeftError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - it is this item's alone, and in the log
        _log.exception("a call of a batch failed", tool=item.tool)
        failure = Internal("the call failed by a fault of Weft's own")
        failure.__cause__ = error
    message = failure.message[:MESSAGE_LENGTH_MAX]
    told = pb.BatchInvokeError(reason=failure.reason, message=message)
    return pb.BatchInvokeResponse(index=index, error=told)
