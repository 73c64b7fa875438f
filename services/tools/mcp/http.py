"""The transport to an MCP server over streamable HTTP, where the settings let tools connect to
(modelcontextprotocol.io/specification, Transports, Streamable HTTP)."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import httpx2

from mesh.errors import FailedPrecondition
from services.tools.egress import EgressPolicy, guarded_transport

CONNECT_SECONDS = 10.0
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
    each."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, bytes_max: int) -> None:
        self._inner = inner
        self._bytes_max = bytes_max

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.DecodingError("the server compressed its answer unasked")
        if response.status_code == HTTPStatus.NOT_FOUND and SESSION_HEADER in request.headers:
            # The session is gone. Servers say so with an error of JSON-RPC, each with another
            # one, and mcp 2.3 takes that for the answer to the request.
            await response.aclose()
            return httpx2.Response(HTTPStatus.NOT_FOUND)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            response.stream = _BoundedStream(response.stream, self._bytes_max)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, inner: Any, bytes_max: int) -> None:
        self._inner = inner
        self._bytes_max = bytes_max

    async def __aiter__(self) -> AsyncIterator[bytes]:
        count = 0
        async for part in self._inner:
            count += len(part)
            if count > self._bytes_max:
                raise httpx2.StreamError(f"more than {self._bytes_max} bytes came")
            yield part

    async def aclose(self) -> None:
        await self._inner.aclose()
