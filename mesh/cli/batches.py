"""`weft batch`: many tasks at once, and their results as they come."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.batch_following import Following, FollowingThread
from mesh.cli.batch_items import read_items
from mesh.cli.batch_progress import BatchProgress
from mesh.cli.batch_results import results_to
from mesh.cli.batch_sending import Sending
from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import usage_error
from mesh.cli.names import (
    DEFAULT_QUEUE,
    QUEUE,
    batch_name,
    check_id,
    resource_name,
    short_name,
)
from mesh.cli.output import moment, note, one_line, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch
from mesh.cli.tasks import QueueOption

if TYPE_CHECKING:
    from weft.scheduler.v1 import batches_pb2
    from weft.scheduler.v1.batch_service_pb2_grpc import BatchServiceStub

batches = typer.Typer(help="Run many tasks at once, and follow them.", no_args_is_help=True)

BatchArgument = Annotated[
    str, typer.Argument(metavar="BATCH", help="The batch: an id, QUEUE/BATCH or a full name.")
]
BatchQueueOption = Annotated[
    str | None,
    typer.Option(help="Queue of a batch that is named by its id alone; `default` otherwise."),
]
To = Annotated[
    Path | None,
    typer.Option(
        "--to", metavar="FILE", help="Write results to a file, made for you only; else stdout."
    ),
]


@command(batches, "run", example="weft batch run photos.ndjson resize --concurrency 8 --to out")
def run_batch(
    client: Client,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="One JSON object a line; - is stdin.")
    ],
    capability: Annotated[
        str,
        typer.Argument(
            metavar="[CAPABILITY]",
            help="What a worker must be able to do, where a line doesn't say.",
        ),
    ] = "",
    queue: QueueOption = DEFAULT_QUEUE,
    concurrency: Annotated[
        int,
        typer.Option(help="Most items that run at once; as many as workers take otherwise.", min=0),
    ] = 0,
    batch_id: Annotated[
        str, typer.Option("--id", help="The batch's id: the same id goes on with the same batch.")
    ] = "",
    to: To = None,
) -> None:
    """Runs a task for each line of a file, and writes the results as they come.

    A line is an object with payload (a text, or any JSON) or payload_base64, and if need be
    id, capability, priority, labels, zone, cpu, memory, not_before, start_deadline,
    deadline, timeout, cost, max_attempts, backoff and max_backoff, as in `weft task submit`.
    All lines are read before anything is sent. Results are one JSON document a line,
    whatever -o says; `index` counts items from 0.

    Items are run while others are still sent. Repeating it under the same --id after
    whatever went wrong sends what is missing, and no item twice. Exits 6 when an item
    failed, was cancelled or refused.
    """
    from mesh.ids import new_id
    from weft.scheduler.v1 import batch_service_pb2 as pb

    items = read_items(file, capability)
    if not items:
        raise usage_error(f"{file} has no items")
    begin = pb.SubmitBatchRequest(
        parent=resource_name(queue, QUEUE, client),
        batch_id=check_id(batch_id, "--id") if batch_id else new_id(),
        running_tasks_max=concurrency,
    )
    name = f"{begin.parent}/batches/{begin.batch_id}"
    sending = Sending(client, begin)
    sending.begin()
    note(f"batch {short_name(name)}")
    is_sent = is_over = False
    try:
        with (
            results_to(to) as results,
            BatchProgress(len(items)) as progress,
            FollowingThread(client, name, results, progress) as following,
        ):
            for refused in sending.send(items):
                following.check()
                for error in refused:
                    results.refused(error)
            sending.close()
            is_sent = True
            following.finish()
            is_over = True
    finally:
        if not is_sent:
            note(f"{sending.accepted_count} of {len(items)} items are sent.")
            note(f"The same command with --id {begin.batch_id} sends the others.")
        if not is_over:
            _say_how_to_go_on(name)
    results.refuse_failures(short_name(name))
    note(results.summary())


@command(batches, "watch", example="weft batch watch photos --after 1200")
def watch_batch(
    client: Client,
    batch: BatchArgument,
    queue: BatchQueueOption = None,
    after: Annotated[
        int, typer.Option(help="Only results behind that `number`; all otherwise.", min=0)
    ] = 0,
    to: To = None,
) -> None:
    """Writes the results of a batch, those that are there and those that come.

    They look as with `weft batch run`. A lost connection is attached again. Exits 6 when an
    item failed or was cancelled.
    """
    name = batch_name(batch, queue, client)
    # No server at all, or no such batch, is said at once instead of after all tries to attach.
    _get(client, name)
    try:
        with results_to(to) as results, BatchProgress() as progress:
            results.last = after
            Following(client, name, results, progress).run()
    except KeyboardInterrupt:
        _say_how_to_go_on(name, results.last)
        raise
    results.refuse_failures(short_name(name))
    note(results.summary())


@command(batches, "list", example="weft batch list --queue images")
def list_batches(client: Client, queue: QueueOption = DEFAULT_QUEUE, limit: Limit = LIMIT) -> None:
    """Lists the batches of a queue, newest first."""
    from weft.scheduler.v1 import batch_service_pb2 as pb

    request = pb.ListBatchesRequest(parent=resource_name(queue, QUEUE, client))
    found = fetch(client, _stub(client).ListBatches, request, lambda page: page.batches, limit)
    columns = {
        "batch": lambda b: short_name(b.name),
        "state": _state_word,
        "items": lambda b: b.counts.items,
        "queued": lambda b: b.counts.queued,
        "running": lambda b: b.counts.running,
        "succeeded": lambda b: b.counts.succeeded,
        "failed": lambda b: b.counts.failed,
        "cancelled": lambda b: b.counts.cancelled,
        "created": lambda b: moment(b.create_time),
        "note": lambda b: one_line(b.reason),
    }
    show_list(client.output, found, columns)


@command(batches, "show", example="weft batch show photos")
def show_batch(client: Client, batch: BatchArgument, queue: BatchQueueOption = None) -> None:
    """Shows a batch, and how many of its items stand where."""
    _show(client, _get(client, batch_name(batch, queue, client)))


@command(batches, "cancel", example='weft batch cancel photos --reason "wrong folder"')
def cancel_batch(
    client: Client,
    batch: BatchArgument,
    queue: BatchQueueOption = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
) -> None:
    """Cancels a batch; items that run end once their workers say so."""
    from weft.scheduler.v1 import batch_service_pb2 as pb

    request = pb.CancelBatchRequest(name=batch_name(batch, queue, client), reason=reason)
    _show(client, client.call(_stub(client).CancelBatch, request).batch)


def _stub(client: Client) -> "BatchServiceStub":
    from weft.scheduler.v1.batch_service_pb2_grpc import BatchServiceStub

    stub: BatchServiceStub = client.stub(BatchServiceStub)
    return stub


def _get(client: Client, name: str) -> "batches_pb2.Batch":
    from weft.scheduler.v1 import batch_service_pb2 as pb

    return client.call(_stub(client).GetBatch, pb.GetBatchRequest(name=name)).batch


def _say_how_to_go_on(name: str, after: int = 0) -> None:
    short = short_name(name)
    behind = f" --after {after}" if after else ""
    note(f"The batch goes on. `weft batch watch {short}{behind}` shows it,")
    note(f"`weft batch cancel {short}` ends it.")


def _state_word(batch: "batches_pb2.Batch") -> str:
    from weft.scheduler.v1 import batches_pb2

    return batches_pb2.BatchState.Name(batch.state).removeprefix("BATCH_STATE_").lower()


def _show(client: Client, batch: "batches_pb2.Batch") -> None:
    counts = batch.counts
    fields = {
        "batch": short_name(batch.name),
        "state": _state_word(batch),
        "reason": batch.reason,
        "at once": batch.running_tasks_max or "",
        "items": counts.items,
        "queued": counts.queued,
        "running": counts.running,
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "created": moment(batch.create_time),
        "updated": moment(batch.update_time),
        "by": batch.creator,
    }
    show_message(client.output, batch, fields)
