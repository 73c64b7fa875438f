"""Puts the cache of a process together."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from mesh.cache.cache import Cache
from mesh.cache.disk_level import FILE_NAME, DiskLevel
from mesh.cache.level import Level
from mesh.cache.memory import Memory
from mesh.cache.metrics import CacheMetrics
from mesh.cache.nats_tags import NatsTags
from mesh.cache.redis_level import RedisLevel
from mesh.cache.settings import CacheSettings
from mesh.clock import SYSTEM, Clock
from mesh.events.jetstream.connection import Connection
from mesh.security.keyring import READ_MODELS
from mesh.security.secrets import Secrets


@asynccontextmanager
async def opened_cache(
    secrets: Secrets,
    connection: Connection,
    redis: Callable[[], Any],
    data_dir: Path,
    registry: CollectorRegistry,
    clock: Clock = SYSTEM,
) -> AsyncIterator[Cache]:
    """The cache of a process with all its levels. `redis` gives the client, once there is
    one. May raise EventStoreUnavailable."""
    settings = CacheSettings()
    # What is cached is copied out of answers, as read models are out of the log.
    secret = await secrets.secret(READ_MODELS)
    levels: list[Level] = [RedisLevel(redis, settings.redis_timeout_seconds, clock)]
    if settings.disk_bytes_max:
        path = data_dir / FILE_NAME
        seconds = settings.disk_timeout_seconds
        levels.append(DiskLevel(path, settings.disk_bytes_max, seconds, clock))
    cache = Cache(
        secret,
        Memory(settings.memory_bytes_max),
        levels,
        NatsTags(connection),
        metrics=CacheMetrics(registry),
        clock=clock,
        value_bytes_max=settings.value_bytes_max,
    )
    try:
        await cache.start()
        yield cache
    finally:
        await cache.stop()
