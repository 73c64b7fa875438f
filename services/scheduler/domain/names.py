"""Names of queues, tasks, batches and schedules, and the streams that hold them."""

from functools import lru_cache

from mesh.events.store import StreamName

AREA = "scheduler"
SCHEDULES_AREA = "schedules"
"""An area of its own: who follows queues isn't told of ticks."""
DEFAULT_QUEUE = "default"
TURNS_QUEUE = "turns"
"""Of turns that run in the background; Weft's own workers serve it."""
MADE_BY_USE = frozenset((DEFAULT_QUEUE, TURNS_QUEUE))
"""Need not be created."""


def queue_stream(name: str) -> StreamName:
    """Stream of `tenants/{t}/queues/{q}`, or of a name under it."""
    _, tenant, _, queue, *_ = name.split("/")
    return _queue_stream(tenant, queue)


@lru_cache(maxsize=4_096)
def _queue_stream(tenant: str, queue: str) -> StreamName:
    # Each call of a task asks for it several times.
    return StreamName(AREA, tenant, (queue,))


def queue_name(stream: StreamName) -> str:
    """Name of the queue that the stream holds."""
    return f"tenants/{stream.tenant}/queues/{stream.key[0]}"


def task_name(stream: StreamName, task: str) -> str:
    """Name of the task of that id in the stream's queue."""
    return f"{queue_name(stream)}/tasks/{task}"


def batch_name(stream: StreamName, batch: str) -> str:
    """Name of the batch of that id in the stream's queue."""
    return f"{queue_name(stream)}/batches/{batch}"


def batch_id(name: str) -> str:
    """Id of the batch of that name."""
    return name.rpartition("/")[2]


def task_id(name: str) -> str:
    """Id of the task of that name."""
    return name.rpartition("/")[2]


def schedule_stream(name: str) -> StreamName:
    """Stream of `tenants/{t}/schedules/{s}`."""
    _, tenant, _, schedule = name.split("/")
    return StreamName(SCHEDULES_AREA, tenant, (schedule,))


def schedule_name(stream: StreamName) -> str:
    """Name of the schedule that the stream holds."""
    return f"tenants/{stream.tenant}/schedules/{stream.key[0]}"
