"""`weft deadletter`: tasks that failed for good, until somebody decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import usage_error
from mesh.cli.inputs import Yes, confirm
from mesh.cli.names import (
    DEFAULT_QUEUE,
    QUEUE,
    batch_name,
    queue_of,
    resource_name,
    short_name,
    task_name,
)
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
    typer.Option(help="Queue of --all, and of what is named by its id alone; else `default`."),
]
All = Annotated[bool, typer.Option("--all", help="All dead letters of the queue.")]
BatchOption = Annotated[
    str, typer.Option(metavar="BATCH", help="All of this batch: an id, QUEUE/BATCH or a full name.")
]


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
        "batch": lambda t: short_name(t.batch) if t.batch else "",
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
    batch: BatchOption = "",
    queue: WholeQueueOption = None,
) -> None:
    """Tries failed tasks again, with as many attempts as at first.

    Those that are named, or in one go --all of a queue or those of a --batch.
    """
    from weft.scheduler.v1 import dead_letter_service_pb2 as pb

    meant = _meant(client, tasks or [], all_, batch, queue)
    request = pb.RedriveDeadLettersRequest(parent=meant.queue, names=meant.names, batch=meant.batch)
    answer = client.call(_stub(client).RedriveDeadLetters, request)
    show_message(client.output, answer, {"redriven": answer.count})


@command(dead_letters, "discard", example="weft deadletter discard --all --queue images --yes")
def discard_dead_letters(
    client: Client,
    tasks: TasksArgument = None,
    all_: All = False,
    batch: BatchOption = "",
    queue: WholeQueueOption = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    yes: Yes = False,
) -> None:
    """Throws failed tasks away, for good; --all and --batch ask first.

    They are listed as cancelled from then on. A batch goes on counting them as failed.
    """
    from weft.scheduler.v1 import dead_letter_service_pb2 as pb

    meant = _meant(client, tasks or [], all_, batch, queue)
    if not meant.names:
        of = f"batch {short_name(meant.batch)}" if batch else f"queue {short_name(meant.queue)}"
        confirm(f"Throw away all dead letters of {of}?", yes)
    request = pb.DiscardDeadLettersRequest(
        parent=meant.queue, names=meant.names, batch=meant.batch, reason=reason
    )
    answer = client.call(_stub(client).DiscardDeadLetters, request)
    show_message(client.output, answer, {"discarded": answer.count})


def _stub(client: Client) -> "DeadLetterServiceStub":
    from weft.scheduler.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub

    stub: DeadLetterServiceStub = client.stub(DeadLetterServiceStub)
    return stub


@dataclass(frozen=True, slots=True)
class _Meant:
    """The queue, and which of its tasks: those named, else those of the batch, else all."""

    queue: str
    names: Sequence[str] = ()
    batch: str = ""


def _meant(client: Client, tasks: list[str], all_: bool, batch: str, queue: str | None) -> _Meant:
    """What was typed. No task stands for all of them, as in the contract, so that it has to
    be said."""
    if [bool(tasks), all_, bool(batch)].count(True) != 1:
        raise usage_error("name tasks, or say --all or --batch")
    if batch:
        name = batch_name(batch, queue, client)
        return _Meant(queue_of(name), batch=name)
    names = [task_name(text, queue, client) for text in tasks]
    parents = sorted({queue_of(name) for name in names})
    if len(parents) > 1:
        queues = ", ".join(map(short_name, parents))
        raise usage_error(f"these are tasks of more than one queue: {queues}")
    if parents:
        return _Meant(parents[0], names)
    return _Meant(resource_name(queue or DEFAULT_QUEUE, QUEUE, client))
