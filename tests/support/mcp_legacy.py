"""An MCP server over streamable HTTP, of a version with sessions, which forgets them and breaks
the protocol as a test says."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mcp_types import JSONRPC_VERSION

VERSION = "2025-06-18"
TOOLS = ("ran", "not-json", "accepted", "own-error", "silent", "flooding", "headless")


class LegacyServer:
    """The server. `calls` are the tools that ran; `gone` is what it says, with 404, of a session
    that it has forgotten."""

    def __init__(self, gone: Any) -> None:
        self.url = ""
        self.calls: list[str] = []
        self.open_calls = 0
        """Calls whose client still waits for the answer."""
        self._gone = gone
        self._sessions: set[str] = set()
        self._count = 0

    def forget(self) -> None:
        """Forgets all sessions, as after a restart."""
        self._sessions.clear()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["LegacyServer"]:
        """Serves until the block ends."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            if not head.startswith("post"):
                _answer(writer, 405)
            else:
                session = headers.get("mcp-session-id", "")
                await self._take(json.loads(body), session, reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            # Who asked went away, as they may.
            return
        finally:
            writer.close()

    async def _take(
        self,
        message: dict[str, Any],
        session: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        method, key = message.get("method"), message.get("id")
        if method == "server/discover":
            error = {"code": -32601, "message": "Method not found"}
            _answer(writer, 404, {"jsonrpc": JSONRPC_VERSION, "id": key, "error": error})
        elif method == "initialize":
            self._count += 1
            made = f"session-{self._count}"
            self._sessions.add(made)
            info = {"name": "legacy", "version": "1"}
            result = {"protocolVersion": VERSION, "capabilities": {"tools": {}}, "serverInfo": info}
            _answer(writer, 200, _result(key, result), f"mcp-session-id: {made}\r\n")
        elif session not in self._sessions:
            _answer(writer, 404, self._gone)
        elif key is None:
            _answer(writer, 202)
        elif method == "tools/list":
            tools = [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]
            _answer(writer, 200, _result(key, {"tools": tools}))
        else:
            await self._call(message["params"]["name"], key, reader, writer)

    async def _call(
        self, tool: str, key: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.calls.append(tool)
        if tool == "not-json":
            _answer(writer, 200, "<html>")
        elif tool == "accepted":
            _answer(writer, 202)
        elif tool == "own-error":
            error = {"code": -32001, "message": "no such customer"}
            _answer(writer, 200, {"jsonrpc": JSONRPC_VERSION, "id": key, "error": error})
        elif tool in ("silent", "flooding", "headless"):
            self.open_calls += 1
            try:
                await _unanswered(tool, reader, writer)
            finally:
                self.open_calls -= 1
        else:
            content = [{"type": "text", "text": f"call {len(self.calls)}"}]
            _answer(writer, 200, _result(key, {"content": content}))


def _result(key: Any, result: Any) -> dict[str, Any]:
    return {"jsonrpc": JSONRPC_VERSION, "id": key, "result": result}


def _answer(writer: asyncio.StreamWriter, status: int, body: Any = None, more: str = "") -> None:
    text = body if isinstance(body, str) else "" if body is None else json.dumps(body)
    head = f"HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\nconnection: close\r\n"
    writer.write(f"{head}{more}content-length: {len(text)}\r\n\r\n{text}".encode())


async def _unanswered(
    tool: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Keeps a client waiting for as long as it does."""
    if tool != "headless":
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
    while tool == "flooding":
        # With an id, by which the rest could be asked for.
        writer.write(b'id: 1\ndata: {"jsonrpc": "2.0", "method": "notifications/nothing"}\n\n')
        await writer.drain()
    await reader.read()
