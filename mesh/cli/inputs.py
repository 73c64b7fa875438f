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
_SPAN = re.compile(r"(\d+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def read_bytes(path: str) -> bytes:
    """What is in a file, or comes on standard input for `-`; at most 4 MiB."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(INPUT_BYTES_MAX + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(INPUT_BYTES_MAX + 1)
    except OSError as error:
        raise CommandFailed(f"can't read {path}: {error.strerror}") from error
    if len(data) > INPUT_BYTES_MAX:
        raise usage_error(f"{path} is larger than 4 MiB")
    return data


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
    seconds = _span_seconds(text)
    if seconds is None:
        return parse_time(text)
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds)
    except OverflowError as error:
        raise usage_error(f"{text} is too long ago") from error


def parse_ahead(text: str, option: str) -> datetime:
    """The moment of an RFC 3339 time, or in that long: `90s`, `1h30m`. CommandFailed
    (usage) that names the option where it is neither."""
    seconds = _span_seconds(text)
    try:
        if seconds is None:
            return parse_time(text)
        return datetime.now(UTC) + timedelta(seconds=seconds)
    except (CommandFailed, OverflowError) as error:
        raise usage_error(
            f"{option}: {text!r} isn't a time", "Write 90s, 1h30m or 2026-01-31T12:00:00Z."
        ) from error


def parse_span(text: str, option: str) -> "Duration":
    """A span of time: `90s`, `10m`, `1h30m`, `30d`. CommandFailed (usage) that names the
    option where it is none."""
    from google.protobuf.duration_pb2 import Duration

    seconds = _span_seconds(text)
    if seconds is None or seconds > SPAN_SECONDS_MAX:
        raise usage_error(f"{option}: {text!r} isn't a span of time", "Write 90s, 1h30m or 30d.")
    return Duration(seconds=seconds)


def _span_seconds(text: str) -> int | None:
    spans = _SPAN.findall(text)
    if not spans or "".join(map("".join, spans)) != text:
        return None
    return sum(int(count) * _SECONDS[unit] for count, unit in spans)


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
