"""What people type: files, times, durations."""

import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.failures import CommandFailed, usage_error

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]

INPUT_BYTES_MAX = 4 * 1024 * 1024
SPAN_SECONDS_MAX = 10**11
_SPAN = re.compile(r"(\d+)(ms|[smhd])")
_MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PROCESSORS = re.compile(r"(\d{1,6})(?:\.(\d{1,3}))?|(\d{1,9})m")
_BYTES = re.compile(r"(\d{1,15})(?:([KMGT])i)?B?")


def read_bytes(path: str, bytes_max: int = INPUT_BYTES_MAX) -> bytes:
    """What is in a file, or comes on standard input for `-`. CommandFailed where it can't be
    read, and (usage) where it is larger than that."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(bytes_max + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(bytes_max + 1)
    except OSError as error:
        raise CommandFailed(f"can't read {path}: {error.strerror}") from error
    if len(data) > bytes_max:
        raise usage_error(f"{path} is larger than {shown_bytes(bytes_max)}")
    return data


def shown_bytes(count: int) -> str:
    """`256 KiB` of 262144: the largest unit of which there is a whole number."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count % 1024 or not count:
            return f"{count} {unit}"
        count //= 1024
    return f"{count} TiB"


def read_file(path: str) -> str:
    """The text of a file, or of standard input for `-`; at most 4 MiB of UTF-8."""
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise usage_error(f"{path} isn't UTF-8 text") from error


def read_argument(argument: str) -> str:
    """The argument itself, the file that it names as `@file`, or standard input for `-`."""
    if argument == "-":
        return read_file("-")
    if argument.startswith("@"):
        return read_file(argument[1:])
    return argument


def parse_time(text: str) -> datetime:
    """The moment of an RFC 3339 time; one without a zone is taken as UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise usage_error(
            f"{text!r} isn't a time", "Write it as RFC 3339: 2026-01-31T12:00:00Z."
        ) from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def parse_since(text: str) -> datetime:
    """The moment of an RFC 3339 time, or that long ago: `90s`, `10m`, `1h30m`, `2d`."""
    span_ms = _span_milliseconds(text)
    if span_ms is None:
        return parse_time(text)
    try:
        return datetime.now(UTC) - timedelta(milliseconds=span_ms)
    except OverflowError as error:
        raise usage_error(f"{text} is too long ago") from error


def parse_ahead(text: str, option: str) -> datetime:
    """The moment of an RFC 3339 time, or in that long: `90s`, `1h30m`. CommandFailed
    (usage) that names the option where it is neither."""
    span_ms = _span_milliseconds(text)
    try:
        if span_ms is None:
            return parse_time(text)
        return datetime.now(UTC) + timedelta(milliseconds=span_ms)
    except (CommandFailed, OverflowError) as error:
        raise usage_error(
            f"{option}: {text!r} isn't a time", "Write 90s, 1h30m or 2026-01-31T12:00:00Z."
        ) from error


def parse_span(text: str, option: str) -> "Duration":
    """A span of time: `500ms`, `90s`, `1h30m`, `30d`. CommandFailed (usage) that names the
    option where it is none."""
    from google.protobuf.duration_pb2 import Duration

    span_ms = _span_milliseconds(text)
    if span_ms is None or span_ms > SPAN_SECONDS_MAX * 1000:
        raise usage_error(
            f"{option}: {text!r} isn't a span of time", "Write 500ms, 90s, 1h30m or 30d."
        )
    span = Duration()
    span.FromMilliseconds(span_ms)
    return span


def parse_processors(text: str, option: str) -> int:
    """Thousandths of a processor, typed as processors or, as Kubernetes has it, thousandths:
    `2`, `0.5`, `500m`. CommandFailed (usage) that names the option where it is neither."""
    match = _PROCESSORS.fullmatch(text)
    if match is None:
        raise usage_error(
            f"{option}: {text!r} isn't a number of processors", "Write 2, 0.5 or 500m."
        )
    whole, part, thousandths = match.groups()
    return int(thousandths) if thousandths else int(whole) * 1000 + int((part or "").ljust(3, "0"))


def parse_bytes(text: str, option: str) -> int:
    """A number of bytes: `4096`, `512MiB`, `2Gi`. CommandFailed (usage) that names the option
    where it is none."""
    match = _BYTES.fullmatch(text)
    if match is None:
        raise usage_error(
            f"{option}: {text!r} isn't a number of bytes", "Write 4096, 512MiB or 2GiB."
        )
    count, unit = match.groups()
    return int(count) << (10 * " KMGT".index(unit or " "))


def _span_milliseconds(text: str) -> int | None:
    spans = _SPAN.findall(text)
    if not spans or "".join(map("".join, spans)) != text:
        return None
    return sum(int(count) * _MILLISECONDS[unit] for count, unit in spans)


def confirm(question: str, assent: bool) -> None:
    """Goes on where the person says yes at the terminal, or said so with --yes
    (`assent`). CommandFailed where they don't."""
    if assent:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise usage_error("this can't be undone: say --yes", question)
    sys.stderr.write(f"{question} (yes, no) ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandFailed("nothing was done")
