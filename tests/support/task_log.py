"""What the log says of tasks."""

import asyncio
from collections import Counter
from typing import Any

from tests.support.platform import TENANT, Platform
from weft.scheduler.v1 import events_pb2 as facts
from weft.state.v1 import state_service_pb2
from weft.state.v1.state_service_pb2_grpc import StateServiceStub

QUIET_SECONDS = 2.0
"""The log has been read to its end where nothing comes for so long."""
_ENDS = (facts.TaskSucceeded, facts.TaskFailed, facts.TaskCancelled)


async def ends_in_the_log(weft: Platform, *, after_position: int = 0) -> Counter[str]:
    """How many ends each task has in the log."""
    return (await ends_behind(weft, after_position))[0]


async def ends_behind(weft: Platform, after_position: int) -> tuple[Counter[str], int]:
    """How many ends each task has in the log behind a position, and the
    position of the last one."""
    stub: Any = StateServiceStub(weft.open_channel)
    request = state_service_pb2.WatchEventsRequest(
        name=TENANT,
        types=[fact.DESCRIPTOR.full_name for fact in _ENDS],
        after_position=after_position,
    )
    found: Counter[str] = Counter()
    stream = stub.WatchEvents(request)
    while True:
        try:
            message = await asyncio.wait_for(stream.read(), QUIET_SECONDS)
        except TimeoutError:
            stream.cancel()
            return found, after_position
        payload = message.event.payload
        fact: Any = next(kind() for kind in _ENDS if payload.Is(kind.DESCRIPTOR))
        payload.Unpack(fact)
        found[fact.task] += 1
        after_position = max(after_position, message.event.position)
