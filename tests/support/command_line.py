"""Command lines of `weft`, and how they ended."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NO_CONFIG = Path(tempfile.gettempdir()) / "weft-tests-no-config"


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


def command_line(*arguments: str) -> list[str]:
    """The client as a process's arguments."""
    return [sys.executable, "-m", "mesh.cli", *arguments]


def environment_for(address: str, **more: str) -> dict[str, str]:
    """The environment of such a process, with none of our own WEFT_* in it, and no key of
    the person who runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WEFT_")}
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "generated")])}
    own = {"WEFT_ADDRESS": address, "XDG_CONFIG_HOME": str(NO_CONFIG)}
    return kept | paths | own | more
