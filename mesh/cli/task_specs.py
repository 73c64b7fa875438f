"""What a task is to be, out of what was typed."""

from typing import TYPE_CHECKING

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


def resources_of(cpu: str | None, memory: str | None) -> "tasks_pb2.Resources | None":
    """What a task takes of a worker, or a worker has; None where nothing was typed.
    CommandFailed (usage) where it can't be read."""
    from weft.scheduler.v1 import tasks_pb2

    if cpu is None and memory is None:
        return None
    return tasks_pb2.Resources(
        cpu_millis=parse_processors(cpu, "--cpu") if cpu is not None else 0,
        memory_bytes=parse_bytes(memory, "--memory") if memory is not None else 0,
    )


def retry_of(
    max_attempts: int | None, backoff: str | None, max_backoff: str | None
) -> "tasks_pb2.RetryPolicy | None":
    """What becomes of a task that fails; None where nothing was typed. CommandFailed (usage)
    where a wait can't be read."""
    from weft.scheduler.v1 import tasks_pb2

    if max_attempts is None and backoff is None and max_backoff is None:
        return None
    return tasks_pb2.RetryPolicy(
        max_attempts=max_attempts or 0,
        initial_backoff=span_of(backoff, "--backoff"),
        max_backoff=span_of(max_backoff, "--max-backoff"),
    )


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
