"""What every event store does with seals, run on each back end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import pytest
from nats.aio.msg import Msg

from mesh.errors import DataDamaged, DataErased
from mesh.events.blobs import MemoryBlobStore
from mesh.events.codec import PLAIN, Codecs
from mesh.events.jetstream.store import JetStreamEventStore, connect_store
from mesh.events.jetstream.tokens import JetStreamTokenStream
from mesh.events.memory import MemoryEventStore, MemoryLog
from mesh.events.store import (
    CommitDraft,
    EventStore,
    Head,
    NewEvent,
    Selection,
    StreamName,
)
from mesh.security.key_store import MemoryKeyStore
from mesh.security.keyring import Keyring
from tests.support.events import appended, commits_of, draft, texts_of, watched
from tests.support.keys import memory_keyring, memory_master, sealing
from tests.support.nats import NatsServer
from weft.events.v1 import events_pb2
from weft.state.v1 import events_pb2 as session_facts

OpenStore = Callable[[Codecs], Awaitable[EventStore]]
LARGE = "x" * 300_000


@pytest.fixture(params=["memory", "jetstream"])
async def open_store(
    request: pytest.FixtureRequest, nats_server: NatsServer
) -> AsyncIterator[OpenStore]:
    """Opens stores on one log, as several processes would."""
    log, blobs = MemoryLog(), MemoryBlobStore()
    opened: list[JetStreamEventStore] = []

    async def open_one(codecs: Codecs) -> EventStore:
        if request.param == "memory":
            return MemoryEventStore(log, blobs=blobs, codecs=codecs)
        opened.append(await connect_store(nats_server.url, name="sealed", codecs=codecs))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
def stream(tenant: str) -> StreamName:
    return StreamName("state", tenant, ("bot", "s1"))


@pytest.fixture
def keyring() -> Keyring:
    return memory_keyring()


def erased_fact() -> CommitDraft:
    """The fact that outlives its stream's key."""
    return CommitDraft([NewEvent(session_facts.SessionErased(request_id="r9"))], 1)


def snapshot_at(stream: StreamName, head: Head) -> events_pb2.Snapshot:
    return events_pb2.Snapshot(
        stream=str(stream),
        revision=head.revision,
        position=head.position,
        head_hash=head.hash,
        state=b"the state",
    )


async def test_what_is_sealed_is_read_with_its_keys_only(
    open_store: OpenStore, stream: StreamName
) -> None:
    keys, master = MemoryKeyStore(), memory_master()
    keyring = memory_keyring(keys, master)
    store = await open_store(sealing(keyring))
    texts = ["one", LARGE, "three"]
    head = (await appended(store, stream, *texts))[-1]
    await keyring.rotate_data_key(str(stream))
    head = (await appended(store, stream, "four", head=head))[-1]
    await store.save_snapshot(snapshot_at(stream, head))
    sealed = await commits_of(store, stream)
    assert {stored.commit.codec for stored in sealed} == {"aes-256-gcm"}
    assert len({stored.commit.key_id for stored in sealed}) == 2
    # Another process of the deployment, which has no key at hand.
    other = await open_store(sealing(memory_keyring(keys, master)))
    for reader in (store, other):
        assert texts_of(await commits_of(reader, stream)) == [*texts, "four"]
        seen = await watched(reader, Selection(str(stream)), 4)
        assert texts_of(seen) == [*texts, "four"]
        snapshot = await reader.snapshot(stream)
        assert snapshot is not None
        assert snapshot.state == b"the state"
    stranger = await open_store(sealing(memory_keyring()))
    with pytest.raises(DataDamaged):
        await commits_of(stranger, stream)
    with pytest.raises(DataDamaged):
        await stranger.snapshot(stream)


async def test_what_was_stored_before_there_were_seals_stays_readable(
    open_store: OpenStore, stream: StreamName, keyring: Keyring
) -> None:
    plain = await open_store(PLAIN)
    head = (await appended(plain, stream, "old", LARGE))[-1]
    await plain.save_snapshot(snapshot_at(stream, head))
    sealed_after = await keyring.sealed_after(await plain.last_position())
    store = await open_store(sealing(keyring, sealed_after))
    snapshot = await store.snapshot(stream)
    assert snapshot is not None
    assert snapshot.state == b"the state"
    head = (await appended(store, stream, "new", head=head))[-1]
    read = await commits_of(store, stream)
    assert texts_of(read) == ["old", LARGE, "new"]
    assert [each.commit.codec for each in read] == ["plain", "plain", "aes-256-gcm"]
    assert texts_of(await watched(store, Selection(str(stream)), 3)) == ["old", LARGE, "new"]
    # From here on nothing in the clear gets in, whoever can write to the log.
    plain = await open_store(PLAIN)
    head = (await appended(plain, stream, "forged", head=head))[-1]
    store = await open_store(sealing(keyring, sealed_after))
    assert await keyring.sealed_after(head.position) == sealed_after
    with pytest.raises(DataDamaged, match="sealed"):
        await commits_of(store, stream)
    await plain.save_snapshot(snapshot_at(stream, head))
    with pytest.raises(DataDamaged, match="sealed"):
        await store.snapshot(stream)


class TestErasure:
    async def test_nothing_of_an_erased_stream_is_read_and_readers_go_on(
        self, open_store: OpenStore, stream: StreamName, keyring: Keyring
    ) -> None:
        store = await open_store(sealing(keyring))
        other_stream = StreamName("state", stream.tenant, ("bot", "s2"))
        head = (await appended(store, stream, "secret", LARGE))[-1]
        await store.save_snapshot(snapshot_at(stream, head))
        tenant = Selection(f"state.{stream.tenant}")
        assert texts_of(await watched(store, tenant, 2)) == ["secret", LARGE]

        async with aclosing(store.watch(tenant, 0)) as following:
            assert texts_of([await anext(following)]) == ["secret"]
            head = await store.append(stream, erased_fact(), head)
            await keyring.erase(str(stream))
            await appended(store, other_stream, "other")
            for reader in (store, await open_store(sealing(keyring))):
                read = await commits_of(reader, stream)
                assert [each.erased for each in read] == [True, True, False]
                assert read[-1].head == head
                assert not any(
                    event.payload.value or event.HasField("blob")
                    for each in read[:2]
                    for event in each.commit.events
                )
                fact = session_facts.SessionErased()
                assert read[-1].commit.events[0].payload.Unpack(fact)
                assert fact.request_id == "r9"
                with pytest.raises(DataErased):
                    await reader.snapshot(stream)
                seen = await watched(reader, tenant, 4)
                assert [each.erased for each in seen] == [True, True, False, False]
            rest = [await anext(following) for _ in range(3)]
            assert [each.erased for each in rest] == [True, False, False]
            assert texts_of(rest[2:]) == ["other"]

    async def test_an_erased_stream_takes_only_what_is_stored_in_the_clear(
        self, open_store: OpenStore, stream: StreamName, keyring: Keyring
    ) -> None:
        store = await open_store(sealing(keyring))
        head = (await appended(store, stream, "secret"))[-1]
        await keyring.erase(str(stream))
        with pytest.raises(DataErased):
            await store.append(stream, draft("more"), head)
        with pytest.raises(DataErased):
            await store.save_snapshot(snapshot_at(stream, head))
        head = await store.append(stream, erased_fact(), head)
        (_, last) = await commits_of(store, stream)
        assert (last.commit.codec, last.commit.key_id, last.erased) == ("plain", "", False)
        mixed = CommitDraft([*erased_fact().events, *draft("more").events], 1)
        with pytest.raises(ValueError, match="clear"):
            await store.append(stream, mixed, head)

    async def test_a_commit_that_is_shared_is_dropped_with_its_key(
        self, stream: StreamName, keyring: Keyring
    ) -> None:
        store = MemoryEventStore(codecs=sealing(keyring))
        await keyring.start()
        await appended(store, stream, "secret")
        first, second = [await watched(store, Selection(), 1) for _ in range(2)]
        assert first[0] is second[0]
        await keyring.erase(str(stream))
        (third,) = await watched(store, Selection(), 1)
        assert third.erased


class TestTokens:
    async def test_token_deltas_are_sealed_and_what_is_forged_is_passed_over(
        self, nats_server: NatsServer, stream: StreamName, keyring: Keyring
    ) -> None:
        store = await connect_store(nats_server.url, name="sealed")
        tokens = JetStreamTokenStream(store.connection, sealing(keyring))
        plain = JetStreamTokenStream(store.connection)
        heard: list[bytes] = []

        async def hear(message: Msg) -> None:
            heard.append(message.data)

        subject = f"weft.tokens.{stream}.t1"
        await store.connection.subscribe(subject, hear)
        async with aclosing(tokens.follow(stream, "t1")) as following:
            plain.publish(stream, "t1", b"forged")
            await store.connection.publish(subject, b"\xff\xff")
            for number in range(20):
                tokens.publish(stream, "t1", b"token %02d" % number)
            # One that is sent while it begins to follow may come both ways.
            said: dict[bytes, None] = {}
            async with asyncio.timeout(10):
                while len(said) < 20:
                    said[await anext(following)] = None
        assert list(said) == [b"token %02d" % number for number in range(20)]
        assert not any(b"token" in data for data in heard[2:])
        assert len(heard) >= 20
        await keyring.erase(str(stream))
        async with aclosing(tokens.follow(stream, "t1")) as following:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(following), 0.3)
        await store.close()


async def test_the_last_head_is_known_without_a_key(
    open_store: OpenStore, stream: StreamName, keyring: Keyring
) -> None:
    store = await open_store(sealing(keyring))
    heads = await appended(store, stream, "a", "b")
    stranger = await open_store(sealing(memory_keyring()))
    assert await stranger.head_at(stream, 2**62) == heads[-1]
