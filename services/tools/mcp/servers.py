"""The servicer of `weft.tools.v1.McpServerService`, and calls of MCP servers' tools."""

import asyncio
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from mesh.call import Call
from mesh.clock import Clock
from mesh.errors import InvalidArgument, LimitExceeded, NotFound, ToolUnavailable, WeftError
from mesh.events.aggregate import Aggregate, Repository
from mesh.events.store import EventStore
from mesh.ids import new_id
from mesh.rpc.pages import read_page_token, write_page_token
from services.tools.egress import EgressPolicy
from services.tools.grpc_methods import Invocation
from services.tools.mcp import domain
from services.tools.mcp.catalogue import McpCatalogue
from services.tools.mcp.connections import ENVIRONMENT, HEADERS, McpConnections, check_command
from services.tools.mcp.domain import MCP_FOLD, Record, server_name, server_stream
from services.tools.mcp.http import check_url
from services.tools.mcp.listing import as_tools
from services.tools.mcp.results import as_result
from services.tools.mcp.session import CallRefused, SessionGone
from services.tools.results import ToolResult, failed
from services.tools.secrets import ToolSecrets, Values, taken_out
from services.tools.settings import ToolsSettings
from weft.options.v1 import options_pb2
from weft.tools.v1 import mcp_events_pb2, mcp_servers_pb2, secrets_pb2, tools_pb2
from weft.tools.v1 import mcp_server_service_pb2 as pb

PAGE_SIZE = 100
REFRESH_SECONDS = 1.0
"""Shortest time between two lists that a server asks for; it doubles with each change."""
REFRESH_SECONDS_MAX = 600.0
FOLDER_NAME = "mcp"

# What these name is set by Weft, or by the library for it.
_HEADERS_REFUSED = re.compile(
    r"(?:host|connection|content-.*|transfer-encoding|te|upgrade|keep-alive|accept(?:-.*)?"
    r"|mcp-.*|proxy-.*|last-event-id)",
    re.IGNORECASE,
)
# These make programs run other code than the one that the operator allowed.
_VARIABLES_REFUSED = re.compile(
    r"(?:LD_.*|DYLD_.*|PATH|HOME|TMPDIR|LANG|IFS|ENV|BASH_.*|SHELLOPTS|PS4|NODE_.*|NPM_.*|npm_.*"
    r"|PYTHON.*|PERL.*|RUBY.*|JAVA.*|_JAVA.*|JDK_.*|CLASSPATH|DOTNET_.*|COMPLUS_.*|GCONV_PATH"
    r"|GLIBC_.*|MALLOC_.*|GIT_.*|EDITOR|PAGER|DENO_.*|BUN_.*|UV_.*|PIP_.*|LUA_.*|PHP.*"
    r"|OPENSSL_.*|SSL_.*|PROMPT_COMMAND)"
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_log = structlog.get_logger(__name__)


class McpServers:
    """Keeps a tenant's MCP servers and calls their tools. `taken` gives the ids of a tenant's
    other tools."""

    def __init__(
        self,
        settings: ToolsSettings,
        egress: EgressPolicy,
        events: EventStore,
        secrets: ToolSecrets,
        clock: Clock,
        data_dir: Path,
        instance: str,
        taken: Callable[[str], Collection[str]],
    ) -> None:
        self._settings = settings
        self._egress = egress
        self._secrets = secrets
        self._clock = clock
        self._taken = taken
        self._folder = data_dir / FOLDER_NAME
        self._repository = Repository(events, MCP_FOLD, ahead=False, clock=clock)
        self._catalogue = McpCatalogue(
            events, self._heard, catch_up_seconds=settings.catch_up_seconds
        )
        self._connections = self._made(instance, self._changed)
        self._refreshes: dict[str, asyncio.Task[None]] = {}
        self._changes: defaultdict[str, int] = defaultdict(int)

    async def start(self) -> None:
        """Returns once all servers are known. Nothing is connected yet."""
        # What a killed process left.
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        await self._catalogue.start()
        self._connections.start()

    async def stop(self) -> None:
        """Ends all connections, and returns once the servers' processes have ended."""
        refreshes = list(self._refreshes.values())
        for task in refreshes:
            task.cancel()
        await asyncio.gather(*refreshes, return_exceptions=True)
        await self._connections.close()
        await self._catalogue.stop()

    def tool(self, name: str) -> tools_pb2.Tool | None:
        """The tool of that name, if it is one of an MCP server."""
        return self._catalogue.tool(name)

    def tools(self, tenant: str) -> Sequence[tools_pb2.Tool]:
        """All tools of a tenant's MCP servers, in no order."""
        return self._catalogue.tools(tenant)

    async def invoke(
        self, tool: tools_pb2.Tool, arguments: Mapping[str, Any], invocation: Invocation
    ) -> ToolResult:
        """Calls the tool once.

        What its server answers is the result, an error too. ToolUnavailable where it can't be
        reached, broke the connection or didn't answer in time: then it may have run. See
        McpConnections.use for the rest.
        """
        record = self._catalogue.record(tool.mcp.server)
        if record is None:
            raise NotFound.of("MCP server", tool.mcp.server)
        # As OpenTelemetry's conventions for MCP have it; keys with a prefix are ours.
        meta = {
            "traceparent": invocation.traceparent,
            "weft/idempotency-key": invocation.idempotency_key,
        }
        end = time.monotonic() + invocation.timeout_seconds
        for _ in range(2):
            try:
                async with self._connections.use(record, end - time.monotonic()) as session:
                    answer = await session.call(
                        tool.mcp.tool,
                        arguments,
                        {key: value for key, value in meta.items() if value},
                        end - time.monotonic(),
                        self._progressed(tool.name),
                    )
                return as_result(answer, self._settings.mcp_message_bytes_max)
            except CallRefused as refused:
                return failed(str(refused))
            except SessionGone:
                # It wasn't run, so it may be sent once more, in a new session.
                continue
        raise ToolUnavailable("the tool's server forgets its sessions")

    async def add_mcp_server(
        self, request: pb.AddMcpServerRequest, call: Call
    ) -> pb.AddMcpServerResponse:
        """Connects, reads what the server lists and stores both.

        Raises InvalidArgument; FailedPrecondition where the operator doesn't allow the command
        or the address; LimitExceeded past the bound on servers; ToolUnavailable where it can't
        be reached.
        """
        await self._check(request)
        tenant = request.parent.split("/")[1]
        name = server_name(tenant, request.server_id)
        made = mcp_servers_pb2.McpServerRequest(
            request_id=request.request_id or new_id(),
            request_hash=await self._secrets.request_hash(request),
        )
        aggregate = self._aggregate(name)
        record = await aggregate.load()
        if not domain.find_request(record, made.request_id, made.request_hash):
            known = self._catalogue.records(tenant)
            if not record.HasField("server") and len(known) >= self._settings.mcp_servers_max:
                raise LimitExceeded(
                    f"a tenant has at most {self._settings.mcp_servers_max} MCP servers"
                )
            server, values = self._server(name, request)
            sealed = await self._secrets.seal(server_stream(name), values)
            trial = Record(server=server, secrets=sealed, tools=record.tools)
            listed = await self._tried(trial, call.remaining_seconds())
            await aggregate.execute(
                lambda state: domain.decide_add(state, made, server, sealed, listed),
                made.request_id,
            )
            await self._catalogue.catch_up()
        state = (await aggregate.acknowledged()).state
        return pb.AddMcpServerResponse(server=self._shown(state))

    async def get_mcp_server(
        self, request: pb.GetMcpServerRequest, call: Call
    ) -> pb.GetMcpServerResponse:
        """NotFound where there is none."""
        return pb.GetMcpServerResponse(server=self._shown(self._record(request.name)))

    async def list_mcp_servers(
        self, request: pb.ListMcpServersRequest, call: Call
    ) -> pb.ListMcpServersResponse:
        """A page of the tenant's servers, by id, without their tools."""
        after = read_page_token(request.page_token, request.parent)
        size = request.page_size or PAGE_SIZE
        every = self._catalogue.records(request.parent.split("/")[1])
        rest = [record for record in every if record.server.name > after]
        response = pb.ListMcpServersResponse()
        for record in rest[:size]:
            server = response.servers.add()
            server.CopyFrom(self._shown(record))
            server.ClearField("tools")
            server.ClearField("omitted")
        if len(rest) > size:
            last = rest[size - 1].server.name
            response.next_page_token = write_page_token(last, request.parent)
        return response

    async def refresh_mcp_server(
        self, request: pb.RefreshMcpServerRequest, call: Call
    ) -> pb.RefreshMcpServerResponse:
        """Reads anew what the server lists. Raises as AddMcpServer does, and NotFound."""
        self._record(request.name)
        await self._refresh(request.name, call.remaining_seconds())
        return pb.RefreshMcpServerResponse(server=self._shown(self._record(request.name)))

    async def delete_mcp_server(
        self, request: pb.DeleteMcpServerRequest, call: Call
    ) -> pb.DeleteMcpServerResponse:
        """NotFound where there is none."""
        made = mcp_servers_pb2.McpServerRequest(request_id=request.request_id or new_id())
        await self._aggregate(request.name).execute(
            lambda state: domain.decide_delete(state, request.name, made), made.request_id
        )
        await self._catalogue.catch_up()
        return pb.DeleteMcpServerResponse()

    def _made(self, instance: str, on_change: Callable[[str], None]) -> McpConnections:
        parts = (self._settings, self._egress, self._secrets, self._folder, self._clock)
        return McpConnections(*parts, instance, on_change)

    def _aggregate(self, name: str) -> Aggregate[Record]:
        return self._repository.open(server_stream(name))

    def _record(self, name: str) -> Record:
        record = self._catalogue.record(name)
        if record is None:
            raise NotFound.of("MCP server", name)
        return record

    def _shown(self, record: Record) -> mcp_servers_pb2.McpServer:
        shown = mcp_servers_pb2.McpServer()
        shown.CopyFrom(record.server)
        shown.status.CopyFrom(self._connections.status(record))
        return shown

    async def _tried(self, trial: Record, seconds: float) -> mcp_events_pb2.McpToolsListed:
        """What a server lists that isn't stored yet, on a connection of its own."""
        connections = self._made("", lambda _: None)
        try:
            return await self._list(connections, trial, seconds)
        finally:
            await connections.close()

    async def _list(
        self, connections: McpConnections, record: Record, seconds: float
    ) -> mcp_events_pb2.McpToolsListed:
        try:
            async with asyncio.timeout(seconds), connections.use(record, seconds) as session:
                listed = await session.list()
        except TimeoutError:
            raise ToolUnavailable("the server took too long to list its tools") from None
        except SessionGone:
            raise ToolUnavailable("the server forgets its sessions") from None
        except CallRefused as refused:
            _log.warning("mcp_list_refused", server=record.server.name, error=str(refused))
            raise ToolUnavailable("the server refuses to list its tools") from None
        tenant = record.server.name.split("/")[1]
        own = {tool.name for tool in record.tools}
        others = (tool.name for tool in self._catalogue.tools(tenant) if tool.name not in own)
        taken = {*self._taken(tenant), *(name.rpartition("/")[2] for name in others)}
        try:
            # Its schemas may be made to take long.
            async with asyncio.timeout(self._settings.mcp_start_seconds):
                return await as_tools(record, listed, taken, self._settings.mcp_tools_max)
        except TimeoutError:
            raise ToolUnavailable("what the server lists takes too long to be read") from None

    async def _refresh(self, name: str, seconds: float) -> bool:
        """Stores what a server lists now; whether that is something else."""
        record = self._record(name)
        listed = await self._list(self._connections, record, seconds)
        stored = await self._aggregate(name).execute(
            lambda state: domain.decide_list(state, record.added_revision, listed)
        )
        await self._catalogue.catch_up()
        return stored is not None

    def _heard(self, name: str) -> None:
        """The log says something of a server."""
        record = self._catalogue.record(name)
        if record is None or self._connections.replaced(name, record.added_revision):
            self._connections.forget(name)

    def _changed(self, name: str) -> None:
        """A server says that it lists something else, or may do."""
        if name not in self._refreshes:
            task = asyncio.create_task(self._refresh_soon(name), name="reading an MCP list")
            self._refreshes[name] = task
            task.add_done_callback(lambda _: self._refreshes.pop(name, None))

    async def _refresh_soon(self, name: str) -> None:
        # A server that says so without end would fill the log.
        wait = min(REFRESH_SECONDS * 2 ** min(self._changes[name], 16), REFRESH_SECONDS_MAX)
        await asyncio.sleep(wait if self._changes[name] else 0)
        try:
            # To start and to list may take so long each.
            changed = await self._refresh(name, 2 * self._settings.mcp_start_seconds)
        except WeftError as error:
            _log.warning("mcp_list_not_read", server=name, error=error.message)
            return
        if changed:
            self._changes[name] += 1
            loop = asyncio.get_running_loop()
            loop.call_later(REFRESH_SECONDS_MAX, self._calm, name)

    def _calm(self, name: str) -> None:
        self._changes[name] -= 1
        if self._changes[name] <= 0:
            del self._changes[name]

    def _progressed(self, name: str) -> Any:
        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            _log.debug("mcp_progress", tool=name, progress=progress, total=total)

        return progressed

    async def _check(self, request: pb.AddMcpServerRequest) -> None:
        """InvalidArgument and FailedPrecondition, before anything is started."""
        if request.WhichOneof("transport") is None:
            raise InvalidArgument.of("transport", "stdio or http is required")
        if request.HasField("timeout") and request.timeout.ToNanoseconds() <= 0:
            raise InvalidArgument.of("timeout", "must be more than 0")
        if len({rule.tool for rule in request.rules}) < len(request.rules):
            raise InvalidArgument.of("rules", "must name each tool once")
        if request.HasField("stdio"):
            _check_named(request.stdio.environment, "stdio.environment", _VARIABLES_REFUSED)
            for index, each in enumerate(request.stdio.environment):
                if not _VARIABLE.fullmatch(each.name):
                    field = f"stdio.environment[{index}].name"
                    raise InvalidArgument.of(field, "isn't the name of a variable")
            check_command(request.stdio, self._settings.mcp_command_lines)
        else:
            _check_named(request.http.headers, "http.headers", _HEADERS_REFUSED)
            check_url(request.http.url, self._egress)

    def _server(
        self, name: str, request: pb.AddMcpServerRequest
    ) -> tuple[mcp_servers_pb2.McpServer, Values]:
        """The server as it is stored, and its secrets apart from it."""
        server = mcp_servers_pb2.McpServer(
            name=name,
            effect=request.effect or options_pb2.EFFECT_IRREVERSIBLE,
            requires_approval=request.requires_approval,
            rules=request.rules,
            trust=request.trust or tools_pb2.TRUST_UNTRUSTED,
            required_scopes=request.required_scopes,
        )
        server.timeout.FromNanoseconds(int(self._settings.timeout_seconds * 1e9))
        if request.HasField("timeout"):
            server.timeout.CopyFrom(request.timeout)
        server.create_time.FromNanoseconds(self._clock.now_ns())
        values: Values = {}
        if request.HasField("stdio"):
            server.stdio.CopyFrom(request.stdio)
            for each in server.stdio.environment:
                taken_out(each, ENVIRONMENT, values)
        else:
            server.http.CopyFrom(request.http)
            for each in server.http.headers:
                taken_out(each, HEADERS, values)
        return server, values


def _check_named(
    named: Sequence[secrets_pb2.NamedValue], field: str, refused: "re.Pattern[str]"
) -> None:
    seen = set()
    for index, each in enumerate(named):
        place = f"{field}[{index}]"
        if refused.fullmatch(each.name):
            raise InvalidArgument.of(f"{place}.name", "can't be set")
        if each.name.lower() in seen:
            raise InvalidArgument.of(f"{place}.name", "is there twice")
        seen.add(each.name.lower())
        if each.value and each.secret:
            raise InvalidArgument.of(place, "has a value and a secret; one is enough")
        for text, part in ((each.value, "value"), (each.secret, "secret")):
            if not (text.isascii() and text.isprintable()):
                raise InvalidArgument.of(f"{place}.{part}", "must be printable ASCII")
