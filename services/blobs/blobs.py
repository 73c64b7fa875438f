"""Blobs, as gRPC and HTTP put, get, list and delete them.

A blob's bytes are put first, as an object of their own; then its header, in one step, which
makes the blob be there, or takes the place of another one's. Nothing else says what there
is, so nothing can differ from it. What was replaced is deleted after that; should the process
die in between, the sweep does.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

import structlog
from google.protobuf.message import Message

from mesh.call import Call
from mesh.clock import Clock
from mesh.errors import Conflict, DataDamaged, DataErased, NotFound, Unavailable
from mesh.events.appending import append_behind
from mesh.events.store import CommitDraft, EventStore, NewEvent
from mesh.failpoints import failpoint
from mesh.ids import new_id
from mesh.security.aead import KEY_BYTES
from mesh.security.keyring import Keyring
from services.blobs.domain.conditions import is_repeated, refuse_other, refuse_put
from services.blobs.domain.names import BlobKey, DataObject
from services.blobs.headers import Found, Headers
from services.blobs.objects import ObjectStore, VersionConflict
from services.blobs.segments import SEGMENT_BYTES, Segments, Window
from services.blobs.settings import BlobsSettings
from services.blobs.uploads import Upload, refuse_other_bytes
from weft.blobs.v1 import blob_service_pb2 as pb
from weft.blobs.v1 import blobs_pb2, events_pb2, stored_pb2

CONTENT_TYPE = "application/octet-stream"
WINDOW_SEGMENTS = 16
"""Segments that are read at once: 4 MiB."""
CONFLICTS_MAX = 8
SEGMENT_BYTES_MAX = 1 << 20
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class By:
    """Who does something, for the audit."""

    actor: str
    request_id: str = ""
    traceparent: str = ""

    @classmethod
    def call(cls, call: Call) -> "By":
        """Who makes a call."""
        return cls(call.actor, call.request_id, call.traceparent)


class Blobs:
    """What a tenant's blobs are put into and got from. All methods may raise Unavailable, and
    EventStoreUnavailable, while what they stand on is out of reach."""

    def __init__(
        self,
        objects: ObjectStore,
        keyring: Keyring,
        events: EventStore,
        settings: BlobsSettings,
        clock: Clock,
    ) -> None:
        self.headers = Headers(objects, keyring, events)
        self._objects = objects
        self._events = events
        self._settings = settings
        self._clock = clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._incoming: set[str] = set()

    async def put(
        self, key: BlobKey, header: pb.PutBlobHeader, pieces: AsyncIterator[bytes], by: By
    ) -> blobs_pb2.Blob:
        """Puts what `pieces` bring. AlreadyExists or Conflict where the header's condition
        doesn't hold, InvalidArgument where other bytes come than it says, NotFound where its
        session isn't there, DataErased where that was erased, LimitExceeded for too many bytes or
        a full store."""
        key_stream = await self.headers.key_stream(key, header.source)
        present = self._current(await self.headers.find(key))
        if present is None or not header.request_id or present.request_id != header.request_id:
            # Before all the bytes come; what is asked for again is settled at their end.
            refuse_put(header, str(key), present.blob if present is not None else None)
        place = DataObject(key, new_id(), self._expire_ns(header), bool(header.source))
        self._incoming.add(place.etag)
        try:
            made = await self._upload(place, header, pieces)
            failpoint("blob:bytes-stored")
            return await self._commit(key, key_stream, header, made, by)
        finally:
            self._incoming.discard(place.etag)

    async def find(self, key: BlobKey) -> stored_pb2.BlobHeader:
        """The header of a blob that is there. NotFound where there is none, or its time has
        passed; DataErased where its session was erased, DataDamaged where it can't be read."""
        found = await self.headers.find(key)
        if isinstance(found.problem, DataErased):
            raise DataErased(
                f"blob {key} was erased with its session", metadata={"resource": str(key)}
            )
        if found.problem is not None:
            raise found.problem
        header = self._current(found)
        if header is None:
            raise NotFound.of("blob", str(key))
        return header

    async def etag(self, key: BlobKey) -> str:
        """That of the blob in whose place a put comes; empty where there is none."""
        header = self._current(await self.headers.find(key))
        return header.blob.etag if header is not None else ""

    async def read(
        self, header: stored_pb2.BlobHeader, offset: int, length: int
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a range that is within the blob, in pieces of a segment at most. The
        next ones are read while these are taken. DataDamaged where they aren't what was put,
        Conflict where another blob is put in the place of this one meanwhile."""
        place = DataObject.parse(header.data_object)
        if place is None or not 0 < header.segment_bytes <= SEGMENT_BYTES_MAX:
            raise DataDamaged("a blob's header names no bytes")
        segments = Segments(place, header.data_key, header.segment_bytes)
        windows = segments.windows(header.blob.size_bytes, offset, length, WINDOW_SEGMENTS)

        def begun() -> asyncio.Task[list[bytes]] | None:
            window = next(windows, None)
            if window is None:
                return None
            return asyncio.create_task(self._window(place, segments, window), name="blob read")

        reading = begun()
        try:
            while reading is not None:
                pieces = await reading
                reading = begun()
                for piece in pieces:
                    yield piece
        finally:
            if reading is not None:
                reading.cancel()

    async def page(
        self, tenant: str, prefix: str, after: str, count: int
    ) -> tuple[list[blobs_pb2.Blob], str]:
        """The tenant's blobs behind `after`, by id, from `count` names; and behind which the
        next page begins, empty on the last."""
        keys = await self.headers.page(tenant, prefix, after, count + 1)
        found = await self.headers.find_all(keys[:count])
        blobs = []
        for key, each in zip(keys, found, strict=False):
            header = self._current(each)
            if header is not None:
                blobs.append(header.blob)
            elif isinstance(each.problem, DataDamaged):
                blobs.append(blobs_pb2.Blob(name=str(key), damaged=True))
        return blobs, keys[count - 1].blob if len(keys) > count else ""

    async def delete(self, key: BlobKey, etag: str, by: By) -> None:
        """Deletes a blob, also one that is damaged. NotFound where there is none, Conflict
        where it hasn't the etag that is named."""
        async with self._alone(key):
            found = await self.headers.find(key)
            header = self._current(found)
            if header is None and not isinstance(found.problem, DataDamaged):
                raise NotFound.of("blob", str(key))
            present = header.blob if header is not None else None
            refuse_other(etag, str(key), present)
            fact = events_pb2.BlobDeleted(name=str(key), etag=present.etag if present else "")
            await self.note(key, fact, by)
            await self._objects.destroy(key.header)
            if header is not None:
                await self.discard(header.data_object)

    async def end(self, place: DataObject) -> bool:
        """Deletes a blob whose time has passed, or whose session was erased, where it still
        is that of `place`; whether it did."""
        key = place.key
        async with self._alone(key):
            found = await self.headers.find(key)
            erased = isinstance(found.problem, DataErased) and place.of_session
            header = found.header
            over = header is not None and header.blob.etag == place.etag and self._is_over(header)
            if not (erased or over):
                return False
            await self._objects.destroy(key.header)
            await self.discard(str(place))
            return True

    async def refers_to(self, place: DataObject) -> bool:
        """Whether a blob's bytes are those of `place`, or that can't be told."""
        found = await self.headers.find(place.key)
        if found.header is None:
            return isinstance(found.problem, DataDamaged)
        return found.header.data_object == str(place)

    def is_incoming(self, place: DataObject) -> bool:
        """Whether this process is about to put it."""
        return place.etag in self._incoming

    async def note(self, key: BlobKey, fact: Message, by: By) -> None:
        """Stores for the audit trail what is about to be done."""
        draft = CommitDraft(
            [NewEvent(fact)],
            self._clock.now_ns(),
            by.actor,
            by.request_id,
            traceparent=by.traceparent,
        )
        await append_behind(self._events, key.stream, draft)

    async def discard(self, data_object: str) -> None:
        """Deletes bytes that belong to no blob. Where that fails the sweep does it."""
        try:
            await self._objects.delete(data_object)
        except Unavailable:
            _log.warning("blob_bytes_left", object=data_object)

    async def _upload(
        self, place: DataObject, header: pb.PutBlobHeader, pieces: AsyncIterator[bytes]
    ) -> stored_pb2.BlobHeader:
        """Stores the bytes; the header that goes with them."""
        data_key = os.urandom(KEY_BYTES)
        segments = Segments(place, data_key)
        upload = Upload(self._objects, str(place), segments, self._settings.blob_bytes_max)
        try:
            async for piece in pieces:
                await upload.write(piece)
            said = header.size_bytes if header.HasField("size_bytes") else None
            await upload.finish()
            refuse_other_bytes(upload, said, header.sha256)
        except BaseException as error:
            await upload.abandon(error)
            await self.discard(str(place))
            raise
        made = stored_pb2.BlobHeader(
            blob=blobs_pb2.Blob(
                name=str(place.key),
                content_type=header.content_type or CONTENT_TYPE,
                file_name=header.file_name,
                size_bytes=upload.size_bytes,
                sha256=upload.sha256,
                etag=place.etag,
                source=header.source,
            ),
            data_object=str(place),
            data_key=data_key,
            segment_bytes=SEGMENT_BYTES,
            request_id=header.request_id,
            request_digest=_digest(header),
        )
        made.blob.create_time.FromNanoseconds(self._clock.now_ns())
        if place.expire_ns:
            made.blob.expire_time.FromNanoseconds(place.expire_ns)
        return made

    async def _commit(
        self,
        key: BlobKey,
        key_stream: str,
        asked: pb.PutBlobHeader,
        made: stored_pb2.BlobHeader,
        by: By,
    ) -> blobs_pb2.Blob:
        """Makes the blob be there, unless it is by the same request."""
        # Once a header may be stored that names them, the bytes are the sweep's to judge.
        may_be_stored = noted = False
        try:
            async with self._alone(key):
                for _ in range(CONFLICTS_MAX):
                    found = await self.headers.find(key)
                    present = self._current(found)
                    if present is not None and present.blob.etag == made.blob.etag:
                        # It was stored, and the answer lost.
                        return made.blob
                    if is_repeated(made, present):
                        assert present is not None
                        await self.discard(made.data_object)
                        return present.blob
                    refuse_put(asked, str(key), present.blob if present is not None else None)
                    if not noted:
                        await self.note(key, _put_fact(made.blob), by)
                        noted = True
                    may_be_stored = True
                    try:
                        await self.headers.put(key, key_stream, made, found.version)
                    except VersionConflict:
                        continue
                    failpoint("blob:header-stored")
                    if found.header is not None:
                        await self.discard(found.header.data_object)
                    return made.blob
            raise Conflict(f"blob {key} changes all the time", metadata={"resource": str(key)})
        except BaseException:
            if not may_be_stored:
                await self.discard(made.data_object)
            raise

    async def _window(self, place: DataObject, segments: Segments, window: Window) -> list[bytes]:
        stored = await self._objects.read(str(place), window.start, window.length)
        if stored is not None:
            return await asyncio.to_thread(segments.open_window, window, stored)
        if await self.refers_to(place):
            raise DataDamaged("a blob's bytes are missing", metadata={"resource": str(place.key)})
        raise Conflict(f"blob {place.key} has changed", metadata={"resource": str(place.key)})

    @asynccontextmanager
    async def _alone(self, key: BlobKey) -> AsyncIterator[None]:
        """One at a time of those that change a blob in this process."""
        lock = self._locks.setdefault(str(key), asyncio.Lock())
        async with lock:
            yield

    def _current(self, found: Found) -> stored_pb2.BlobHeader | None:
        """The header, unless its time has passed."""
        header = found.header
        return header if header is not None and not self._is_over(header) else None

    def _is_over(self, header: stored_pb2.BlobHeader) -> bool:
        blob = header.blob
        if not blob.HasField("expire_time"):
            return False
        return blob.expire_time.ToNanoseconds() <= self._clock.now_ns()

    def _expire_ns(self, header: pb.PutBlobHeader) -> int:
        if not header.HasField("ttl"):
            return 0
        return self._clock.now_ns() + header.ttl.ToNanoseconds()


def _put_fact(blob: blobs_pb2.Blob) -> events_pb2.BlobPut:
    return events_pb2.BlobPut(
        name=blob.name, etag=blob.etag, size_bytes=blob.size_bytes, sha256=blob.sha256
    )


def _digest(header: pb.PutBlobHeader) -> bytes:
    """What tells a request's body from another one's, apart from the bytes."""
    body = pb.PutBlobHeader()
    body.CopyFrom(header)
    body.ClearField("request_id")
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()
