"""A real HTTP server that answers what a test says, and counts who came."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Page:
    """An answer. `headers` are added to its length; `is_endless` repeats the body for ever,
    without a length."""

    body: bytes = b"hello"
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    is_endless: bool = False
    delay_seconds: float = 0.0

    def head(self) -> bytes:
        """The answer's head."""
        lines = [f"HTTP/1.1 {self.status} Said", f"content-type: {self.content_type}"]
        if not self.is_endless:
            lines.append(f"content-length: {len(self.body)}")
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "connection: close", "", ""]).encode()


@dataclass
class Site:
    """A running server. `pages` are by path; `requests` are the heads that came in."""

    port: int
    pages: dict[str, Page]
    requests: list[str] = field(default_factory=list)

    @property
    def hits(self) -> int:
        """How many requests came."""
        return len(self.requests)

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        """Where a page is."""
        return f"http://{host}:{self.port}{path}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.requests.append(head)
            page = self.pages.get(head.split(" ")[1], Page(b"no such page", 404))
            await asyncio.sleep(page.delay_seconds)
            writer.write(page.head() + page.body)
            while page.is_endless:
                writer.write(page.body)
                await writer.drain()
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            # Who asked went away, as they may.
            return
        finally:
            writer.close()


@asynccontextmanager
async def site(pages: Mapping[str, Page] | None = None) -> AsyncIterator[Site]:
    """Runs a server on a free port of the loopback; by default it has a page at `/`."""
    running = Site(0, dict(pages or {"/": Page()}))
    server = await asyncio.start_server(running.answer, "127.0.0.1", 0)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        server.close()
