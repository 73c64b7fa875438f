"""What every event store does, run on each back end."""

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Protocol

import pytest

from mesh.clock import NANOSECONDS
from mesh.errors import DataDamaged, LimitExceeded
from mesh.events.blobs import BlobStore, MemoryBlobStore
from mesh.events.codec import Codecs, PlainCodec
from mesh.events.jetstream.append import Bounds, Publisher
from mesh.events.jetstream.objects import ObjectBlobStore
from mesh.events.jetstream.store import JetStreamEventStore, connect_store
from mesh.events.jetstream.tail import FEED_COMMITS_MAX
from mesh.events.memory import LogEntry, MemoryEventStore, MemoryLog
from mesh.events.store import (
    START,
    EventStore,
    Head,
    HeadConflict,
    SealedCommit,
    Selection,
    StoredCommit,
    StreamName,
)
from tests.support.events import appended, commits_of, draft, texts_of, watched
from tests.support.nats import NatsServer
from weft.events.v1 import events_pb2


class ReversingSeal:
    """Writes payloads backwards behind their place, and refuses them anywhere else."""

    key_id = "mirror"

    def __init__(self, stream: str) -> None:
        self._stream = stream

    def seal(self, revision: int, event_type: str, plain: bytes) -> bytes:
        return f"{self._stream}|{revision}|{event_type}|".encode() + plain[::-1]

    def open(self, revision: int, event_type: str, stored: bytes) -> bytes:
        place = f"{self._stream}|{revision}|{event_type}|".encode()
        if not stored.startswith(place):
            raise DataDamaged("a payload isn't in its place")
        return stored[len(place) :][::-1]


class ReversingCodec:
    name = "reversing"

    async def to_write(self, stream: str) -> ReversingSeal:
        return ReversingSeal(stream)

    async def to_read(self, stream: str, key_id: str) -> ReversingSeal:
        return ReversingSeal(stream)

    def at_hand(self, stream: str, key_id: str) -> ReversingSeal | None:
        return None

    def on_erased(self, callback: Callable[[str], None]) -> None:
        """It has no keys."""


REVERSING = Codecs(ReversingCodec(), PlainCodec())


def nanoseconds(year: int) -> int:
    """When the year began, in Unix time."""
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * NANOSECONDS


async def sealed_of(
    store: EventStore, selection: Selection, after: int, until: int
) -> list[SealedCommit]:
    """What a scan gives."""
    async with aclosing(store.scan(selection, after, until)) as scan:
        return [sealed async for sealed in scan]


class BackEnd(Protocol):
    """What the tests need of a back end beside its store."""

    @property
    def store(self) -> EventStore: ...

    @property
    def blobs(self) -> BlobStore: ...

    async def forge(self, stream: StreamName, data: bytes) -> None:
        """Puts bytes behind the stream's last commit without any check."""
        ...

    async def opened(self, codecs: Codecs) -> EventStore:
        """Another store on the same log."""
        ...


class MemoryBackEnd:
    def __init__(self) -> None:
        self.log = MemoryLog()
        self.blobs = MemoryBlobStore()
        self.store = MemoryEventStore(self.log, blobs=self.blobs)

    async def forge(self, stream: StreamName, data: bytes) -> None:
        self.log.entries.append(LogEntry(str(stream), time.time_ns(), data))
        self.store = MemoryEventStore(self.log, blobs=self.blobs)

    async def opened(self, codecs: Codecs) -> EventStore:
        return MemoryEventStore(self.log, blobs=self.blobs, codecs=codecs)


class JetStreamBackEnd:
    def __init__(self, url: str, store: JetStreamEventStore) -> None:
        self.store = store
        self.blobs = ObjectBlobStore(store.connection, Publisher(store.connection, Bounds()))
        self._url = url
        self._stores = [store]

    async def forge(self, stream: StreamName, data: bytes) -> None:
        await self.store.connection.request(stream.subject, data, timeout=5)

    async def opened(self, codecs: Codecs) -> EventStore:
        store = await connect_store(self._url, name="another", codecs=codecs)
        self._stores.append(store)
        return store

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


@pytest.fixture(params=["memory", "jetstream"])
async def back_end(
    request: pytest.FixtureRequest, nats_server: NatsServer
) -> AsyncIterator[BackEnd]:
    if request.param == "memory":
        yield MemoryBackEnd()
        return
    store = await connect_store(nats_server.url, name="test")
    back_end = JetStreamBackEnd(nats_server.url, store)
    yield back_end
    await back_end.close()


@pytest.fixture
def store(back_end: BackEnd) -> EventStore:
    return back_end.store


@pytest.fixture
def stream(tenant: str) -> StreamName:
    return StreamName("state", tenant, ("bot", "s1"))


@pytest.fixture
def selection(tenant: str) -> Selection:
    return Selection(f"state.{tenant}")


class TestAppendAndRead:
    async def test_read_returns_what_was_appended(
        self, store: EventStore, stream: StreamName
    ) -> None:
        first = await store.append(stream, draft("a", "b"), START)
        second = await store.append(stream, draft("c"), first)

        commits = await commits_of(store, stream)

        assert texts_of(commits) == ["a", "b", "c"]
        assert [commit.head for commit in commits] == [first, second]
        assert (first.revision, second.revision) == (2, 3)
        assert second.position > first.position
        commit = commits[1].commit
        assert (commit.stream, commit.tenant) == (str(stream), stream.tenant)
        assert (commit.actor, commit.request_id) == ("users/ada", "r1")
        assert commit.previous_hash == first.hash
        assert commit.events[0].type == "google.protobuf.StringValue"
        assert len({event.id for each in commits for event in each.commit.events}) == 3

    async def test_read_of_an_empty_stream_has_no_pages(
        self, store: EventStore, stream: StreamName
    ) -> None:
        assert [page async for page in store.read(stream)] == []

    async def test_read_begins_behind_a_head(self, store: EventStore, stream: StreamName) -> None:
        heads = await appended(store, stream, "a", "b", "c")

        assert texts_of(await commits_of(store, stream, heads[0])) == ["b", "c"]
        assert await commits_of(store, stream, heads[2]) == []

    @pytest.mark.parametrize(
        ("until", "expected"),
        [(0, []), (1, ["a", "b"]), (2, ["a", "b"]), (3, ["a", "b", "c"]), (99, ["a", "b", "c"])],
    )
    async def test_read_ends_with_the_commit_that_holds_the_revision(
        self, store: EventStore, stream: StreamName, until: int, expected: list[str]
    ) -> None:
        head = await store.append(stream, draft("a", "b"), START)
        await store.append(stream, draft("c"), head)

        assert texts_of(await commits_of(store, stream, until_revision=until)) == expected

    async def test_read_pages_through_a_long_stream(
        self, store: EventStore, stream: StreamName
    ) -> None:
        texts = [str(number) for number in range(1100)]
        await appended(store, stream, *texts)

        pages = [page async for page in store.read(stream)]

        assert len(pages) > 1
        assert texts_of([commit for page in pages for commit in page]) == texts

    async def test_streams_have_revisions_of_their_own(
        self, store: EventStore, stream: StreamName, tenant: str
    ) -> None:
        deeper = StreamName("state", tenant, ("bot", "s1", "x"))
        await appended(store, stream, "a", "b")
        (head,) = await appended(store, deeper, "c")

        assert head.revision == 1
        assert texts_of(await commits_of(store, stream)) == ["a", "b"]

    async def test_append_rejects_a_stale_head(self, store: EventStore, stream: StreamName) -> None:
        heads = await appended(store, stream, "a", "b")

        for stale in (START, heads[0]):
            with pytest.raises(HeadConflict):
                await store.append(stream, draft("late"), stale)

        assert texts_of(await commits_of(store, stream)) == ["a", "b"]

    async def test_append_rejects_a_head_that_the_stream_never_had(
        self, store: EventStore, stream: StreamName
    ) -> None:
        (head,) = await appended(store, stream, "a")

        with pytest.raises(HeadConflict):
            await store.append(stream, draft("b"), Head(2, head.position + 1000, head.hash))

    async def test_of_twenty_racing_writers_one_wins(
        self, store: EventStore, stream: StreamName
    ) -> None:
        (head,) = await appended(store, stream, "first")

        outcomes = await asyncio.gather(
            *(store.append(stream, draft(str(writer)), head) for writer in range(20)),
            return_exceptions=True,
        )

        winners = [writer for writer, outcome in enumerate(outcomes) if isinstance(outcome, Head)]
        losers = [outcome for outcome in outcomes if isinstance(outcome, HeadConflict)]
        assert (len(winners), len(losers)) == (1, 19)
        assert texts_of(await commits_of(store, stream)) == ["first", str(winners[0])]

    async def test_append_refuses_too_many_events(
        self, store: EventStore, stream: StreamName
    ) -> None:
        with pytest.raises(LimitExceeded):
            await store.append(stream, draft(*["x"] * 1025), START)

    async def test_append_refuses_too_many_bytes(
        self, store: EventStore, stream: StreamName
    ) -> None:
        with pytest.raises(LimitExceeded):
            await store.append(stream, draft(*["x" * 1000] * 1000), START)


class TestTime:
    async def test_head_at_is_the_head_of_that_time(
        self, store: EventStore, stream: StreamName
    ) -> None:
        before = time.time_ns()
        heads, times = [START], [before]
        for text in ("a", "b"):
            await asyncio.sleep(0.01)
            heads += await appended(store, stream, text, head=heads[-1])
            await asyncio.sleep(0.01)
            times.append(time.time_ns())

        assert [await store.head_at(stream, moment) for moment in times] == heads

    async def test_position_at_parts_earlier_from_later_commits(
        self, store: EventStore, stream: StreamName
    ) -> None:
        (first,) = await appended(store, stream, "a")
        await asyncio.sleep(0.01)
        between = time.time_ns()
        await asyncio.sleep(0.01)
        (second,) = await appended(store, stream, "b", head=first)

        assert await store.position_at(0) == 0
        assert first.position <= await store.position_at(between) < second.position
        assert await store.position_at(time.time_ns() + 10**9) == await store.last_position()

    @pytest.mark.parametrize("year", [2263, 9999])
    async def test_a_time_long_to_come_has_all_commits_before_it(
        self, store: EventStore, stream: StreamName, year: int
    ) -> None:
        heads = await appended(store, stream, "a", "b")
        assert await store.head_at(stream, nanoseconds(year)) == heads[-1]
        assert await store.position_at(nanoseconds(year)) == await store.last_position()

    @pytest.mark.parametrize("year", [1, 1969])
    async def test_a_time_before_any_clock_has_all_commits_behind_it(
        self, store: EventStore, stream: StreamName, year: int
    ) -> None:
        await appended(store, stream, "a", "b")
        assert await store.head_at(stream, nanoseconds(year)) == START
        assert await store.position_at(nanoseconds(year)) == 0

    async def test_last_position_of_a_selection(
        self, store: EventStore, stream: StreamName, selection: Selection, tenant: str
    ) -> None:
        assert await store.last_position(selection) == 0
        (head,) = await appended(store, stream, "a")
        (other,) = await appended(store, StreamName("tools", tenant, ("clock",)), "b")

        assert await store.last_position(selection) == head.position
        assert await store.last_position(Selection(str(stream))) == head.position
        assert await store.last_position() >= other.position


class TestPayloads:
    async def test_large_payloads_move_out_and_come_back(
        self, store: EventStore, stream: StreamName, back_end: BackEnd
    ) -> None:
        large = "x" * 2_000_000
        await store.append(stream, draft("small", large), START)

        (stored,) = await commits_of(store, stream)

        assert texts_of([stored]) == ["small", large]
        small, moved = stored.commit.events
        assert not small.HasField("blob")
        blob = await back_end.blobs.get(moved.blob.key)
        assert blob is not None
        assert moved.blob.size_bytes == len(blob) > len(large)

    async def test_payloads_that_are_too_large_together_move_out(
        self, store: EventStore, stream: StreamName
    ) -> None:
        texts = [letter * 200_000 for letter in "abcdefg"]
        await store.append(stream, draft(*texts), START)

        (stored,) = await commits_of(store, stream)

        assert texts_of([stored]) == texts
        assert 0 < sum(event.HasField("blob") for event in stored.commit.events) < len(texts)

    async def test_a_watch_brings_large_payloads_back(
        self, store: EventStore, stream: StreamName, selection: Selection
    ) -> None:
        await store.append(stream, draft("x" * 300_000), START)

        assert texts_of(await watched(store, selection, 1)) == ["x" * 300_000]

    async def test_a_changed_blob_is_damage(
        self, store: EventStore, stream: StreamName, back_end: BackEnd
    ) -> None:
        await store.append(stream, draft("x" * 300_000), START)
        (stored,) = await commits_of(store, stream)
        await back_end.blobs.put(stored.commit.events[0].blob.key, b"something else")

        with pytest.raises(DataDamaged):
            await commits_of(store, stream)

    async def test_a_missing_blob_is_damage(self, back_end: BackEnd, stream: StreamName) -> None:
        reference = events_pb2.BlobReference(key="weft-payload/gone", sha256=b"x" * 32)
        event = events_pb2.Event(id="1", type="t", blob=reference)
        forged = events_pb2.Commit(stream=str(stream), revision=1, events=[event], codec="plain")
        await back_end.forge(stream, forged.SerializeToString())

        with pytest.raises(DataDamaged):
            await commits_of(back_end.store, stream)

    async def test_each_commit_is_read_by_the_codec_that_wrote_it(
        self, back_end: BackEnd, stream: StreamName, selection: Selection
    ) -> None:
        (head,) = await appended(back_end.store, stream, "plain")
        sealing = await back_end.opened(REVERSING)
        await sealing.append(stream, draft("sealed", "x" * 300_000), head)

        expected = ["plain", "sealed", "x" * 300_000]
        assert texts_of(await commits_of(sealing, stream)) == expected
        assert texts_of(await watched(sealing, selection, 2)) == expected

    async def test_an_unknown_codec_is_damage(self, back_end: BackEnd, stream: StreamName) -> None:
        sealing = await back_end.opened(REVERSING)
        await appended(sealing, stream, "sealed")

        with pytest.raises(DataDamaged):
            await commits_of(await back_end.opened(Codecs(PlainCodec())), stream)


class TestDamage:
    @pytest.mark.parametrize("wrong", ["previous_hash", "revision", "stream", "events", "bytes"])
    async def test_a_forged_commit_is_damage(
        self, back_end: BackEnd, stream: StreamName, wrong: str
    ) -> None:
        (head,) = await appended(back_end.store, stream, "a")
        forged = events_pb2.Commit(
            stream=str(stream),
            revision=2,
            previous_hash=head.hash,
            codec="plain",
            events=[events_pb2.Event(id="1", type="t")],
        )
        if wrong == "previous_hash":
            forged.previous_hash = b"x" * 32
        elif wrong == "revision":
            forged.revision = 3
        elif wrong == "stream":
            forged.stream = "state.another.bot.s1"
        elif wrong == "events":
            forged.ClearField("events")
        data = b"\xff" if wrong == "bytes" else forged.SerializeToString()
        await back_end.forge(stream, data)

        with pytest.raises(DataDamaged):
            await commits_of(back_end.store, stream)

    async def test_a_head_with_another_hash_is_damage(
        self, store: EventStore, stream: StreamName
    ) -> None:
        heads = await appended(store, stream, "a", "b")

        with pytest.raises(DataDamaged):
            await commits_of(store, stream, Head(1, heads[0].position, b"x" * 32))


class TestSnapshots:
    @staticmethod
    def snapshot(stream: StreamName, revision: int, state: bytes = b"state") -> events_pb2.Snapshot:
        return events_pb2.Snapshot(
            stream=str(stream),
            revision=revision,
            position=revision * 10,
            head_hash=b"h" * 32,
            fold_version=3,
            state=state,
        )

    async def test_a_stream_without_snapshots_has_none(
        self, store: EventStore, stream: StreamName
    ) -> None:
        assert await store.snapshot(stream) is None
        assert await store.snapshot(stream, until_revision=5) is None

    @pytest.mark.parametrize("state", [b"", b"small", b"x" * 1_000_000])
    async def test_a_snapshot_comes_back_as_it_was(
        self, store: EventStore, stream: StreamName, state: bytes
    ) -> None:
        saved = self.snapshot(stream, 7, state)
        await store.save_snapshot(saved)

        kept = await store.snapshot(stream)

        assert kept is not None
        assert (kept.state, kept.head_hash, kept.position) == (state, b"h" * 32, 70)
        assert (kept.revision, kept.fold_version, kept.codec) == (7, 3, "plain")
        assert saved == self.snapshot(stream, 7, state)

    @pytest.mark.parametrize(
        ("until", "expected"), [(None, 10), (10, 10), (9, 9), (3, 3), (2, None)]
    )
    async def test_of_the_last_eight_the_latest_until_a_revision_is_found(
        self, store: EventStore, stream: StreamName, until: int | None, expected: int | None
    ) -> None:
        for revision in range(1, 11):
            await store.save_snapshot(self.snapshot(stream, revision))

        kept = await store.snapshot(stream, until_revision=until)

        assert (kept.revision if kept else None) == expected

    async def test_a_sealed_state_is_opened(self, back_end: BackEnd, stream: StreamName) -> None:
        sealing = await back_end.opened(REVERSING)
        await sealing.save_snapshot(self.snapshot(stream, 1))

        kept = await sealing.snapshot(stream)

        assert kept is not None
        assert (kept.state, kept.codec) == (b"state", "reversing")
        with pytest.raises(DataDamaged):
            await back_end.store.snapshot(stream)


class TestWatch:
    async def test_history_comes_first_and_then_what_happens(
        self, store: EventStore, stream: StreamName, selection: Selection
    ) -> None:
        heads = await appended(store, stream, "a", "b")
        async with aclosing(store.watch(selection, 0)) as watch:
            seen = [await anext(watch), await anext(watch)]
            await appended(store, stream, "c", "d", head=heads[-1])
            seen += [await anext(watch), await anext(watch)]

        assert texts_of(seen) == ["a", "b", "c", "d"]
        assert [each.head for each in seen[:2]] == heads

    async def test_a_watch_from_now_on_sees_only_what_comes(
        self, store: EventStore, stream: StreamName, selection: Selection
    ) -> None:
        (head,) = await appended(store, stream, "before")
        async with aclosing(store.watch(selection)) as watch:
            first = asyncio.ensure_future(anext(watch))
            # The watch begins when it is first asked.
            while not first.done():
                (head,) = await appended(store, stream, "after", head=head)
                await asyncio.sleep(0.01)

        assert texts_of([first.result()]) == ["after"]

    async def test_a_watch_resumes_behind_a_position(
        self, store: EventStore, stream: StreamName, selection: Selection
    ) -> None:
        heads = await appended(store, stream, "a", "b", "c")

        assert texts_of(await watched(store, selection, 2, heads[0].position)) == ["b", "c"]

    async def test_a_selection_holds_a_stream_and_what_lies_below_it(
        self, store: EventStore, tenant: str
    ) -> None:
        streams = [("bot",), ("bot", "s1"), ("bots",), ("bot", "s1", "x"), ("other", "s1")]
        for key in (*streams, *streams):
            stream = StreamName("state", tenant, key)
            commits = await commits_of(store, stream)
            head = commits[-1].head if commits else START
            await store.append(stream, draft("/".join(key)), head)

        async def seen(prefix: str, count: int) -> list[str]:
            return texts_of(await watched(store, Selection(f"state.{tenant}{prefix}"), count))

        assert await seen(".bot", 6) == ["bot", "bot/s1", "bot/s1/x"] * 2
        assert await seen(".bot.s1", 4) == ["bot/s1", "bot/s1/x"] * 2
        assert await seen(".bots", 2) == ["bots"] * 2
        assert await seen("", 10) == ["/".join(key) for key in streams] * 2

    async def test_live_commits_are_selected_too(
        self, store: EventStore, stream: StreamName, tenant: str
    ) -> None:
        other = StreamName("state", tenant, ("bot", "s2"))
        async with aclosing(store.watch(Selection(str(stream)), 0)) as watch:
            (head,) = await appended(store, stream, "a")
            assert texts_of([await anext(watch)]) == ["a"]
            await appended(store, other, "hidden")
            await appended(store, stream, "b", head=head)
            assert texts_of([await anext(watch)]) == ["b"]

    async def test_a_slow_watcher_misses_nothing(
        self, store: EventStore, tenant: str, selection: Selection
    ) -> None:
        streams = [StreamName("state", tenant, ("bot", f"s{number}")) for number in range(8)]
        each = FEED_COMMITS_MAX // len(streams) + 50
        async with aclosing(store.watch(selection, 0)) as watch:
            heads = await asyncio.gather(*(appended(store, stream, "0") for stream in streams))
            seen = [await anext(watch)]
            texts = [str(number) for number in range(1, each)]
            await asyncio.gather(
                *(
                    appended(store, stream, *texts, head=head)
                    for stream, (head,) in zip(streams, heads, strict=True)
                )
            )
            while len(seen) < each * len(streams):
                seen.append(await anext(watch))

        assert_whole(seen, streams, each)

    async def test_readers_join_leave_and_resume_without_gap_or_duplicate(
        self, store: EventStore, tenant: str, selection: Selection
    ) -> None:
        streams = [StreamName("state", tenant, ("bot", f"s{number}")) for number in range(4)]
        commits, events = 250, 10
        choice = random.Random(7)

        async def write(stream: StreamName) -> None:
            head = START
            for _ in range(commits):
                head = await store.append(stream, draft(*"0123456789"), head)
                await asyncio.sleep(0)

        async def read(patience: int) -> list[StoredCommit]:
            seen: list[StoredCommit] = []
            await asyncio.sleep(choice.random() / 2)
            while len(seen) < commits * len(streams):
                position = seen[-1].position if seen else 0
                wanted = min(choice.randint(1, patience), commits * len(streams) - len(seen))
                seen += await watched(store, selection, wanted, position)
            return seen

        readers = [asyncio.create_task(read(patience)) for patience in (20, 60, 200, 1000, 1000)]
        await asyncio.gather(*(write(stream) for stream in streams))
        results = await asyncio.gather(*readers)

        for seen in results:
            assert_whole(seen, streams, commits)
            assert sum(len(each.commit.events) for each in seen) == commits * events * len(streams)


def assert_whole(seen: list[StoredCommit], streams: list[StreamName], commits: int) -> None:
    """Each stream's commits are all there, once, in order."""
    positions = [each.position for each in seen]
    assert positions == sorted(set(positions))
    for stream in streams:
        head, count = START, 0
        for each in seen:
            if each.commit.stream == str(stream):
                assert each.commit.revision == head.revision + 1
                assert each.commit.previous_hash == head.hash
                head, count = each.head, count + 1
        assert count == commits


async def test_a_log_keeps_its_id(store: EventStore) -> None:
    first = await store.log_id()
    assert first
    assert await store.log_id() == first
    assert await MemoryEventStore().log_id() != first


class TestScan:
    async def test_a_scan_of_a_tenant_has_its_commits_of_every_area_in_order(
        self, store: EventStore, tenant: str
    ) -> None:
        one, two = StreamName("state", tenant, ("bot", "s1")), StreamName("agents", tenant, ("b",))
        stranger = StreamName("state", f"{tenant}x", ("bot", "s1"))
        heads: list[Head] = []
        for stream in (one, two, stranger, one):
            head = heads[0] if stream is one and heads else START
            heads.append(await store.append(stream, draft("a"), head))
        first, last = heads[0].position, heads[-1].position
        found = await sealed_of(store, Selection.of_tenant(tenant), 0, last)
        assert [(each.stream, each.position) for each in found] == [
            (str(one), heads[0].position),
            (str(two), heads[1].position),
            (str(one), heads[3].position),
        ]
        assert [hashlib.sha256(each.data).digest() for each in found][-1] == heads[3].hash
        within = await sealed_of(store, Selection.of_tenant(tenant), first, last - 1)
        assert [each.position for each in within] == [heads[1].position]
        assert texts_of([await store.open(found[0])]) == ["a"]

    async def test_a_scan_has_what_is_damaged(self, back_end: BackEnd, stream: StreamName) -> None:
        await back_end.forge(stream, b"\xff no commit")
        store = back_end.store
        last = await store.last_position()
        (found,) = await sealed_of(store, Selection(str(stream)), 0, last)
        assert found.data == b"\xff no commit"
        with pytest.raises(DataDamaged):
            await store.open(found)

    async def test_a_sealed_watch_of_a_tenant_goes_on_from_a_position(
        self, store: EventStore, tenant: str
    ) -> None:
        stream, stranger = StreamName("state", tenant, ("s",)), StreamName("state", "x", (tenant,))
        head = await store.append(stream, draft("a"), START)
        seen = []
        async with aclosing(store.watch_sealed(Selection.of_tenant(tenant), 0)) as watch:
            seen.append((await anext(watch)).position)
            await store.append(stranger, draft("x"), START)
            head = await store.append(stream, draft("b"), head)
            seen.append((await anext(watch)).position)
        assert seen[-1] == head.position


class TestScrub:
    async def test_snapshots_and_sealed_blobs_go_and_others_stay(
        self, back_end: BackEnd, stream: StreamName, tenant: str
    ) -> None:
        plain, other = (StreamName("state", tenant, (key,)) for key in ("plain", "other"))
        large = "x" * 300_000
        await back_end.store.append(plain, draft(large), START)
        store = await back_end.opened(REVERSING)
        for each in (stream, other):
            await store.append(each, draft(large), START)
            await store.save_snapshot(
                events_pb2.Snapshot(stream=str(each), revision=1, state=large.encode())
            )
        for _ in range(2):
            await store.scrub(stream)
            await store.scrub(plain)
        assert await store.snapshot(stream) is None
        with pytest.raises(DataDamaged, match="blob is missing"):
            await commits_of(store, stream)
        assert texts_of(await commits_of(store, plain)) == [large]
        assert texts_of(await commits_of(store, other)) == [large]
        assert await store.snapshot(other) is not None
