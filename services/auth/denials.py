"""Calls that were refused, counted, and committed now and then for the audit trail."""

from collections import Counter

from mesh.clock import Clock
from mesh.errors import Conflict
from mesh.events.store import CommitDraft, EventStore, HeadConflict, NewEvent, StreamName
from mesh.principal import Principal
from services.auth.background import Background
from services.auth.domain import denied_stream
from weft.auth.v1 import events_pb2 as facts

COUNTED_MAX = 1_024
COMMIT_EVENTS_MAX = 256
CONFLICTS_MAX = 16
_LENGTH_MAX = 256
_FAR_NS = 2**63 - 1
"""A time that every commit is stored before."""


class Denials:
    """Counts by principal and method. Past `COUNTED_MAX` of them at a time, what comes in
    addition is counted under the method `*`, and past that not at all: an audit trail
    must not be a way to fill the log."""

    def __init__(self, events: EventStore, clock: Clock, interval_seconds: float) -> None:
        self._events = events
        self._clock = clock
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._background = Background("denials", self._flush, interval_seconds)

    def start(self) -> None:
        """From here on what is recorded is committed."""
        self._background.start()

    async def stop(self) -> None:
        """Commits what is left."""
        await self._background.stop()

    def record(self, principal: Principal, method: str) -> None:
        """Counts a call of the principal that was refused."""
        if principal.is_system or not principal.tenant:
            return
        key = (principal.tenant, principal.name, method[:_LENGTH_MAX])
        if key not in self._counts and len(self._counts) >= COUNTED_MAX:
            key = (principal.tenant, principal.name, "*")
            if key not in self._counts and len(self._counts) >= 2 * COUNTED_MAX:
                return
        self._counts[key] += 1
        self._background.wake()

    async def _flush(self) -> None:
        for tenant, principal in {key[:2] for key in self._counts}:
            taken = {
                key: count for key, count in self._counts.items() if key[:2] == (tenant, principal)
            }
            events = [
                NewEvent(facts.AccessDenied(principal=principal, method=key[2], count=count))
                for key, count in taken.items()
            ]
            await self._commit(denied_stream(tenant), principal, events[:COMMIT_EVENTS_MAX])
            # Some may have come while these were committed.
            self._counts.subtract(dict(list(taken.items())[:COMMIT_EVENTS_MAX]))
        self._counts = +self._counts
        if self._counts:
            self._background.wake()

    async def _commit(self, stream: StreamName, principal: str, events: list[NewEvent]) -> None:
        """One commit, of which the principal is the actor. Whoever else writes to the
        stream may come first a few times."""
        for _ in range(CONFLICTS_MAX):
            head = await self._events.head_at(stream, _FAR_NS)
            draft = CommitDraft(events, self._clock.now_ns(), actor=principal)
            try:
                await self._events.append(stream, draft, head)
            except HeadConflict:
                continue
            return
        raise Conflict(f"{stream}: {CONFLICTS_MAX} other commits came first")
