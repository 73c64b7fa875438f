"""Settings of the cache: the table `[cache]`, variables `WEFT_CACHE_*`."""

from typing import ClassVar

from pydantic import Field

from mesh.settings import Section


class CacheSettings(Section):
    """How much is kept, and how long the levels below memory are waited for."""

    area: ClassVar[str] = "cache"

    memory_bytes_max: int = Field(33_554_432, ge=0)
    """Most bytes in memory, in each process."""
    disk_bytes_max: int = Field(268_435_456, ge=0)
    """Most bytes of sealed values on disk, in each process's data folder; 0 keeps none there."""
    value_bytes_max: int = Field(262_144, ge=0, le=1_000_000)
    """Larger values aren't kept."""
    redis_timeout_seconds: float = Field(0.02, gt=0, le=1)
    """How long an answer of Redis is waited for."""
    disk_timeout_seconds: float = Field(0.05, gt=0, le=1)
    """How long an answer of the disk is waited for."""
