"""`weft worker`: running what runs tasks, and seeing what does."""

from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client, silence_grpc
from mesh.cli.health import health
from mesh.cli.inputs import parse_bytes, parse_processors
from mesh.cli.names import DEFAULT_QUEUE, QUEUE, check_id, resource_name, short_name
from mesh.cli.output import moment, note, show_list
from mesh.cli.pages import LIMIT, Limit, fetch
from mesh.cli.task_display import memory_of, processors
from mesh.cli.task_specs import label_of

if TYPE_CHECKING:
    from weft.scheduler.v1 import workers_pb2

workers = typer.Typer(help="Run workers, and see which are attached.", no_args_is_help=True)

BEFORE_THEIR_FIRST_TASK = (DEFAULT_QUEUE, "turns")
"""Queues that may have workers, and be in no list yet."""


@command(workers, "run", example="weft worker run shop.images --queue images --slots 8")
def run_worker(
    client: Client,
    module: Annotated[
        str,
        typer.Argument(
            metavar="MODULE[:ATTRIBUTE]",
            help="A Python module with one mesh.worker.Worker in it, or which of them.",
        ),
    ],
    queue: Annotated[
        str, typer.Option(help="The queue: an id or a full name; the worker's own otherwise.")
    ] = "",
    slots: Annotated[
        int | None,
        typer.Option(
            help="How many tasks it runs at once; the worker's own otherwise.", min=1, max=10_000
        ),
    ] = None,
    all_tenants: Annotated[
        bool,
        typer.Option(
            "--all-tenants", help="Serve the queues of that id of all tenants: for administrators."
        ),
    ] = False,
    worker_id: Annotated[
        str, typer.Option("--id", help="The worker's id; made of host and process otherwise.")
    ] = "",
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A label that tasks may ask for; repeatable. The worker's own otherwise.",
        ),
    ] = None,
    zone: Annotated[
        str, typer.Option(help="Where it runs; a label too. The worker's own otherwise.")
    ] = "",
    cpu: Annotated[
        str | None,
        typer.Option(
            metavar="CPUS",
            help="Processors for all its tasks: 4, 0.5, 500m. The worker's own otherwise.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES", help="Memory for all its tasks: 8GiB. The worker's own otherwise."
        ),
    ] = None,
) -> None:
    """Runs a worker that a Python module defines, until SIGINT or SIGTERM.

    The module is looked for in the current folder first. Server and key are the command's,
    whatever the module says. It ends when what it runs is done; a second signal ends it at
    once. A lost connection is attached again.
    """
    silence_grpc()
    from mesh.cli.worker_module import find_worker
    from mesh.cli.worker_running import work
    from mesh.telemetry.logs import configure_logs

    # Before the module is imported: what it says of logging stands.
    configure_logs()
    worker = find_worker(module)
    # No server at all is said at once, instead of never.
    health(client)
    worker.all_tenants = all_tenants or worker.all_tenants
    name = queue or worker.queue or DEFAULT_QUEUE
    worker.queue = (
        check_id(name, "--queue") if worker.all_tenants else resource_name(name, QUEUE, client)
    )
    worker.ca_file = client.ca_file
    worker.slots = slots or worker.slots
    worker.worker_id = worker_id or worker.worker_id
    worker.zone = zone or worker.zone
    if label:
        worker.labels = {each.key: each.value for each in map(label_of, label)}
    if cpu is not None:
        worker.cpu_millis = parse_processors(cpu, "--cpu")
    if memory is not None:
        worker.memory_bytes = parse_bytes(memory, "--memory")
    work(client, worker)


@command(workers, "list", example="weft worker list --queue images")
def list_workers(
    client: Client,
    queue: Annotated[
        str, typer.Option(help="The queue: an id or a full name; all of them otherwise.")
    ] = "",
    limit: Limit = LIMIT,
) -> None:
    """Lists the workers that are attached, by queue and id, whichever instance has them.

    Those of all tenants are among them, as are Weft's own for the queue `turns`; how many
    tasks they have counts those of the queue. One that is just attaching isn't there yet.
    """
    found: list[workers_pb2.Worker] = []
    for name in [resource_name(queue, QUEUE, client)] if queue else _queues(client):
        if len(found) == limit:
            note(f"There may be more; --limit shows more than {limit}.")
            break
        found += _attached(client, name, limit - len(found))
    columns = {
        "worker": lambda w: w.worker_id,
        "queue": lambda w: short_name(w.queue),
        "capabilities": lambda w: " ".join(w.capabilities),
        "labels": lambda w: " ".join(f"{label.key}={label.value}" for label in w.labels),
        "zone": lambda w: w.zone,
        "slots": lambda w: w.slots,
        "free": lambda w: w.free_slots,
        "tasks": lambda w: w.running_tasks,
        "load": lambda w: f"{w.load:.0%}",
        "cpu": lambda w: processors(w.resources),
        "memory": lambda w: memory_of(w.resources),
        "tenants": lambda w: "all" if w.shared else "",
        "since": lambda w: moment(w.attach_time),
        "instance": lambda w: w.instance.removeprefix("instances/"),
    }
    show_list(client.output, found, columns)


def _queues(client: Client) -> list[str]:
    from weft.scheduler.v1 import queue_service_pb2 as pb
    from weft.scheduler.v1.queue_service_pb2_grpc import QueueServiceStub

    stub: QueueServiceStub = client.stub(QueueServiceStub)
    request = pb.ListQueuesRequest(parent=client.parent)
    listed = fetch(client, stub.ListQueues, request, lambda page: page.queues)
    unlisted = (resource_name(name, QUEUE, client) for name in BEFORE_THEIR_FIRST_TASK)
    return sorted({*unlisted, *(each.name for each in listed)})


def _attached(client: Client, queue: str, limit: int) -> "list[workers_pb2.Worker]":
    from weft.scheduler.v1 import worker_service_pb2 as pb
    from weft.scheduler.v1.worker_service_pb2_grpc import WorkerServiceStub

    stub: WorkerServiceStub = client.stub(WorkerServiceStub)
    request = pb.ListWorkersRequest(parent=queue)
    return fetch(client, stub.ListWorkers, request, lambda page: page.workers, limit)
