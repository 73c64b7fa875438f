"""What a command shows: data on stdout as a table, JSON or YAML, all else on stderr."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as Payload
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

M = TypeVar("M", bound="Message")

_PIPE_COLUMNS = 10_000
"""Width of a table that no terminal shows: enough that nothing is cut or wrapped."""

_CONTROL_CHARACTERS = {
    code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}


class Output(StrEnum):
    """The form of the data on stdout."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def printable(text: str) -> str:
    """The text without control characters: what a model, a tool or a document says must
    not steer the terminal."""
    return text.translate(_CONTROL_CHARACTERS)


def one_line(text: str, length_max: int = 100) -> str:
    """The text on one line, cut to `length_max` characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= length_max else line[: length_max - 1] + "…"


def moment(time: "Timestamp") -> str:
    """A time for people: UTC, to the millisecond; empty where it isn't set."""
    if not time.seconds and not time.nanos:
        return ""
    return time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def as_data(message: "Message") -> dict[str, Any]:
    """The message in ProtoJSON, with the contract's field names and without leaving out
    what is zero. A payload that can't be opened is shown as its bytes in base64."""
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError

    from mesh.cli.contracts import load_contracts

    load_contracts()
    try:
        data: dict[str, Any] = json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    except (TypeError, DecodeError):
        readable = type(message)()
        readable.CopyFrom(message)
        if not _close_payloads(readable):
            raise
        return as_data(readable)
    return data


def _close_payloads(message: "Message") -> int:
    """Turns every Any in the message that can't be opened into one that holds its bytes;
    how many there were. Such are facts of a newer contract, or damaged ones."""
    from google.protobuf.any_pb2 import Any as Payload
    from google.protobuf.wrappers_pb2 import BytesValue

    if isinstance(message, Payload):
        if _opens(message):
            return 0
        message.Pack(BytesValue(value=message.value))
        return 1
    closed = 0
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for inner in value if field.is_repeated else [value]:
            closed += _close_payloads(inner)
    return closed


def _opens(payload: "Payload") -> bool:
    from google.protobuf.message import DecodeError

    from mesh.cli.contracts import message_class

    payload_class = message_class(payload.TypeName())
    try:
        return payload_class is not None and payload.Unpack(payload_class())
    except DecodeError:
        return False


def show_data(output: Output, data: object) -> None:
    """Prints one document of plain data as JSON or YAML."""
    if output is Output.YAML:
        import yaml

        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
        sys.stdout.write(text)
    else:
        sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=2) + "\n")


def show_message(output: Output, message: "Message", fields: Mapping[str, object]) -> None:
    """Prints one resource; `fields` are the lines of its table, empty ones left out."""
    if output is not Output.TABLE:
        show_data(output, as_data(message))
        return
    rows = [(name, str(value)) for name, value in fields.items() if str(value)]
    _print_table(None, rows)


def show_list(
    output: Output, messages: Sequence[M], columns: Mapping[str, Callable[[M], object]]
) -> None:
    """Prints resources: a table with these columns, or one JSON or YAML list."""
    if output is not Output.TABLE:
        show_data(output, [as_data(message) for message in messages])
        return
    rows = [[str(column(message)) for column in columns.values()] for message in messages]
    _print_table([name.upper() for name in columns], rows)


def show_rows(header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> None:
    """Prints a table of what isn't a message."""
    _print_table(header and [name.replace("_", " ").upper() for name in header], rows)


def show_item(output: Output, message: "Message") -> None:
    """Prints one item of a stream at once: a line of JSON, or a YAML document."""
    if output is Output.YAML:
        sys.stdout.write("---\n")
        show_data(output, as_data(message))
    else:
        text = json.dumps(as_data(message), ensure_ascii=False, separators=(",", ":"))
        sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str, style: str = "dim") -> None:
    """Prints a line for the person, on stderr."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(printable(text), style=style))


def _print_table(header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=header is not None, header_style="bold")
    for name in header or ("name", "value"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")
