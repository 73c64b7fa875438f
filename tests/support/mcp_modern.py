"""An MCP server made with the library, which speaks its newest version over streamable HTTP, in
this process; it keeps the headers of its requests."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

START_SECONDS_MAX = 30.0


class ModernServer:
    """The server; `url` is where it listens, `headers` those of the requests so far."""

    def __init__(self, description: str = "Adds two numbers.") -> None:
        self.url = ""
        self.headers: list[Mapping[str, str]] = []
        self._server = MCPServer("modern")
        self._server.add_tool(self.add, description=description)
        self._server.add_tool(self.grow, description="Makes another tool.")

    async def add(self, a: int, b: int) -> int:
        return a + b

    async def grow(self, context: Context) -> str:
        async def grown() -> str:
            return "here"

        self._server.add_tool(grown, name="grown", description="Is new.")
        await context.notify_tools_changed()
        return "grown"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["ModernServer"]:
        """Serves until the block ends."""
        app: Any = self._server.streamable_http_app()

        async def noting(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                pairs = ((name.decode(), value.decode()) for name, value in scope["headers"])
                self.headers.append(dict(pairs))
            await app(scope, receive, send)

        config = uvicorn.Config(
            noting, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                while not server.started:  # noqa: ASYNC110 - it sets no event
                    await asyncio.sleep(0.02)
            port = server.servers[0].sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{port}/mcp"
            yield self
        finally:
            server.should_exit = True
            await task
