"""Headers: the objects that make blobs be there, sealed.

A header's key is that of its tenant's blobs or, where the blob came from a session, that
session's: once the session's key is destroyed, so is what opens the blob.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from mesh.errors import DataDamaged, DataErased, NotFound
from mesh.events.store import START, EventStore
from mesh.security.aead import bound, seal, unseal
from mesh.security.keyring import Keyring
from services.blobs.domain.names import HEADERS, BlobKey, session_stream
from services.blobs.objects import ABSENT, ObjectStore, Version
from weft.blobs.v1 import stored_pb2

FORMAT = 1
READ_AT_ONCE = 16
"""Headers that one list reads at a time."""
_FAR_NS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Found:
    """What is in the place of a header. `header` is None where there is none, or where it
    is of no use: `problem` says why."""

    header: stored_pb2.BlobHeader | None = None
    version: Version = ABSENT
    problem: DataDamaged | DataErased | None = None


class Headers:
    """Reads and writes the headers of an object store. All methods may raise Unavailable."""

    def __init__(self, objects: ObjectStore, keyring: Keyring, events: EventStore) -> None:
        self._objects = objects
        self._keyring = keyring
        self._events = events

    async def find(self, key: BlobKey) -> Found:
        """What there is of that name, with what makes it unusable as `problem`."""
        stored = await self._objects.get(key.header)
        if stored is None:
            return Found()
        data, version = stored
        try:
            return Found(await self._opened(key, data), version)
        except (DataDamaged, DataErased) as error:
            return Found(None, version, error)

    async def find_all(self, keys: Sequence[BlobKey]) -> Sequence[Found]:
        """`find` of each, some at a time."""
        turns = asyncio.Semaphore(READ_AT_ONCE)

        async def find(key: BlobKey) -> Found:
            async with turns:
                return await self.find(key)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(find(key)) for key in keys]
        return [task.result() for task in tasks]

    async def page(self, tenant: str, prefix: str, after: str, count: int) -> Sequence[BlobKey]:
        """At most `count` names behind `after`, by id."""
        ids = await self._objects.page(f"{HEADERS}/{tenant}", prefix, after, count)
        return [BlobKey(tenant, each) for each in ids]

    async def key_stream(self, key: BlobKey, source: str) -> str:
        """Whose key seals a blob that comes from `source`, a session, or where that is empty
        from nowhere. NotFound where there is no such session, DataErased where it was erased:
        before any bytes of it are stored."""
        if not source:
            return key.key_stream
        stream = session_stream(source)
        if await self._events.head_at(stream, _FAR_NS) == START:
            raise NotFound.of("session", source)
        try:
            await self._keyring.data_key_to_seal(str(stream))
        except DataErased:
            raise DataErased(
                f"session {source} was erased", metadata={"resource": source}
            ) from None
        return str(stream)

    async def put(
        self, key: BlobKey, key_stream: str, header: stored_pb2.BlobHeader, version: Version
    ) -> None:
        """Puts a header in the place of that version. VersionConflict where there is another,
        DataErased where the session of its key was erased."""
        data_key = await self._keyring.data_key_to_seal(key_stream)
        data_key.sealed += 1
        place = _place(key, key_stream, data_key.id)
        stored = stored_pb2.StoredHeader(
            format=FORMAT,
            key_stream=key_stream,
            key_id=data_key.id,
            sealed=seal(data_key.aead, header.SerializeToString(), place),
        )
        await self._objects.put(key.header, stored.SerializeToString(), version)

    async def _opened(self, key: BlobKey, data: bytes) -> stored_pb2.BlobHeader:
        try:
            stored = stored_pb2.StoredHeader.FromString(data)
            if stored.format != FORMAT or not _is_of(key, stored.key_stream):
                raise DataDamaged("a blob's header isn't one", metadata={"resource": str(key)})
            data_key = await self._keyring.data_key_to_open(stored.key_stream, stored.key_id)
            place = _place(key, stored.key_stream, stored.key_id)
            return stored_pb2.BlobHeader.FromString(unseal(data_key.aead, stored.sealed, place))
        except (DecodeError, ValueError):
            raise DataDamaged(
                "a blob's header doesn't parse", metadata={"resource": str(key)}
            ) from None


def _place(key: BlobKey, key_stream: str, key_id: str) -> bytes:
    return bound(("blob header", str(key), key_stream, key_id))


def _is_of(key: BlobKey, key_stream: str) -> bool:
    """Whether that may seal it: what lies in the clear must not lead to others' keys."""
    tokens = key_stream.split(".")
    return key_stream == key.key_stream or (
        len(tokens) == 4 and tokens[:2] == ["state", key.tenant]
    )
