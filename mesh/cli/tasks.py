"""`weft task`: work for the workers of a queue."""

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.inputs import parse_since
from mesh.cli.names import (
    DEFAULT_QUEUE,
    QUEUE,
    batch_name,
    check_id,
    resource_name,
    resource_pattern,
    short_name,
    task_name,
)
from mesh.cli.output import Output, moment, note, one_line, show_list
from mesh.cli.pages import LIMIT, Limit, fetch
from mesh.cli.task_display import priority_of, progress, show_task, stall, state_word
from mesh.cli.task_specs import (
    Backoff,
    Cost,
    Cpu,
    Labels,
    MaxAttempts,
    MaxBackoff,
    Memory,
    Payload,
    PayloadFile,
    Priority,
    TaskOptions,
    Zone,
    span_of,
    time_of,
)
from mesh.cli.task_watching import watch

if TYPE_CHECKING:
    from weft.scheduler.v1 import task_service_pb2, tasks_pb2
    from weft.scheduler.v1.task_service_pb2_grpc import TaskServiceStub

tasks = typer.Typer(help="Submit, list, follow, end and retry tasks.", no_args_is_help=True)

TaskArgument = Annotated[
    str, typer.Argument(metavar="TASK", help="The task: an id, QUEUE/TASK or a full name.")
]
QueueOption = Annotated[str, typer.Option(help="The queue: an id or a full name.")]
TaskQueueOption = Annotated[
    str | None,
    typer.Option(help="Queue of a task that is named by its id alone; `default` otherwise."),
]


class StateChoice(StrEnum):
    """Where a task stands."""

    QUEUED = "queued"
    UNSCHEDULABLE = "unschedulable"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@command(tasks, "submit", example="weft task submit resize --payload-file photo.png --watch")
def submit_task(
    client: Client,
    capability: Annotated[
        str, typer.Argument(metavar="CAPABILITY", help="What a worker must be able to do.")
    ],
    payload: Payload = None,
    payload_file: PayloadFile = None,
    queue: QueueOption = DEFAULT_QUEUE,
    task_id: Annotated[
        str, typer.Option("--id", help="The task's id; made by the server otherwise.")
    ] = "",
    priority: Priority = None,
    label: Labels = None,
    zone: Zone = None,
    cpu: Cpu = None,
    memory: Memory = None,
    not_before: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Not before this time (RFC 3339), or in 90s, 1h30m."),
    ] = None,
    start_deadline: Annotated[
        str | None, typer.Option(metavar="TIME", help="It fails where it wasn't begun by then.")
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="It fails where it wasn't done by then, in any attempt."),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="SPAN", help="How long one attempt may run: 90s, 1h; 5m otherwise."),
    ] = None,
    cost: Cost = None,
    max_attempts: MaxAttempts = None,
    backoff: Backoff = None,
    max_backoff: MaxBackoff = None,
    request_id: Annotated[
        str, typer.Option(help="Names this request: the same id finds the same task again.")
    ] = "",
    watch_: Annotated[
        bool, typer.Option("--watch", help="Follow it until it ends, and print its result.")
    ] = False,
) -> None:
    """Submits a task, which is kept once this returns.

    The queue `default` is made by its first task. A repeated --request-id must come with
    the same task, so write its times in full: `10m` is another time each time. --timeout
    is the attempt's here; the command's own stands before it, as in `weft --timeout 60
    task submit`. With --watch it exits 6 when the task failed or was cancelled.
    """
    from weft.scheduler.v1 import task_service_pb2 as pb
    from weft.scheduler.v1 import tasks_pb2

    spec = tasks_pb2.TaskSpec(
        not_before=time_of(not_before, "--not-before"),
        start_deadline=time_of(start_deadline, "--start-deadline"),
        deadline=time_of(deadline, "--deadline"),
        attempt_timeout=span_of(timeout, "--timeout"),
    )
    TaskOptions(
        capability=capability,
        payload=payload,
        payload_file=payload_file,
        priority=priority,
        labels=label,
        zone=zone,
        cpu=cpu,
        memory=memory,
        cost=cost,
        max_attempts=max_attempts,
        backoff=backoff,
        max_backoff=max_backoff,
    ).set_in(spec)
    request = pb.SubmitTaskRequest(
        parent=resource_name(queue, QUEUE, client),
        task_id=check_id(task_id, "--id") if task_id else "",
        spec=spec,
        request_id=request_id,
    )
    task = client.call(_stub(client).SubmitTask, request).task
    if watch_:
        _watch_submitted(client, task)
    else:
        show_task(client, task)


@command(tasks, "list", example="weft task list --state running --capability resize")
def list_tasks(
    client: Client,
    queue: QueueOption = DEFAULT_QUEUE,
    state: Annotated[StateChoice | None, typer.Option(help="Only those that stand there.")] = None,
    capability: Annotated[str, typer.Option(help="Only those of this capability.")] = "",
    creator: Annotated[
        str, typer.Option(help="Only those that this key submitted, or this schedule.")
    ] = "",
    batch: Annotated[str, typer.Option(help="Only items of this batch.")] = "",
    priority: Annotated[
        int | None, typer.Option(help="Only those of this priority.", min=0, max=9)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Only those from this time on (RFC 3339), or that long ago: 1h30m."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only those before this time or span ago."),
    ] = None,
    stalled: Annotated[
        bool, typer.Option("--stalled", help="Only those to which nothing happens any more.")
    ] = False,
    limit: Limit = LIMIT,
) -> None:
    """Lists the tasks of a queue, newest first.

    --creator takes what `weft task show` says under `by`: tenants/TENANT/apiKeys/KEY or
    tenants/TENANT/schedules/SCHEDULE; apiKeys/KEY and schedules/SCHEDULE will do.

    Unschedulable are those that wait and that no attached worker could run; they are
    among the queued ones. Stalled are those that wait for a worker, or whose worker says
    nothing new of them, for longer than they should; `weft task skip` and `weft task fail`
    end them.
    """
    from weft.scheduler.v1 import task_service_pb2 as pb
    from weft.scheduler.v1 import tasks_pb2

    unschedulable = tasks_pb2.TASK_STATE_UNSCHEDULABLE
    wanted = tasks_pb2.TaskState.Value(f"TASK_STATE_{state.name if state else 'UNSPECIFIED'}")

    def entries(page: "task_service_pb2.ListTasksResponse") -> "Iterable[tasks_pb2.Task]":
        # Which of those that wait are unschedulable isn't stored: the server lists them all.
        return (t for t in page.tasks if wanted != unschedulable or t.state == unschedulable)

    request = pb.ListTasksRequest(
        parent=resource_name(queue, QUEUE, client),
        state=wanted,
        capability=capability,
        creator=resource_pattern(creator, client) if "/" in creator else creator,
        batch=batch_name(batch, queue, client) if batch else "",
        priority=priority,
        stalled=stalled,
    )
    if since is not None:
        request.create_start_time.FromDatetime(parse_since(since))
    if until is not None:
        request.create_end_time.FromDatetime(parse_since(until))
    columns = {
        "task": lambda t: short_name(t.name),
        "state": state_word,
        "capability": lambda t: t.spec.capability,
        "priority": priority_of,
        "attempts": lambda t: len(t.attempts),
        "created": lambda t: moment(t.create_time),
        "updated": lambda t: moment(t.update_time),
        "note": lambda t: one_line(stall(t) or t.reason or progress(t)),
    }
    found = fetch(client, _stub(client).ListTasks, request, entries, limit)
    show_list(client.output, found, columns)


@command(tasks, "show", example="weft task show 01j9x")
def show(client: Client, task: TaskArgument, queue: TaskQueueOption = None) -> None:
    """Shows where a task stands, with its payload, result and attempts."""
    show_task(client, _get(client, task_name(task, queue, client)))


@command(tasks, "cancel", example='weft task cancel 01j9x --reason "wrong photo"')
def cancel_task(
    client: Client,
    task: TaskArgument,
    queue: TaskQueueOption = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
) -> None:
    """Cancels a task; one that runs ends once its worker says so."""
    from weft.scheduler.v1 import task_service_pb2 as pb

    request = pb.CancelTaskRequest(name=task_name(task, queue, client), reason=reason)
    show_task(client, client.call(_stub(client).CancelTask, request).task)


@command(tasks, "skip", example='weft task skip 01j9x --reason "its worker hangs"')
def skip_task(
    client: Client,
    task: TaskArgument,
    queue: TaskQueueOption = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
) -> None:
    """Cancels a task at once, without waiting for the worker that has it.

    The worker is told to end it; what it still reports comes too late. `weft task cancel`
    waits for the worker.
    """
    from weft.scheduler.v1 import task_service_pb2 as pb

    request = pb.SkipTaskRequest(name=task_name(task, queue, client), reason=reason)
    show_task(client, client.call(_stub(client).SkipTask, request).task)


@command(tasks, "fail", example='weft task fail 01j9x --reason "its worker hangs"')
def fail_task(
    client: Client,
    task: TaskArgument,
    queue: TaskQueueOption = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
) -> None:
    """Makes a task a dead letter at once, whoever has it and however often it may be tried.

    Its worker is told to end it; what it still reports comes too late. `weft task retry`
    tries it again.
    """
    from weft.scheduler.v1 import task_service_pb2 as pb

    request = pb.FailTaskRequest(name=task_name(task, queue, client), reason=reason)
    show_task(client, client.call(_stub(client).FailTask, request).task)


@command(tasks, "retry", example="weft task retry 01j9x")
def retry_task(client: Client, task: TaskArgument, queue: TaskQueueOption = None) -> None:
    """Tries a failed task again, with as many attempts as at first."""
    from weft.scheduler.v1 import task_service_pb2 as pb

    request = pb.RetryTaskRequest(name=task_name(task, queue, client))
    show_task(client, client.call(_stub(client).RetryTask, request).task)


@command(tasks, "watch", example="weft task watch 01j9x")
def watch_task(client: Client, task: TaskArgument, queue: TaskQueueOption = None) -> None:
    """Follows a task until it ends, and prints its result.

    The result goes to stdout as it is, all else to stderr. A lost connection is attached
    again. Exits 6 when the task failed or was cancelled.
    """
    name = task_name(task, queue, client)
    # No server at all, or no such task, is said at once instead of after all tries to attach.
    _get(client, name)
    watch(client, name)


def _stub(client: Client) -> "TaskServiceStub":
    from weft.scheduler.v1.task_service_pb2_grpc import TaskServiceStub

    stub: TaskServiceStub = client.stub(TaskServiceStub)
    return stub


def _get(client: Client, name: str) -> "tasks_pb2.Task":
    from weft.scheduler.v1 import task_service_pb2 as pb

    return client.call(_stub(client).GetTask, pb.GetTaskRequest(name=name)).task


def _watch_submitted(client: Client, task: "tasks_pb2.Task") -> None:
    short = short_name(task.name)
    if client.output is Output.TABLE:
        note(f"task {short}")
    try:
        watch(client, task.name)
    except KeyboardInterrupt:
        note(f"The task goes on. `weft task watch {short}` shows it,")
        note(f"`weft task cancel {short}` ends it.")
        raise
