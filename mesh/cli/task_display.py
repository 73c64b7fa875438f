"""Tasks as they are shown to a person."""

import sys
from typing import TYPE_CHECKING

from mesh.cli.connection import Client
from mesh.cli.inputs import shown_bytes
from mesh.cli.names import short_name
from mesh.cli.output import moment, one_line, printable, show_message

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

    from weft.scheduler.v1 import tasks_pb2

PRIORITY_DEFAULT = 5
"""As in the contract."""
SHOWN_CHARACTERS_MAX = 1000
"""Of a payload or result in a table; JSON and YAML have all of it."""


def state_word(task: "tasks_pb2.Task") -> str:
    """Where the task stands: `running`; `running, cancelling` once its end was asked for."""
    from weft.scheduler.v1 import tasks_pb2

    word = tasks_pb2.TaskState.Name(task.state).removeprefix("TASK_STATE_").lower()
    return f"{word}, cancelling" if task.cancelling and word == "running" else word


def priority_of(task: "tasks_pb2.Task") -> int:
    """Its priority, also where its submitter named none."""
    return task.spec.priority if task.spec.HasField("priority") else PRIORITY_DEFAULT


def is_final(task: "tasks_pb2.Task") -> bool:
    """Whether nothing more happens to it by itself."""
    from weft.scheduler.v1 import tasks_pb2

    return task.state in (
        tasks_pb2.TASK_STATE_SUCCEEDED,
        tasks_pb2.TASK_STATE_FAILED,
        tasks_pb2.TASK_STATE_CANCELLED,
    )


def progress(task: "tasks_pb2.Task") -> str:
    """How far it is, as its worker says: `40% reading`; empty where it says nothing."""
    if not (task.progress or task.progress_note):
        return ""
    return f"{task.progress:.0%} {task.progress_note}".rstrip()


def stall(task: "tasks_pb2.Task") -> str:
    """Since when the task has stalled, and on what; empty where it hasn't."""
    if not task.HasField("stalled_time"):
        return ""
    return f"stalled since {moment(task.stalled_time)}: {task.stalled_reason}"


def status_line(task: "tasks_pb2.Task") -> str:
    """Where the task stands, in a line."""
    line = state_word(task)
    if line.startswith("running") and task.attempts:
        last = task.attempts[-1]
        line += f" on {last.worker}, attempt {last.attempt}"
        return ", ".join(part for part in (line, progress(task), stall(task)) if part)
    if task.HasField("next_time") and not is_final(task):
        line += f" until {moment(task.next_time)}"
    why = (
        stall(task)
        or task.reason
        or (task.attempts[-1].message if task.attempts and not task.result else "")
    )
    return f"{line}: {why}" if why else line


def show_task(client: Client, task: "tasks_pb2.Task") -> None:
    """Prints a task with its payload, result and attempts."""
    spec = task.spec
    fields = {
        "task": short_name(task.name),
        "state": state_word(task),
        "reason": task.reason,
        "stalled": stall(task).removeprefix("stalled "),
        "progress": progress(task),
        "capability": spec.capability,
        "payload": preview(spec.payload),
        "result": preview(task.result),
        "priority": priority_of(task),
        "labels": " ".join(f"{label.key}={label.value}" for label in spec.labels),
        "zone": spec.preferred_zone,
        "cpu": processors(spec.resources),
        "memory": memory_of(spec.resources),
        "not before": moment(spec.not_before),
        "start by": moment(spec.start_deadline),
        "done by": moment(spec.deadline),
        "timeout": _seconds(spec.attempt_timeout),
        "cost": _seconds(spec.estimated_cost),
        "max attempts": spec.retry.max_attempts or "",
        "backoff": _seconds(spec.retry.initial_backoff),
        "max backoff": _seconds(spec.retry.max_backoff),
        "attempts": "\n".join(map(_attempt_line, task.attempts)),
        "next try": moment(task.next_time),
        "batch": short_name(task.batch) if task.batch else "",
        "created": moment(task.create_time),
        "updated": moment(task.update_time),
        "by": task.creator,
    }
    show_message(client.output, task, fields)


def processors(resources: "tasks_pb2.Resources") -> str:
    """Processors, as they are typed; empty where nothing is said of them."""
    return f"{resources.cpu_millis / 1000:g}" if resources.cpu_millis else ""


def memory_of(resources: "tasks_pb2.Resources") -> str:
    """Memory, as it is typed; empty where nothing is said of it."""
    return shown_bytes(resources.memory_bytes) if resources.memory_bytes else ""


def write_result(result: bytes) -> None:
    """Writes what the worker answered to stdout: as it is, or on a terminal as text."""
    if sys.stdout.isatty():
        sys.stdout.write(_text(result).removesuffix("\n") + "\n" if result else "")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(result)
    sys.stdout.flush()


def preview(data: bytes) -> str:
    """The beginning of a payload or result, where it is text; else how large it is."""
    text = _text(data)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[: SHOWN_CHARACTERS_MAX - 1] + "…"


def _text(data: bytes) -> str:
    try:
        return printable(data.decode())
    except UnicodeDecodeError:
        return f"({len(data)} bytes)"


def _seconds(span: "Duration") -> str:
    seconds = span.ToTimedelta().total_seconds()
    return f"{seconds:g} s" if seconds else ""


def _attempt_line(attempt: "tasks_pb2.TaskAttempt") -> str:
    line = f"{attempt.attempt} on {attempt.worker}, {moment(attempt.start_time)}"
    if not attempt.HasField("end_time"):
        return f"{line}, runs"
    took_ns = attempt.end_time.ToNanoseconds() - attempt.start_time.ToNanoseconds()
    line += f", {took_ns / 1e9:.3f} s"
    outcome = [_code_name(attempt.code)] if attempt.code else []
    outcome += [one_line(attempt.message)] if attempt.message else []
    return f"{line}, {': '.join(outcome) or 'succeeded'}"


def _code_name(code: int) -> str:
    from google.rpc import code_pb2  # type: ignore[import-untyped]

    value = code_pb2.Code.DESCRIPTOR.values_by_number.get(code)
    return str(value.name) if value is not None else f"code {code}"
