"""Aggregates: what a stream's events fold into, and the one writer of it in a process.

`Repository.load` rebuilds a state for reading, at any revision. `Repository.open` gives
the process's `Aggregate` of a stream, which decides on its state and appends. A stale
writer's append fails at the store and is decided again on the state that won.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

import structlog
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.call import current_call
from mesh.clock import SYSTEM, Clock
from mesh.errors import (
    Conflict,
    DataDamaged,
    DataErased,
    EventStoreUnavailable,
    LimitExceeded,
    NotFound,
    WeftError,
)
from mesh.events.fold import Fold, Place, S
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
from mesh.principal import SYSTEM_NAME
from weft.events.v1 import events_pb2

Observer = Callable[[int, Timestamp, Message], None]
"""Is told of a stored fact: its revision, its commit's time, the fact."""

SNAPSHOT_COMMITS = 100
CONFLICTS_MAX = 32
FORK_DEPTH_MAX = 64
AGGREGATES_MAX = 1_000

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Loaded(Generic[S]):
    """A state with the head that it stands at. `commits` counts those folded since the
    snapshot at `snapshot_revision`, or since the first."""

    state: S
    head: Head
    commits: int = 0
    snapshot_revision: int = 0


class Repository(Generic[S]):
    """Loads the aggregates of one kind, and keeps those that this process writes.

    With `ahead` a writer's state holds what was sent before it is acknowledged, so that a
    commit that loses costs a load of the whole state. Without, it holds what is stored, and
    a lost one costs the reading of what won.
    """

    def __init__(
        self,
        store: EventStore,
        fold: Fold[S],
        *,
        snapshot_commits: int = SNAPSHOT_COMMITS,
        aggregates_max: int = AGGREGATES_MAX,
        ahead: bool = True,
        clock: Clock = SYSTEM,
    ) -> None:
        self.store = store
        self.fold = fold
        self.clock = clock
        self.snapshot_commits = snapshot_commits
        self.ahead = ahead
        self._aggregates_max = aggregates_max
        self._open: OrderedDict[StreamName, Aggregate[S]] = OrderedDict()

    async def load(
        self,
        stream: StreamName,
        *,
        until_revision: int | None = None,
        snapshots: bool = True,
    ) -> Loaded[S]:
        """The state at `until_revision`, or now; with head START where there is nothing.

        Raises NotFound where the stream has no such revision yet, DataErased where its key
        was erased, DataDamaged where the log doesn't hold together.
        """
        loaded = await self._load(stream, until_revision, snapshots, FORK_DEPTH_MAX)
        if until_revision is not None and loaded.head.revision < until_revision:
            raise NotFound(
                f"{stream} is at revision {loaded.head.revision}, before {until_revision}",
                metadata={"revision": str(loaded.head.revision)},
            )
        return loaded

    def open(self, stream: StreamName) -> "Aggregate[S]":
        """This process's writer of the stream; nothing is read yet."""
        aggregate = self._open.get(stream)
        if aggregate is None:
            aggregate = self._open[stream] = Aggregate(self, stream)
            self._evict()
        self._open.move_to_end(stream)
        return aggregate

    def hot(self, stream: StreamName) -> "Aggregate[S] | None":
        """The writer of the stream, if this process has one."""
        return self._open.get(stream)

    def forget(self, stream: StreamName) -> None:
        """Drops what this process holds of the stream, as when it was erased. Who has its
        writer in hand reads the log again."""
        aggregate = self._open.pop(stream, None)
        if aggregate is not None:
            aggregate.forget()

    async def _load(
        self, stream: StreamName, until_revision: int | None, snapshots: bool, depth: int
    ) -> Loaded[S]:
        if depth < 0:
            raise DataDamaged(f"{stream} was forked more than {FORK_DEPTH_MAX} times in a row")
        loaded = None
        if snapshots:
            loaded = await self._from_snapshot(stream, until_revision)
        if loaded is None:
            loaded = Loaded(self.fold.initial(), START)
        async for page in self.store.read(stream, loaded.head, until_revision=until_revision):
            if loaded.head is START:
                await self._begin_at_origin(loaded, page[0], snapshots, depth)
            self._fold_page(loaded, page, until_revision)
        return loaded

    async def _from_snapshot(
        self, stream: StreamName, until_revision: int | None
    ) -> Loaded[S] | None:
        try:
            snapshot = await self.store.snapshot(stream, until_revision=until_revision)
            if snapshot is None or snapshot.fold_version != self.fold.version:
                return None
            state = self.fold.decode(snapshot.state)
        except (DataDamaged, DecodeError) as error:
            # It only shortens what the log has from its start.
            _log.warning("snapshot_damaged", stream=str(stream), error=str(error))
            return None
        head = Head(snapshot.revision, snapshot.position, snapshot.head_hash)
        return Loaded(state, head, snapshot_revision=snapshot.revision)

    async def _begin_at_origin(
        self, loaded: Loaded[S], first: StoredCommit, snapshots: bool, depth: int
    ) -> None:
        origin = self.origin(first)
        if origin is not None:
            loaded.state = (await self._load(*origin, snapshots, depth - 1)).state

    def origin(self, first: StoredCommit) -> tuple[StreamName, int] | None:
        """The stream and revision that a stream with this first commit continues, if it is
        a fork. DataErased where it was erased."""
        first.refuse_erased()
        event = self.fold.open(first.commit.events[0])
        return self.fold.origin(event) if event is not None else None

    def _fold_page(
        self, loaded: Loaded[S], page: Iterable[StoredCommit], until_revision: int | None
    ) -> None:
        evolve, open_event = self.fold.evolve, self.fold.open
        state = loaded.state
        for stored in page:
            stored.refuse_erased()
            place = Place(stored.commit.revision - 1, stored.commit.time)
            for event in stored.commit.events:
                place.revision += 1
                if until_revision is not None and place.revision > until_revision:
                    break
                message = open_event(event)
                if message is not None:
                    state = evolve(state, message, place)
            loaded.head = stored.head
            loaded.commits += 1
        loaded.state = state

    def _evict(self) -> None:
        excess = len(self._open) - self._aggregates_max
        # Not the newest: who asked for it is about to use it.
        for stream, aggregate in list(self._open.items())[:-1]:
            if excess <= 0:
                return
            if aggregate.idle():
                del self._open[stream]
                excess -= 1


class Aggregate(Generic[S]):
    """The one writer of a stream in this process.

    At most one commit is in flight. `send` returns when its commit was decided and is
    on its way, so that work that needs no acknowledgement can go on; `execute` waits
    for it. `state` holds what was sent, acknowledged or not, where the repository is
    `ahead`. `observers` are told of every fact once it is known to be stored, in the log's
    order, whoever wrote it.
    """

    def __init__(self, repository: Repository[S], stream: StreamName) -> None:
        self.stream = stream
        self.pins = 0
        self.observers: list[Observer] = []
        self._repository = repository
        self._loaded: Loaded[S] | None = None
        self._stale = False
        self._behind = False
        self._lock = asyncio.Lock()
        self._flight: asyncio.Task[StoredFacts | None] | None = None

    @property
    def state(self) -> S:
        """The state as this process last knew it; only after `load` or a command."""
        assert self._loaded is not None, "load first"
        return self._loaded.state

    @property
    def head(self) -> Head:
        """The last head that is known to be stored; START before anything was read."""
        return self._loaded.head if self._loaded is not None else START

    @property
    def settled(self) -> bool:
        """Whether nothing is in flight: `state` is what is stored, and observers know it."""
        return self._settled()

    def idle(self) -> bool:
        """Whether it may be forgotten: nobody pinned it and nothing is in flight."""
        return not self.pins and not self._lock.locked() and self._settled()

    def forget(self) -> None:
        """Drops the state; the next use reads the log."""
        if self._loaded is not None:
            self._loaded = Loaded(self._repository.fold.initial(), START)
            self._stale = True

    async def ready(self) -> S:
        """The state as this process knows it; read only if it knows nothing yet."""
        if self._loaded is None or self._stale or self._behind:
            async with self._lock:
                await self._settle()
                await self._ensure()
        return self.state

    async def load(self) -> S:
        """The state with every commit that is stored by now."""
        async with self._lock:
            await self._settle()
            if self._loaded is not None and not self._stale:
                await self._catch_up(self._loaded)
            return (await self._ensure()).state

    async def acknowledged(self) -> Loaded[S]:
        """A copy of what this process works with, with nothing in flight."""
        async with self._lock:
            await self._settle()
            loaded = await self._ensure()
            fold = self._repository.fold
            return Loaded(fold.decode(fold.encode(loaded.state)), loaded.head)

    async def execute(
        self, decide: Callable[[S], Sequence[Message]], request_id: str = "", *, actor: str = ""
    ) -> "StoredFacts | None":
        """Decides, appends and waits for the acknowledgement.

        `decide` may be called again on a newer state, when somebody else's commit came
        first. `actor` is who does it, where that isn't the present call's. Returns None where
        it decided that there is nothing to do. Raises what `decide` raises, Conflict after too
        many losses, EventStoreUnavailable.
        """
        return await asyncio.shield(await self.send(decide, request_id, actor=actor))

    async def send(
        self, decide: Callable[[S], Sequence[Message]], request_id: str = "", *, actor: str = ""
    ) -> "asyncio.Task[StoredFacts | None]":
        """As `execute`, but returns while the commit is on its way. A second `send`
        waits for the first one's acknowledgement, since it needs the head."""
        async with self._lock:
            await self._settle()
            loaded = await self._ensure()
            try:
                events = list(decide(loaded.state))
            except WeftError:
                # Somebody else's commit may have made it possible, or said it better.
                if not await self._catch_up(loaded):
                    raise
                loaded = await self._ensure()
                events = list(decide(loaded.state))
            draft = self._draft(events, request_id, actor)
            if self._repository.ahead:
                self._evolve(loaded, draft)
            self._flight = asyncio.create_task(self._append(loaded, draft, decide))
            return self._flight

    async def _append(
        self, loaded: Loaded[S], draft: CommitDraft, decide: Callable[[S], Sequence[Message]]
    ) -> "StoredFacts | None":
        try:
            for _ in range(CONFLICTS_MAX):
                if not draft.events:
                    return None
                try:
                    first_revision = loaded.head.revision + 1
                    head = await self._repository.store.append(self.stream, draft, loaded.head)
                except HeadConflict:
                    loaded = await self._won(loaded)
                    draft = self._draft(list(decide(loaded.state)), draft.request_id, draft.actor)
                    if self._repository.ahead:
                        self._evolve(loaded, draft)
                    continue
                if not self._repository.ahead:
                    self._evolve(loaded, draft)
                loaded.head = head
                # What a fork begins with is another stream's: it is read as stored.
                self._stale = self._repository.fold.origin(draft.events[0].payload) is not None
                self._acknowledge(loaded, draft, first_revision)
                return StoredFacts(self.stream, first_revision, draft)
        except BaseException:
            self._doubt()
            raise
        self._doubt()
        raise Conflict(f"{self.stream}: {CONFLICTS_MAX} other commits came first")

    def _doubt(self) -> None:
        """What is stored is unknown now: the next use reads it."""
        if self._repository.ahead:
            self._stale = True
        else:
            self._behind = True

    def _draft(self, events: Sequence[Message], request_id: str, actor: str) -> CommitDraft:
        call = current_call.get()
        return CommitDraft(
            events=[NewEvent(event) for event in events],
            time_ns=self._repository.clock.now_ns(),
            actor=actor or (call.actor if call else SYSTEM_NAME),
            request_id=request_id or (call.request_id if call else ""),
            traceparent=call.traceparent if call else "",
        )

    def _evolve(self, loaded: Loaded[S], draft: CommitDraft) -> None:
        time = Timestamp()
        time.FromNanoseconds(draft.time_ns)
        place = Place(loaded.head.revision, time)
        state = loaded.state
        try:
            for event in draft.events:
                place.revision += 1
                state = self._repository.fold.evolve(state, event.payload, place)
        except BaseException:
            # Half an event may be folded in: the next use reads the log again.
            self._stale = True
            raise
        loaded.state = state

    def _acknowledge(self, loaded: Loaded[S], draft: CommitDraft, first_revision: int) -> None:
        if self.observers:
            time = Timestamp()
            time.FromNanoseconds(draft.time_ns)
            for revision, event in enumerate(draft.events, first_revision):
                self._observe(revision, time, event.payload)
        loaded.commits += 1
        if loaded.commits >= self._repository.snapshot_commits and not self._stale:
            loaded.commits = 0
            snapshot = events_pb2.Snapshot(
                stream=str(self.stream),
                revision=loaded.head.revision,
                position=loaded.head.position,
                head_hash=loaded.head.hash,
                fold_version=self._repository.fold.version,
            )
            parts = self._repository.fold.encoded(loaded.state)
            _background(self._save(snapshot, next(parts), parts))

    async def _save(
        self, snapshot: events_pb2.Snapshot, first: bytes, rest: Iterator[bytes]
    ) -> None:
        parts = [first]
        for part in rest:
            parts.append(part)
            # Whoever waits for the process goes first.
            await asyncio.sleep(0)
        snapshot.state = b"".join(parts)
        try:
            await self._repository.store.save_snapshot(snapshot)
        except (EventStoreUnavailable, LimitExceeded, DataErased):
            # A snapshot only shortens loads; the next one is due soon, or never.
            return

    def _observe(self, revision: int, time: Timestamp, fact: Message) -> None:
        for observer in tuple(self.observers):
            observer(revision, time, fact)

    def _observe_page(self, page: Iterable[StoredCommit]) -> None:
        for stored in page if self.observers else ():
            for revision, event in enumerate(stored.commit.events, stored.commit.revision):
                fact = self._repository.fold.open(event)
                if fact is not None:
                    self._observe(revision, stored.commit.time, fact)

    async def _won(self, loaded: Loaded[S]) -> Loaded[S]:
        """The state after another's commit came first."""
        if self._repository.ahead or self._stale or loaded is not self._loaded:
            return await self._reload(loaded.head)
        await self._catch_up(loaded)
        return self._loaded

    async def _reload(self, known: Head) -> Loaded[S]:
        """The state that won; what was decided on the one that lost is folded in there."""
        loaded = await self._repository.load(self.stream)
        pages = []
        if self.observers and known.revision < loaded.head.revision:
            # They are told of what the state holds, no less and no more: what is stored
            # meanwhile is a later load's.
            until = loaded.head.revision
            missed = self._repository.store.read(self.stream, known, until_revision=until)
            pages = [page async for page in missed]
        self._loaded = loaded
        self._stale = self._behind = False
        for page in pages:
            self._observe_page(page)
        return loaded

    def _settled(self) -> bool:
        return self._flight is None or self._flight.done()

    async def _settle(self) -> None:
        """Waits for the commit in flight; who sent it hears of its failure."""
        if self._flight is not None:
            if not self._flight.done():
                await asyncio.wait([self._flight])
            if not self._flight.cancelled():
                self._flight.exception()
            self._flight = None

    async def _ensure(self) -> Loaded[S]:
        if self._loaded is None:
            self._loaded = await self._repository.load(self.stream)
        elif self._stale:
            return await self._reload(self._loaded.head)
        elif self._behind:
            await self._catch_up(self._loaded)
        return self._loaded

    async def _catch_up(self, loaded: Loaded[S]) -> bool:
        """Folds in what others committed; whether there was anything."""
        before = loaded.head
        if before is START:
            return (await self._reload(before)).head is not START
        try:
            async for page in self._repository.store.read(self.stream, before):
                self._repository._fold_page(loaded, page, None)
                self._observe_page(page)
        except BaseException:
            # Half a commit may be folded in: the next use reads the log again.
            self._stale = True
            raise
        self._behind = False
        return loaded.head != before


@dataclass(frozen=True, slots=True)
class StoredFacts:
    """What a command stored: its events from `first_revision` on."""

    stream: StreamName
    first_revision: int
    draft: CommitDraft


_tasks: set[asyncio.Task[None]] = set()


def _background(work: Coroutine[None, None, None]) -> None:
    task = asyncio.create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
