"""The transport to an MCP server over streamable HTTP, where the settings let tools connect to
(modelcontextprotocol.io/specification, Transports, Streamable HTTP)."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import httpx2

from mesh.errors import FailedPrecondition
from services.tools.egress import EgressPolicy, guarded_transport

CONNECT_SECONDS = 10.0
CANCELLED = "notifications/cancelled"
SESSION_HEADER = "mcp-session-id"
_PORTS = {"http": 80, "https": 443}


def check_url(url: str, egress: EgressPolicy) -> None:
    """Raises EgressRefused, a PermissionDenied, where the settings refuse the URL;
    FailedPrecondition where it says `http:` and its host isn't one that they call private."""
    parsed = egress.check_url(url)
    port = parsed.port or _PORTS[parsed.scheme]
    if parsed.scheme == "http" and not egress.is_private(parsed.host, port):
        raise FailedPrecondition(
            "everybody on the way reads http:; it is for hosts of WEFT_TOOLS_EGRESS_PRIVATE_HOSTS"
        )


@asynccontextmanager
async def http_transport(
    url: str, headers: Mapping[str, str], egress: EgressPolicy, message_bytes_max: int
) -> AsyncIterator[tuple[Any, Any]]:
    """Yields the streams that an MCP client takes. See check_url for what it raises."""
    from mcp.client.streamable_http import streamable_http_client

    check_url(url, egress)
    client = httpx2.AsyncClient(
        transport=_BoundedTransport(guarded_transport(egress), message_bytes_max),
        # Compressed, a few bytes can be many.
        headers={**headers, "accept-encoding": "identity"},
        # A stream may be silent for as long as a call takes; calls have deadlines.
        timeout=httpx2.Timeout(CONNECT_SECONDS, read=None),
        trust_env=False,
    )
    async with client:
        streams = streamable_http_client(
            url, http_client=client, max_sse_event_size=message_bytes_max
        )
        async with streams as (read_stream, write_stream):
            yield read_stream, write_stream


class _BoundedTransport(httpx2.AsyncBaseTransport):
    """Answers have at most `bytes_max` bytes, but for streams of events, which have as many
    each. The answer to a request that is cancelled ends: in versions before 2026 mcp 2.3 only
    tells the server, and would read on for as long as that says something, or nothing."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, bytes_max: int) -> None:
        self._inner = inner
        self._bytes_max = bytes_max
        self._answers: dict[object, _Answer] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        message = json.loads(request.content or b"{}")
        if message.get("method") == CANCELLED:
            cancelled = self._answers.get(message["params"].get("requestId"))
            if cancelled is not None:
                cancelled.end()
        answer = _Answer()
        key = message.get("id")
        if key is not None:
            self._answers[key] = answer
        try:
            response: httpx2.Response | None = await answer.awaited(
                self._inner.handle_async_request(request)
            )
        except BaseException:
            self._forget(key, answer)
            raise
        if response is None:
            self._forget(key, answer)
            return httpx2.Response(HTTPStatus.REQUEST_TIMEOUT)
        answer.of(response, lambda: self._forget(key, answer))
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.DecodingError("the server compressed its answer unasked")
        if response.status_code == HTTPStatus.NOT_FOUND and SESSION_HEADER in request.headers:
            # The session is gone. Servers say so with an error of JSON-RPC, each with another
            # one, and mcp 2.3 takes that for the answer to the request.
            await response.aclose()
            return httpx2.Response(HTTPStatus.NOT_FOUND)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            answer.bytes_max = self._bytes_max
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _forget(self, key: object, answer: "_Answer") -> None:
        if self._answers.get(key) is answer:
            del self._answers[key]


class _Answer(httpx2.AsyncByteStream):
    """The answer to one request, which `end` ends. `bytes_max` is None where it is a stream of
    events."""

    def __init__(self) -> None:
        self.bytes_max: int | None = None
        self._inner: Any = None
        self._is_over = False
        self._waiting: Any = None
        self._on_close: Callable[[], None] = lambda: None

    def of(self, response: httpx2.Response, on_close: Callable[[], None]) -> None:
        """Takes the place of the response's own stream; `on_close` is called at its end."""
        self._inner, self._on_close = response.stream, on_close
        response.stream = self

    def end(self) -> None:
        """Nobody waits for it any more."""
        self._is_over = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def awaited(self, coming: Awaitable[Any]) -> Any:
        """What comes, or None where it was ended before."""
        import anyio

        with anyio.CancelScope() as self._waiting:
            return await coming
        return None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = aiter(self._inner)
        count = 0
        while (part := await self.awaited(anext(parts, None))) is not None and not self._is_over:
            count += len(part)
            if self.bytes_max is not None and count > self.bytes_max:
                raise httpx2.StreamError(f"more than {self.bytes_max} bytes came")
            yield part
        if self._is_over:
            # Of a stream of events it is the one error after which mcp doesn't ask for its rest.
            kind = httpx2.SSEError if self.bytes_max is None else httpx2.StreamError
            raise kind("the request was cancelled")

    async def aclose(self) -> None:
        self._on_close()
        await self._inner.aclose()
