"""What functions there are: a read model in memory, fed by the events of every instance."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.events.following import Following
from mesh.events.store import EventStore, Selection, StoredCommit, StreamName
from services.functions.domain import AREA, FunctionState, evolve_commit
from weft.functions.v1 import functions_pb2


@dataclass(frozen=True, slots=True)
class _Entry:
    revision: int
    state: FunctionState


class FunctionCatalogue:
    """The functions of all tenants, without their sources.

    It sees what other instances deploy a moment later, and what this one deploys at once,
    through `put`. Reads raise DataDamaged once an event couldn't be read.
    """

    def __init__(self, events: EventStore, *, catch_up_seconds: float) -> None:
        self._following = Following(events, Selection(AREA), self._apply)
        self._catch_up_seconds = catch_up_seconds
        self._entries: defaultdict[str, dict[str, _Entry]] = defaultdict(dict)

    async def start(self) -> None:
        """Returns once it holds all that is deployed by now. Raises EventStoreUnavailable,
        DataDamaged."""
        self._following.start()
        await self._following.catch_up(self._catch_up_seconds)

    async def stop(self) -> None:
        """Ends following."""
        await self._following.stop()

    def put(self, stream: StreamName, revision: int, state: FunctionState) -> None:
        """Notes what the stream says at `revision`, unless something newer is known."""
        entries = self._entries[stream.tenant]
        known = entries.get(stream.key[0])
        if known is None or known.revision < revision:
            entries[stream.key[0]] = _Entry(revision, state)

    def find(self, stream: StreamName) -> functions_pb2.Function | None:
        """The function, if there is one."""
        self._refuse_stale()
        entry = self._entries.get(stream.tenant, {}).get(stream.key[0])
        return entry.state.function if entry else None

    def functions(self, tenant: str) -> Sequence[functions_pb2.Function]:
        """The tenant's functions, in no order."""
        self._refuse_stale()
        entries = self._entries.get(tenant, {}).values()
        return [entry.state.function for entry in entries if entry.state.function is not None]

    def _apply(self, stored: StoredCommit) -> None:
        stream = StreamName.parse(stored.commit.stream)
        if len(stream.key) > 1 or stored.erased:
            # A source, or nothing that anybody can read.
            return
        known = self._entries[stream.tenant].get(stream.key[0])
        if known is not None and known.revision >= stored.head.revision:
            return
        state = evolve_commit(known.state if known else FunctionState(), stored.commit)
        self.put(stream, stored.head.revision, state)

    def _refuse_stale(self) -> None:
        if self._following.failure is not None:
            raise self._following.failure
