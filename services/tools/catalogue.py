"""What tools there are: a read model in memory, fed by the events of every instance."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.events.following import Following
from mesh.events.store import EventStore, Selection, StoredCommit, StreamName
from services.tools.domain import AREA, ToolState, evolve_commit
from weft.tools.v1 import tools_pb2


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is registered under an id; a deleted tool stays as None with its revision,
    so that an older event can't bring it back."""

    revision: int
    tool: tools_pb2.Tool | None


class ToolCatalogue:
    """The registered tools of all tenants.

    It sees what other instances register a moment later, and what this one registers at
    once, through `put`. Reads raise DataDamaged once an event couldn't be read.
    """

    def __init__(self, events: EventStore, *, catch_up_seconds: float) -> None:
        self._following = Following(events, Selection(AREA), self._apply)
        self._catch_up_seconds = catch_up_seconds
        self._entries: defaultdict[str, dict[str, _Entry]] = defaultdict(dict)

    async def start(self) -> None:
        """Returns once it holds all that is registered by now. Raises EventStoreUnavailable,
        DataDamaged."""
        self._following.start()
        await self._following.catch_up(self._catch_up_seconds)

    async def stop(self) -> None:
        """Ends following."""
        await self._following.stop()

    def put(self, stream: StreamName, revision: int, tool: tools_pb2.Tool | None) -> None:
        """Notes what the stream says at `revision`, unless something newer is known."""
        entries = self._entries[stream.tenant]
        known = entries.get(stream.key[0])
        if known is None or known.revision < revision:
            entries[stream.key[0]] = _Entry(revision, tool)

    def find(self, stream: StreamName) -> tools_pb2.Tool | None:
        """The registered tool, if there is one."""
        self._refuse_stale()
        entry = self._entries.get(stream.tenant, {}).get(stream.key[0])
        return entry.tool if entry else None

    def tools(self, tenant: str) -> Sequence[tools_pb2.Tool]:
        """The tenant's registered tools, in no order."""
        self._refuse_stale()
        entries = self._entries.get(tenant, {}).values()
        return [entry.tool for entry in entries if entry.tool is not None]

    def _apply(self, stored: StoredCommit) -> None:
        # Only the last fact counts here: requests aren't answered from the catalogue.
        state = evolve_commit(ToolState(), stored.commit)
        stream = StreamName.parse(stored.commit.stream)
        self.put(stream, stored.head.revision, state.tool)

    def _refuse_stale(self) -> None:
        if self._following.failure is not None:
            raise self._following.failure
