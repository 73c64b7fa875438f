"""What a task is to be, out of what was typed."""

from typing import TYPE_CHECKING

from mesh.cli.failures import usage_error
from mesh.cli.inputs import parse_ahead, parse_span, read_bytes

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from weft.scheduler.v1 import tasks_pb2


def payload_of(text: str | None, file: str | None) -> bytes:
    """The payload: the text, or what is in the file. CommandFailed (usage) for both."""
    if text is not None and file is not None:
        raise usage_error("give one of --payload and --payload-file")
    return read_bytes(file) if file is not None else (text or "").encode()


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
