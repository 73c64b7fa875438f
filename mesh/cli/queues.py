"""`weft queue`: where tasks wait, and how many may."""

from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import usage_error
from mesh.cli.names import QUEUE, check_id, resource_name, short_name
from mesh.cli.output import moment, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch

if TYPE_CHECKING:
    from weft.scheduler.v1 import queues_pb2
    from weft.scheduler.v1.queue_service_pb2_grpc import QueueServiceStub

queues = typer.Typer(help="Make, list, limit, pause and resume queues.", no_args_is_help=True)

QueueArgument = Annotated[
    str, typer.Argument(metavar="QUEUE", help="The queue: an id or a full name.")
]
OpenTasksMax = Annotated[
    int | None,
    typer.Option(help="Most tasks that aren't final; 0, the default, is 100,000.", min=0),
]
RunningTasksMax = Annotated[
    int | None,
    typer.Option(help="Most tasks that run at once; 0, the default, is what workers take.", min=0),
]
Weight = Annotated[
    int | None,
    typer.Option(
        help="The tenant's share of workers that serve several tenants; 0, the default, is 100.",
        min=0,
    ),
]
Capability = Annotated[
    list[str] | None,
    typer.Option(help="A capability that its tasks may ask for, else any; repeatable."),
]


@command(queues, "create", example="weft queue create images --running-tasks-max 8")
def create_queue(
    client: Client,
    queue: Annotated[str, typer.Argument(metavar="ID", help="The queue's id.")],
    open_tasks_max: OpenTasksMax = None,
    running_tasks_max: RunningTasksMax = None,
    weight: Weight = None,
    capability: Capability = None,
) -> None:
    """Makes a queue. One that is there with these very limits stays as it is."""
    from weft.scheduler.v1 import queue_service_pb2 as pb
    from weft.scheduler.v1 import queues_pb2

    limits = queues_pb2.QueueLimits()
    _change(limits, open_tasks_max, running_tasks_max, weight, capability)
    request = pb.CreateQueueRequest(
        parent=client.parent, queue_id=check_id(queue, "ID"), limits=limits
    )
    _show(client, client.call(_stub(client).CreateQueue, request).queue)


@command(queues, "list", example="weft queue list")
def list_queues(client: Client, limit: Limit = LIMIT) -> None:
    """Lists queues by id, and how full they are."""
    from weft.scheduler.v1 import queue_service_pb2 as pb

    request = pb.ListQueuesRequest(parent=client.parent)
    found = fetch(client, _stub(client).ListQueues, request, lambda page: page.queues, limit)
    columns = {
        "queue": lambda q: short_name(q.name),
        "state": _state,
        "ready": lambda q: q.stats.ready,
        "delayed": lambda q: q.stats.delayed,
        "unschedulable": lambda q: q.stats.unschedulable,
        "running": lambda q: q.stats.running,
        "dead letters": lambda q: q.stats.dead_letters,
        "workers": lambda q: q.stats.workers,
        "free slots": lambda q: q.stats.free_slots,
        "oldest": lambda q: _age(q.stats),
    }
    show_list(client.output, found, columns)


@command(queues, "show", example="weft queue show images")
def show_queue(client: Client, queue: QueueArgument) -> None:
    """Shows a queue, its limits, and how full it is."""
    _show(client, _get(client, resource_name(queue, QUEUE, client)))


@command(queues, "update", example="weft queue update images --running-tasks-max 16")
def update_queue(
    client: Client,
    queue: QueueArgument,
    open_tasks_max: OpenTasksMax = None,
    running_tasks_max: RunningTasksMax = None,
    weight: Weight = None,
    capability: Capability = None,
    any_capability: Annotated[
        bool, typer.Option("--any-capability", help="Its tasks may ask for any capability.")
    ] = False,
) -> None:
    """Changes limits of a queue; those that aren't named stay. Tasks in it stay too."""
    from weft.scheduler.v1 import queue_service_pb2 as pb

    changes = (open_tasks_max, running_tasks_max, weight, capability)
    if not any_capability and not any(change is not None for change in changes):
        raise usage_error("there is nothing to change", "Name a limit; --help lists them.")
    if any_capability and capability:
        raise usage_error("give one of --capability and --any-capability")
    name = resource_name(queue, QUEUE, client)
    limits = _get(client, name).limits
    if any_capability:
        limits.ClearField("capabilities")
    _change(limits, *changes)
    request = pb.UpdateQueueRequest(name=name, limits=limits)
    _show(client, client.call(_stub(client).UpdateQueue, request).queue)


@command(queues, "pause", example="weft queue pause images")
def pause_queue(client: Client, queue: QueueArgument) -> None:
    """Gives no more tasks of a queue to workers; what runs goes on."""
    from weft.scheduler.v1 import queue_service_pb2 as pb

    request = pb.PauseQueueRequest(name=resource_name(queue, QUEUE, client))
    _show(client, client.call(_stub(client).PauseQueue, request).queue)


@command(queues, "resume", example="weft queue resume images")
def resume_queue(client: Client, queue: QueueArgument) -> None:
    """Gives tasks of a paused queue to workers again."""
    from weft.scheduler.v1 import queue_service_pb2 as pb

    request = pb.ResumeQueueRequest(name=resource_name(queue, QUEUE, client))
    _show(client, client.call(_stub(client).ResumeQueue, request).queue)


def _stub(client: Client) -> "QueueServiceStub":
    from weft.scheduler.v1.queue_service_pb2_grpc import QueueServiceStub

    stub: QueueServiceStub = client.stub(QueueServiceStub)
    return stub


def _get(client: Client, name: str) -> "queues_pb2.Queue":
    from weft.scheduler.v1 import queue_service_pb2 as pb

    return client.call(_stub(client).GetQueue, pb.GetQueueRequest(name=name)).queue


def _change(
    limits: "queues_pb2.QueueLimits",
    open_tasks_max: int | None,
    running_tasks_max: int | None,
    weight: int | None,
    capabilities: list[str] | None,
) -> None:
    """Sets those limits that are given."""
    if open_tasks_max is not None:
        limits.open_tasks_max = open_tasks_max
    if running_tasks_max is not None:
        limits.running_tasks_max = running_tasks_max
    if weight is not None:
        limits.weight = weight
    if capabilities:
        limits.capabilities[:] = capabilities


def _state(queue: "queues_pb2.Queue") -> str:
    return "paused" if queue.paused else "open"


def _age(stats: "queues_pb2.QueueStats") -> str:
    return f"{stats.oldest_seconds:.1f} s" if stats.ready else ""


def _show(client: Client, queue: "queues_pb2.Queue") -> None:
    limits, stats = queue.limits, queue.stats
    fields = {
        "queue": short_name(queue.name),
        "state": _state(queue),
        "open tasks max": limits.open_tasks_max or "",
        "running tasks max": limits.running_tasks_max or "",
        "weight": limits.weight or "",
        "capabilities": " ".join(limits.capabilities),
        "ready": stats.ready,
        "delayed": stats.delayed,
        "unschedulable": stats.unschedulable,
        "running": stats.running,
        "dead letters": stats.dead_letters,
        "workers": stats.workers,
        "free slots": stats.free_slots,
        "oldest": _age(stats),
        "stalled": stats.stalled,
        "created": moment(queue.create_time),
    }
    show_message(client.output, queue, fields)
