"""What MCP servers there are: a read model in memory, fed by the events of every instance."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from mesh.events.fold import evolved
from mesh.events.following import Following
from mesh.events.store import EventStore, Selection, StoredCommit, StreamName
from services.tools.mcp.domain import AREA, MCP_FOLD, Record, server_name
from weft.tools.v1 import tools_pb2

CATCH_UP_SECONDS_MAX = 5.0


class McpCatalogue:
    """The servers of all tenants, and their tools by name. What is known here is a moment
    old; reads raise DataDamaged once an event couldn't be read. `on_change` is told the name of
    each server that changed."""

    def __init__(
        self, events: EventStore, on_change: Callable[[str], None], *, catch_up_seconds: float
    ) -> None:
        self._following = Following(events, Selection(AREA), self._apply)
        self._on_change = on_change
        self._catch_up_seconds = catch_up_seconds
        self._records: defaultdict[str, dict[str, Record]] = defaultdict(dict)
        self._tools: defaultdict[str, dict[str, tools_pb2.Tool]] = defaultdict(dict)

    async def start(self) -> None:
        """Returns once it holds all that is stored by now. Raises EventStoreUnavailable,
        DataDamaged."""
        self._following.start()
        await self._following.catch_up(self._catch_up_seconds)

    async def stop(self) -> None:
        """Ends following."""
        await self._following.stop()

    async def catch_up(self) -> None:
        """Returns once it holds all that is stored by now. Raises EventStoreUnavailable,
        DataDamaged."""
        await self._following.catch_up(CATCH_UP_SECONDS_MAX)

    def record(self, name: str) -> Record | None:
        """What is known of a server, not to be changed; None where there is none."""
        self._refuse_stale()
        _, tenant, _, server_id = name.split("/")
        record = self._records.get(tenant, {}).get(server_id)
        return record if record is not None and record.HasField("server") else None

    def records(self, tenant: str) -> Sequence[Record]:
        """The tenant's servers, by id; not to be changed."""
        self._refuse_stale()
        known = sorted(self._records.get(tenant, {}).items())
        return [record for _, record in known if record.HasField("server")]

    def tool(self, name: str) -> tools_pb2.Tool | None:
        """A server's tool by its resource name."""
        self._refuse_stale()
        return self._tools.get(name.split("/")[1], {}).get(name)

    def tools(self, tenant: str) -> Sequence[tools_pb2.Tool]:
        """The tools of all servers of a tenant, in no order."""
        self._refuse_stale()
        return list(self._tools.get(tenant, {}).values())

    def _apply(self, stored: StoredCommit) -> None:
        stream = StreamName.parse(stored.commit.stream)
        if stored.erased or len(stream.key) != 1:
            return
        records = self._records[stream.tenant]
        server_id = stream.key[0]
        # What was handed out before must stay what it was.
        before = Record()
        before.CopyFrom(records.get(server_id) or before)
        record = evolved(MCP_FOLD, before, stored)
        # Nothing is decided on it: who decides reads the log.
        record.ClearField("requests")
        records[server_id] = record
        # Of two servers whose tools came to have one id the first has it.
        every = (tool for _, each in sorted(records.items()) for tool in each.tools)
        tools: dict[str, tools_pb2.Tool] = {}
        for tool in every:
            tools.setdefault(tool.name, tool)
        self._tools[stream.tenant] = tools
        self._on_change(server_name(stream.tenant, server_id))

    def _refuse_stale(self) -> None:
        if self._following.failure is not None:
            raise self._following.failure
