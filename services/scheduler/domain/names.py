"""Names of queues, tasks and batches, and the streams that hold them."""

from mesh.events.store import StreamName

AREA = "scheduler"
DEFAULT_QUEUE = "default"


def queue_stream(name: str) -> StreamName:
    """Stream of `tenants/{t}/queues/{q}`, or of a name under it."""
    _, tenant, _, queue, *_ = name.split("/")
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
