"""Bounds what the other ends of connections may do at once, before it is known who calls.

Whom nobody knows yet can cost little: too many calls at once are refused with the time
after which to try again (google.rpc.RetryInfo), and so is a peer that keeps presenting
credentials that aren't valid, without looking at the next one.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from mesh.call import Call
from mesh.clock import SYSTEM, Clock
from mesh.errors import CredentialInvalid, InvalidArgument, RateLimited
from mesh.rpc.methods import Handler, MethodSpec
from mesh.rpc.settings import RpcSettings

PEERS_MAX = 10_000
METADATA_ENTRIES_MAX = 64
BUSY_RETRY_SECONDS = 0.25


class _Peer:
    """One host at the other end. `failures` runs down by itself, as a bucket leaks."""

    __slots__ = ("calls", "failures", "looked")

    def __init__(self, now: float) -> None:
        self.calls = 0
        self.failures = 0.0
        self.looked = now


class Limits:
    """Raises RateLimited for calls over the bounds of `settings`. Calls within the process
    aren't counted: they are part of one that was.

    Streams have a bound of their own, so that watchers don't keep calls out.
    """

    def __init__(self, settings: RpcSettings, clock: Clock = SYSTEM) -> None:
        self._settings = settings
        self._clock = clock
        self._peers: OrderedDict[str, _Peer] = OrderedDict()
        self._calls = 0
        self._streams = 0

    def unary(self, spec: MethodSpec, inner: Handler) -> Handler:
        async def counted(request: Any, call: Call) -> Any:
            if self._calls >= self._settings.concurrent_calls_max:
                raise _busy("the server has too many calls under way")
            self._calls += 1
            try:
                with self._peer_counted(call):
                    return await inner(request, call)
            finally:
                self._calls -= 1

        return lambda request, call: (counted if call.peer else inner)(request, call)

    def stream(self, spec: MethodSpec, inner: Handler) -> Handler:
        async def counted(request: Any, call: Call) -> AsyncGenerator[Any, None]:
            if self._streams >= self._settings.concurrent_streams_max:
                raise _busy("the server has too many streams open")
            self._streams += 1
            try:
                with self._peer_counted(call):
                    async with aclosing(inner(request, call)) as messages:
                        async for message in messages:
                            yield message
            finally:
                self._streams -= 1

        return lambda request, call: (counted if call.peer else inner)(request, call)

    @contextmanager
    def _peer_counted(self, call: Call) -> Iterator[None]:
        if len(call.metadata) > METADATA_ENTRIES_MAX:
            raise InvalidArgument.of("metadata", f"has more than {METADATA_ENTRIES_MAX} entries")
        peer = self._peer(call.peer)
        if peer.calls >= self._settings.peer_calls_max:
            raise _busy("too many calls under way from this address")
        excess = peer.failures + 1 - self._settings.peer_failures_max
        if excess > 0:
            wait = excess / self._settings.peer_failures_per_second
            raise RateLimited(
                "too many credentials from this address weren't valid", retry_seconds=wait
            )
        peer.calls += 1
        try:
            yield
        except CredentialInvalid:
            peer.failures += 1
            raise
        finally:
            peer.calls -= 1

    def _peer(self, address: str) -> _Peer:
        now = self._clock.monotonic()
        host = host_of(address)
        peer = self._peers.get(host)
        if peer is None:
            peer = self._peers[host] = _Peer(now)
            self._evict()
        self._peers.move_to_end(host)
        leaked = (now - peer.looked) * self._settings.peer_failures_per_second
        peer.failures = max(0.0, peer.failures - leaked)
        peer.looked = now
        return peer

    def _evict(self) -> None:
        while len(self._peers) > PEERS_MAX:
            host, peer = self._peers.popitem(last=False)
            if peer.calls:
                # Its calls count down what they counted up.
                self._peers[host] = peer
                return


def host_of(peer: str) -> str:
    """The host of gRPC's `ipv4:127.0.0.1:50000`, `ipv6:%5B::1%5D:50000` or `unix:`: all its
    connections are one peer."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else peer


def _busy(text: str) -> RateLimited:
    return RateLimited(text, retry_seconds=BUSY_RETRY_SECONDS)
