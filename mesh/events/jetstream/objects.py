"""Blobs in JetStream's object store (NATS ADR-20), so that `nats object` reads them too."""

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import orjson

from mesh.errors import DataDamaged
from mesh.events.blobs import hashed
from mesh.events.jetstream.append import Publisher
from mesh.events.jetstream.assets import BLOBS_BUCKET
from mesh.events.jetstream.connection import Connection, retried
from mesh.events.jetstream.erase import erase_subject
from mesh.events.jetstream.history import LeaderMessage, from_leader
from mesh.ids import new_id

CHUNK_BYTES_MAX = 128 * 1024

_STREAM = f"OBJ_{BLOBS_BUCKET}"


class ObjectBlobStore:
    """A BlobStore on the bucket BLOBS; the publisher's bounds hold for each message."""

    def __init__(self, connection: Connection, publisher: Publisher) -> None:
        self._connection = connection
        self._publisher = publisher

    async def put(self, key: str, data: bytes) -> None:
        """See BlobStore. A blob of that key and size isn't written again."""
        info = await self._info(key)
        if info is not None and info["size"] == len(data):
            return
        # A name of its own for each attempt, so that a broken one leaves no half behind.
        name = new_id()
        chunks = range(0, len(data), CHUNK_BYTES_MAX)
        for start in chunks:
            chunk = data[start : start + CHUNK_BYTES_MAX]
            await self._publisher.publish(f"$O.{BLOBS_BUCKET}.C.{name}", chunk, {})
        digest = base64.urlsafe_b64encode((await hashed(data)).digest()).decode()
        made = {
            "name": key,
            "bucket": BLOBS_BUCKET,
            "nuid": name,
            "size": len(data),
            "chunks": len(chunks),
            "digest": f"SHA-256={digest}",
            "mtime": datetime.now(UTC).isoformat(),
            "options": {"max_chunk_size": CHUNK_BYTES_MAX},
        }
        await self._publisher.publish(_info_subject(key), orjson.dumps(made), {})

    async def get(self, key: str) -> bytes | None:
        """See BlobStore."""
        info = await self._info(key)
        if info is None:
            return None
        subject = f"$O.{BLOBS_BUCKET}.C.{info['nuid']}"
        chunks: list[bytes] = []
        sequence = 1
        for _ in range(info["chunks"]):
            request = {"seq": sequence, "next_by_subj": subject}
            message = await self._read(request)
            if message is None:
                raise DataDamaged("a payload's blob lacks a part", metadata={"blob": key})
            chunks.append(message.data)
            sequence = message.position + 1
        return b"".join(chunks)

    async def delete(self, key: str) -> None:
        """See BlobStore. The entry goes last, so that a crash leaves what names the rest."""
        info = await self._info(key)
        if info is not None:
            chunks = f"$O.{BLOBS_BUCKET}.C.{info['nuid']}"
            await erase_subject(self._connection, _STREAM, chunks)
        await erase_subject(self._connection, _STREAM, _info_subject(key))

    async def _info(self, key: str) -> dict[str, Any] | None:
        message = await self._read({"last_by_subj": _info_subject(key)})
        if message is None:
            return None
        try:
            info = orjson.loads(message.data)
            kept = {"nuid": str(info["nuid"]), "size": info["size"], "chunks": info["chunks"]}
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise DataDamaged("a blob's entry doesn't parse", metadata={"blob": key}) from error
        return kept

    async def _read(self, request: Mapping[str, Any]) -> LeaderMessage | None:
        return await retried(partial(from_leader, self._connection, _STREAM, request))


def _info_subject(key: str) -> str:
    return f"$O.{BLOBS_BUCKET}.M.{base64.urlsafe_b64encode(key.encode()).decode()}"
