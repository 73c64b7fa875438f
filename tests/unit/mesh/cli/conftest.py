"""The command line against a small Weft in memory, over real gRPC."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.cli.application import application, run
from tests.support.command_line import ROOT, Ran, Weft, command_line, environment_for
from tests.support.memory_platform import MemoryPlatform

PROCESS_SECONDS_MAX = 60


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of contexts and keys, of this test alone."""
    for name in [name for name in os.environ if name.startswith("WEFT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "weft"


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
def weft_process(platform: MemoryPlatform, config: Path) -> Weft:
    """Runs a command line in a process of its own, against the platform."""

    def invoke(*arguments: str, stdin: str = "", **environment: str) -> Ran:
        finished = subprocess.run(
            command_line(*arguments),
            input=stdin,
            env=environment_for(
                platform.address, **{"XDG_CONFIG_HOME": str(config.parent)} | environment
            ),
            cwd=ROOT,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=PROCESS_SECONDS_MAX,
        )
        return Ran(finished.returncode, finished.stdout, finished.stderr)

    return invoke
