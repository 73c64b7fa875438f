"""What confines functions on this machine.

sandlock comes with Weft and needs Landlock of ABI 6 (Linux 6.12), which bounds files, signals
and abstract sockets, whoever the user is. bubblewrap needs its program `bwrap` and
namespaces. Where neither works functions are refused, unless the settings say `unsafe`.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.errors import FailedPrecondition
from services.functions.sandbox.syscalls import filter_program

SANDLOCK, BUBBLEWRAP, UNSAFE = "sandlock", "bubblewrap", "unsafe"
PROBE_SECONDS = 10
_INSIDE = Path(__file__).with_name("inside.py")
_KEEPER = Path(__file__).with_name("keeper.py")
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")


@dataclass(frozen=True, slots=True)
class Backend:
    """What confines a function, and how its keeper is started."""

    name: str
    bwrap: str = ""

    def keeper_command(self) -> list[str]:
        """The interpreter that runs the keeper: it takes nothing from environment or site."""
        return [interpreter(), "-I", "-S", "-B", str(_KEEPER)]

    def configuration(self, scratch: Path) -> dict[str, Any]:
        """What the keeper is told; `scratch` is where sandboxes get their folders."""
        program = b"" if self.name == UNSAFE else filter_program()
        return {
            "sandbox": self.name,
            "bwrap": self.bwrap,
            "packages": _packages(),
            "readable": readable_paths(),
            "scratch": str(scratch),
            "command": [
                *(interpreter(), "-I", "-S", "-B", "-X", "utf8"),
                *("-c", _INSIDE.read_text(), program.hex()),
            ],
        }


def choose(wanted: str) -> Backend:
    """The back end that the settings ask for: by name, or `auto`, the first that works.
    FailedPrecondition, which says what is missing, where there is none."""
    if wanted == UNSAFE:
        return Backend(UNSAFE)
    problems = []
    for name in (SANDLOCK, BUBBLEWRAP) if wanted == "auto" else (wanted,):
        problem = _sandlock_problem() if name == SANDLOCK else _bubblewrap_problem()
        if not problem:
            return Backend(name, shutil.which("bwrap") or "")
        problems.append(f"{name}: {problem}")
    raise FailedPrecondition(
        "nothing confines functions on this machine, so they don't run ("
        + "; ".join(problems)
        + ")"
    )


def interpreter() -> str:
    """The interpreter itself, which a virtual environment only links to."""
    return os.path.realpath(sys.executable)


def readable_paths() -> list[str]:
    """What a function may read: the interpreter, its library, and those of the system."""
    wanted = [
        interpreter(),
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib"),
        sysconfig.get_config_var("LIBDIR") or "",
        *_LIBRARIES,
    ]
    found: list[str] = []
    for path in wanted:
        if path and os.path.exists(path) and path not in found:
            found.append(path)
    return found


def _packages() -> str:
    """Where sandlock lies, for a keeper that has no site."""
    return sysconfig.get_path("platlib")


def _sandlock_problem() -> str:
    if sys.platform != "linux":
        return "it needs Linux"
    try:
        filter_program()
    except FailedPrecondition as error:
        return error.message
    # In a process of its own: the library is large, and Weft's has no use for it.
    code = (
        f"import sys; sys.path.append({_packages()!r}); import sandlock;"
        "print(sandlock.landlock_abi_version(), sandlock.min_landlock_abi())"
    )
    try:
        answer = subprocess.run(
            [interpreter(), "-I", "-S", "-c", code],
            env={},
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=True,
        )
        present, needed = (int(word) for word in answer.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return "it can't be loaded"
    if present < needed:
        return f"the kernel has Landlock {max(present, 0)}, and {needed} is needed (Linux 6.12)"
    return ""


def _bubblewrap_problem() -> str:
    program = shutil.which("bwrap")
    if program is None:
        return "there is no bwrap"
    command = [program, "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "true"]
    try:
        subprocess.run(command, env={}, capture_output=True, timeout=PROBE_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return "bwrap can't make namespaces here"
    return ""
