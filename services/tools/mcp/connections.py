"""This instance's connections to MCP servers: made when they are needed, made again when they
broke, with waits between, and ended when nobody has used them for a while."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from mesh.clock import NANOSECONDS, Clock
from mesh.errors import FailedPrecondition, LimitExceeded, ToolUnavailable, WeftError
from services.tools.egress import EgressPolicy
from services.tools.mcp.domain import Record, server_stream
from services.tools.mcp.http import http_transport
from services.tools.mcp.session import McpSession, load_library
from services.tools.mcp.stdio import Command, Notice, stdio_transport
from services.tools.secrets import ToolSecrets, put_in
from services.tools.settings import ToolsSettings
from weft.tools.v1 import mcp_servers_pb2

BACKOFF_SECONDS = 0.5
BACKOFF_SECONDS_MAX = 30.0
STABLE_SECONDS = 60.0
"""A connection that lasted so long was none that fails."""
SWEEPS = 4
"""How often is looked for idle ones, in the time after which they are."""
ENVIRONMENT = "environment"
HEADERS = "headers"

_log = structlog.get_logger(__name__)


def check_command(stdio: mcp_servers_pb2.McpStdio, allowed: "list[list[str]]") -> None:
    """FailedPrecondition where the operator doesn't allow to start it."""
    wanted = [stdio.command, *stdio.arguments]
    if not any(wanted[: len(begin)] == begin for begin in allowed):
        raise FailedPrecondition(
            "this deployment doesn't start that command; the operator allows some by"
            " WEFT_TOOLS_MCP_COMMANDS"
        )


class _Slot:
    """What there is of one server."""

    def __init__(self, record: Record, calls_max: int) -> None:
        self.record = record
        self.session: McpSession | None = None
        self.opening: asyncio.Task[McpSession] | None = None
        self.turns = asyncio.Semaphore(calls_max)
        self.calls = 0
        self.connects = 0
        self.failures = 0
        self.reason = ""
        self.retry_at = 0.0
        self.opened_at = 0.0
        self.used_at = time.monotonic()

    def failed(self, reason: str) -> None:
        """Counts a failure. The first is followed by a new try at once, others by a wait."""
        now = time.monotonic()
        if self.opened_at and now - self.opened_at > STABLE_SECONDS:
            self.failures = 0
        self.opened_at = 0.0
        self.failures += 1
        wait = 0.0
        if self.failures > 1:
            wait = min(BACKOFF_SECONDS * 2 ** min(self.failures - 2, 16), BACKOFF_SECONDS_MAX)
        self.retry_at = now + wait
        self.reason = reason


class McpConnections:
    """The connections of one instance. `on_change` is told the name of a server that says that
    it lists something else, and of each that was connected anew."""

    def __init__(
        self,
        settings: ToolsSettings,
        egress: EgressPolicy,
        secrets: ToolSecrets,
        folder: Path,
        clock: Clock,
        instance: str,
        on_change: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._egress = egress
        self._secrets = secrets
        self._folder = folder
        self._clock = clock
        self._instance = instance
        self._on_change = on_change
        self._slots: dict[str, _Slot] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._sweeps: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Looks for idle ones from here on."""
        self._sweeps = asyncio.create_task(self._sweep(), name="idle MCP connections")

    async def close(self) -> None:
        """Ends all of them, and returns once their processes have ended."""
        if self._sweeps is not None:
            self._sweeps.cancel()
        for name in list(self._slots):
            self.forget(name)
        while self._ending:
            await asyncio.wait(self._ending)

    def forget(self, name: str) -> None:
        """Ends the connection to a server that was replaced or taken away."""
        slot = self._slots.pop(name, None)
        if slot is not None:
            self._end(slot)

    def replaced(self, name: str, added_revision: int) -> bool:
        """Whether the connection, if there is one, is to a server that was replaced."""
        slot = self._slots.get(name)
        return slot is not None and slot.record.added_revision != added_revision

    @asynccontextmanager
    async def use(self, record: Record, seconds: float) -> AsyncIterator[McpSession]:
        """The connection to the server, for one call, made where there is none.

        Raises ToolUnavailable where it can't be made in time, or may not be tried yet;
        FailedPrecondition where the operator doesn't allow it; LimitExceeded while as many
        calls are under way, or servers connected, as may be.
        """
        end = time.monotonic() + seconds
        slot = self._slot(record)
        try:
            async with asyncio.timeout(seconds):
                await slot.turns.acquire()
        except TimeoutError:
            raise LimitExceeded(
                f"{self._settings.mcp_calls_max} calls of this server are under way"
            ) from None
        slot.calls += 1
        try:
            yield await self._session(slot, end - time.monotonic())
        finally:
            slot.calls -= 1
            slot.used_at = time.monotonic()
            slot.turns.release()

    def status(self, record: Record) -> mcp_servers_pb2.McpServerStatus:
        """How it goes with this instance's connection to the server."""
        status = mcp_servers_pb2.McpServerStatus(
            state=mcp_servers_pb2.MCP_SERVER_STATE_IDLE, instance=self._instance
        )
        slot = self._slots.get(record.server.name)
        if slot is None or slot.record.added_revision != record.added_revision:
            return status
        status.reason = slot.reason
        status.connects = slot.connects
        status.failures = slot.failures
        status.calls = slot.calls
        if slot.session is not None and slot.session.alive:
            status.state = mcp_servers_pb2.MCP_SERVER_STATE_CONNECTED
            status.protocol_version = slot.session.protocol_version
            status.server_title = slot.session.server_title[:256]
            process = slot.session.notice.process
            status.process_id = process.pid if process is not None else 0
        elif slot.opening is not None:
            status.state = mcp_servers_pb2.MCP_SERVER_STATE_CONNECTING
        elif slot.failures:
            status.state = mcp_servers_pb2.MCP_SERVER_STATE_FAILED
            wait_ns = int(max(0.0, slot.retry_at - time.monotonic()) * NANOSECONDS)
            status.retry_time.FromNanoseconds(self._clock.now_ns() + wait_ns)
        return status

    def _slot(self, record: Record) -> _Slot:
        name = record.server.name
        slot = self._slots.get(name)
        if slot is not None and slot.record.added_revision == record.added_revision:
            return slot
        self.forget(name)
        self._make_room()
        slot = self._slots[name] = _Slot(record, self._settings.mcp_calls_max)
        return slot

    def _make_room(self) -> None:
        """Ends the connection that was used longest ago, where there are as many as may be."""
        if len(self._slots) < self._settings.mcp_connections_max:
            return
        idle = [(slot.used_at, name) for name, slot in self._slots.items() if not slot.calls]
        if not idle:
            raise LimitExceeded(
                f"at most {self._settings.mcp_connections_max} MCP servers are called at once"
            )
        self.forget(min(idle)[1])

    async def _session(self, slot: _Slot, seconds: float) -> McpSession:
        if slot.session is not None:
            if slot.session.alive:
                return slot.session
            self._broke(slot)
        if slot.opening is None:
            wait = slot.retry_at - time.monotonic()
            if wait > 0:
                raise ToolUnavailable(
                    f"the tool's server failed: {slot.reason}", retry_seconds=wait
                )
            slot.opening = asyncio.create_task(self._open(slot), name="opening an MCP session")
            # Who waits for it hears of its failure; nobody may wait any more.
            slot.opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(slot.opening)
        except TimeoutError:
            raise ToolUnavailable("the tool's server isn't ready yet") from None

    async def _open(self, slot: _Slot) -> McpSession:
        server = slot.record.server
        name = server.name

        def ended(session: McpSession) -> None:
            if slot.session is session:
                self._broke(slot)

        try:
            await load_library()
            values = await self._secrets.open(server_stream(name), slot.record.secrets)
            notice = Notice()
            session = await McpSession.open(
                self._transport(server, values, notice),
                notice,
                lambda: self._on_change(name),
                self._settings.mcp_start_seconds,
            )
        except WeftError as error:
            slot.failed(error.message)
            raise
        finally:
            slot.opening = None
        if self._slots.get(name) is not slot:
            # It was taken away meanwhile.
            await session.close()
            raise ToolUnavailable("the tool's server was replaced or taken away")
        slot.session = session
        slot.connects += 1
        slot.opened_at = time.monotonic()
        session.when_over(ended)
        if slot.connects > 1:
            # What it told meanwhile went unheard.
            self._on_change(name)
        return session

    def _broke(self, slot: _Slot) -> None:
        """Its connection ended, and not by us."""
        assert slot.session is not None
        slot.failed(slot.session.notice.reason or "it ended, or broke the connection")
        _log.info("mcp_connection_broke", server=slot.record.server.name, reason=slot.reason)
        self._end(slot)

    def _transport(
        self, server: mcp_servers_pb2.McpServer, values: dict[str, str], notice: Notice
    ) -> contextlib.AbstractAsyncContextManager[tuple[object, object]]:
        bytes_max = self._settings.mcp_message_bytes_max
        if server.HasField("http"):
            headers = {each.name: put_in(each, HEADERS, values) for each in server.http.headers}
            return http_transport(server.http.url, headers, self._egress, bytes_max)
        # Once more: the operator may have taken it off the list since.
        check_command(server.stdio, self._settings.mcp_command_lines)
        environment = {
            each.name: put_in(each, ENVIRONMENT, values) for each in server.stdio.environment
        }
        arguments = [server.stdio.command, *server.stdio.arguments]
        command = Command(arguments, environment, list(values.values()))
        return stdio_transport(command, self._folder, bytes_max, notice)

    def _end(self, slot: _Slot) -> None:
        session, slot.session = slot.session, None
        if session is not None:
            task = asyncio.create_task(session.close(), name="ending an MCP session")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        if slot.opening is not None:
            opening = slot.opening
            # It sees that its slot is gone, and ends what it made.
            task = asyncio.create_task(_waited(opening))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._settings.mcp_idle_seconds / SWEEPS)
            before = time.monotonic() - self._settings.mcp_idle_seconds
            for slot in self._slots.values():
                if slot.session is not None and not slot.calls and slot.used_at < before:
                    self._end(slot)


async def _waited(task: "asyncio.Task[McpSession]") -> None:
    await asyncio.wait({task})
