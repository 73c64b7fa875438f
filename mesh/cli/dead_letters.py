"""`weft deadletter`: tasks that failed for good, until somebody decides."""

from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import usage_error
from mesh.cli.inputs import Yes, confirm
from mesh.cli.names import DEFAULT_QUEUE, QUEUE, queue_of, resource_name, short_name, task_name
from mesh.cli.output import moment, one_line, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch
from mesh.cli.task_display import show_task
from mesh.cli.tasks import QueueOption, TaskArgument, TaskQueueOption

if TYPE_CHECKING:
    from weft.scheduler.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub

dead_letters = typer.Typer(
    help="List, show, redrive and discard failed tasks.", no_args_is_help=True
)

TasksArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TASK]...", help="The tasks, all of one queue: ids, QUEUE/TASK or full names."
    ),
]
WholeQueueOption = Annotated[
    str | None,
    typer.Option(help="Queue of --all, and of tasks named by their ids alone; else `default`."),
]
All = Annotated[bool, typer.Option("--all", help="All dead letters of the queue.")]


@command(dead_letters, "list", example="weft deadletter list --queue images")
def list_dead_letters(
    client: Client, queue: QueueOption = DEFAULT_QUEUE, limit: Limit = LIMIT
) -> None:
    """Lists the failed tasks of a queue, newest first."""
    from weft.scheduler.v1 import dead_letter_service_pb2 as pb

    request = pb.ListDeadLettersRequest(parent=resource_name(queue, QUEUE, client))
    found = fetch(client, _stub(client).ListDeadLetters, request, lambda page: page.tasks, limit)
    columns = {
        "task": lambda t: short_name(t.name),
        "capability": lambda t: t.spec.capability,
        "attempts": lambda t: len(t.attempts),
        "created": lambda t: moment(t.create_time),
        "failed": lambda t: moment(t.update_time),
        "reason": lambda t: one_line(t.reason),
    }
    show_list(client.output, found, columns)


@command(dead_letters, "show", example="weft deadletter show 01j9x")
def show_dead_letter(client: Client, task: TaskArgument, queue: TaskQueueOption = None) -> None:
    """Shows a failed task with its payload and all its attempts."""
    from weft.scheduler.v1 import dead_letter_service_pb2 as pb

    request = pb.InspectDeadLetterRequest(name=task_name(task, queue, client))
    show_task(client, client.call(_stub(client).InspectDeadLetter, request).task)


@command(dead_letters, "redrive", example="weft deadletter redrive 01j9x 01j9y")
def redrive_dead_letters(
    client: Client,
    tasks: TasksArgument = None,
    all_: All = False,
    queue: WholeQueueOption = None,
) -> None:
    """Tries failed tasks again, with as many attempts as at first."""
    from weft.scheduler.v1 import dead_letter_service_pb2 as pb

    parent, names = _meant(client, tasks or [], all_, queue)
    request = pb.RedriveDeadLettersRequest(parent=parent, names=names)
    answer = client.call(_stub(client).RedriveDeadLetters, request)
    show_message(client.output, answer, {"redriven": answer.count})


@command(dead_letters, "discard", example="weft deadletter discard --all --queue images --yes")
def discard_dead_letters(
    client: Client,
    tasks: TasksArgument = None,
    all_: All = False,
    queue: WholeQueueOption = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    yes: Yes = False,
) -> None:
    """Throws failed tasks away, for good; --all asks first.

    They are listed as cancelled from then on.
    """
    from weft.scheduler.v1 import dead_letter_service_pb2 as pb

    parent, names = _meant(client, tasks or [], all_, queue)
    if all_:
        confirm(f"Throw away all dead letters of queue {short_name(parent)}?", yes)
    request = pb.DiscardDeadLettersRequest(parent=parent, names=names, reason=reason)
    answer = client.call(_stub(client).DiscardDeadLetters, request)
    show_message(client.output, answer, {"discarded": answer.count})


def _stub(client: Client) -> "DeadLetterServiceStub":
    from weft.scheduler.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub

    stub: DeadLetterServiceStub = client.stub(DeadLetterServiceStub)
    return stub


def _meant(
    client: Client, tasks: list[str], all_: bool, queue: str | None
) -> tuple[str, list[str]]:
    """The queue, and which of its tasks; no task stands for all of them, as in the
    contract, so that it has to be said."""
    if bool(tasks) == all_:
        raise usage_error("name tasks, or say --all")
    names = [task_name(text, queue, client) for text in tasks]
    parents = sorted({queue_of(name) for name in names})
    if len(parents) > 1:
        queues = ", ".join(map(short_name, parents))
        raise usage_error(f"these are tasks of more than one queue: {queues}")
    if parents:
        return parents[0], names
    return resource_name(queue or DEFAULT_QUEUE, QUEUE, client), []
