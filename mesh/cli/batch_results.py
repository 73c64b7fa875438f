"""Where results of a batch go: a JSON document a line, as they come."""

import base64
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mesh.cli.failures import CommandFailed, ExitCode
from mesh.cli.output import one_line, printable

if TYPE_CHECKING:
    from weft.scheduler.v1 import batches_pb2


class Results:
    """Writes results, to stdout where no file is given, and counts how items ended.

    `last` is the number of the last result that was written: a watch goes on behind it.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self.last = 0
        self._file = file
        self._lock = threading.Lock()
        self._ended: dict[int, str] = {}
        self._refused: dict[int, str] = {}

    def ended(self, result: "batches_pb2.BatchResult") -> None:
        """An item has ended."""
        from weft.scheduler.v1 import tasks_pb2

        state = tasks_pb2.TaskState.Name(result.state).removeprefix("TASK_STATE_").lower()
        line: dict[str, Any] = {"index": result.index, "id": result.task.rpartition("/")[2]}
        line |= {"number": result.number, "state": state}
        if result.state == tasks_pb2.TASK_STATE_SUCCEEDED:
            line |= _result(result.result)
        else:
            line |= {"code": _code_name(result.code)} if result.code else {}
            line |= {"error": result.reason}
        self._write(line)
        self._ended[result.index] = state
        self.last = result.number

    def refused(self, error: "batches_pb2.BatchItemError") -> None:
        """An item wasn't accepted."""
        self._write(
            {
                "index": error.index,
                "state": "refused",
                "code": _code_name(error.code),
                "error": error.message,
            }
        )
        self._refused[error.index] = error.message

    @property
    def refused_count(self) -> int:
        """How many items weren't accepted."""
        return len(self._refused)

    def summary(self) -> str:
        """How many items ended how: `1990 succeeded, 10 failed`."""
        counts = Counter(self._ended.values())
        counts["refused"] = len(self._refused)
        words = ("succeeded", "failed", "cancelled", "refused")
        said = [f"{counts[word]} {word}" for word in words if counts[word]]
        return ", ".join(said) or "no items"

    def refuse_failures(self, batch: str) -> None:
        """Raises CommandFailed where an item has no result; `batch` is its short name."""
        counts = Counter(self._ended.values())
        if not self._refused and counts.total() == counts["succeeded"]:
            return
        notes = [f"item {index}: {one_line(why)}" for index, why in sorted(self._refused.items())]
        if counts["failed"]:
            notes.append(f"`weft deadletter redrive --batch {batch}` tries what failed again.")
        raise CommandFailed(self.summary(), exit_code=ExitCode.TURN_FAILED, notes=notes[:10])

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
        # Looked up each time: a progress bar puts something else in stdout's place.
        file = self._file or sys.stdout
        # What a worker says must not steer the terminal.
        text = printable(text) if self._file is None and sys.stdout.isatty() else text
        with self._lock:
            file.write(text + "\n")
            file.flush()


@contextmanager
def results_to(path: Path | None) -> Iterator[Results]:
    """Results to stdout, or to a file; a new one is for its owner only. CommandFailed where
    it can't be written."""
    if path is None:
        yield Results()
        return
    try:
        with open(path, "w", encoding="utf-8", opener=_private) as file:
            yield Results(file)
    except OSError as error:
        raise CommandFailed(f"can't write {path}: {error.strerror}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _result(data: bytes) -> dict[str, str]:
    try:
        return {"result": data.decode()}
    except UnicodeDecodeError:
        return {"result_base64": base64.b64encode(data).decode()}


def _code_name(code: int) -> str:
    from google.rpc import code_pb2  # type: ignore[import-untyped]

    value = code_pb2.Code.DESCRIPTOR.values_by_number.get(code)
    return str(value.name) if value is not None else str(code)
