"""The command line against a small Weft in memory, over real gRPC."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mesh.cli.application import application, run
from tests.support.memory_platform import MemoryPlatform

ROOT = Path(__file__).parents[4]
PROCESS_SECONDS_MAX = 60


@dataclass(frozen=True)
class Ran:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Its stdout as one JSON document."""
        return json.loads(self.out)

    @property
    def items(self) -> list[Any]:
        """Its stdout as one JSON document a line."""
        return [json.loads(line) for line in self.out.splitlines()]


Weft = Callable[..., Ran]


@pytest.fixture
def platform() -> Iterator[MemoryPlatform]:
    """A platform of this test alone."""
    platform = MemoryPlatform()
    platform.start()
    yield platform
    platform.stop()


@pytest.fixture
def weft(platform: MemoryPlatform, capsys: pytest.CaptureFixture[str]) -> Weft:
    """Runs a command line in this process, against the platform."""

    def invoke(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as exit_:
            run(application(), ["--address", platform.address, *arguments])
        captured = capsys.readouterr()
        return Ran(int(exit_.value.code or 0), captured.out, captured.err)

    return invoke


@pytest.fixture
def weft_process(platform: MemoryPlatform) -> Weft:
    """Runs a command line in a process of its own, against the platform."""

    def invoke(*arguments: str, stdin: str = "", **environment: str) -> Ran:
        finished = subprocess.run(
            command_line(*arguments),
            input=stdin,
            env=environment_for(platform.address, **environment),
            cwd=ROOT,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=PROCESS_SECONDS_MAX,
        )
        return Ran(finished.returncode, finished.stdout, finished.stderr)

    return invoke


def command_line(*arguments: str) -> list[str]:
    """The client as a process's arguments."""
    return [sys.executable, "-m", "mesh.cli", *arguments]


def environment_for(address: str, **more: str) -> dict[str, str]:
    """The environment of such a process, with none of our own WEFT_* in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WEFT_")}
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "generated")])}
    return kept | paths | {"WEFT_ADDRESS": address} | more
