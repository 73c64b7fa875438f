"""What both back ends store and read: commits and snapshots as bytes.

Here a draft gets its ids and its link to the commit before it, payloads go through
the codec, and large ones move out to blobs and come back.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from mesh.clock import NANOSECONDS
from mesh.errors import DataDamaged, DataErased, LimitExceeded
from mesh.events.blobs import KEY_PREFIX, BlobStore, bring_back, move_out
from mesh.events.codec import PLAIN, Codecs, PayloadSeal, PlainCodec
from mesh.events.opened import OpenedCommits
from mesh.events.store import CommitDraft, Head, StoredCommit, StreamName
from mesh.ids import new_id
from weft.events.v1 import events_pb2
from weft.options.v1 import options_pb2

COMMIT_EVENTS_MAX = 1024
COMMIT_BYTES_MAX = 900_000
"""NATS closes a client for good that sends more than its maximum, 1 MiB by default."""
PAYLOAD_BYTES_MAX = 256_000
"""A larger payload, or snapshot's state, becomes a blob."""
INLINE_BYTES_MAX = 700_000
"""Payloads that stay in one commit, together; the largest move out until the rest fits."""
MOVED_BYTES_MIN = 16_000
"""A smaller payload isn't worth a blob: a commit of too many of them is refused."""

_TYPE_URL = "type.googleapis.com/"
_BLOB_MARK = KEY_PREFIX.encode()
_SNAPSHOT_TYPE = events_pb2.Snapshot.DESCRIPTOR.full_name


class Envelope:
    """Seals and opens what one store holds."""

    def __init__(self, blobs: BlobStore, codecs: Codecs = PLAIN) -> None:
        self._blobs = blobs
        self._codecs = codecs
        self._opened = OpenedCommits()
        codecs.writing.on_erased(self._opened.forget)

    async def seal(self, stream: StreamName, draft: CommitDraft, head: Head) -> bytes:
        """The bytes of the commit that puts `draft` behind `head`; its blobs are stored.

        Raises LimitExceeded for more than 1,024 events or 900 kB without the blobs,
        DataErased where the stream's keys were erased and a fact isn't one that is stored
        in the clear, and ValueError for a draft without events.
        """
        if not draft.events:
            raise ValueError("a commit needs events")
        if len(draft.events) > COMMIT_EVENTS_MAX:
            raise LimitExceeded(f"a commit holds at most {COMMIT_EVENTS_MAX} events")
        codec = self._codecs.clear if _is_clear(draft) else self._codecs.writing
        seal = await codec.to_write(str(stream))
        commit = _commit(stream, draft, head, seal)
        commit.codec = codec.name
        sizes = [len(event.payload.value) for event in commit.events]
        for index in _outsized(sizes):
            event = commit.events[index]
            event.blob.CopyFrom(await move_out(self._blobs, stream.tenant, event.payload.value))
            event.payload.value = b""
        data = commit.SerializeToString()
        if len(data) > COMMIT_BYTES_MAX:
            raise LimitExceeded(f"a commit holds at most {COMMIT_BYTES_MAX} bytes")
        return data

    def open_at_once(
        self, position: int, data: bytes, commit: events_pb2.Commit
    ) -> StoredCommit | None:
        """As `open`, where the key is at hand and nothing lies elsewhere; else None. A long
        load is mostly such commits."""
        if _BLOB_MARK in data:
            return None
        codec = self._codecs.named(commit.codec)
        if isinstance(codec, PlainCodec):
            # Looking at each event would take a third of the load.
            if position > self._codecs.sealed_after:
                _refuse_unsealed(commit)
        else:
            seal = codec.at_hand(commit.stream, commit.key_id)
            if seal is None:
                return None
            for revision, event in enumerate(commit.events, commit.revision):
                payload = event.payload
                payload.value = seal.open(revision, event.type, payload.value)
        return StoredCommit(commit, position, hashlib.sha256(data).digest())

    async def open(
        self, stream: str, position: int, data: bytes, commit: events_pb2.Commit | None = None
    ) -> StoredCommit:
        """The commit that `data`, found in `stream`, holds, with its payloads opened, or
        marked as erased. `commit` is what `parse_commit` made of `data`, where that was done.

        Raises DataDamaged where `data` isn't a commit of this stream, the codec is
        unknown or refuses, or a blob is missing or has changed.
        """
        if commit is None:
            commit = parse_commit(stream, data)
        opened = self.open_at_once(position, data, commit)
        if opened is not None:
            return opened
        digest = hashlib.sha256(data).digest()
        codec = self._codecs.named(commit.codec)
        if isinstance(codec, PlainCodec) and position > self._codecs.sealed_after:
            _refuse_unsealed(commit)
        try:
            seal = await codec.to_read(stream, commit.key_id)
        except DataErased:
            for event in commit.events:
                event.payload.value = b""
                event.ClearField("blob")
            return StoredCommit(commit, position, digest, erased=True)
        for revision, event in enumerate(commit.events, commit.revision):
            stored = event.payload.value
            if event.HasField("blob"):
                if stored:
                    raise _damaged(stream, f"the payload of revision {revision} lies in two places")
                stored = await bring_back(self._blobs, event.blob)
            event.payload.value = seal.open(revision, event.type, stored)
        return StoredCommit(commit, position, digest)

    async def open_shared(self, stream: str, position: int, data: bytes) -> StoredCommit:
        """As `open`; who wants it once more within a moment gets the same commit."""
        kept = self._opened.get(stream, position)
        if kept is not None:
            # Only as long as its key may open it: nothing outlives an erasure here.
            codec = self._codecs.named(kept.commit.codec)
            if codec.at_hand(stream, kept.commit.key_id) is not None:
                return kept
        opened = await self.open(stream, position, data)
        if not opened.erased:
            # What came back from blobs isn't in the stored bytes.
            size_bytes = opened.commit.ByteSize() if _BLOB_MARK in data else len(data)
            self._opened.keep(opened, size_bytes)
        return opened

    async def seal_snapshot(
        self, snapshot: events_pb2.Snapshot
    ) -> tuple[events_pb2.Snapshot, bytes]:
        """`snapshot`, whose state is plain, as it is to be kept but without its state, and that
        state sealed. DataErased where the stream's keys were erased."""
        codec = self._codecs.writing
        seal = await codec.to_write(snapshot.stream)
        # All but the state, each copy of which takes milliseconds where it is large.
        kept = events_pb2.Snapshot(
            stream=snapshot.stream,
            revision=snapshot.revision,
            position=snapshot.position,
            head_hash=snapshot.head_hash,
            fold_version=snapshot.fold_version,
            codec=codec.name,
            key_id=seal.key_id,
        )
        return kept, seal.seal(kept.revision, _place_of(kept), snapshot.state)

    async def open_snapshot(self, kept: events_pb2.Snapshot) -> events_pb2.Snapshot:
        """`kept`, as `parse_snapshot` gave it, with its state opened; DataDamaged as `open`,
        DataErased where its key was erased."""
        codec = self._codecs.named(kept.codec)
        if isinstance(codec, PlainCodec) and kept.position > self._codecs.sealed_after:
            raise _damaged(kept.stream, "a snapshot isn't sealed")
        seal = await codec.to_read(kept.stream, kept.key_id)
        if kept.HasField("blob"):
            # As snapshots were kept before they had parts.
            kept.state = await bring_back(self._blobs, kept.blob)
        kept.state = seal.open(kept.revision, _place_of(kept), kept.state)
        return kept

    async def delete_blobs(
        self, holders: Iterable[events_pb2.Commit | events_pb2.Snapshot]
    ) -> None:
        """Deletes the blobs of what was sealed: no other stream has the same."""
        for holder in holders:
            if isinstance(self._codecs.named(holder.codec), PlainCodec):
                continue
            if isinstance(holder, events_pb2.Snapshot):
                references = [holder.blob]
            else:
                references = [event.blob for event in holder.events]
            for reference in references:
                if reference.key:
                    await self._blobs.delete(reference.key)


def _commit(
    stream: StreamName, draft: CommitDraft, head: Head, seal: PayloadSeal
) -> events_pb2.Commit:
    commit = events_pb2.Commit(
        stream=str(stream),
        revision=head.revision + 1,
        actor=draft.actor,
        tenant=stream.tenant,
        request_id=draft.request_id,
        causation_id=draft.causation_id,
        traceparent=draft.traceparent,
        previous_hash=head.hash,
        previous_position=head.position,
        key_id=seal.key_id,
    )
    commit.time.seconds, commit.time.nanos = divmod(draft.time_ns, NANOSECONDS)
    for revision, new in enumerate(draft.events, head.revision + 1):
        event = commit.events.add(id=new_id(), may_ignore=new.may_ignore)
        event.type = new.payload.DESCRIPTOR.full_name
        event.payload.type_url = _TYPE_URL + event.type
        plain = new.payload.SerializeToString()
        event.payload.value = seal.seal(revision, event.type, plain)
    return commit


def _is_clear(draft: CommitDraft) -> bool:
    """Whether the facts say of themselves that they are stored in the clear. ValueError
    where only some do: a commit has one codec."""
    clear = {_stored_clear(new.payload.DESCRIPTOR) for new in draft.events}
    if len(clear) > 1:
        raise ValueError("facts that are stored in the clear need a commit of their own")
    return clear == {True}


def _refuse_unsealed(commit: events_pb2.Commit) -> None:
    """Raises DataDamaged unless all facts are ones that are stored in the clear."""
    for event in commit.events:
        if not _type_is_clear(event.type):
            raise _damaged(commit.stream, f"revision {commit.revision} isn't sealed")


@lru_cache(maxsize=1_024)
def _type_is_clear(name: str) -> bool:
    try:
        pool = descriptor_pool.Default()  # type: ignore[no-untyped-call]
        return _stored_clear(pool.FindMessageTypeByName(name))
    except KeyError:
        return False


@cache
def _stored_clear(descriptor: Descriptor) -> bool:
    return bool(descriptor.GetOptions().Extensions[options_pb2.stored_clear])


def _place_of(snapshot: events_pb2.Snapshot) -> str:
    """What a snapshot's state is bound to, beside its stream and revision."""
    stands = (snapshot.position, snapshot.head_hash.hex(), snapshot.fold_version)
    return "/".join((_SNAPSHOT_TYPE, *map(str, stands)))


def parse_commit(stream: str, data: bytes) -> events_pb2.Commit:
    """The commit in `data`, still sealed; DataDamaged where it isn't one of `stream`."""
    try:
        commit = events_pb2.Commit.FromString(data)
    except DecodeError as error:
        raise _damaged(stream, "a commit doesn't parse") from error
    if commit.stream != stream or commit.revision < 1 or not commit.events:
        raise _damaged(stream, "a commit isn't one of its stream")
    return commit


def sealed_commit(stream: str, position: int, data: bytes) -> StoredCommit:
    """The commit in `data` with its payloads as they are stored; DataDamaged as `open`."""
    return StoredCommit(parse_commit(stream, data), position, hashlib.sha256(data).digest())


def parse_snapshot(stream: str, data: bytes) -> events_pb2.Snapshot:
    """The snapshot in `data`, still sealed; DataDamaged where it isn't one of `stream`."""
    try:
        snapshot = events_pb2.Snapshot.FromString(data)
    except DecodeError as error:
        raise _damaged(stream, "a snapshot doesn't parse") from error
    if snapshot.stream != stream:
        raise _damaged(stream, "a snapshot isn't one of its stream")
    return snapshot


def head_of(stream: str, position: int, data: bytes) -> Head:
    """The head of `stream` when the commit in `data` is its last; DataDamaged as `open`."""
    return sealed_commit(stream, position, data).head


def check_chain(head: Head, page: Sequence[StoredCommit]) -> Head:
    """The head behind `page`; DataDamaged unless its commits follow `head` in their stream,
    link by link."""
    revision, digest = head.revision, head.hash
    for commit, _, own_digest, _ in page:
        if commit.revision != revision + 1:
            raise _damaged(commit.stream, f"revision {revision + 1} is missing")
        if commit.previous_hash != digest:
            raise _damaged(commit.stream, f"the hash chain breaks at revision {commit.revision}")
        revision += len(commit.events)
        digest = own_digest
    return page[-1].head if page else head


def _outsized(sizes: Sequence[int]) -> list[int]:
    """Indices of the payloads that move out."""
    inline = sum(sizes)
    if inline <= PAYLOAD_BYTES_MAX:
        return []
    moved = []
    for index in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        size = sizes[index]
        if size <= PAYLOAD_BYTES_MAX and (inline <= INLINE_BYTES_MAX or size < MOVED_BYTES_MIN):
            break
        moved.append(index)
        inline -= size
    return moved


def _damaged(stream: str, what: str) -> DataDamaged:
    return DataDamaged(f"{stream}: {what}", metadata={"stream": stream})
