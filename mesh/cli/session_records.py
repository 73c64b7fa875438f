"""An exported session as text: one SessionRecord in ProtoJSON a line."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mesh.cli.failures import CommandFailed, usage_error

if TYPE_CHECKING:
    from weft.state.v1 import session_service_pb2 as pb

FORMAT = 1
LINE_BYTES_MAX = 32 * 1024 * 1024
"""Longest line accepted: a fact of a megabyte, each of its characters written as six."""

BATCH_BYTES_MAX = 900 * 1024
BATCH_RECORDS_MAX = 1_000
"""Bounds of one message to the server. A record that is larger by itself goes alone."""


def record_line(record: "pb.SessionRecord") -> str:
    """The record as a line. CommandFailed for a fact whose type this client doesn't know:
    written otherwise, it couldn't be read again."""
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError

    try:
        data = json_format.MessageToDict(record, preserving_proto_field_name=True)
    except (TypeError, DecodeError):
        raise CommandFailed(
            f"event {record.event.revision} is of a type that this client can't read: "
            f"{record.event.type}",
            notes=["A newer client may know it."],
        ) from None
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n"


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The file, or standard input for `-`, as bytes."""
    if path == "-":
        yield sys.stdin.buffer
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(path).open("rb"))
        except OSError as error:
            raise CommandFailed(f"can't read {path}: {error.strerror}") from error
        yield file


class RecordBatches:
    """The messages that import the session of `lines`, each of bounded size; `first` says
    where to.

    gRPC asks for them in a thread of its own, where an error only ends the call: the
    CommandFailed that says what is wrong with the lines is kept as `failure`.
    """

    def __init__(self, lines: BinaryIO, first: "pb.ImportSessionRequest") -> None:
        self._lines = lines
        self._first = first
        self.failure: CommandFailed | None = None

    def __iter__(self) -> "Iterator[pb.ImportSessionRequest]":
        try:
            yield from self._requests()
        except CommandFailed as failure:
            self.failure = failure
            raise

    def _requests(self) -> "Iterator[pb.ImportSessionRequest]":
        request, size = self._first, 0
        for record in _checked(map(_parse, _numbered(self._lines))):
            length = record.ByteSize()
            full = size + length > BATCH_BYTES_MAX or len(request.records) >= BATCH_RECORDS_MAX
            if request.records and full:
                yield request
                request, size = type(request)(parent=self._first.parent), 0
            request.records.append(record)
            size += length
        yield request


def _numbered(lines: BinaryIO) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        while line := lines.readline(LINE_BYTES_MAX + 1):
            number += 1
            if len(line) > LINE_BYTES_MAX:
                raise usage_error(f"line {number} is too long")
            if line.strip():
                yield number, line
    except OSError as error:
        raise CommandFailed(f"can't read line {number + 1}: {error.strerror}") from error


def _parse(numbered: tuple[int, bytes]) -> "pb.SessionRecord":
    from google.protobuf import json_format

    from mesh.cli.contracts import load_contracts
    from weft.state.v1 import session_service_pb2 as pb

    number, line = numbered
    load_contracts()
    try:
        return json_format.Parse(line.decode("utf-8-sig"), pb.SessionRecord())
    except (json_format.ParseError, UnicodeDecodeError, RecursionError):
        # Not their text: it quotes what the session holds.
        raise usage_error(f"line {number} is no record of a session") from None


def _checked(records: "Iterable[pb.SessionRecord]") -> "Iterator[pb.SessionRecord]":
    """The records, where they are one whole session. CommandFailed (usage) where not."""
    header, events = None, 0
    for record in records:
        if header is None:
            header = record.header
            if record.WhichOneof("record") != "header" or header.format != FORMAT:
                raise usage_error(f"this is no exported session of format {FORMAT}")
        elif record.WhichOneof("record") != "event":
            raise usage_error(f"record {events + 2} is no event")
        else:
            events += 1
        yield record
    if header is None:
        raise usage_error("there is nothing to import")
    if events != header.event_count:
        raise usage_error(f"{header.event_count} events were exported, {events} are here")
