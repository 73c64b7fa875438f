"""Caches for tests: of one process alone, or of several that share a Redis."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mesh.cache.cache import Cache
from mesh.cache.disk_level import FILE_NAME, DiskLevel
from mesh.cache.level import Level
from mesh.cache.memory import Memory
from mesh.cache.redis_level import RedisLevel
from mesh.cache.tags import Tags
from mesh.clock import NANOSECONDS, SYSTEM, Clock

SECRET = bytes(range(32))
TENANT = "acme"
SETTLE_SECONDS_MAX = 10.0


class Text:
    """Values that are text."""

    def encode(self, value: str) -> bytes:
        return value.encode()

    def decode(self, data: bytes) -> str:
        return data.decode()


class Hand:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0
        self.clock = Clock(lambda: int(self.seconds * NANOSECONDS), lambda: self.seconds)


def memory_cache(clock: Clock = SYSTEM, memory_bytes: int = 1_000_000) -> Cache:
    """A cache of memory alone."""
    return Cache(SECRET, Memory(memory_bytes), clock=clock)


def full_cache(
    folder: Path,
    redis: Callable[[], Any] | None = None,
    tags: Tags | None = None,
    *,
    clock: Clock = SYSTEM,
    memory_bytes: int = 1_000_000,
    disk_bytes: int = 10_000_000,
    timeout_seconds: float = 1.0,
) -> Cache:
    """A cache with a disk, and a Redis where there is one. On a busy machine it is patient."""
    folder.mkdir(exist_ok=True)
    levels: list[Level] = [] if redis is None else [RedisLevel(redis, timeout_seconds, clock)]
    levels.append(DiskLevel(folder / FILE_NAME, disk_bytes, timeout_seconds, clock))
    return Cache(SECRET, Memory(memory_bytes), levels, tags, clock=clock)


async def settled(caches: Sequence[Cache]) -> None:
    """Returns once all is kept that waits to be kept."""
    async with asyncio.timeout(SETTLE_SECONDS_MAX):
        for cache in caches:
            for level in cache.levels:
                if isinstance(level, RedisLevel):
                    # Without a Redis it goes on until there is one.
                    while level._client() is not None and (
                        level._scrubbing is not None or level._chores._running
                    ):
                        await level._chores.settled()
                        await asyncio.sleep(0.001)
                elif isinstance(level, DiskLevel):
                    while level._changing is not None:
                        await asyncio.wait({level._changing})
