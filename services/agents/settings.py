"""Bounds and times of turns; `WEFT_AGENTS_*` or `[agents]` in `weft.toml`."""

from typing import ClassVar

from pydantic import Field

from mesh.settings import Section


class AgentsSettings(Section):
    """What an agent's own limits may narrow but not widen."""

    area: ClassVar[str] = "agents"

    background_turns_max: int = Field(16, ge=0, le=10_000)
    """Turns of the queues `turns` that run at once in a process."""
    steps_max: int = Field(16, ge=1, le=256)
    """Model steps of a turn, where the agent doesn't say."""
    turn_seconds_max: float = Field(600.0, gt=0)
    """How long a turn may take, where the agent doesn't say."""
    turn_tokens_max: int = Field(200_000, ge=1)
    """Tokens of a turn, where the agent doesn't say."""
    resumes_max: int = Field(5, ge=0)
    """How often a turn is resumed after its process died; then it fails."""
    tool_attempts_max: int = Field(3, ge=1, le=10)
    """How often a read or idempotent call is tried when its tool can't be reached."""
    tool_backoff_seconds: float = Field(0.2, gt=0)
    """Wait before the second attempt; doubled for each one after it."""
    unserved_seconds: float = Field(60.0, ge=0)
    """How long a turn waits for the models or tools service where none of its instances can
    be reached, within the turn's and the call's own time."""
    token_flush_seconds: float = Field(0.005, ge=0)
    """How long tokens are gathered into one message, after the first."""
    drain_seconds: float = Field(10.0, ge=0)
    """How long running turns may go on when the service stops; then others resume them."""
    stalled_turn_seconds: float = Field(120.0, ge=0.1)
    """How long nothing may happen to a turn that runs before it is said to have stalled."""
    recovery_interval_seconds: float = Field(0.25, gt=0)
    """How often open turns of lost owners are looked for."""
    context_share: float = Field(0.75, gt=0, le=1)
    """Share of the model's window that the conversation may fill before it's compacted."""
