"""Whatever is changed in what is stored, or moved in it, is refused."""

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from mesh.errors import DataDamaged
from mesh.events.blobs import MemoryBlobStore
from mesh.events.envelope import PAYLOAD_BYTES_MAX, Envelope, parse_snapshot
from mesh.events.jetstream.tokens import open_delta, seal_delta
from mesh.events.store import START, CommitDraft, Head, NewEvent, StreamName
from mesh.security.keyring import Keyring
from tests.support.keys import memory_keyring, sealing
from weft.events.v1 import events_pb2

ALTERATIONS_MIN = 10_000
STREAMS = [
    StreamName("state", tenant, (agent, session))
    for tenant in ("acme", "other")
    for agent in ("a", "b")
    for session in ("s1", "s2")
] + [StreamName("agents", "acme", (agent,)) for agent in ("a", "b")]
TURNS = ("t1", "t2")

Alteration = tuple[str, Callable[[], Awaitable[object]]]
"""What was done, and what then opens it: DataDamaged, or None for a delta, is a refusal."""


@dataclass
class Sealed:
    """All that is stored, in memory."""

    keyring: Keyring
    blobs: MemoryBlobStore
    envelope: Envelope
    commits: list[bytes]
    snapshots: list[bytes]
    deltas: list[tuple[StreamName, str, bytes]]


async def stored() -> Sealed:
    """Two commits of each stream, with facts of two types and one that lies elsewhere, a
    snapshot and deltas; the stream's key is rotated in between."""
    keyring, blobs = memory_keyring(), MemoryBlobStore()
    codecs = sealing(keyring)
    sealed = Sealed(keyring, blobs, Envelope(blobs, codecs), [], [], [])
    for stream in STREAMS:
        head = START
        for number in range(2):
            facts = [
                StringValue(value=f"{stream} said {number}"),
                StringValue(value=f"{stream} said more"),
                BytesValue(value=os.urandom(40)),
            ]
            if number and stream.area == "state":
                facts.append(BytesValue(value=bytes(PAYLOAD_BYTES_MAX)))
            draft = CommitDraft([NewEvent(fact) for fact in facts], 1)
            data = await sealed.envelope.seal(stream, draft, head)
            head = Head(head.revision + len(facts), head.position + 1, b"h" * 32)
            sealed.commits.append(data)
            await keyring.rotate_data_key(str(stream))
        state = events_pb2.Snapshot(
            stream=str(stream), revision=head.revision, position=2, head_hash=b"h" * 32
        )
        state.state, state.fold_version = os.urandom(30), 1
        kept, sealed_state = await sealed.envelope.seal_snapshot(state)
        kept.state = sealed_state
        sealed.snapshots.append(kept.SerializeToString())
        for turn in TURNS:
            delta = await seal_delta(codecs, stream, turn, b"word by word")
            sealed.deltas.append((stream, turn, delta))
    return sealed


def changed_bytes(data: bytes, some: random.Random) -> Iterator[tuple[str, bytes]]:
    """One bit flipped in every byte (12 of nonce, text, 16 of tag), and ends cut off."""
    for index in range(min(len(data), 150)):
        flipped = data[index] ^ (1 << some.randrange(8))
        yield f"byte {index}", data[:index] + bytes([flipped]) + data[index + 1 :]
    for size in range(0, min(len(data), 100), 5):
        yield f"cut to {size}", data[:size]
    yield "longer", data + b"\0"
    if data:
        yield "all zero", bytes(len(data))


def altered(message: Message, **fields: object) -> bytes:
    """The message with other fields."""
    copy = type(message)()
    copy.CopyFrom(message)
    for name, value in fields.items():
        setattr(copy, name, value)
    return copy.SerializeToString()


def commit_alterations(sealed: Sealed, some: random.Random) -> Iterator[Alteration]:
    commits = [events_pb2.Commit.FromString(data) for data in sealed.commits]
    key_ids = [commit.key_id for commit in commits]

    def opening(data: bytes) -> Callable[[], Awaitable[object]]:
        stream = events_pb2.Commit.FromString(data).stream
        return lambda: sealed.envelope.open(stream, 7, data)

    def with_payload(commit: events_pb2.Commit, index: int, value: bytes) -> bytes:
        copy = events_pb2.Commit.FromString(commit.SerializeToString())
        copy.events[index].payload.value = value
        return copy.SerializeToString()

    for commit in commits:
        for index, event in enumerate(commit.events):
            for what, value in changed_bytes(event.payload.value, some):
                yield what, opening(with_payload(commit, index, value))
            for other in commits:
                for place, source in enumerate(other.events):
                    value = source.payload.value
                    if (other, place) != (commit, index) and value != event.payload.value:
                        yield "a payload moved", opening(with_payload(commit, index, value))
            for event_type in ("google.protobuf.Int32Value", "", event.type + "x"):
                copy = events_pb2.Commit.FromString(commit.SerializeToString())
                copy.events[index].type = event_type
                yield "another type", opening(copy.SerializeToString())
        for key_id in {*key_ids, "", "0" * 16} - {commit.key_id}:
            yield "another key", opening(altered(commit, key_id=key_id))
        for stream in {str(stream) for stream in STREAMS} - {commit.stream}:
            yield "another stream", opening(altered(commit, stream=stream))
        for revision in range(1, 60):
            if revision != commit.revision:
                yield "another revision", opening(altered(commit, revision=revision))
        for codec in ("plain", "", "aes-128-gcm"):
            yield "another codec", opening(altered(commit, codec=codec, key_id=""))


def snapshot_alterations(sealed: Sealed, some: random.Random) -> Iterator[Alteration]:
    snapshots = [events_pb2.Snapshot.FromString(data) for data in sealed.snapshots]

    def opening(data: bytes) -> Callable[[], Awaitable[object]]:
        stream = events_pb2.Snapshot.FromString(data).stream
        return lambda: sealed.envelope.open_snapshot(parse_snapshot(stream, data))

    for snapshot in snapshots:
        for what, value in changed_bytes(snapshot.state, some):
            yield f"snapshot: {what}", opening(altered(snapshot, state=value))
        for other in snapshots:
            if other is not snapshot:
                yield "a state moved", opening(altered(snapshot, state=other.state))
                yield "its stream", opening(altered(snapshot, stream=other.stream))
                yield "its key", opening(altered(snapshot, key_id=other.key_id))
        fields: list[dict[str, object]] = [{"revision": 1}, {"position": 3}, {"fold_version": 2}]
        fields += [{"head_hash": b"x" * 32}, {"codec": "plain"}, {"codec": ""}, {"key_id": ""}]
        for changed in fields:
            yield f"its {changed}", opening(altered(snapshot, **changed))


def delta_alterations(sealed: Sealed, some: random.Random) -> Iterator[Alteration]:
    codecs = sealing(sealed.keyring)

    def opening(stream: StreamName, turn: str, data: bytes) -> Callable[[], Awaitable[object]]:
        return lambda: open_delta(codecs, stream, turn, data)

    for stream, turn, data in sealed.deltas:
        delta = events_pb2.TokenDelta.FromString(data)
        for what, payload in changed_bytes(delta.payload, some):
            yield f"delta: {what}", opening(stream, turn, altered(delta, payload=payload))
        for other_stream, other_turn, other in sealed.deltas:
            if (other_stream, other_turn) != (stream, turn):
                yield "a delta moved", opening(other_stream, other_turn, data)
                key_id = events_pb2.TokenDelta.FromString(other).key_id
                if key_id != delta.key_id:
                    yield "its key", opening(stream, turn, altered(delta, key_id=key_id))
        for codec in ("plain", ""):
            yield "its codec", opening(stream, turn, altered(delta, codec=codec))


async def blob_alterations(sealed: Sealed, some: random.Random) -> AsyncIterator[Alteration]:
    moved = [events_pb2.Commit.FromString(data) for data in sealed.commits]
    moved = [commit for commit in moved if commit.events[-1].HasField("blob")]
    assert moved
    for commit in moved:
        for other in moved:
            if other is not commit:
                copy = events_pb2.Commit.FromString(commit.SerializeToString())
                copy.events[-1].blob.CopyFrom(other.events[-1].blob)
                data = copy.SerializeToString()
                stream = commit.stream
                yield "a blob moved", lambda s=stream, d=data: sealed.envelope.open(s, 7, d)  # type: ignore[misc]
        key = commit.events[-1].blob.key
        whole = await sealed.blobs.get(key)
        assert whole is not None
        for index in some.sample(range(len(whole)), 20):
            flipped = whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :]
            await sealed.blobs.put(key, flipped)
            data, stream = commit.SerializeToString(), commit.stream
            yield "a blob changed", lambda s=stream, d=data: sealed.envelope.open(s, 7, d)  # type: ignore[misc]
        await sealed.blobs.put(key, whole)


async def is_refused(opening: Callable[[], Awaitable[object]]) -> bool:
    try:
        return await opening() is None
    except DataDamaged:
        return True


async def test_ten_thousand_alterations_are_refused_and_nothing_else_is() -> None:
    some = random.Random(3)
    sealed = await stored()
    for data in sealed.commits:
        commit = events_pb2.Commit.FromString(data)
        assert not (await sealed.envelope.open(commit.stream, 7, data)).erased
    for data in sealed.snapshots:
        stream = events_pb2.Snapshot.FromString(data).stream
        await sealed.envelope.open_snapshot(parse_snapshot(stream, data))
    for stream_name, turn, data in sealed.deltas:
        opened = await open_delta(sealing(sealed.keyring), stream_name, turn, data)
        assert opened == b"word by word"

    count, accepted = 0, []
    for alterations in (commit_alterations, snapshot_alterations, delta_alterations):
        for what, opening in alterations(sealed, some):
            count += 1
            if not await is_refused(opening):
                accepted.append(what)
    async for what, opening in blob_alterations(sealed, some):
        count += 1
        if not await is_refused(opening):
            accepted.append(what)
    assert accepted == []
    assert count >= ALTERATIONS_MIN
