"""Calls that were refused, counted, and committed now and then for the audit trail."""

from collections import Counter

from mesh.clock import Clock
from mesh.events.appending import append_behind
from mesh.events.store import CommitDraft, EventStore, NewEvent
from mesh.principal import Principal
from services.auth.background import Background
from services.auth.domain import denied_stream
from weft.auth.v1 import events_pb2 as facts

COUNTED_MAX = 1_024
COMMIT_EVENTS_MAX = 256
_LENGTH_MAX = 256


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
            draft = CommitDraft(events[:COMMIT_EVENTS_MAX], self._clock.now_ns(), actor=principal)
            await append_behind(self._events, denied_stream(tenant), draft)
            # Some may have come while these were committed.
            self._counts.subtract(dict(list(taken.items())[:COMMIT_EVENTS_MAX]))
        self._counts = +self._counts
        if self._counts:
            self._background.wake()
