"""Whether tasks or turns have stalled, for `weft doctor`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mesh.cli.check import Check, Verdict
from mesh.cli.connection import Client
from mesh.cli.failures import is_unimplemented
from mesh.cli.names import short_name
from mesh.cli.output import one_line

if TYPE_CHECKING:
    import grpc

    from weft.scheduler.v1 import queues_pb2

SHOWN_MAX = 10
"""Tasks of a queue, and turns, that are named one by one."""
QUEUES_MAX = 1000


def stalled_work(client: Client) -> Iterator[Check]:
    """A warning for each task and turn that has stalled, with the command that shows it; one
    check for the tasks, and one for the turns, where none has."""
    for check, found in (("stalled tasks", _tasks(client)), ("stalled turns", _turns(client))):
        yield from _checks(client, check, found)


def _checks(client: Client, check: str, found: Iterator[str]) -> Iterator[Check]:
    import grpc

    count = 0
    try:
        for detail in found:
            count += 1
            yield Check(check, Verdict.WARN, detail)
    except grpc.RpcError as error:
        yield Check(check, Verdict.WARN, _why(client, error))
        return
    if not count:
        yield Check(check, Verdict.OK, "none")


def _why(client: Client, error: "grpc.RpcError") -> str:
    if is_unimplemented(error):
        return "the server doesn't look for them"
    return f"can't be seen: {client.failure(error).message}"


def _tasks(client: Client) -> Iterator[str]:
    from weft.scheduler.v1 import queue_service_pb2
    from weft.scheduler.v1.queue_service_pb2_grpc import QueueServiceStub

    queues: QueueServiceStub = client.stub(QueueServiceStub)
    request = queue_service_pb2.ListQueuesRequest(parent=client.parent, page_size=QUEUES_MAX)
    for queue in client.call(queues.ListQueues, request).queues:
        if queue.stats.stalled:
            yield from _tasks_of(client, queue)


def _tasks_of(client: Client, queue: "queues_pb2.Queue") -> Iterator[str]:
    from weft.scheduler.v1 import task_service_pb2
    from weft.scheduler.v1.task_service_pb2_grpc import TaskServiceStub

    tasks: TaskServiceStub = client.stub(TaskServiceStub)
    request = task_service_pb2.ListTasksRequest(
        parent=queue.name, page_size=SHOWN_MAX, stalled=True
    )
    page = client.call(tasks.ListTasks, request)
    for task in page.tasks:
        name = short_name(task.name)
        yield f"{name}: {one_line(task.stalled_reason)}; `weft task show {name}`"
    if page.next_page_token:
        name = short_name(queue.name)
        rest = queue.stats.stalled - len(page.tasks)
        yield f"{rest} more of queue {name}; `weft task list --queue {name} --stalled`"


def _turns(client: Client) -> Iterator[str]:
    from weft.agents.v1 import stalled_turn_service_pb2 as pb
    from weft.agents.v1.stalled_turn_service_pb2_grpc import StalledTurnServiceStub

    stub: StalledTurnServiceStub = client.stub(StalledTurnServiceStub)
    request = pb.ListStalledTurnsRequest(parent=client.parent, page_size=SHOWN_MAX)
    page = client.call(stub.ListStalledTurns, request)
    for turn in page.turns:
        name = short_name(turn.name)
        yield f"{name}: at {one_line(turn.stalled_doing)}; `weft turn show {name}`"
    if page.next_page_token:
        yield "more; `weft turn stalled`"
