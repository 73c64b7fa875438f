"""An exported session as text: one SessionRecord in ProtoJSON a line."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from mesh.cli.failures import CommandFailed, usage_error

if TYPE_CHECKING:
    from weft.state.v1 import session_service_pb2 as pb

FORMAT = 1
LINE_BYTES_MAX = 32 * 1024 * 1024
"""Longest line accepted: a fact of a megabyte, each of its characters written as six."""

SESSION_BYTES_MAX = 8 * 1024**3
SPOOL_MEMORY_BYTES = 64 * 1024 * 1024

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
def whole_session(path: str) -> Iterator[BinaryIO]:
    """The lines of an exported session, from a file or, for `-`, from standard input.

    All of them are looked at before the first is given: a server can't tell well a stream
    that was broken off from one that ended. CommandFailed where they aren't a whole one.
    """
    with ExitStack() as stack:
        lines = _open(path, stack)
        keep = None if lines.seekable() else _spool(stack)
        begin = lines.tell() if keep is None else 0
        for _ in _checked(map(_parse, _numbered(lines, keep))):
            pass
        again = keep or lines
        again.seek(begin)
        yield again


def batches(
    lines: BinaryIO, first: "pb.ImportSessionRequest"
) -> "Iterator[pb.ImportSessionRequest]":
    """The messages that import these lines, each of bounded size; `first` says where to."""
    request, size = first, 0
    for record in map(_parse, _numbered(lines)):
        length = record.ByteSize()
        full = size + length > BATCH_BYTES_MAX or len(request.records) >= BATCH_RECORDS_MAX
        if request.records and full:
            yield request
            request, size = type(first)(parent=first.parent), 0
        request.records.append(record)
        size += length
    yield request


def _open(path: str, stack: ExitStack) -> BinaryIO:
    if path == "-":
        return sys.stdin.buffer
    try:
        return stack.enter_context(Path(path).open("rb"))
    except OSError as error:
        raise CommandFailed(f"can't read {path}: {error.strerror}") from error


def _spool(stack: ExitStack) -> BinaryIO:
    """A place for what can be read only once; on disk it has no name, and one owner."""
    import tempfile

    spool = tempfile.SpooledTemporaryFile(SPOOL_MEMORY_BYTES)  # noqa: SIM115 - the stack closes it
    return cast(BinaryIO, stack.enter_context(spool))


def _numbered(lines: BinaryIO, keep: BinaryIO | None = None) -> Iterator[tuple[int, bytes]]:
    """The lines that aren't empty with their numbers; all of them go to `keep` as well."""
    number = size = 0
    try:
        while line := lines.readline(LINE_BYTES_MAX + 1):
            number += 1
            if len(line) > LINE_BYTES_MAX:
                raise usage_error(f"line {number} is too long")
            size += len(line)
            if size > SESSION_BYTES_MAX:
                raise usage_error("that is too much for one session")
            if keep is not None:
                keep.write(line)
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
