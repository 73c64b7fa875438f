"""The streams that events need in JetStream. Leases make their own, in `mesh.control`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from mesh.clock import NANOSECONDS
from mesh.errors import Internal
from mesh.events.envelope import COMMIT_BYTES_MAX
from mesh.events.jetstream.connection import Connection, NotSent, retried
from mesh.security.key_store import VALUE_BYTES_MAX

EVENTS = "EVENTS"
SNAPSHOTS = "SNAPSHOTS"
TOKENS = "TOKENS"
KEYS = "KV_KEYS"
CACHE = "CACHE"
"""Which tags of cached values were invalidated: see `mesh.cache.nats_tags`."""
BLOBS_BUCKET = "BLOBS"
LIVE_PREFIX = "weft.live.events"
SNAPSHOT_PREFIX = "weft.snapshots"
TOKEN_PREFIX = "weft.tokens"
KEYS_PREFIX = "$KV.KEYS"
CACHE_PREFIX = "weft.cache"
LIVE_CACHE_PREFIX = "weft.live.cache"
SNAPSHOTS_KEPT = 8
KEY_MESSAGES_MAX = 8
"""More than the one there should be: see `key_store`."""
CACHE_TAGS_MAX = 65_536
CACHE_SECONDS_MAX = 604_800
"""How long it is remembered that a tag was invalidated."""

_STREAM_EXISTS = 10058
_NOT_NOW = 503

_FILES: dict[str, dict[str, Any]] = {
    EVENTS: {
        "subjects": ["weft.events.>"],
        "storage": "file",
        "compression": "s2",
        "discard": "new",
        "max_msg_size": COMMIT_BYTES_MAX + 4096,
        "allow_direct": True,
        "allow_atomic": True,
        "deny_delete": True,
        "deny_purge": True,
        "duplicate_window": 600 * NANOSECONDS,
        "republish": {"src": "weft.events.>", "dest": f"{LIVE_PREFIX}.>"},
    },
    SNAPSHOTS: {
        "subjects": [f"{SNAPSHOT_PREFIX}.>"],
        "storage": "file",
        "compression": "s2",
        "discard": "old",
        "max_msgs_per_subject": SNAPSHOTS_KEPT,
        "allow_direct": True,
    },
    f"OBJ_{BLOBS_BUCKET}": {
        "subjects": [f"$O.{BLOBS_BUCKET}.C.>", f"$O.{BLOBS_BUCKET}.M.>"],
        "storage": "file",
        "discard": "new",
        "allow_direct": True,
        # A rollup of everything would be a purge by whoever may write one subject.
        "allow_rollup_hdrs": False,
    },
    KEYS: {
        "subjects": [f"{KEYS_PREFIX}.>"],
        "storage": "file",
        # Neither compressed, nor dropped for want of room: what goes is overwritten first.
        "discard": "new",
        "discard_new_per_subject": True,
        "max_msgs_per_subject": KEY_MESSAGES_MAX,
        "max_msg_size": VALUE_BYTES_MAX + 4096,
        "allow_direct": True,
    },
    CACHE: {
        "subjects": [f"{CACHE_PREFIX}.>"],
        "storage": "file",
        "discard": "old",
        "max_msgs_per_subject": 1,
        "max_msgs": CACHE_TAGS_MAX,
        # No cached value lives longer.
        "max_age": CACHE_SECONDS_MAX * NANOSECONDS,
        "max_msg_size": 1_024,
        "allow_direct": True,
        "republish": {"src": f"{CACHE_PREFIX}.>", "dest": f"{LIVE_CACHE_PREFIX}.>"},
    },
}
_MEMORY: dict[str, dict[str, Any]] = {
    TOKENS: {
        "subjects": [f"{TOKEN_PREFIX}.>"],
        "storage": "memory",
        "discard": "old",
        "max_age": 600 * NANOSECONDS,
        "max_bytes": 64_000_000,
        "allow_direct": True,
    },
}


async def ensure_assets(connection: Connection, replicas: int = 1) -> None:
    """Creates what is missing and brings the rest to the shape above; safe to repeat.

    Raises Internal where JetStream refuses a shape, such as another kind of storage.
    """
    for name, shape in {**_FILES, **_MEMORY}.items():
        await _ensure_stream(connection, name, shape, replicas)


async def ensure_memory_assets(connection: Connection, replicas: int = 1) -> None:
    """Creates again what a restart of the server took away; what is there stays as it is,
    since updating streams isn't for everybody."""
    for name, shape in _MEMORY.items():
        config = {"name": name, "num_replicas": replicas, **shape}
        await retried(partial(_made, connection, f"STREAM.CREATE.{name}", config))


async def _ensure_stream(
    connection: Connection, name: str, shape: Mapping[str, Any], replicas: int
) -> None:
    config = {"name": name, "num_replicas": replicas, **shape}

    async def ensure() -> None:
        if await _made(connection, f"STREAM.CREATE.{name}", config):
            return
        if not await _made(connection, f"STREAM.UPDATE.{name}", config):
            raise NotSent(f"JetStream doesn't know the stream {name} yet")

    await retried(ensure)


async def _made(connection: Connection, call: str, config: Mapping[str, Any]) -> bool:
    """Whether the call did it; False where the stream exists in another shape."""
    error = (await connection.api(call, config)).get("error")
    if error is None:
        return True
    if error.get("code") == _NOT_NOW:
        raise NotSent("JetStream isn't ready")
    if error.get("err_code") == _STREAM_EXISTS:
        return False
    raise Internal(
        f"JetStream refuses {call}",
        metadata={"code": str(error.get("err_code")), "description": error.get("description", "")},
    )
