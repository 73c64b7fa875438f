"""The command `weft`, as a person has it: `weft up` in a process, and the other commands."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.command_line import Ran
from tests.support.processes import ROOT, finished

READY_SECONDS_MAX = 60.0
END_SECONDS_MAX = 60.0
WEFT = Path(sys.executable).parent / "weft"


def environment(**more: str) -> dict[str, str]:
    """Ours without what would lead a command to another server, model or NATS. Keys are
    left and found where XDG_CONFIG_HOME says, which is the test run's own folder."""
    foreign = ("WEFT_", "OPENAI_", "NATS_", "OTEL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return (
        kept
        | {"COLUMNS": "200", "WEFT_RUNTIME_NATS_PORT": "0", "WEFT_RUNTIME_XDS_PORT": "0"}
        | {"WEFT_BLOBS_HTTP_PORT": "0"}
        | more
    )


def weft(*arguments: str | Path, stdin: str = "", **more: str) -> Ran:
    """Runs one command to its end."""
    done = finished([WEFT, *arguments], stdin=stdin, environment=environment(**more))
    return Ran(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class WeftUp:
    """A `weft up` that is ready; what it logs goes to `log_file`."""

    process: subprocess.Popen[str]
    said: Mapping[str, object]
    log_file: Path

    @property
    def address(self) -> str:
        """Its gRPC address."""
        return str(self.said["grpc"])

    @property
    def log(self) -> str:
        """What it said on stderr so far."""
        return self.log_file.read_text()

    def weft(self, *arguments: str | Path, stdin: str = "", **more: str) -> Ran:
        """Runs a command against it."""
        return weft(*arguments, stdin=stdin, WEFT_ADDRESS=self.address, **more)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it as an operator does; returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(END_SECONDS_MAX)


@contextmanager
def weft_up(log_file: Path, *arguments: str | Path, **more: str) -> Iterator[WeftUp]:
    """`weft up -o json ARGUMENTS`; AssertionError where it doesn't become ready."""
    with _serving(log_file, ["up", *arguments], more) as up:
        yield up


@contextmanager
def weft_serve(log_file: Path, *arguments: str | Path, **more: str) -> Iterator[WeftUp]:
    """As `weft_up`, of `weft serve`."""
    with _serving(log_file, ["serve", *arguments], more) as part:
        yield part


@contextmanager
def _serving(
    log_file: Path, arguments: Sequence[str | Path], more: Mapping[str, str]
) -> Iterator[WeftUp]:
    command = [str(part) for part in (WEFT, *arguments, "-o", "json")]
    with log_file.open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=environment(**more),
        )
    try:
        assert process.stdout is not None
        too_late = threading.Timer(READY_SECONDS_MAX, process.kill)
        too_late.start()
        line = process.stdout.readline()
        too_late.cancel()
        assert line, f"it ended at its start:\n{log_file.read_text()[-2000:]}"
        yield WeftUp(process, json.loads(line), log_file)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
