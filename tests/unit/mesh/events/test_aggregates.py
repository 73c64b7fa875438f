"""One writer of a stream in a process, against others that write it too."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import StringValue

from mesh.errors import Conflict, DataDamaged, EventStoreUnavailable, FailedPrecondition, NotFound
from mesh.events.aggregate import CONFLICTS_MAX, FORK_DEPTH_MAX, Aggregate, Repository
from mesh.events.fold import Fold, Place
from mesh.events.jetstream.store import connect_store
from mesh.events.lineage import fork_depth
from mesh.events.memory import MemoryEventStore, MemoryLog
from mesh.events.store import (
    START,
    CommitDraft,
    EventStore,
    Head,
    HeadConflict,
    NewEvent,
    StoredCommit,
    StreamName,
)
from tests.support.events import draft
from tests.support.nats import NatsServer
from weft.events.v1 import events_pb2
from weft.state.v1 import session_pb2

FORK = "fork "
Texts = list[str]
Decide = Callable[[Texts], Sequence[Message]]


def origin_of(event: Message) -> tuple[StreamName, int] | None:
    """`fork <stream> <revision>` continues that stream."""
    if not isinstance(event, StringValue) or not event.value.startswith(FORK):
        return None
    _, stream, revision = event.value.split(" ")
    return StreamName.parse(stream), int(revision)


def evolve(texts: Texts, event: Message, place: Place) -> Texts:
    assert isinstance(event, StringValue)
    texts.append(f"{place.revision}:{event.value}")
    return texts


def decode(data: bytes) -> Texts:
    return list(session_pb2.Session.FromString(data).name.split("|")) if data else []


FOLD: Fold[Texts] = Fold(
    version=1,
    events=(StringValue,),
    initial=list,
    evolve=evolve,
    encode=lambda texts: session_pb2.Session(name="|".join(texts)).SerializeToString(),
    decode=decode,
    origin=origin_of,
)


def saying(*texts: str) -> Decide:
    """Decides the texts, whatever was said before."""
    return lambda state: [StringValue(value=text) for text in texts]


def counting(state: Texts) -> Sequence[Message]:
    """Decides the number of what was said before, so that it must be decided anew."""
    return [StringValue(value=str(len(state)))]


class Watcher:
    """Keeps what an aggregate's observers are told."""

    def __init__(self, aggregate: Aggregate[Texts]) -> None:
        self.told: list[tuple[int, str]] = []
        aggregate.observers.append(self.observe)

    def observe(self, revision: int, time: Timestamp, fact: Message) -> None:
        assert isinstance(fact, StringValue)
        self.told.append((revision, fact.value))


class HarmedStore(MemoryEventStore):
    """A store whose next appends and snapshots go wrong as they were told to."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.held: asyncio.Event | None = None
        self.read_after: list[Head] = []

    async def append(self, stream: StreamName, draft: CommitDraft, head: Head) -> Head:
        if self.held is not None:
            await self.held.wait()
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "lost":
            raise EventStoreUnavailable("the append was lost")
        if fault == "conflict":
            raise HeadConflict("always another one")
        after = await super().append(stream, draft, head)
        if fault == "stored, not acknowledged":
            raise EventStoreUnavailable("the acknowledgement was lost")
        return after

    def read(
        self, stream: StreamName, after: Head = START, *, until_revision: int | None = None
    ) -> AsyncGenerator[list[StoredCommit], None]:
        self.read_after.append(after)
        return super().read(stream, after, until_revision=until_revision)

    async def save_snapshot(self, snapshot: events_pb2.Snapshot) -> None:
        if self.faults and self.faults.pop(0) == "snapshot":
            raise EventStoreUnavailable("no snapshots today")
        await super().save_snapshot(snapshot)


@pytest.fixture(params=["memory", "jetstream"])
async def store(
    request: pytest.FixtureRequest, nats_server: NatsServer
) -> AsyncIterator[EventStore]:
    if request.param == "memory":
        yield MemoryEventStore()
        return
    store = await connect_store(nats_server.url, name="aggregates")
    yield store
    await store.close()


@pytest.fixture(params=[True, False], ids=["ahead", "stored"])
def ahead(request: pytest.FixtureRequest) -> bool:
    """Whether a writer's state holds what isn't acknowledged yet."""
    held: bool = request.param
    return held


@pytest.fixture
def stream(tenant: str) -> StreamName:
    return StreamName("state", tenant, ("bot", "s1"))


def other(stream: StreamName, key: str) -> StreamName:
    return StreamName(stream.area, stream.tenant, ("bot", key))


class TestDeciding:
    async def test_what_was_decided_is_stored_and_folded_in(
        self, store: EventStore, stream: StreamName
    ) -> None:
        aggregate = Repository(store, FOLD).open(stream)
        stored = await aggregate.execute(saying("a", "b"))
        assert stored is not None
        assert stored.first_revision == 1
        assert aggregate.state == ["1:a", "2:b"]
        assert (await Repository(store, FOLD).load(stream)).state == ["1:a", "2:b"]

    async def test_nothing_decided_is_nothing_stored(
        self, store: EventStore, stream: StreamName
    ) -> None:
        assert await Repository(store, FOLD).open(stream).execute(saying()) is None
        assert (await Repository(store, FOLD).load(stream)).head is START

    async def test_a_command_that_lost_is_decided_again_on_what_won(
        self, store: EventStore, stream: StreamName, ahead: bool
    ) -> None:
        first, second = (Repository(store, FOLD, ahead=ahead).open(stream) for _ in range(2))
        await first.load()
        await second.load()
        await first.execute(counting)
        await second.execute(counting)
        assert second.state == ["1:0", "2:1"]

    async def test_a_command_refused_on_an_old_state_is_decided_on_the_newest(
        self, store: EventStore, stream: StreamName
    ) -> None:
        def once_it_is_there(state: Texts) -> Sequence[Message]:
            if not state:
                raise NotFound.of("stream", "s1")
            return [StringValue(value="more")]

        late = Repository(store, FOLD).open(stream)
        with pytest.raises(NotFound):
            await late.execute(once_it_is_there)
        await Repository(store, FOLD).open(stream).execute(saying("made"))
        await late.execute(once_it_is_there)
        assert late.state == ["1:made", "2:more"]

    async def test_a_refused_command_changes_nothing(
        self, store: EventStore, stream: StreamName
    ) -> None:
        def refuse(state: Texts) -> Sequence[Message]:
            raise FailedPrecondition("not today")

        aggregate = Repository(store, FOLD).open(stream)
        await aggregate.execute(saying("a"))
        with pytest.raises(FailedPrecondition):
            await aggregate.execute(refuse)
        assert await aggregate.load() == ["1:a"]

    async def test_twenty_racing_writers_all_get_their_turn_in_order(
        self, store: EventStore, stream: StreamName, ahead: bool
    ) -> None:
        repositories = [Repository(store, FOLD, ahead=ahead) for _ in range(2)]
        writers = [repositories[number % 2].open(stream) for number in range(20)]

        stored = await asyncio.gather(*(writer.execute(counting) for writer in writers))

        revisions = sorted(facts.first_revision for facts in stored if facts is not None)
        assert revisions == list(range(1, 21))
        expected = [f"{number + 1}:{number}" for number in range(20)]
        assert (await Repository(store, FOLD).load(stream)).state == expected
        assert [await each.open(stream).load() for each in repositories] == [expected] * 2

    async def test_of_twenty_processes_that_make_one_thing_one_wins(
        self, store: EventStore, stream: StreamName, ahead: bool
    ) -> None:
        def make(state: Texts) -> Sequence[Message]:
            return [] if state else [StringValue(value="made")]

        writers = [Repository(store, FOLD, ahead=ahead).open(stream) for _ in range(20)]
        stored = await asyncio.gather(*(writer.execute(make) for writer in writers))
        assert sum(facts is not None for facts in stored) == 1
        assert {tuple(await writer.load()) for writer in writers} == {("1:made",)}

    async def test_a_writer_that_always_loses_gives_up(self, stream: StreamName) -> None:
        store = HarmedStore()
        aggregate = Repository(store, FOLD).open(stream)
        store.faults = ["conflict"] * CONFLICTS_MAX
        with pytest.raises(Conflict):
            await aggregate.execute(saying("a"))
        await aggregate.execute(saying("b"))
        assert aggregate.state == ["1:b"]


class TestSending:
    async def test_what_was_sent_is_in_the_state_before_it_is_stored(
        self, stream: StreamName
    ) -> None:
        store = HarmedStore()
        aggregate = Repository(store, FOLD).open(stream)
        watcher = Watcher(aggregate)
        store.held = asyncio.Event()

        pending = await aggregate.send(saying("a"))

        assert aggregate.state == ["1:a"]
        assert aggregate.head is START
        assert not watcher.told
        assert not aggregate.idle()
        store.held.set()
        await pending
        assert watcher.told == [(1, "a")]
        assert aggregate.idle()

    async def test_a_second_send_waits_for_the_first(self, stream: StreamName) -> None:
        store = HarmedStore()
        aggregate = Repository(store, FOLD).open(stream)
        store.held = asyncio.Event()
        first = await aggregate.send(counting)
        second = asyncio.create_task(aggregate.send(counting))
        await asyncio.sleep(0)
        assert not second.done()
        store.held.set()
        await first
        await (await second)
        assert aggregate.state == ["1:0", "2:1"]

    async def test_who_stops_waiting_does_not_undo_the_commit(self, stream: StreamName) -> None:
        store = HarmedStore()
        aggregate = Repository(store, FOLD).open(stream)
        store.held = asyncio.Event()
        waiting = asyncio.create_task(aggregate.execute(saying("a")))
        while aggregate.idle():  # noqa: ASYNC110 - a flight sets no event of ours
            await asyncio.sleep(0)
        waiting.cancel()
        store.held.set()
        assert await aggregate.load() == ["1:a"]

    async def test_a_failed_send_does_not_fail_the_next_one(self, stream: StreamName) -> None:
        store = HarmedStore()
        aggregate = Repository(store, FOLD).open(stream)
        store.faults = ["lost"]
        failed = await aggregate.send(saying("a"))
        await (await aggregate.send(saying("b")))
        assert isinstance(failed.exception(), EventStoreUnavailable)
        assert aggregate.state == ["1:b"]


class TestStoredOnly:
    """Writers whose state holds what is stored, and nothing else."""

    async def test_what_was_sent_is_in_the_state_once_it_is_stored(
        self, stream: StreamName
    ) -> None:
        store = HarmedStore()
        aggregate = Repository(store, FOLD, ahead=False).open(stream)
        watcher = Watcher(aggregate)
        store.held = asyncio.Event()

        pending = await aggregate.send(saying("a"))

        assert aggregate.state == []
        store.held.set()
        await pending
        assert aggregate.state == ["1:a"]
        assert watcher.told == [(1, "a")]

    async def test_a_lost_commit_reads_what_won_and_no_more(self, stream: StreamName) -> None:
        store = HarmedStore()
        ours, theirs = (Repository(store, FOLD, ahead=False).open(stream) for _ in range(2))
        await ours.execute(saying("a"))
        before = ours.head
        await theirs.execute(saying("b"))
        store.read_after.clear()
        await ours.execute(counting)
        assert ours.state == ["1:a", "2:b", "3:2"]
        assert store.read_after == [before]

    @pytest.mark.parametrize("fault", ["lost", "stored, not acknowledged"])
    async def test_a_doubtful_commit_reads_what_may_be_behind_it_and_no_more(
        self, stream: StreamName, fault: str
    ) -> None:
        store = HarmedStore()
        aggregate = Repository(store, FOLD, ahead=False).open(stream)
        await aggregate.execute(saying("a"))
        before = aggregate.head
        store.read_after.clear()
        store.faults = [fault]
        with pytest.raises(EventStoreUnavailable):
            await aggregate.execute(saying("b"))
        await aggregate.execute(saying("c"))
        said = [text.partition(":")[2] for text in aggregate.state]
        assert said == (["a", "c"] if fault == "lost" else ["a", "b", "c"])
        assert store.read_after == [before]

    async def test_what_always_loses_is_read_before_the_next_decision(
        self, stream: StreamName
    ) -> None:
        store = HarmedStore()
        aggregate = Repository(store, FOLD, ahead=False).open(stream)
        store.faults = ["conflict"] * CONFLICTS_MAX
        with pytest.raises(Conflict):
            await aggregate.execute(saying("a"))
        await aggregate.execute(saying("b"))
        assert aggregate.state == ["1:b"]


class TestSnapshotsInParts:
    async def test_they_hold_the_state_as_it_was_when_they_were_begun(
        self, stream: StreamName
    ) -> None:
        store = HarmedStore()

        def parts(texts: Texts) -> Iterator[bytes]:
            kept = list(texts)
            yield b""
            for text in kept:
                # A field that comes again replaces the one before: the last one has it all.
                so_far = kept[: kept.index(text) + 1]
                yield session_pb2.Session(name="|".join(so_far)).SerializeToString()

        fold = replace(FOLD, parts=parts)
        aggregate = Repository(store, fold, snapshot_commits=2, ahead=False).open(stream)
        for text in "abc":
            await aggregate.execute(saying(text))
        while (snapshot := await store.snapshot(stream)) is None:  # noqa: ASYNC110 - saved behind
            await asyncio.sleep(0)
        assert snapshot.revision == 2
        assert decode(snapshot.state) == ["1:a", "2:b"]


class TestUnknownOutcomes:
    @pytest.mark.parametrize(
        ("fault", "known"), [("lost", []), ("stored, not acknowledged", ["1:a"])]
    )
    async def test_an_unknown_commit_is_read_before_the_next_decision(
        self, ahead: bool, stream: StreamName, fault: str, known: Texts
    ) -> None:
        harmed = HarmedStore()
        aggregate = Repository(harmed, FOLD, ahead=ahead).open(stream)
        watcher = Watcher(aggregate)
        harmed.faults = [fault]
        with pytest.raises(EventStoreUnavailable):
            await aggregate.execute(saying("a"))

        assert await aggregate.ready() == known
        await aggregate.execute(saying("b"))

        assert aggregate.state == [*known, f"{len(known) + 1}:b"]
        assert watcher.told == [
            (revision, text.partition(":")[2])
            for revision, text in enumerate(aggregate.state, start=1)
        ]

    async def test_a_snapshot_that_fails_costs_nothing(self, stream: StreamName) -> None:
        harmed = HarmedStore()
        aggregate = Repository(harmed, FOLD, snapshot_commits=2).open(stream)
        harmed.faults = ["", "", "snapshot"]
        for text in "abcd":
            await aggregate.execute(saying(text))
        assert (await Repository(harmed, FOLD).load(stream)).state == ["1:a", "2:b", "3:c", "4:d"]


class TestObservers:
    async def test_they_are_told_of_everybodys_facts_once_and_in_order(
        self, store: EventStore, stream: StreamName, ahead: bool
    ) -> None:
        ours, theirs = (Repository(store, FOLD, ahead=ahead).open(stream) for _ in range(2))
        await ours.load()
        watcher = Watcher(ours)

        await theirs.execute(saying("a", "b"))
        await ours.load()
        await ours.execute(saying("c"))
        await theirs.execute(saying("d"))
        await ours.execute(saying("e"))
        await theirs.execute(saying("f"))
        await ours.load()
        await ours.load()

        assert watcher.told == list(enumerate("abcdef", start=1))

    async def test_racing_writers_tell_each_observer_everything_once(
        self, store: EventStore, stream: StreamName, ahead: bool
    ) -> None:
        aggregates = [Repository(store, FOLD, ahead=ahead).open(stream) for _ in range(4)]
        watchers = []
        for aggregate in aggregates:
            await aggregate.load()
            watchers.append(Watcher(aggregate))

        await asyncio.gather(*(each.execute(counting) for each in aggregates * 5))
        for aggregate in aggregates:
            await aggregate.load()

        everything = [(number + 1, str(number)) for number in range(20)]
        assert [watcher.told for watcher in watchers] == [everything] * 4


class TestForks:
    async def forked(
        self, store: EventStore, parent: StreamName, revision: int, key: str
    ) -> StreamName:
        fork = other(parent, key)
        aggregate = Repository(store, FOLD, snapshot_commits=1).open(fork)
        await aggregate.execute(saying(f"{FORK}{parent} {revision}"))
        return fork

    async def test_a_fork_goes_on_from_its_parents_revision(
        self, store: EventStore, stream: StreamName
    ) -> None:
        await Repository(store, FOLD).open(stream).execute(saying("a", "b", "c"))
        fork = await self.forked(store, stream, 2, "s2")
        aggregate = Repository(store, FOLD).open(fork)
        await aggregate.execute(saying("d"))
        assert aggregate.state == ["1:a", "2:b", f"1:{FORK}{stream} 2", "2:d"]
        assert (await Repository(store, FOLD).load(fork)).state == aggregate.state

    async def test_its_maker_reads_what_it_begins_with(
        self, store: EventStore, stream: StreamName
    ) -> None:
        await Repository(store, FOLD).open(stream).execute(saying("a"))
        fork = other(stream, "s2")
        aggregate = Repository(store, FOLD, snapshot_commits=1).open(fork)
        await aggregate.execute(saying(f"{FORK}{stream} 1"))
        assert await aggregate.ready() == ["1:a", f"1:{FORK}{stream} 1"]
        assert (await Repository(store, FOLD).load(fork)).state == aggregate.state

    async def test_a_fork_of_a_fork_has_all_three(
        self, store: EventStore, stream: StreamName
    ) -> None:
        await Repository(store, FOLD, snapshot_commits=1).open(stream).execute(saying("a"))
        fork = await self.forked(store, stream, 1, "s2")
        await Repository(store, FOLD, snapshot_commits=1).open(fork).execute(saying("b"))
        grandchild = await self.forked(store, fork, 2, "s3")
        loaded = await Repository(store, FOLD).load(grandchild)
        assert [text.partition(":")[2] for text in loaded.state] == [
            "a",
            f"{FORK}{stream} 1",
            "b",
            f"{FORK}{fork} 2",
        ]

    async def test_what_the_parent_does_later_is_its_own(
        self, store: EventStore, stream: StreamName
    ) -> None:
        parent = Repository(store, FOLD).open(stream)
        await parent.execute(saying("a"))
        fork = await self.forked(store, stream, 1, "s2")
        await parent.execute(saying("b"))
        assert (await Repository(store, FOLD).load(fork)).state[0] == "1:a"
        assert len((await Repository(store, FOLD).load(fork)).state) == 2

    async def test_the_deepest_fork_that_can_be_read_is_told_apart(
        self, stream: StreamName
    ) -> None:
        store = MemoryEventStore()
        await store.append(stream, draft("a"), START)
        depths = [await fork_depth(Repository(store, FOLD), stream)]
        last = stream
        for number in range(FORK_DEPTH_MAX + 1):
            fork = other(stream, f"f{number}")
            await store.append(fork, draft(f"{FORK}{last} 1"), START)
            depths.append(await fork_depth(Repository(store, FOLD), fork))
            if number < FORK_DEPTH_MAX:
                assert (await Repository(store, FOLD).load(fork)).state[0] == "1:a"
            last = fork
        assert depths == [*range(FORK_DEPTH_MAX + 1), FORK_DEPTH_MAX]
        with pytest.raises(DataDamaged):
            await Repository(store, FOLD).load(last)

    async def test_forks_that_never_reach_an_origin_are_refused(self, stream: StreamName) -> None:
        store = MemoryEventStore()
        await store.append(stream, draft(f"{FORK}{stream} 1"), START)
        with pytest.raises(DataDamaged):
            await Repository(store, FOLD).load(stream)


class TestLoading:
    async def test_a_past_revision_may_lie_within_a_commit(
        self, store: EventStore, stream: StreamName
    ) -> None:
        await Repository(store, FOLD).open(stream).execute(saying("a", "b", "c"))
        loaded = await Repository(store, FOLD).load(stream, until_revision=2)
        assert loaded.state == ["1:a", "2:b"]

    async def test_a_revision_to_come_is_not_found(
        self, store: EventStore, stream: StreamName
    ) -> None:
        await Repository(store, FOLD).open(stream).execute(saying("a"))
        with pytest.raises(NotFound) as raised:
            await Repository(store, FOLD).load(stream, until_revision=2)
        assert raised.value.metadata["revision"] == "1"

    async def test_a_snapshot_of_another_fold_is_passed_over(
        self, store: EventStore, stream: StreamName
    ) -> None:
        aggregate = Repository(store, FOLD, snapshot_commits=1).open(stream)
        await aggregate.execute(saying("a"))
        snapshot = events_pb2.Snapshot(
            stream=str(stream), revision=1, fold_version=2, state=b"\xff"
        )
        await store.save_snapshot(snapshot)
        assert (await Repository(store, FOLD).load(stream)).state == ["1:a"]

    async def test_a_snapshot_whose_state_does_not_parse_is_passed_over(
        self, store: EventStore, stream: StreamName
    ) -> None:
        await Repository(store, FOLD).open(stream).execute(saying("a"))
        snapshot = events_pb2.Snapshot(
            stream=str(stream), revision=1, fold_version=1, state=b"\xff"
        )
        await store.save_snapshot(snapshot)
        loaded = await Repository(store, FOLD).load(stream)
        assert (loaded.state, loaded.snapshot_revision) == (["1:a"], 0)

    async def test_a_snapshot_that_does_not_parse_is_passed_over(self, stream: StreamName) -> None:
        log = MemoryLog()
        store = MemoryEventStore(log)
        await Repository(store, FOLD).open(stream).execute(saying("a"))
        log.snapshots[str(stream)].append(b"\xff")
        loaded = await Repository(store, FOLD).load(stream)
        assert (loaded.state, loaded.snapshot_revision) == (["1:a"], 0)

    @pytest.mark.parametrize("may_ignore", [True, False])
    async def test_unknown_events_are_passed_over_only_where_they_may_be(
        self, stream: StreamName, may_ignore: bool
    ) -> None:
        store = MemoryEventStore()
        unknown = NewEvent(session_pb2.Session(name="?"), may_ignore)
        commit = CommitDraft([unknown, NewEvent(StringValue(value="a"))], 1)
        await store.append(stream, commit, START)
        repository = Repository(store, FOLD)
        if may_ignore:
            assert (await repository.load(stream)).state == ["2:a"]
            return
        with pytest.raises(DataDamaged) as raised:
            await repository.load(stream)
        assert raised.value.metadata["type"] == "weft.state.v1.Session"

    async def test_a_commit_that_can_not_be_folded_is_not_folded_twice(
        self, stream: StreamName
    ) -> None:
        store = MemoryEventStore()
        aggregate = Repository(store, FOLD).open(stream)
        await aggregate.execute(saying("a"))
        unknown = NewEvent(session_pb2.Session(name="?"))
        commit = CommitDraft([NewEvent(StringValue(value="b")), unknown], 1)
        await store.append(stream, commit, aggregate.head)
        for _ in range(2):
            with pytest.raises(DataDamaged):
                await aggregate.load()
        with pytest.raises(DataDamaged):
            await aggregate.execute(counting)


class TestKeeping:
    async def test_the_longest_unused_that_nobody_needs_is_forgotten(
        self, stream: StreamName
    ) -> None:
        repository = Repository(MemoryEventStore(), FOLD, aggregates_max=2)
        first, second, third = (other(stream, key) for key in ("a", "b", "c"))
        repository.open(first).pins += 1
        repository.open(second)
        repository.open(third)
        assert repository.hot(first) is not None
        assert repository.hot(second) is None
        assert repository.hot(third) is not None

    async def test_one_that_was_just_opened_is_kept_where_all_others_are_needed(
        self, stream: StreamName
    ) -> None:
        repository = Repository(MemoryEventStore(), FOLD, aggregates_max=1)
        repository.open(stream).pins += 1
        another = repository.open(other(stream, "s2"))
        assert repository.open(other(stream, "s2")) is another

    async def test_one_with_a_commit_on_its_way_is_kept(self, stream: StreamName) -> None:
        store = HarmedStore()
        repository = Repository(store, FOLD, aggregates_max=1)
        store.held = asyncio.Event()
        pending = await repository.open(stream).send(saying("a"))
        repository.open(other(stream, "s2"))
        assert repository.hot(stream) is not None
        store.held.set()
        await pending

    async def test_a_copy_that_was_handed_out_stays_as_it_was(self, stream: StreamName) -> None:
        aggregate = Repository(MemoryEventStore(), FOLD).open(stream)
        await aggregate.execute(saying("a"))
        copy = await aggregate.acknowledged()
        await aggregate.execute(saying("b"))
        assert copy.state == ["1:a"]
        assert copy.head.revision == 1
