"""How much an invocation may use, and how it ended."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one invocation. `memory_bytes` is of address space; `output_bytes` holds for
    the result, and again for all that is printed; `scratch_bytes` for each file and for all."""

    timeout_seconds: float
    cpu_seconds: int
    memory_bytes: int
    threads: int
    open_files: int
    output_bytes: int
    scratch_bytes: int


@dataclass(frozen=True, slots=True)
class Invocation:
    """What is to be run. With `check` it is only looked whether the source has the function.
    `arguments` is JSON."""

    source: str
    entry_point: str
    arguments: str = "null"
    context: dict[str, object] | None = None
    check: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """How an invocation ended. `result` is JSON; it is None where `error` says why there is
    none: a word of `ERRORS`, with what is known more in `message` and `trace`."""

    result: str | None
    error: str = ""
    message: str = ""
    trace: str = ""
    duration_seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0


ERRORS = (
    *("raised", "source", "result", "output", "memory", "timeout", "cpu", "threads"),
    *("scratch", "crashed"),
)
