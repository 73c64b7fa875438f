"""The transport to an MCP server over streamable HTTP: to public addresses, and no others but
those that the operator allows.

A host is resolved once per connection to the server; what was checked is what is called.
"""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mesh.errors import FailedPrecondition, ToolUnavailable

if TYPE_CHECKING:
    import httpx2

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
CONNECT_SECONDS = 10.0
CONNECTIONS_MAX = 32
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: IpAddress) -> bool:
    """Whether an address is one of the Internet's, whatever it is wrapped in."""
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            wrapped = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo is not None:
            return False
        if wrapped is not None:
            return is_public(wrapped)
    return address.is_global and not address.is_multicast


async def checked_address(url: str, networks: Sequence[IpNetwork]) -> str:
    """The address to call for the URL's host: public, or in one of the networks.

    Raises FailedPrecondition where it is another, or the URL says `http:` and the address is
    in none of the networks; ToolUnavailable where the host has no address.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        raise FailedPrecondition("the server's URL isn't one") from None
    host = parts.hostname or ""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
    except (OSError, TimeoutError, UnicodeError):
        raise ToolUnavailable("the server's host has no address") from None
    for *_, place in found:
        address = ipaddress.ip_address(str(place[0]).partition("%")[0])
        is_allowed = any(address in network for network in networks)
        if not (is_allowed or is_public(address)):
            raise FailedPrecondition(
                "the server's address isn't public; the operator can allow its network"
                " (WEFT_TOOLS_MCP_NETWORKS)"
            )
        if parts.scheme == "http" and not is_allowed:
            raise FailedPrecondition("a server that isn't within an allowed network needs https:")
    if not found:
        raise ToolUnavailable("the server's host has no address")
    return str(found[0][4][0])


@asynccontextmanager
async def http_transport(
    url: str, headers: Mapping[str, str], networks: Sequence[IpNetwork], message_bytes_max: int
) -> AsyncIterator[tuple[Any, Any]]:
    """Yields the streams that an MCP client takes. See checked_address for what it raises."""
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    address = await checked_address(url, networks)
    client = httpx2.AsyncClient(
        transport=_pinned(address, urlsplit(url).hostname or "", message_bytes_max),
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


def _pinned(address: str, host: str, bytes_max: int) -> "httpx2.AsyncBaseTransport":
    """A transport that calls `address` for `host`, whose certificate it demands, and for no
    other; answers have at most `bytes_max` bytes, but for streams of events."""
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        """An answer's bytes; ends with an error beyond the bound."""

        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            count = 0
            async for part in self._stream:
                count += len(part)
                if count > bytes_max:
                    raise httpx2.StreamError(f"more than {bytes_max} bytes came")
                yield part

        async def aclose(self) -> None:
            await self._stream.aclose()

    class Pinned(httpx2.AsyncHTTPTransport):
        """Calls the checked address."""

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            if request.url.host != host:
                raise httpx2.ConnectError("another host than the one that was checked")
            sent = httpx2.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            response = await super().handle_async_request(sent)
            if response.headers.get("content-encoding", "identity") != "identity":
                await response.aclose()
                raise httpx2.DecodingError("the server compressed its answer unasked")
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                response.stream = Bounded(response.stream)
            return response

    limits = httpx2.Limits(max_connections=CONNECTIONS_MAX, keepalive_expiry=30.0)
    return Pinned(trust_env=False, limits=limits)
