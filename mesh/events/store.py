"""The port of the event store, and the types that cross it.

One command appends one commit to its aggregate's own stream, at the head that the
command was decided on. Revisions count events, per stream, from 1 without gaps.
Positions order commits over the whole store, and grow with gaps.
"""

import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from google.protobuf.message import Message

from mesh.errors import Conflict, DataErased
from weft.events.v1 import events_pb2

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
SUBJECT_PREFIX = "weft.events"


@dataclass(frozen=True, slots=True)
class StreamName:
    """Names an aggregate's stream: `StreamName("state", "acme", ("bot", "s1"))`.

    Its text form is `state.acme.bot.s1`; its subject has the prefix `weft.events.`.
    Every part is one NATS token of `[A-Za-z0-9_-]{1,64}`; ValueError otherwise.
    """

    area: str
    tenant: str
    key: tuple[str, ...]

    def __post_init__(self) -> None:
        for token in (self.area, self.tenant, *self.key):
            if not _TOKEN.fullmatch(token):
                raise ValueError(f"not a stream token: {token!r}")

    def __str__(self) -> str:
        return ".".join((self.area, self.tenant, *self.key))

    @property
    def subject(self) -> str:
        """The NATS subject that holds the stream."""
        return f"{SUBJECT_PREFIX}.{self}"

    @classmethod
    def parse(cls, text: str) -> "StreamName":
        """The stream of the text form; ValueError where it isn't one."""
        area, tenant, *key = text.split(".")
        return cls(area, tenant, tuple(key))


@dataclass(frozen=True, slots=True)
class Selection:
    """Which streams a watch sees: all whose text form is `prefix` or begins with
    `prefix` and a dot; every stream where it is empty. `Selection("state.acme.bot")`
    sees all sessions of one agent; `Selection.of_tenant("acme")` the tenant's streams of
    every area."""

    prefix: str = ""

    @classmethod
    def of_tenant(cls, tenant: str) -> "Selection":
        """All streams of a tenant. `*` stands for one token, as in NATS; no stream's name
        has it."""
        return cls(f"*.{tenant}")

    def holds(self, stream: str) -> bool:
        """Whether the stream with this text form is selected."""
        prefix = self.prefix
        if prefix.startswith("*."):
            prefix = stream.partition(".")[0] + prefix[1:]
        return not prefix or stream == prefix or stream.startswith(prefix + ".")

    @property
    def subjects(self) -> tuple[str, ...]:
        """The NATS subjects that hold the selected streams and no other. They are two with a
        prefix, since `a.>` doesn't hold `a`."""
        if not self.prefix:
            return (f"{SUBJECT_PREFIX}.>",)
        return (f"{SUBJECT_PREFIX}.{self.prefix}", f"{SUBJECT_PREFIX}.{self.prefix}.>")


EVERYTHING = Selection()
"""Every stream."""


class Head(NamedTuple):
    """Where a stream ends: its last event's revision, its last commit's position, and
    the SHA-256 of that commit's stored bytes."""

    revision: int
    position: int
    hash: bytes


START = Head(0, 0, b"")
"""The head of a stream without commits."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A fact to be stored. Readers that don't know its type pass over it only where
    `may_ignore` is set."""

    payload: Message
    may_ignore: bool = False


IMPORTED = "import"
"""Causation of commits that an import wrote: what they say happened elsewhere, at the times
that they tell."""


@dataclass(frozen=True, slots=True)
class CommitDraft:
    """What a command decided. `events` isn't empty; `time_ns` is Unix time."""

    events: Sequence[NewEvent]
    time_ns: int
    actor: str = ""
    request_id: str = ""
    causation_id: str = ""
    traceparent: str = ""


class SealedCommit(NamedTuple):
    """A commit's stored bytes, as the log has them in `stream` at `position`: nothing was
    opened or checked."""

    stream: str
    position: int
    data: bytes


class StoredCommit(NamedTuple):
    """A commit as it was stored, with its payloads opened: `commit.events[i].payload`
    holds the plain message, wherever it lay. Where it is `erased`, its key is destroyed and
    all payloads are empty: nothing may be read out of them. It isn't to be changed."""

    commit: events_pb2.Commit
    position: int
    hash: bytes
    erased: bool = False

    @property
    def head(self) -> Head:
        """The stream's head once this commit is its last."""
        last = self.commit.revision + len(self.commit.events) - 1
        return Head(last, self.position, self.hash)

    def refuse_erased(self) -> None:
        """Raises DataErased where it is erased: for who can't go on without its facts."""
        if self.erased:
            stream = self.commit.stream
            raise DataErased(f"{stream} was erased", metadata={"stream": stream})


class HeadConflict(Conflict):
    """Another commit came first; nothing was stored. Load again and decide again."""


class EventStore(Protocol):
    """Keeps commits. Both back ends pass `tests/contract/event_store.py`.

    Every method may raise EventStoreUnavailable once its own bound on retries has
    passed, and reads raise DataDamaged where the hash chain or a payload is broken.
    """

    async def log_id(self) -> str:
        """Names the log: what was read from another one says nothing of this one."""
        ...

    async def append(self, stream: StreamName, draft: CommitDraft, head: Head) -> Head:
        """Stores `draft` after `head` and returns the new head.

        Raises HeadConflict when `head` isn't the stream's head any more: exactly one
        of any number of racing appends wins. LimitExceeded when the store is full or
        the commit has too many events, DataErased when the stream's keys were erased. After
        EventStoreUnavailable it is unknown whether the commit is stored, now or in a
        moment: load again before deciding.
        """
        ...

    def read(
        self, stream: StreamName, after: Head = START, *, until_revision: int | None = None
    ) -> AsyncGenerator[list[StoredCommit], None]:
        """Pages of the stream's commits behind `after`, oldest first, chain checked.

        With `until_revision` the last commit is the one that holds that revision.
        """
        ...

    async def head_at(self, stream: StreamName, time_ns: int) -> Head:
        """The head that the stream had at that time; START where it had none."""
        ...

    def watch(
        self, selection: Selection, after_position: int | None = None
    ) -> AsyncGenerator[StoredCommit, None]:
        """Commits behind `after_position`, oldest first, then those that come, without
        gap or duplicate; from now on where it is None. Never ends by itself."""
        ...

    def scan(
        self, selection: Selection, after_position: int, until_position: int
    ) -> AsyncGenerator[SealedCommit, None]:
        """What the log has in the selected streams behind the one position and up to the
        other, oldest first and damaged or not, for who looks at the log itself."""
        ...

    def watch_sealed(
        self, selection: Selection, after_position: int
    ) -> AsyncGenerator[SealedCommit, None]:
        """As `watch`, of what `scan` returns."""
        ...

    async def open(self, sealed: SealedCommit) -> StoredCommit:
        """The commit with its payloads opened. DataDamaged where its bytes aren't a commit
        of that stream, or a payload doesn't open; its place in the chain isn't looked at."""
        ...

    async def position_at(self, time_ns: int) -> int:
        """Position of the last commit stored before that time; 0 where there is none."""
        ...

    async def last_position(self, selection: Selection = EVERYTHING) -> int:
        """Position of the last commit in the selected streams; 0 where there is none.

        Where a watch of the selection has caught up: it never sees other positions.
        """
        ...

    async def save_snapshot(self, snapshot: events_pb2.Snapshot) -> None:
        """Keeps a snapshot; of each stream the last few are kept."""
        ...

    async def snapshot(
        self, stream: StreamName, *, until_revision: int | None = None
    ) -> events_pb2.Snapshot | None:
        """The latest kept snapshot at or before `until_revision`, its state opened.
        DataErased where its key was erased."""
        ...

    async def scrub(self, stream: StreamName) -> None:
        """Deletes what is kept of an erased stream beside its log: its snapshots, and the
        blobs that these and its commits name. Blobs of commits that weren't sealed stay:
        another stream may hold the same. Safe to repeat."""
        ...
