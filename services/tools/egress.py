"""Where tools may connect to: HTTP to addresses that everybody can reach, and nothing else.

What a model, or a page that it read, names as a URL must not reach what only this machine
reaches: its own ports, its network, the metadata of its cloud. So a name is resolved once, all
of its addresses are looked at, and the connection is made to one of those that were looked at;
whatever a second answer of the name server would say doesn't count. It is done where the
connection is made, behind all parsing of URLs, for each connection anew. TLS and the request
still name the host.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

import httpcore2
import httpx2

from mesh.errors import PermissionDenied

ADDRESSES_MAX = 4
"""Addresses of one name that are tried."""
HOST_LENGTH_MAX = 253
_SCHEMES = ("http", "https")

# Global by the registry, and yet somebody's own: 6to4 relays, and the host of Azure's machines.
_V4_REFUSED = (IPv4Network("192.88.99.0/24"), IPv4Network("168.63.129.16/32"))
_V6_GLOBAL = IPv6Network("2000::/3")
# Teredo, 6to4 and others that hold an IPv4 address or lead to a protocol's own hosts; examples.
_V6_REFUSED = (
    IPv6Network("2001::/23"),
    IPv6Network("2001:db8::/32"),
    IPv6Network("2002::/16"),
    IPv6Network("3fff::/20"),
)

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the addresses of a host; OSError where there are none."""


class EgressRefused(PermissionDenied):
    """The settings don't let a tool connect there. The text names the host, not its address."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses that the system's resolver gives. OSError where there are none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def is_public(address: str) -> bool:
    """Whether the address is one host's of the Internet, and no way around to another one."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        refused = parsed.is_multicast or any(parsed in net for net in _V4_REFUSED)
        return parsed.is_global and not refused
    return _is_public_v6(parsed)


def _is_public_v6(address: IPv6Address) -> bool:
    # What isn't unicast of the Internet, as addresses that hold an IPv4 one, is out at once.
    return (
        address.scope_id is None
        and address in _V6_GLOBAL
        and address.is_global
        and not any(address in net for net in _V6_REFUSED)
    )


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Whom tools may connect to. Hosts are names or addresses; `*.example.com` is all below
    `example.com`.

    With `allowed_hosts` these alone, `blocked_hosts` never. `private_hosts`, as `host` or
    `host:port`, may have addresses that aren't public.
    """

    allowed_hosts: frozenset[str] = frozenset()
    blocked_hosts: frozenset[str] = frozenset()
    private_hosts: frozenset[str] = frozenset()
    resolver: Resolver = resolve

    def check_url(self, url: str) -> httpx2.URL:
        """The URL, parsed. Raises EgressRefused for what isn't HTTP, has a user in it, or
        names a host that the settings refuse; its address is looked at when it is dialled."""
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, UnicodeError, ValueError):
            raise EgressRefused("that isn't a URL") from None
        if parsed.scheme not in _SCHEMES:
            raise EgressRefused("only http and https URLs can be reached")
        if parsed.userinfo or "@" in parsed.netloc.decode("ascii", "replace"):
            raise EgressRefused("a URL with a user or a password in it isn't reached")
        self._check_host(parsed.raw_host.decode("ascii", "replace"))
        return parsed

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """What to dial for the host: each was looked at. Raises EgressRefused where any of its
        addresses isn't public, OSError where it has none."""
        self._check_host(host)
        found = await self.resolver(host, port)
        if not found:
            raise OSError("no address")
        if not self.is_private(host, port) and not all(is_public(each) for each in found):
            raise EgressRefused(f"{_plain(host)} isn't a public address")
        return list(dict.fromkeys(found))[:ADDRESSES_MAX]

    def is_private(self, host: str, port: int) -> bool:
        """Whether the settings let it have any address."""
        plain = _plain(host)
        return plain in self.private_hosts or f"{plain}:{port}" in self.private_hosts

    def _check_host(self, host: str) -> None:
        plain = _plain(host)
        if not plain or len(plain) > HOST_LENGTH_MAX:
            raise EgressRefused("the URL names no host")
        if _matches(plain, self.blocked_hosts):
            raise EgressRefused(f"{plain} is blocked")
        if self.allowed_hosts and not _matches(plain, self.allowed_hosts):
            raise EgressRefused(f"{plain} isn't among the hosts that may be reached")


def guarded_transport(policy: EgressPolicy) -> httpx2.AsyncHTTPTransport:
    """A transport whose every connection goes by the policy. A client with it must not take
    proxies from the environment: `guarded_client` makes one."""
    return _GuardedTransport(policy)


def guarded_client(policy: EgressPolicy, **options: Any) -> httpx2.AsyncClient:
    """A client that connects only where the policy lets it, follows no redirect by itself and
    knows nothing of the environment. `options` are those of `httpx2.AsyncClient`."""
    fixed = {"transport": guarded_transport(policy), "trust_env": False, "follow_redirects": False}
    return httpx2.AsyncClient(**{**options, **fixed})


class _GuardedTransport(httpx2.AsyncHTTPTransport):
    def __init__(self, policy: EgressPolicy) -> None:
        super().__init__(verify=_tls(), trust_env=False)
        # httpx2 has no argument for it: its pool is made anew, with our way to connect.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_tls(),
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=5,
            network_backend=_GuardedNetwork(policy),
        )


class _GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that the policy let through."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Tries the host's addresses in their order, all within `timeout`, in seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await self._connect(host, port, local_address, socket_options)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(f"{host} took too long") from error
        except OSError as error:
            raise httpcore2.ConnectError(f"{host} can't be reached") from error

    async def _connect(
        self,
        host: str,
        port: int,
        local_address: str | None,
        socket_options: Iterable[Any] | None,
    ) -> httpcore2.AsyncNetworkStream:
        last: Exception = OSError("no address")
        for address in await self._policy.addresses(host, port):
            try:
                stream = await self._network.connect_tcp(
                    address, port, None, local_address, socket_options
                )
            except httpcore2.ConnectError as error:
                last = error
                continue
            if self._is_ours(stream) and not self._policy.is_private(host, port):
                await stream.aclose()
                raise EgressRefused(f"{_plain(host)} is this machine")
            return stream
        raise last

    @staticmethod
    def _is_ours(stream: httpcore2.AsyncNetworkStream) -> bool:
        """Whether the other end is on this machine, by whatever address of it."""
        there, here = stream.get_extra_info("server_addr"), stream.get_extra_info("client_addr")
        return bool(there and here) and there[0] == here[0]

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Refused: it is a file of this machine."""
        raise EgressRefused("a socket of this machine isn't reached")

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)


@cache
def _tls() -> ssl.SSLContext:
    """What is trusted is read once: that takes some hundredths of a second."""
    return httpx2.create_ssl_context(trust_env=False)


def _plain(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def _matches(host: str, patterns: Iterable[str]) -> bool:
    return any(
        host == each or (each.startswith("*.") and host.endswith(each[1:])) for each in patterns
    )
