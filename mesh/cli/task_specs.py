"""What a task is to be, out of what was typed: the options that all commands have which
submit some, and what they set."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.failures import usage_error
from mesh.cli.inputs import (
    parse_ahead,
    parse_bytes,
    parse_processors,
    parse_span,
    read_bytes,
    shown_bytes,
)

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from weft.scheduler.v1 import tasks_pb2

PAYLOAD_BYTES_MAX = 256 * 1024
"""As in the contract."""

Payload = Annotated[str | None, typer.Option(metavar="TEXT", help="What the worker is handed.")]
PayloadFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="The same, from a file as it is; - reads it.")
]
Priority = Annotated[
    int | None, typer.Option(help="9 is the most urgent; 5 otherwise.", min=0, max=9)
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="KEY=VALUE", help="A label that the worker must have; repeatable."
    ),
]
Zone = Annotated[
    str | None, typer.Option(help="A worker of this zone gets it, while one has a free slot.")
]
Cpu = Annotated[
    str | None,
    typer.Option(metavar="CPUS", help="Processors that it takes of a worker: 2, 0.5, 500m."),
]
Memory = Annotated[
    str | None, typer.Option(metavar="BYTES", help="Memory that it takes of a worker: 512MiB.")
]
Cost = Annotated[
    str | None,
    typer.Option(metavar="SPAN", help="How long it will probably run; 1s otherwise."),
]
MaxAttempts = Annotated[
    int | None, typer.Option(help="Attempts in all; 3 otherwise.", min=1, max=100)
]
Backoff = Annotated[
    str | None,
    typer.Option(
        metavar="SPAN",
        help="Bound of the wait before the second attempt, twice as much before each "
        "further one: 500ms, 10s; 1s otherwise.",
    ),
]
MaxBackoff = Annotated[
    str | None, typer.Option(metavar="SPAN", help="Bound of every such wait; 5m otherwise.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What was typed of a task; None where it wasn't."""

    capability: str | None
    payload: str | None
    payload_file: str | None
    priority: int | None
    labels: list[str] | None
    zone: str | None
    cpu: str | None
    memory: str | None
    cost: str | None
    max_attempts: int | None
    backoff: str | None
    max_backoff: str | None

    def set_in(self, spec: "tasks_pb2.TaskSpec") -> None:
        """Sets what was typed; the rest stays. CommandFailed (usage) where it can't be read."""
        if self.capability is not None:
            spec.capability = self.capability
        if self.payload is not None or self.payload_file is not None:
            spec.payload = payload_of(self.payload, self.payload_file)
        if self.priority is not None:
            spec.priority = self.priority
        if self.labels:
            del spec.labels[:]
            spec.labels.extend(map(label_of, self.labels))
        if self.zone is not None:
            spec.preferred_zone = self.zone
        if self.cpu is not None:
            spec.resources.cpu_millis = parse_processors(self.cpu, "--cpu")
        if self.memory is not None:
            spec.resources.memory_bytes = parse_bytes(self.memory, "--memory")
        if self.cost is not None:
            spec.estimated_cost.CopyFrom(parse_span(self.cost, "--cost"))
        if self.max_attempts is not None:
            spec.retry.max_attempts = self.max_attempts
        if self.backoff is not None:
            spec.retry.initial_backoff.CopyFrom(parse_span(self.backoff, "--backoff"))
        if self.max_backoff is not None:
            spec.retry.max_backoff.CopyFrom(parse_span(self.max_backoff, "--max-backoff"))


def payload_of(text: str | None, file: str | None) -> bytes:
    """The payload: the text, or what is in the file. CommandFailed (usage) for both, and
    where it is larger than a payload may be."""
    if text is not None and file is not None:
        raise usage_error("give one of --payload and --payload-file")
    if file is not None:
        return read_bytes(file, PAYLOAD_BYTES_MAX)
    payload = (text or "").encode()
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise usage_error(f"--payload is larger than {shown_bytes(PAYLOAD_BYTES_MAX)}")
    return payload


def label_of(text: str) -> "tasks_pb2.Label":
    """A label that was typed as KEY=VALUE. CommandFailed (usage) where it is none."""
    from weft.scheduler.v1 import tasks_pb2

    key, equals, value = text.partition("=")
    if not (key and equals):
        raise usage_error(f"--label: {text!r} isn't a label", "Write KEY=VALUE.")
    return tasks_pb2.Label(key=key, value=value)


def span_of(text: str | None, option: str) -> "Duration | None":
    """A span of time; None where none was typed. CommandFailed (usage) that names the
    option where the text is none."""
    return parse_span(text, option) if text is not None else None


def time_of(text: str | None, option: str) -> "Timestamp | None":
    """A time, or in how long; None where none was typed. CommandFailed (usage) that names
    the option where the text is neither."""
    from google.protobuf.timestamp_pb2 import Timestamp

    if text is None:
        return None
    time = Timestamp()
    time.FromDatetime(parse_ahead(text, option))
    return time
