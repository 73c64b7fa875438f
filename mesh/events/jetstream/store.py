"""The event store port on JetStream."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial

from mesh import failpoints
from mesh.clock import NANOSECONDS
from mesh.events.blobs import KEY_PREFIX
from mesh.events.codec import PLAIN, Codecs
from mesh.events.envelope import (
    PAYLOAD_BYTES_MAX,
    Envelope,
    check_chain,
    head_of,
    parse_commit,
    parse_snapshot,
)
from mesh.events.jetstream.append import DEFAULT_BOUNDS, Bounds, Publisher
from mesh.events.jetstream.assets import (
    EVENTS,
    SNAPSHOT_PREFIX,
    SNAPSHOTS,
    SNAPSHOTS_KEPT,
    ensure_assets,
    ensure_memory_assets,
)
from mesh.events.jetstream.connection import (
    NOBODY,
    Connection,
    Login,
    NotSent,
    connect,
    retried,
)
from mesh.events.jetstream.erase import erase_subject, messages_of
from mesh.events.jetstream.fast_client import StoredMessage
from mesh.events.jetstream.history import PAGE_COMMITS, History
from mesh.events.jetstream.objects import ObjectBlobStore
from mesh.events.jetstream.snapshot_parts import SnapshotParts
from mesh.events.jetstream.tail import LogTail
from mesh.events.store import (
    EVERYTHING,
    START,
    SUBJECT_PREFIX,
    CommitDraft,
    Head,
    SealedCommit,
    Selection,
    StoredCommit,
    StreamName,
)
from weft.events.v1 import events_pb2

_TIME_NS_MAX = 2**63 - 1
_BLOB_MARK = KEY_PREFIX.encode()
_COMMIT_TYPE = events_pb2.Commit.DESCRIPTOR.full_name


class JetStreamEventStore:
    """An EventStore on the streams of `assets`; `connect_store` makes one, from a URL.

    `connection` is there for what else the process keeps in NATS, such as leases.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        replicas: int,
        bounds: Bounds = DEFAULT_BOUNDS,
        codecs: Codecs,
        disk_full: Callable[[], bool],
    ) -> None:
        self.connection = connection
        self._publisher = Publisher(connection, bounds, disk_full)
        self._envelope = Envelope(ObjectBlobStore(connection, self._publisher), codecs)
        self._parts = SnapshotParts(connection, self._publisher)
        self._history = History(connection, replicated=replicas > 1)
        self._tail: LogTail | None = None
        self._tail_start = asyncio.Lock()

    async def close(self) -> None:
        """Ends all watches and the connection."""
        if self._tail is not None:
            await self._tail.close()
        await self.connection.close()

    async def log_id(self) -> str:
        """See EventStore."""
        return await self._history.created()

    async def lacking(self) -> int:
        """How many commits are gone before the log's end. It denies that any is deleted
        and has no limits: more than 0 is damage."""
        held, last = await self._history.size()
        return last - held

    async def forget_snapshots(self) -> None:
        """Deletes all snapshots; states are folded from the log until there are new ones."""

        async def purge() -> None:
            if "error" in await self.connection.api(f"STREAM.PURGE.{SNAPSHOTS}", {}):
                raise NotSent("JetStream isn't ready")

        await retried(purge)

    async def append(self, stream: StreamName, draft: CommitDraft, head: Head) -> Head:
        """See EventStore."""
        data = await self._envelope.seal(stream, draft, head)
        digest = hashlib.sha256(data).digest()
        headers = {
            "ce-specversion": "1.0",
            "ce-id": digest.hex(),
            "ce-source": f"/{stream}",
            "ce-type": _COMMIT_TYPE,
        }
        _failpoint(draft, "before_publish")
        position = await self._publisher.append(stream.subject, data, headers, head.position)
        _failpoint(draft, "stored")
        appended = Head(head.revision + len(draft.events), position, digest)
        _failpoint(draft, "acknowledged")
        return appended

    async def read(
        self, stream: StreamName, after: Head = START, *, until_revision: int | None = None
    ) -> AsyncGenerator[list[StoredCommit], None]:
        """See EventStore."""
        name, head, page_commits = str(stream), after, PAGE_COMMITS
        envelope = self._envelope
        if until_revision is not None:
            # A commit holds at least one event.
            page_commits = min(PAGE_COMMITS, until_revision - after.revision)
        if page_commits < 1:
            return
        pages = self._history.stream_pages(stream, after.position, page_commits)
        async with aclosing(pages):
            async for messages in pages:
                page = []
                for message in messages:
                    position, _, data, commit, _ = message
                    stored = envelope.open_at_once(position, data, commit) if commit else None
                    if stored is None:
                        stored = await envelope.open(name, position, data, commit)
                    page.append(stored)
                    if until_revision is not None and stored.head.revision >= until_revision:
                        break
                head = check_chain(head, page)
                yield page
                if until_revision is not None and head.revision >= until_revision:
                    return

    async def head_at(self, stream: StreamName, time_ns: int) -> Head:
        """See EventStore."""
        request = {"multi_last": [stream.subject], "up_to_time": _timestamp(time_ns)}
        batch = await retried(partial(self.connection.direct_get, EVENTS, request))
        if not batch.messages:
            return START
        message = batch.messages[0]
        return head_of(str(stream), message.position, message.data)

    async def watch(
        self, selection: Selection, after_position: int | None = None
    ) -> AsyncGenerator[StoredCommit, None]:
        """See EventStore."""
        tail = await self._started_tail()
        position = after_position
        if position is None:
            position = await self._history.last_position()
        async with aclosing(self._messages(tail, selection, position)) as messages:
            async for message in messages:
                yield await self._envelope.open_shared(*_sealed(message))

    async def watch_sealed(
        self, selection: Selection, after_position: int
    ) -> AsyncGenerator[SealedCommit, None]:
        """See EventStore."""
        tail = await self._started_tail()
        async with aclosing(self._messages(tail, selection, after_position)) as messages:
            async for message in messages:
                yield _sealed(message)

    async def scan(
        self, selection: Selection, after_position: int, until_position: int
    ) -> AsyncGenerator[SealedCommit, None]:
        """See EventStore."""
        found = self._history.selected(selection, after_position, until_position)
        async with aclosing(found) as messages:
            async for message in messages:
                yield _sealed(message)

    async def open(self, sealed: SealedCommit) -> StoredCommit:
        """See EventStore."""
        return await self._envelope.open(sealed.stream, sealed.position, sealed.data)

    async def _messages(
        self, tail: LogTail, selection: Selection, position: int
    ) -> AsyncGenerator[StoredMessage, None]:
        with tail.follow(selection) as feed:
            while True:
                if position < feed.since:
                    missed = self._history.selected(selection, position, feed.since)
                    position = feed.since
                    async with aclosing(missed):
                        async for message in missed:
                            yield message
                for message in await feed.take():
                    if message.position > position:
                        position = message.position
                        yield message

    async def position_at(self, time_ns: int) -> int:
        """See EventStore."""
        last = await self._history.last_position()
        request = {
            "batch": 1,
            "start_time": _timestamp(time_ns),
            "next_by_subj": EVERYTHING.subjects[0],
        }
        batch = await retried(partial(self.connection.direct_get, EVENTS, request))
        return batch.messages[0].position - 1 if batch.messages else last

    async def last_position(self, selection: Selection = EVERYTHING) -> int:
        """See EventStore."""
        return await self._history.last_position(selection)

    async def save_snapshot(self, snapshot: events_pb2.Snapshot) -> None:
        """See EventStore."""
        kept, state = await self._envelope.seal_snapshot(snapshot)
        if len(state) > PAYLOAD_BYTES_MAX:
            # The parts first: a crash leaves none that lacks them.
            kept.parts.CopyFrom(await self._parts.put(snapshot.stream, state))
        else:
            kept.state = state
        subject = f"{SNAPSHOT_PREFIX}.{snapshot.stream}"
        await self._publisher.publish(subject, kept.SerializeToString(), {})

    async def snapshot(
        self, stream: StreamName, *, until_revision: int | None = None
    ) -> events_pb2.Snapshot | None:
        """See EventStore."""
        subject = f"{SNAPSHOT_PREFIX}.{stream}"
        last = await self._last_snapshot(subject)
        if last is None:
            return None
        kept = parse_snapshot(str(stream), last)
        if until_revision is not None and kept.revision > until_revision:
            earlier = await self._snapshot_until(stream, subject, until_revision)
            return await self._whole(earlier) if earlier else None
        return await self._whole(kept)

    async def _whole(self, kept: events_pb2.Snapshot) -> events_pb2.Snapshot | None:
        if kept.HasField("parts"):
            state = await self._parts.get(kept.stream, kept.parts)
            if state is None:
                return None
            kept.state = state
        return await self._envelope.open_snapshot(kept)

    async def scrub(self, stream: StreamName) -> None:
        """See EventStore. What names a blob goes after it, so that a crash loses none."""
        name, subject = str(stream), f"{SNAPSHOT_PREFIX}.{stream}"
        async for message in messages_of(self.connection, SNAPSHOTS, subject):
            await self._envelope.delete_blobs([parse_snapshot(name, message.data)])
        until = await self._history.last_position()
        async with aclosing(self.scan(Selection(name), 0, until)) as commits:
            async for sealed in commits:
                if _BLOB_MARK in sealed.data:
                    await self._envelope.delete_blobs([parse_commit(sealed.stream, sealed.data)])
        await self._parts.erase(name)
        await erase_subject(self.connection, SNAPSHOTS, subject)

    async def _last_snapshot(self, subject: str) -> bytes | None:
        return await retried(partial(self.connection.last_stored, SNAPSHOTS, subject))

    async def _snapshot_until(
        self, stream: StreamName, subject: str, revision: int
    ) -> events_pb2.Snapshot | None:
        request = {"batch": SNAPSHOTS_KEPT, "seq": 1, "next_by_subj": subject}
        batch = await retried(partial(self.connection.direct_get, SNAPSHOTS, request))
        for message in reversed(batch.messages):
            kept = parse_snapshot(str(stream), message.data)
            if kept.revision <= revision:
                return kept
        return None

    async def _started_tail(self) -> LogTail:
        async with self._tail_start:
            if self._tail is None:
                tail = LogTail(self.connection, self._history)
                await tail.start()
                self._tail = tail
            return self._tail


async def connect_prepared(
    url: str,
    *,
    name: str,
    login: Login = NOBODY,
    replicas: int = 1,
    makes_streams: bool = True,
    uses_tokens: bool = True,
) -> Connection:
    """A connection to the NATS servers of `url`, with what the store on it needs. Arguments
    and errors are those of `connect_store`."""
    connection = await connect(url, name=name, login=login)
    try:
        if makes_streams:
            await ensure_assets(connection, replicas)
    except BaseException:
        await connection.close()
        raise
    if uses_tokens:
        connection.on_reconnect(partial(ensure_memory_assets, connection, replicas))
    return connection


async def connect_store(
    url: str,
    *,
    name: str,
    login: Login = NOBODY,
    replicas: int = 1,
    makes_streams: bool = True,
    uses_tokens: bool = True,
    append_seconds_max: float = 5.0,
    attempt_seconds: float = 1.0,
    codecs: Codecs = PLAIN,
    disk_full: Callable[[], bool] = lambda: False,
) -> JetStreamEventStore:
    """An event store on the NATS servers of `url`.

    `name` and `login` as in `connect`; `replicas` is 1 or, in a cluster, 3. Who
    `makes_streams` makes them or brings them up to date first; who `uses_tokens` makes
    those in memory again where a server lost them. An append is tried for
    `append_seconds_max`, each attempt for `attempt_seconds`; `disk_full` tells whether it
    fails for want of room. Raises EventStoreUnavailable when NATS can't be reached within 10 s.
    """
    connection = await connect_prepared(
        url,
        name=name,
        login=login,
        replicas=replicas,
        makes_streams=makes_streams,
        uses_tokens=uses_tokens,
    )
    bounds = Bounds(append_seconds_max, attempt_seconds)
    return JetStreamEventStore(
        connection, replicas=replicas, bounds=bounds, codecs=codecs, disk_full=disk_full
    )


def _sealed(message: StoredMessage) -> SealedCommit:
    stream = message.subject.removeprefix(f"{SUBJECT_PREFIX}.")
    return SealedCommit(stream, message.position, message.data)


async def log_end(connection: Connection) -> int:
    """Position of the last commit of all; 0 where there is none."""
    return await History(connection, replicated=False).last_position()


def _failpoint(draft: CommitDraft, place: str) -> None:
    if failpoints.active():
        first = draft.events[0].payload.DESCRIPTOR.name
        failpoints.failpoint(f"commit:{first}:{place}")


def _timestamp(time_ns: int) -> str:
    """The time in RFC 3339, to the nanosecond. NATS counts nanoseconds in 64 bits: a time
    beyond them, or before 1970, is the nearest that it knows."""
    seconds, nanoseconds = divmod(min(max(time_ns, 0), _TIME_NS_MAX), NANOSECONDS)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{nanoseconds:09d}Z"
