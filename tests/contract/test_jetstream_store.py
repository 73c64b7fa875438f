"""What the JetStream store does when NATS is slow, gone, full, or loses an answer."""

import asyncio
import gc
import hashlib
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path

import nats
import pytest
import uvloop
from nats.aio.transport import TcpTransport

from mesh.errors import EventStoreUnavailable, Internal, LimitExceeded
from mesh.events.blobs import MemoryBlobStore
from mesh.events.envelope import Envelope
from mesh.events.jetstream.assets import BLOBS_BUCKET, EVENTS, SNAPSHOTS, ensure_assets
from mesh.events.jetstream.connection import BATCH_BYTES_MAX, NoReply, NotSent, connect
from mesh.events.jetstream.history import PAGE_COMMITS
from mesh.events.jetstream.store import JetStreamEventStore, connect_store
from mesh.events.jetstream.tokens import JetStreamTokenStream
from mesh.events.store import START, Head, HeadConflict, Selection, StreamName
from tests.support.events import appended, commits_of, draft, texts_of
from tests.support.nats import LossyProxy, NatsServer, running_nats
from tests.support.processes import ROOT, until
from weft.events.v1 import events_pb2

STREAM = StreamName("state", "acme", ("bot", "s1"))
CUTS = 5
TOO_LARGE_BYTES = 1 << 20 | 1
"""One more than a nats-server takes in a message where it isn't told else."""


@pytest.fixture
async def store(harmed_nats_server: NatsServer) -> AsyncIterator[JetStreamEventStore]:
    store = await connect_store(harmed_nats_server.url, name="test", attempt_seconds=0.3)
    yield store
    await store.close()


@pytest.fixture
async def proxy(harmed_nats_server: NatsServer) -> AsyncIterator[LossyProxy]:
    proxy = LossyProxy(harmed_nats_server.port)
    await proxy.start()
    yield proxy
    await proxy.stop()


async def stored_messages(store: JetStreamEventStore, stream: str = EVENTS) -> int:
    answer = await store.connection.api(f"STREAM.INFO.{stream}", {})
    messages: int = answer["state"]["messages"]
    return messages


async def appended_after_loading(store: JetStreamEventStore, text: str) -> None:
    """Appends as a command does: on a conflict it loads again."""
    for _ in range(5):
        commits = await commits_of(store, STREAM)
        with suppress(HeadConflict):
            await store.append(STREAM, draft(text), commits[-1].head)
            return


async def commits_until(store: JetStreamEventStore, count: int) -> None:
    """Returns once the log holds so many commits."""
    async with aclosing(store.watch(Selection(), 0)) as watch:
        for _ in range(count):
            await anext(watch)


def large_snapshot(revision: int) -> events_pb2.Snapshot:
    """One that takes several parts, fewer with each revision."""
    state = bytes([revision]) * (1_000_000 - revision * 50_000)
    return events_pb2.Snapshot(
        stream=str(STREAM), revision=revision, position=revision, fold_version=1, state=state
    )


class TestLargeSnapshots:
    async def test_what_is_kept_of_them_is_bounded(self, store: JetStreamEventStore) -> None:
        for revision in range(1, 9):
            await store.save_snapshot(large_snapshot(revision))
        kept = await stored_messages(store, SNAPSHOTS)
        for revision in range(9, 14):
            await store.save_snapshot(large_snapshot(revision))
            assert await stored_messages(store, SNAPSHOTS) <= kept
        for until_revision in range(6, 14):
            found = await store.snapshot(STREAM, until_revision=until_revision)
            assert found is not None
            assert found.state == large_snapshot(until_revision).state
        assert await store.snapshot(STREAM, until_revision=5) is None

    async def test_one_that_lacks_a_part_is_none(self, store: JetStreamEventStore) -> None:
        await store.save_snapshot(large_snapshot(1))
        found = await store.connection.direct_get(
            SNAPSHOTS, {"batch": 1, "seq": 1, "next_by_subj": "weft.snapshots.>"}
        )
        delete = {"seq": found.messages[0].position}
        await store.connection.api(f"STREAM.MSG.DELETE.{SNAPSHOTS}", delete)
        assert await store.snapshot(STREAM) is None
        await store.save_snapshot(large_snapshot(2))
        newest = await store.snapshot(STREAM)
        assert newest is not None
        assert newest.revision == 2

    async def test_scrubbing_leaves_no_part(self, store: JetStreamEventStore) -> None:
        for revision in (1, 2):
            await store.save_snapshot(large_snapshot(revision))
        await store.scrub(STREAM)
        assert await stored_messages(store, SNAPSHOTS) == 0


class TestPositions:
    """Positions aren't stored with a commit: the one behind it tells, or the end."""

    async def test_positions_are_those_of_the_appends(self, store: JetStreamEventStore) -> None:
        other = StreamName("state", "acme", ("bot", "s2"))
        heads: list[Head] = []
        head = other_head = START
        for number in range(PAGE_COMMITS + 3):
            head = await store.append(STREAM, draft(str(number)), head)
            heads.append(head)
            if number % 100 == 0:
                other_head = await store.append(other, draft("x"), other_head)

        assert [stored.head for stored in await commits_of(store, STREAM)] == heads
        assert [stored.head for stored in await commits_of(store, STREAM, heads[1])] == heads[2:]
        assert [stored.head for stored in await commits_of(store, STREAM, head)] == []

    async def test_a_page_that_is_cut_off_by_its_size_goes_on(
        self, store: JetStreamEventStore
    ) -> None:
        texts = [secrets.token_hex(100_000) for _ in range(3)]
        head = START
        heads: list[Head] = []
        while len(heads) * 600_000 < 2 * BATCH_BYTES_MAX:
            head = await store.append(STREAM, draft(*texts), head)
            heads.append(head)

        assert [stored.head for stored in await commits_of(store, STREAM)] == heads

    async def test_commits_that_dont_tell_of_the_position_before_them_are_read(
        self, store: JetStreamEventStore
    ) -> None:
        (first,) = await appended(store, STREAM, "a")
        envelope = Envelope(MemoryBlobStore())
        sealed = await envelope.seal(STREAM, draft("b"), first)
        old = events_pb2.Commit.FromString(sealed)
        old.ClearField("previous_position")
        data = old.SerializeToString()
        await appended(store, StreamName("state", "acme", ("bot", "s2")), "x")
        await store.connection.request(STREAM.subject, data, timeout=5)
        second = Head(2, first.position + 2, hashlib.sha256(data).digest())
        (third,) = await appended(store, STREAM, "c", head=second)

        commits = await commits_of(store, STREAM)

        assert [stored.head for stored in commits] == [first, second, third]
        assert texts_of(commits) == ["a", "b", "c"]


class TestAppend:
    async def test_it_survives_a_server_that_stands_still(
        self, store: JetStreamEventStore, harmed_nats_server: NatsServer
    ) -> None:
        (head,) = await appended(store, STREAM, "a")
        harmed_nats_server.pause()
        appending = asyncio.create_task(store.append(STREAM, draft("b"), head))
        await asyncio.sleep(0.8)
        harmed_nats_server.resume()

        head = await appending
        await appended(store, STREAM, "c", head=head)

        assert texts_of(await commits_of(store, STREAM)) == ["a", "b", "c"]
        assert await stored_messages(store) == 3

    async def test_it_survives_a_crash_of_the_server(
        self, store: JetStreamEventStore, harmed_nats_server: NatsServer
    ) -> None:
        heads = await appended(store, STREAM, "a")
        appending = asyncio.create_task(store.append(STREAM, draft("b"), heads[0]))
        await harmed_nats_server.kill()
        await harmed_nats_server.start()

        await appended(store, STREAM, "c", head=await appending)

        assert texts_of(await commits_of(store, STREAM)) == ["a", "b", "c"]

    @pytest.mark.parametrize("followed", [False, True])
    async def test_a_lost_answer_is_settled_by_what_is_stored(
        self, store: JetStreamEventStore, proxy: LossyProxy, followed: bool
    ) -> None:
        through = await connect_store(proxy.url, name="through", attempt_seconds=0.3)
        (head,) = await appended(store, STREAM, "a")
        proxy.lose_answers()
        appending = asyncio.create_task(through.append(STREAM, draft("b"), head))
        await commits_until(store, 2)
        commits = await commits_of(store, STREAM)
        if followed:
            await appended(store, STREAM, "c", head=commits[-1].head)
        proxy.cut()

        assert await appending == commits[-1].head
        assert texts_of(await commits_of(store, STREAM))[:2] == ["a", "b"]
        assert await stored_messages(store) == (3 if followed else 2)
        await through.close()

    async def test_another_commit_in_its_place_is_a_conflict_when_the_answer_was_lost(
        self, store: JetStreamEventStore, harmed_nats_server: NatsServer, proxy: LossyProxy
    ) -> None:
        through = await connect_store(proxy.url, name="through", attempt_seconds=0.3)
        (head,) = await appended(store, STREAM, "a")
        await appended(store, STREAM, "b", head=head)
        proxy.lose_answers()
        appending = asyncio.create_task(through.append(STREAM, draft("late"), head))
        await asyncio.sleep(0.5)
        proxy.cut()

        with pytest.raises(HeadConflict):
            await appending
        assert texts_of(await commits_of(store, STREAM)) == ["a", "b"]
        await through.close()

    async def test_it_gives_up_within_its_bound_and_works_again_when_nats_is_back(
        self, harmed_nats_server: NatsServer
    ) -> None:
        store = await connect_store(
            harmed_nats_server.url, name="test", append_seconds_max=0.6, attempt_seconds=0.2
        )
        (head,) = await appended(store, STREAM, "a")
        await harmed_nats_server.kill()
        async with asyncio.timeout(5):
            with pytest.raises(EventStoreUnavailable):
                await store.append(STREAM, draft("unknown"), head)
        await harmed_nats_server.start()
        await store.connection.wait_connected(5)

        await appended_after_loading(store, "b")

        # What was sent when the connection broke may go out once there is another.
        stored = texts_of(await commits_of(store, STREAM))
        assert stored in (["a", "b"], ["a", "unknown", "b"])
        await store.close()

    async def test_a_full_store_is_a_limit_and_stays_readable(self, tmp_path: Path) -> None:
        async with running_nats(tmp_path, file_bytes_max=3_000_000) as server:
            store = await connect_store(server.url, name="test")
            # Random, so that the stream's compression doesn't help.
            texts = [secrets.token_hex(50_000) for _ in range(100)]
            with pytest.raises(LimitExceeded):
                await appended(store, STREAM, *texts)

            stored = texts_of(await commits_of(store, STREAM))
            assert 0 < len(stored) < len(texts)
            assert stored == texts[: len(stored)]
            await store.close()

    @pytest.mark.parametrize(
        ("failpoint", "expected"),
        [
            ("commit:StringValue:before_publish", []),
            ("commit:StringValue:stored", ["a"]),
            ("commit:StringValue:acknowledged@2", ["a", "b"]),
            ("commit:Another:stored", ["a", "b"]),
        ],
    )
    async def test_a_process_dies_at_its_failpoint(
        self, nats_server: NatsServer, tenant: str, failpoint: str, expected: list[str]
    ) -> None:
        stream = StreamName("state", tenant, ("bot", "s1"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.appender", nats_server.url, str(stream)),
            cwd=ROOT,
            env={**os.environ, "WEFT_FAILPOINTS": failpoint},
        )
        ended = await asyncio.wait_for(process.wait(), 30)
        store = await connect_store(nats_server.url, name="test")

        assert texts_of(await commits_of(store, stream)) == expected
        assert ended == (0 if "Another" in failpoint else -signal.SIGKILL)
        await store.close()


class TestRead:
    async def test_it_waits_for_a_server_that_restarts(
        self, store: JetStreamEventStore, harmed_nats_server: NatsServer
    ) -> None:
        await appended(store, STREAM, "a")
        await harmed_nats_server.kill()
        reading = asyncio.create_task(commits_of(store, STREAM))
        await harmed_nats_server.start()

        assert texts_of(await reading) == ["a"]


class TestWatch:
    async def test_it_goes_on_across_a_restart(
        self, store: JetStreamEventStore, harmed_nats_server: NatsServer
    ) -> None:
        heads = await appended(store, STREAM, "a")
        async with aclosing(store.watch(Selection(), 0)) as watch:
            seen = [await anext(watch)]
            await harmed_nats_server.kill()
            await harmed_nats_server.start()
            await appended(store, STREAM, "b", "c", head=heads[0])
            seen += [await anext(watch), await anext(watch)]

        assert texts_of(seen) == ["a", "b", "c"]

    async def test_it_finds_by_itself_what_was_never_announced(
        self, store: JetStreamEventStore, proxy: LossyProxy
    ) -> None:
        through = await connect_store(proxy.url, name="through")
        heads = await appended(store, STREAM, "a")
        async with aclosing(through.watch(Selection(), 0)) as watch:
            seen = [await anext(watch)]
            proxy.lose_answers()
            await appended(store, STREAM, "b", head=heads[0])
            proxy.cut()
            seen.append(await anext(watch))

        assert texts_of(seen) == ["a", "b"]
        await through.close()

    async def test_a_commit_that_was_not_announced_comes_before_the_next(
        self, store: JetStreamEventStore, proxy: LossyProxy
    ) -> None:
        through = await connect_store(proxy.url, name="through")
        heads = await appended(store, STREAM, "a")
        async with aclosing(through.watch(Selection(), 0)) as watch:
            seen = [await anext(watch)]
            proxy.lose_answers()
            heads = await appended(store, STREAM, "b", "c", head=heads[0])
            await asyncio.sleep(0.1)
            proxy.keep_answers()
            await appended(store, STREAM, "d", head=heads[-1])
            seen += [await anext(watch) for _ in range(3)]

        assert texts_of(seen) == ["a", "b", "c", "d"]
        await through.close()

    async def test_it_ends_with_an_error_when_the_store_is_closed(
        self, nats_server: NatsServer, tenant: str
    ) -> None:
        store = await connect_store(nats_server.url, name="test")
        stream = StreamName("state", tenant, ("bot", "s1"))
        await appended(store, stream, "a")
        watch = store.watch(Selection(str(stream)), 0)
        await anext(watch)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.05)
        await store.close()

        with pytest.raises(EventStoreUnavailable):
            await waiting


class TestAssets:
    async def test_they_can_be_made_again_and_brought_up_to_date(
        self, store: JetStreamEventStore
    ) -> None:
        connection = store.connection
        config = (await connection.api(f"STREAM.INFO.{SNAPSHOTS}", {}))["config"]
        await connection.api(f"STREAM.UPDATE.{SNAPSHOTS}", {**config, "max_msgs_per_subject": 3})

        await ensure_assets(connection)

        info = await connection.api(f"STREAM.INFO.{SNAPSHOTS}", {})
        assert info["config"]["max_msgs_per_subject"] == 8

    async def test_a_stream_of_another_kind_is_refused(
        self, harmed_nats_server: NatsServer
    ) -> None:
        connection = await connect(harmed_nats_server.url, name="test")
        other = {"name": SNAPSHOTS, "subjects": ["weft.snapshots.>"], "storage": "memory"}
        await connection.api(f"STREAM.CREATE.{SNAPSHOTS}", other)

        with pytest.raises(Internal):
            await ensure_assets(connection)
        await connection.close()

    async def test_memory_streams_are_made_again_after_a_restart(
        self, store: JetStreamEventStore, harmed_nats_server: NatsServer
    ) -> None:
        await harmed_nats_server.kill()
        await harmed_nats_server.start()

        async with asyncio.timeout(10):
            while True:
                try:
                    await store.connection.request("weft.tokens.acme.s1", b"x", timeout=1)
                except (NotSent, NoReply):
                    await asyncio.sleep(0.05)
                else:
                    break
        assert await stored_messages(store, "TOKENS") == 1

    async def test_a_blob_is_an_object_to_other_clients(
        self, store: JetStreamEventStore, harmed_nats_server: NatsServer
    ) -> None:
        await store.append(STREAM, draft("x" * 1_000_000), START)
        (stored,) = await commits_of(store, STREAM)
        event = stored.commit.events[0]

        client = await nats.connect(harmed_nats_server.url)
        bucket = await client.jetstream().object_store(BLOBS_BUCKET)
        found = await bucket.get(event.blob.key)
        await client.close()

        assert found.data == event.payload.value

    async def test_the_same_blob_is_stored_once(self, store: JetStreamEventStore) -> None:
        stored = []
        head: Head = START
        for _ in range(2):
            head = await store.append(STREAM, draft("x" * 300_000), head)
            stored.append(await stored_messages(store, f"OBJ_{BLOBS_BUCKET}"))

        assert stored[0] == stored[1] > 0


class TestTokens:
    async def test_those_too_large_for_a_message_are_left_out(
        self, store: JetStreamEventStore
    ) -> None:
        unseen: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unseen.append(context["message"]))
        tokens = JetStreamTokenStream(store.connection)
        async with aclosing(tokens.follow(STREAM, "t1")) as following:
            first = asyncio.create_task(anext(following))
            tokens.publish(STREAM, "t1", bytes(TOO_LARGE_BYTES))
            tokens.publish(STREAM, "t1", b"small")
            assert await asyncio.wait_for(first, 10) == b"small"
        gc.collect()
        loop.set_exception_handler(None)
        assert unseen == []


async def _seen_while_it_breaks(url: str) -> list[object]:
    """What becomes of two messages: one for whose sake what sends finds that the connection is
    gone, and one behind it, before what reads has heard of that."""
    connection = await connect(url, name="cut")
    seen: list[object] = []
    for _ in range(CUTS):
        await connection.wait_connected(10)
        asking = [asyncio.create_task(connection.request("x", timeout=5))]
        await asyncio.sleep(0)
        transport = connection._client._transport
        assert isinstance(transport, TcpTransport)
        assert transport._io_writer is not None
        transport._io_writer.transport.abort()
        asking.append(asyncio.create_task(connection.request("x", timeout=5)))
        subscribing = asyncio.create_task(connection.subscribe("y", _heard))
        seen += await asyncio.gather(*asking, return_exceptions=True)
        # It may be there once the connection is back.
        with suppress(NotSent, NoReply):
            await subscribing
        await until(lambda: connection.connected)
    await connection.close()
    return seen


async def _heard(message: object) -> None:
    """Nobody sends any."""


class TestConnection:
    async def test_it_refuses_within_its_bound_where_no_server_is(
        self, harmed_nats_server: NatsServer
    ) -> None:
        await harmed_nats_server.kill()

        with pytest.raises(EventStoreUnavailable):
            await connect(harmed_nats_server.url, name="test", timeout=0.5)

    async def test_what_waits_for_an_answer_learns_that_the_connection_broke(
        self, store: JetStreamEventStore, harmed_nats_server: NatsServer
    ) -> None:
        harmed_nats_server.pause()
        asking = asyncio.create_task(store.connection.api(f"STREAM.INFO.{EVENTS}", {}, timeout=60))
        await asyncio.sleep(0.1)
        await harmed_nats_server.kill()

        with pytest.raises(NoReply):
            await asyncio.wait_for(asking, 10)
        await until(lambda: not store.connection.connected)
        with pytest.raises(NotSent):
            await store.connection.publish("weft.tokens.acme.s1", b"x")

    async def test_what_is_sent_while_the_connection_breaks_is_told_so(
        self, harmed_nats_server: NatsServer
    ) -> None:
        # As processes of Weft do it: uvloop raises where asyncio's own loop says nothing.
        seen = await asyncio.to_thread(uvloop.run, _seen_while_it_breaks(harmed_nats_server.url))
        assert {type(each) for each in seen} <= {NotSent, NoReply}, seen
        assert len(seen) == 2 * CUTS

    async def test_a_message_beyond_the_servers_bound_is_a_limit(
        self, store: JetStreamEventStore
    ) -> None:
        with pytest.raises(LimitExceeded):
            await store.connection.publish("weft.tokens.acme.s1", bytes(TOO_LARGE_BYTES))
        assert store.connection.connected

    async def test_nobody_behind_a_subject_is_told_at_once(
        self, store: JetStreamEventStore
    ) -> None:
        with pytest.raises(NotSent):
            await store.connection.request("nobody.here", b"", timeout=5)
