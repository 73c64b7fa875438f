"""Following one task to its end, over as many connections as it takes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mesh.cli.attaching import Stream, reattached
from mesh.cli.connection import Client
from mesh.cli.failures import CommandFailed, ExitCode
from mesh.cli.names import short_name
from mesh.cli.output import Output, note, show_item
from mesh.cli.task_display import is_final, status_line, write_result

if TYPE_CHECKING:
    from weft.scheduler.v1 import task_service_pb2, tasks_pb2


def watch(client: Client, name: str) -> None:
    """Shows a task each time that it changes, until it ends; then its result.

    As JSON or YAML each change is the whole task. CommandFailed, with the exit code of a
    failed turn, where it ends without a result.
    """
    said = ""
    for task in _changes(client, name):
        if client.output is not Output.TABLE:
            show_item(client.output, task)
        elif not is_final(task) and (line := status_line(task)) != said:
            said = line
            note(line)
        if is_final(task):
            _end(client, task)


def _changes(client: Client, name: str) -> "Iterator[tasks_pb2.Task]":
    """The task as it is, and each time that it has changed; the last one is final."""
    from weft.scheduler.v1 import task_service_pb2 as pb
    from weft.scheduler.v1.task_service_pb2_grpc import TaskServiceStub

    def open_stream(seconds: float) -> "Stream[task_service_pb2.WatchTaskResponse]":
        stub: TaskServiceStub = client.stub(TaskServiceStub)
        return stub.WatchTask(pb.WatchTaskRequest(name=name), timeout=seconds)

    last: tasks_pb2.Task | None = None
    for response in reattached(client, open_stream):
        # A stream that was attached again begins with what the one before had shown.
        if response.task != last:
            yield response.task
        if is_final(response.task):
            return
        last = response.task


def _end(client: Client, task: "tasks_pb2.Task") -> None:
    from weft.scheduler.v1 import tasks_pb2

    why = f": {task.reason}" if task.reason else ""
    if task.state == tasks_pb2.TASK_STATE_FAILED:
        raise CommandFailed(
            f"the task failed{why}",
            exit_code=ExitCode.TURN_FAILED,
            notes=[f"`weft task retry {short_name(task.name)}` tries it again."],
        )
    if task.state == tasks_pb2.TASK_STATE_CANCELLED:
        raise CommandFailed(f"the task was cancelled{why}", exit_code=ExitCode.TURN_FAILED)
    if client.output is Output.TABLE:
        note("succeeded")
        write_result(task.result)
