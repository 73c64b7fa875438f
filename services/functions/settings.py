"""Settings of the functions service: the table `[functions]`, variables `WEFT_FUNCTIONS_*`."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from mesh.settings import Section

MEBIBYTE = 1 << 20


class FunctionsSettings(Section):
    """What confines functions, and bounds of what they may use together."""

    area: ClassVar[str] = "functions"

    sandbox: str = Field("auto", pattern=r"^(auto|sandlock|bubblewrap|unsafe)$")
    """What confines functions: `auto` takes sandlock, else bubblewrap, else refuses them.
    With `unsafe` nothing does: who may deploy a function may do all that this process's
    user may."""
    folder: Path | None = None
    """Where logs and the folders of invocations lie; `functions` in the process's data folder
    where it isn't set."""
    functions_max: int = Field(default=1_000, ge=1)
    """Most functions of a tenant."""
    ready_max: int = Field(default=2, ge=0, le=64)
    """Processes that wait for an invocation, from the first one on; each takes 25 MB."""
    running_max: int = Field(default=8, ge=1, le=256)
    """Invocations that run at once."""
    tenant_running_max: int = Field(default=6, ge=1, le=256)
    """Of those, how many of one tenant."""
    function_running_max: int = Field(default=4, ge=1, le=256)
    """Of those, how many of one function."""
    waiting_max: int = Field(default=256, ge=0, le=10_000)
    """Invocations that wait for their turn; further ones are refused."""
    tenant_waiting_max: int = Field(default=64, ge=0, le=10_000)
    """Of those, how many of one tenant."""
    timeout_seconds_max: float = Field(default=300.0, gt=0, le=900)
    """Longest time that a version may be given."""
    memory_bytes_max: int = Field(default=1_024 * MEBIBYTE, ge=64 * MEBIBYTE, le=8_192 * MEBIBYTE)
    """Most memory that a version may be given."""
    scratch_bytes_max: int = Field(default=256 * MEBIBYTE, ge=0, le=1_024 * MEBIBYTE)
    """Most bytes of files that a version may be given."""
    log_bytes_max: int = Field(default=4 * MEBIBYTE, ge=65_536)
    """What is kept of a function's log; the oldest goes first."""
    logs_bytes_max: int = Field(default=256 * MEBIBYTE, ge=65_536)
    """What is kept of all logs; of the longest one of the tenant that has most the oldest goes
    first."""
    sources_max: int = Field(default=64, ge=1)
    """Sources that are kept in memory."""
    answers_max: int = Field(default=1_000, ge=1)
    """Answers that are remembered by their idempotency keys."""
    answers_bytes_max: int = Field(default=32 * MEBIBYTE, ge=1_048_576)
    """Most bytes of those."""
    catch_up_seconds: float = Field(default=30, gt=0)
    """How long the start may take to read what was deployed."""
