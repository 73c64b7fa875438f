"""Bounds of imports, and when what was left unfinished is swept; `WEFT_STATE_*` or `[state]`
in `weft.toml`."""

from typing import ClassVar

from pydantic import Field

from mesh.settings import Section


class StateSettings(Section):
    """What a server takes in at once."""

    area: ClassVar[str] = "state"

    import_events_max: int = Field(100_000, ge=1)
    """Events of one import."""
    import_bytes_max: int = Field(64 * 1024 * 1024, ge=1)
    """Bytes of an import's events; they are held in memory until all have come."""
    import_state_bytes_max: int = Field(8 * 1024 * 1024, ge=1)
    """Bytes of the state that they fold into."""
    imports_at_once_max: int = Field(2, ge=1)
    """Imports that come in at one time; one tenant's are at most half of them, or one."""
    import_part_seconds_max: float = Field(10.0, gt=0)
    """How long the next part of an import may be waited for."""
    sweep_interval_seconds: float = Field(60.0, gt=0)
    """How often broken imports and unreadable forks are looked for."""
    import_stall_seconds: float = Field(60.0, gt=0)
    """How long an import may store nothing before it counts as broken."""
