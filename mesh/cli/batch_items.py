"""Items of a batch as people write them: a JSON object a line."""

import base64
import binascii
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mesh.cli.failures import CommandFailed, usage_error
from mesh.cli.inputs import parse_bytes, parse_processors, parse_span, parse_time

if TYPE_CHECKING:
    from weft.scheduler.v1 import batches_pb2

ITEMS_MAX = 100_000
LINE_BYTES_MAX = 2 * 1024 * 1024
"""A payload of the greatest size, with each of its characters escaped."""
FILE_BYTES_MAX = 512 * 1024 * 1024


def read_items(path: str, capability: str) -> "list[batches_pb2.BatchItem]":
    """The items of a file, or of standard input for `-`, in their order; those that name no
    capability have the one that is given.

    CommandFailed, with the number of the line, where one can't be an item. Empty lines
    are passed over.
    """
    items = []
    lines_of_ids: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            items.append(item := _item(line, capability))
        except CommandFailed as error:
            raise usage_error(f"{path}, line {number}: {error.message}", *error.notes) from error
        first = lines_of_ids.setdefault(item.task_id, number) if item.task_id else number
        if first != number:
            raise usage_error(f"{path}, line {number}: id: is that of line {first} too")
        if len(items) > ITEMS_MAX:
            raise usage_error(f"{path} has more than {ITEMS_MAX} items", "Make batches of it.")
    return items


def _lines(path: str) -> Iterator[bytes]:
    with ExitStack() as stack:
        try:
            file: BinaryIO = sys.stdin.buffer
            if path != "-":
                file = stack.enter_context(Path(path).open("rb"))
            size_bytes = 0
            while line := file.readline(LINE_BYTES_MAX + 1):
                size_bytes += len(line)
                if size_bytes > FILE_BYTES_MAX:
                    raise usage_error(f"{path} is larger than 512 MiB", "Make batches of it.")
                yield line
        except OSError as error:
            raise CommandFailed(f"can't read {path}: {error.strerror}") from error


def _item(line: bytes, capability: str) -> "batches_pb2.BatchItem":
    from weft.scheduler.v1 import batches_pb2, tasks_pb2

    if len(line) > LINE_BYTES_MAX:
        raise usage_error("is longer than 2 MiB")
    try:
        written = json.loads(line)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise usage_error("isn't JSON") from error
    if not isinstance(written, dict):
        raise usage_error('isn\'t a JSON object such as {"payload": "text"}')
    unknown = written.keys() - _READERS.keys()
    if unknown:
        known = ", ".join(sorted(_READERS))
        raise usage_error(f"unknown key {min(unknown)!r}", f"An item has {known}.")
    if {"payload", "payload_base64"} <= written.keys():
        raise usage_error("give one of payload and payload_base64")
    item = batches_pb2.BatchItem(spec=tasks_pb2.TaskSpec(capability=capability))
    for key, value in written.items():
        try:
            _READERS[key](item, value)
        except (TypeError, ValueError, OverflowError) as error:
            raise usage_error(f"{key}: {_shown(value)} can't be one") from error
    _check(item)
    return item


def _check(item: "batches_pb2.BatchItem") -> None:
    """Raises CommandFailed for what the contract doesn't take."""
    from mesh.rpc.validation import violations_of

    if not item.spec.capability:
        raise usage_error("names no capability", "Name it in each line, or after the file.")
    for violation in violations_of(item.DESCRIPTOR)(item):
        field = violation.field.removeprefix("spec.").replace("task_id", "id")
        raise usage_error(f"{field}: {violation.description}")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is wanted")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("a whole number is wanted")
    return value


def _read_id(item: "batches_pb2.BatchItem", value: object) -> None:
    item.task_id = _text(value)


def _read_capability(item: "batches_pb2.BatchItem", value: object) -> None:
    item.spec.capability = _text(value)


def _read_payload(item: "batches_pb2.BatchItem", value: object) -> None:
    text = value if isinstance(value, str) else _compact(value)
    item.spec.payload = text.encode()


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _read_base64(item: "batches_pb2.BatchItem", value: object) -> None:
    try:
        item.spec.payload = base64.b64decode(_text(value), validate=True)
    except binascii.Error as error:
        raise ValueError("isn't base64") from error


def _read_priority(item: "batches_pb2.BatchItem", value: object) -> None:
    item.spec.priority = _whole(value)


def _read_attempts(item: "batches_pb2.BatchItem", value: object) -> None:
    item.spec.retry.max_attempts = _whole(value)


def _read_labels(item: "batches_pb2.BatchItem", value: object) -> None:
    if not isinstance(value, Mapping):
        raise TypeError("an object is wanted")
    for key, each in value.items():
        item.spec.labels.add(key=key, value=_text(each))


def _read_zone(item: "batches_pb2.BatchItem", value: object) -> None:
    item.spec.preferred_zone = _text(value)


def _read_cpu(item: "batches_pb2.BatchItem", value: object) -> None:
    item.spec.resources.cpu_millis = parse_processors(_number_text(value), "cpu")


def _read_memory(item: "batches_pb2.BatchItem", value: object) -> None:
    item.spec.resources.memory_bytes = parse_bytes(_number_text(value), "memory")


def _number_text(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return _text(value)


def _time_reader(field: str) -> "Callable[[batches_pb2.BatchItem, object], None]":
    # A time from now on would be another one each time that the file is read.
    def read(item: "batches_pb2.BatchItem", value: object) -> None:
        getattr(item.spec, field).FromDatetime(parse_time(_text(value)))

    return read


def _span_reader(key: str, field: str) -> "Callable[[batches_pb2.BatchItem, object], None]":
    def read(item: "batches_pb2.BatchItem", value: object) -> None:
        *within, last = field.split(".")
        holder = getattr(item.spec, within[0]) if within else item.spec
        getattr(holder, last).CopyFrom(parse_span(_text(value), key))

    return read


_READERS: "Mapping[str, Callable[[batches_pb2.BatchItem, Any], None]]" = {
    "id": _read_id,
    "capability": _read_capability,
    "payload": _read_payload,
    "payload_base64": _read_base64,
    "priority": _read_priority,
    "labels": _read_labels,
    "zone": _read_zone,
    "cpu": _read_cpu,
    "memory": _read_memory,
    "max_attempts": _read_attempts,
    "backoff": _span_reader("backoff", "retry.initial_backoff"),
    "max_backoff": _span_reader("max_backoff", "retry.max_backoff"),
    "not_before": _time_reader("not_before"),
    "start_deadline": _time_reader("start_deadline"),
    "deadline": _time_reader("deadline"),
    "timeout": _span_reader("timeout", "attempt_timeout"),
    "cost": _span_reader("cost", "estimated_cost"),
}
"""What an item may say, under the names of the options of `weft task submit`."""
