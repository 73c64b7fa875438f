"""A connection to an MCP server: one at a time for all calls of an instance.

The client's library takes a second to import, so it is imported when it is needed first.
"""

import asyncio
import contextlib
import importlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import structlog

from mesh.errors import ToolUnavailable, WeftError
from services.tools.mcp.stdio import Notice
from services.tools.results import cut

if TYPE_CHECKING:
    from mcp import Client, types
    from mcp.shared.dispatcher import ProgressFnT

CLIENT_NAME = "weft"
CLOSE_SECONDS_MAX = 15.0
LISTEN_AGAIN_SECONDS = 30.0
DOUBT_SECONDS = 10.0
PAGES_MAX = 100
LISTED_MAX = 10_000
"""Tools of one list that are looked at."""
ERROR_LENGTH_MAX = 1_000

_CLOSED = "Connection closed"
_SESSION_GONE = "Session terminated"
_TIMED_OUT = " timed out"
_NO_ANSWER = (
    "Failed to parse",
    "Not Found",
    "SSE stream",
    "Server returned an error response",
    "Unexpected content",
    "server answered a request with 202",
)
"""How the texts of mcp 2.3 begin where it, and not the server's tool, says why there is no
result."""

_log = structlog.get_logger(__name__)

Transport = AbstractAsyncContextManager[tuple[Any, Any]]


class SessionGone(Exception):
    """The server has forgotten the session; the call wasn't run."""


class CallRefused(Exception):
    """The server answered an error of the protocol, told here for a model."""


async def load_library() -> None:
    """Imports the client's library, beside other calls."""
    await asyncio.to_thread(importlib.import_module, "mcp")
    # It logs what servers say, which may be anything.
    logging.getLogger("mcp").setLevel(logging.CRITICAL + 1)


class McpSession:
    """A connection, made by `open`. `on_change` is called when the server says that it lists
    something else now."""

    def __init__(self, transport: Transport, notice: Notice, on_change: Callable[[], None]) -> None:
        self.notice = notice
        self._transport = transport
        self._on_change = on_change
        self._client: Client | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._doubts: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, transport: Transport, notice: Notice, on_change: Callable[[], None], seconds: float
    ) -> "McpSession":
        """Connects, agrees on a version of the protocol, and returns the session. Raises what
        the transport raises, and ToolUnavailable where that doesn't come about in time."""
        session = cls(transport, notice, on_change)
        session._task = asyncio.create_task(session._run(seconds), name="MCP session")
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(session._ready)
        except TimeoutError:
            await session.close()
            raise ToolUnavailable(f"the server wasn't ready within {seconds:g} s") from None
        except BaseException:
            await session.close()
            raise
        return session

    @property
    def alive(self) -> bool:
        """Whether calls may be made on it."""
        return self._task is not None and not self._task.done() and not self.notice.over.is_set()

    @property
    def protocol_version(self) -> str:
        """The version of the protocol that both speak."""
        return self._connected.protocol_version

    @property
    def server_title(self) -> str:
        """What the server calls itself, with its version."""
        info = self._connected.server_info
        return f"{info.name} {info.version}".strip() if info is not None else ""

    def when_over(self, callback: Callable[["McpSession"], None]) -> None:
        """Calls `callback` once it has ended."""
        assert self._task is not None
        self._task.add_done_callback(lambda _: callback(self))

    async def list(self) -> Sequence["types.Tool"]:
        """All that the server lists, up to LISTED_MAX. Raises ToolUnavailable, CallRefused."""
        from mcp import types

        tools: list[types.Tool] = []
        cursor = None
        for _ in range(PAGES_MAX):
            params = types.PaginatedRequestParams(cursor=cursor)
            page = await self._answered(self._connected.session.list_tools(params=params))
            tools.extend(page.tools)
            cursor = page.next_cursor
            if not cursor or len(tools) >= LISTED_MAX:
                break
        return tools[:LISTED_MAX]

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        meta: Mapping[str, Any],
        timeout_seconds: float,
        on_progress: "ProgressFnT",
    ) -> "types.CallToolResult":
        """Calls a tool once. When this is cancelled, or the time is over, the server is told.

        Raises CallRefused where it answers an error, SessionGone where it wasn't run,
        ToolUnavailable where there is no answer: then it may have run.
        """
        from mcp import MCPError, types
        from mcp.types import HEADER_MISMATCH

        async def once() -> Any:
            request = types.CallToolRequest(
                params=types.CallToolRequestParams(
                    name=tool, arguments=dict(arguments), _meta=dict(meta) or None
                )
            )
            # Not the client's `call_tool`, which checks the answer against the server's own
            # schema, at whatever cost.
            return await self._connected.session.send_request(
                request,
                _result_type(),
                request_read_timeout_seconds=timeout_seconds,
                progress_callback=on_progress,
            )

        async def twice() -> Any:
            try:
                return await once()
            except MCPError as error:
                if error.code != HEADER_MISMATCH:
                    raise
            # It was refused for want of headers that follow from the list.
            await self.list()
            return await once()

        try:
            async with asyncio.timeout(timeout_seconds):
                result = await self._answered(twice())
        except TimeoutError:
            raise ToolUnavailable("the tool took too long, and may have run") from None
        if not isinstance(result, types.CallToolResult):
            raise CallRefused("the tool asks for input of a person, which it can't be given")
        return result

    async def close(self) -> None:
        """Ends it; returns once its process, if it has one, has ended."""
        self.notice.over.set()
        if self._task is None:
            return
        _, pending = await asyncio.wait({self._task}, timeout=CLOSE_SECONDS_MAX)
        for task in pending:
            task.cancel()
            await asyncio.wait({task}, timeout=CLOSE_SECONDS_MAX)

    @property
    def _connected(self) -> "Client":
        if self._client is None or not self.alive:
            raise ToolUnavailable(self._why("the connection to the tool's server has ended"))
        return self._client

    def _why(self, sentence: str) -> str:
        return f"{sentence}: {self.notice.reason}" if self.notice.reason else sentence

    async def _answered(self, answer: Awaitable[Any]) -> Any:
        """What the server answers; its errors as those of `call`."""
        from mcp import MCPError
        from mcp.types import CONNECTION_CLOSED, REQUEST_TIMEOUT
        from pydantic import ValidationError

        try:
            return await answer
        except MCPError as error:
            if error.message == _CLOSED:
                # Not of this call alone; a transport may not tell in another way.
                self.notice.over.set()
                said = "the tool's server ended or broke the connection, and may have run it"
                raise ToolUnavailable(self._why(said)) from None
            if error.code == REQUEST_TIMEOUT and error.message.endswith(_TIMED_OUT):
                raise ToolUnavailable("the tool took too long, and may have run") from None
            if error.message == _SESSION_GONE:
                self.notice.over.set()
                raise SessionGone from None
            is_unanswered = error.message.startswith(_NO_ANSWER)
            if is_unanswered or error.code == CONNECTION_CLOSED:
                self._doubt()
            if is_unanswered:
                raise ToolUnavailable("the tool's server answered no result") from None
            text = cut(error.message.encode(errors="replace").decode(), ERROR_LENGTH_MAX)
            raise CallRefused(f"error {error.code}: {text}") from None
        except ValidationError:
            raise CallRefused(
                "the server's answer isn't what its version of the protocol demands"
            ) from None

    def _doubt(self) -> None:
        """The server may have forgotten the session, which not all say as they should. Others'
        calls go on until that is known."""
        if self._doubts is None or self._doubts.done():
            self._doubts = asyncio.create_task(self._asked(), name="asking an MCP server")

    async def _asked(self) -> None:
        from mcp import MCPError
        from pydantic import ValidationError

        try:
            async with asyncio.timeout(DOUBT_SECONDS):
                await self._connected.session.list_tools()
        except (MCPError, ValidationError, ToolUnavailable, TimeoutError):
            self.notice.over.set()

    async def _run(self, seconds: float) -> None:
        """Holds the connection. All of it is entered and left in this one task, as the
        library demands."""
        from mcp import Client
        from mcp.types import Implementation

        listening: asyncio.Task[None] | None = None
        try:
            client = Client(
                self._transport,
                cache=None,
                client_info=Implementation(name=CLIENT_NAME, version=_version()),
                message_handler=self._heard,
                read_timeout_seconds=seconds,
            )
            async with client:
                self._client = client
                if not self._ready.done():
                    self._ready.set_result(None)
                listening = asyncio.create_task(self._listen(client))
                await self.notice.over.wait()
        except Exception as error:  # noqa: BLE001 - whoever waits is told, in words of ours
            self._failed(error)
        finally:
            self.notice.over.set()
            for task in (listening, self._doubts):
                if task is not None:
                    task.cancel()
            if not self._ready.done():
                self._ready.cancel()

    def _failed(self, error: Exception) -> None:
        cause = _innermost(error)
        if not isinstance(cause, WeftError):
            _log.info("mcp_connection_failed", error=type(cause).__name__)
        if self._ready.done():
            return
        if isinstance(cause, WeftError):
            self._ready.set_exception(cause)
            return
        process = self.notice.process
        if process is not None:
            _log.warning("mcp_server_not_ready", said=process.said)
            sentence = "the server ended before it was ready; what it said last is in Weft's log"
        elif isinstance(cause, OSError):
            sentence = "the server can't be started or reached"
        else:
            sentence = "the server can't be reached, or doesn't speak MCP"
        self._ready.set_exception(ToolUnavailable(self._why(sentence)))
        # Nobody waits any more where the time was over first.
        self._ready.exception()

    async def _heard(self, message: Any) -> None:
        from mcp.types import ToolListChangedNotification

        if isinstance(message, ToolListChangedNotification):
            self._on_change()

    async def _listen(self, client: "Client") -> None:
        """Asks to be told when the list changes, where the version wants that to be asked for."""
        from mcp import MCPError
        from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost

        tools = client.server_capabilities.tools
        if tools is None or not tools.list_changed:
            return
        while self.alive:
            with contextlib.suppress(MCPError, SubscriptionLost, TimeoutError):
                try:
                    async with client.listen(tools_list_changed=True) as subscription:
                        async for _ in subscription:
                            self._on_change()
                except ListenNotSupportedError:
                    # It tells without being asked.
                    return
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)
            # What was told meanwhile went unheard.
            self._on_change()


def _result_type() -> Any:
    from mcp.types import CallToolResult, InputRequiredResult
    from pydantic import TypeAdapter

    global _adapter
    if _adapter is None:
        _adapter = TypeAdapter(CallToolResult | InputRequiredResult)
    return _adapter


_adapter: Any = None


def _innermost(error: BaseException) -> BaseException:
    """The first error that isn't a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _version() -> str:
    from importlib.metadata import version

    return version("weft")
