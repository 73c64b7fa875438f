"""An event store in memory: for tests, and for what needn't outlive its process."""

import asyncio
import hashlib
from collections import defaultdict, deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from mesh.clock import SYSTEM, Clock
from mesh.events.blobs import BlobStore, MemoryBlobStore
from mesh.events.codec import PLAIN, Codecs
from mesh.events.envelope import (
    Envelope,
    check_chain,
    head_of,
    parse_snapshot,
)
from mesh.events.store import (
    EVERYTHING,
    START,
    CommitDraft,
    Head,
    HeadConflict,
    SealedCommit,
    Selection,
    StoredCommit,
    StreamName,
)
from mesh.ids import new_id
from weft.events.v1 import events_pb2

READ_PAGE_COMMITS = 1000
SNAPSHOTS_KEPT = 8


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A commit's stored bytes; `time_ns` is when they were stored, in Unix time."""

    stream: str
    time_ns: int
    data: bytes


@dataclass(slots=True)
class MemoryLog:
    """What a memory store holds. The entry at index i has the position i + 1.

    A second store on the same log finds all that the first one stored.
    """

    id: str = field(default_factory=new_id)
    entries: list[LogEntry] = field(default_factory=list)
    snapshots: dict[str, deque[bytes]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=SNAPSHOTS_KEPT))
    )


class MemoryEventStore:
    """An EventStore over a MemoryLog, for one event loop."""

    def __init__(
        self,
        log: MemoryLog | None = None,
        *,
        blobs: BlobStore | None = None,
        codecs: Codecs = PLAIN,
        clock: Clock = SYSTEM,
    ) -> None:
        self._log = log or MemoryLog()
        self._clock = clock
        self._envelope = Envelope(blobs or MemoryBlobStore(), codecs)
        self._grown = asyncio.Event()
        self._positions: dict[str, list[int]] = defaultdict(list)
        for position, entry in enumerate(self._log.entries, 1):
            self._positions[entry.stream].append(position)

    async def append(self, stream: StreamName, draft: CommitDraft, head: Head) -> Head:
        """See EventStore."""
        name = str(stream)
        data = await self._envelope.seal(stream, draft, head)
        positions = self._positions[name]
        # No await from here on: of racing appends exactly one passes.
        if head.position != (positions[-1] if positions else 0):
            raise HeadConflict(f"{name} has changed", metadata={"stream": name})
        self._log.entries.append(LogEntry(name, self._clock.now_ns(), data))
        positions.append(len(self._log.entries))
        self._grown.set()
        self._grown = asyncio.Event()
        revision = head.revision + len(draft.events)
        return Head(revision, positions[-1], hashlib.sha256(data).digest())

    async def read(
        self, stream: StreamName, after: Head = START, *, until_revision: int | None = None
    ) -> AsyncGenerator[list[StoredCommit], None]:
        """See EventStore."""
        positions = [p for p in self._positions.get(str(stream), ()) if p > after.position]
        head = after
        for start in range(0, len(positions), READ_PAGE_COMMITS):
            page = []
            for position in positions[start : start + READ_PAGE_COMMITS]:
                if until_revision is not None and head.revision >= until_revision:
                    break
                stored = await self.open(self._sealed(position))
                head = check_chain(head, [stored])
                page.append(stored)
            if not page:
                return
            yield page

    async def head_at(self, stream: StreamName, time_ns: int) -> Head:
        """See EventStore."""
        for position in reversed(self._positions.get(str(stream), [])):
            entry = self._log.entries[position - 1]
            if entry.time_ns < time_ns:
                return head_of(entry.stream, position, entry.data)
        return START

    async def watch(
        self, selection: Selection, after_position: int | None = None
    ) -> AsyncGenerator[StoredCommit, None]:
        """See EventStore."""
        position = len(self._log.entries) if after_position is None else after_position
        async for sealed in self.watch_sealed(selection, position):
            yield await self._envelope.open_shared(*sealed)

    async def watch_sealed(
        self, selection: Selection, after_position: int
    ) -> AsyncGenerator[SealedCommit, None]:
        """See EventStore."""
        position = after_position
        while True:
            until = len(self._log.entries)
            async for sealed in self.scan(selection, position, until):
                yield sealed
            position = until
            if until == len(self._log.entries):
                await self._grown.wait()

    async def scan(
        self, selection: Selection, after_position: int, until_position: int
    ) -> AsyncGenerator[SealedCommit, None]:
        """See EventStore."""
        for position in range(after_position + 1, until_position + 1):
            if selection.holds(self._log.entries[position - 1].stream):
                yield self._sealed(position)

    async def open(self, sealed: SealedCommit) -> StoredCommit:
        """See EventStore."""
        return await self._envelope.open(sealed.stream, sealed.position, sealed.data)

    async def position_at(self, time_ns: int) -> int:
        """See EventStore."""
        for index, entry in enumerate(self._log.entries):
            if entry.time_ns >= time_ns:
                return index
        return len(self._log.entries)

    async def log_id(self) -> str:
        """See EventStore."""
        return self._log.id

    async def last_position(self, selection: Selection = EVERYTHING) -> int:
        """See EventStore."""
        entries = self._log.entries
        for position in range(len(entries), 0, -1):
            if selection.holds(entries[position - 1].stream):
                return position
        return 0

    async def save_snapshot(self, snapshot: events_pb2.Snapshot) -> None:
        """See EventStore."""
        kept, state = await self._envelope.seal_snapshot(snapshot)
        kept.state = state
        self._log.snapshots[snapshot.stream].append(kept.SerializeToString())

    async def snapshot(
        self, stream: StreamName, *, until_revision: int | None = None
    ) -> events_pb2.Snapshot | None:
        """See EventStore."""
        name = str(stream)
        for data in reversed(self._log.snapshots.get(name, ())):
            kept = parse_snapshot(name, data)
            if until_revision is None or kept.revision <= until_revision:
                return await self._envelope.open_snapshot(kept)
        return None

    async def scrub(self, stream: StreamName) -> None:
        """See EventStore."""
        name = str(stream)
        kept = [parse_snapshot(name, data) for data in self._log.snapshots.pop(name, ())]
        sealed = [self._sealed(position) for position in self._positions.get(name, ())]
        commits = [events_pb2.Commit.FromString(each.data) for each in sealed]
        await self._envelope.delete_blobs((*kept, *commits))

    def _sealed(self, position: int) -> SealedCommit:
        entry = self._log.entries[position - 1]
        return SealedCommit(entry.stream, position, entry.data)
