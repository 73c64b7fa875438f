"""Where payloads lie that are too large for their commit: the port, and a store in memory."""

import asyncio
import hashlib
from typing import Protocol

from mesh.errors import DataDamaged
from weft.events.v1 import events_pb2

KEY_PREFIX = "weft-payload/"
"""Every key begins so: a commit without these bytes surely has no reference to follow."""
THREAD_BYTES_MIN = 1_000_000


class BlobStore(Protocol):
    """Keeps bytes by key. Keys name their content, so a blob never changes.

    All methods may raise EventStoreUnavailable.
    """

    async def put(self, key: str, data: bytes) -> None:
        """Keeps `data`; when it returns they are stored. Putting a key again is harmless.
        LimitExceeded when the store is full."""
        ...

    async def get(self, key: str) -> bytes | None:
        """The blob, or None where there is none."""
        ...

    async def delete(self, key: str) -> None:
        """Overwrites and deletes the blob; harmless where there is none."""
        ...


class MemoryBlobStore:
    """Keeps blobs as long as it lives."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    async def put(self, key: str, data: bytes) -> None:
        """Keeps `data`, in place of what the key held."""
        self._blobs[key] = data

    async def get(self, key: str) -> bytes | None:
        """The blob, or None where there is none."""
        return self._blobs.get(key)

    async def delete(self, key: str) -> None:
        """Deletes the blob, if there is one."""
        self._blobs.pop(key, None)


async def hashed(data: bytes) -> "hashlib._Hash":
    """Their SHA-256, made in a thread where it takes milliseconds."""
    if len(data) < THREAD_BYTES_MIN:
        return hashlib.sha256(data)
    return await asyncio.to_thread(hashlib.sha256, data)


async def move_out(blobs: BlobStore, tenant: str, data: bytes) -> events_pb2.BlobReference:
    """Puts `data` under a key made of the tenant and their SHA-256; returns the reference."""
    digest = await hashed(data)
    key = f"{KEY_PREFIX}{tenant}/{digest.hexdigest()}"
    await blobs.put(key, data)
    return events_pb2.BlobReference(key=key, sha256=digest.digest(), size_bytes=len(data))


async def bring_back(blobs: BlobStore, reference: events_pb2.BlobReference) -> bytes:
    """The bytes behind `reference`; DataDamaged where they are gone or have changed."""
    data = await blobs.get(reference.key)
    if data is None:
        raise DataDamaged("a payload's blob is missing", metadata={"blob": reference.key})
    if (await hashed(data)).digest() != reference.sha256:
        raise DataDamaged("a payload's blob has changed", metadata={"blob": reference.key})
    return data
