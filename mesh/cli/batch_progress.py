"""How far a batch is, on stderr: a bar on a terminal, else a line now and then."""

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mesh.cli.output import note

if TYPE_CHECKING:
    from weft.scheduler.v1 import batches_pb2

LINE_SECONDS = 10.0


class BatchProgress:
    """Shows a batch's counts while it is open. `total` is how many items it will have; as
    many as it has where it is 0."""

    def __init__(self, total: int = 0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._total = total
        self._said = time.monotonic()
        console = Console(stderr=True)
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.completed}/{task.total} {task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            # Results that go to another place than the terminal aren't its to draw around.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("", total=total or None)

    def __enter__(self) -> "BatchProgress":
        self._open().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open().__exit__(kind, error, traceback)

    def show(self, batch: "batches_pb2.Batch", refused_count: int = 0) -> None:
        """The batch is there by now."""
        counts = batch.counts
        total = max(self._total - refused_count, counts.items)
        done = counts.succeeded + counts.failed + counts.cancelled
        line = f"{counts.running} running"
        line += f", {counts.failed} failed" if counts.failed else ""
        line += f", {counts.cancelled} cancelled" if counts.cancelled else ""
        if not self._bar.disable:
            self._bar.update(self._task, completed=done, total=total, description=line)
        elif time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            note(f"{done}/{total} {line}")

    def _open(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._bar.disable else self._bar
