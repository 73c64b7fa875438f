"""Bounds what the other ends of connections may do at once, before it is known who calls.

Whom nobody knows yet can cost little: too many calls at once are refused with the time
after which to try again (google.rpc.RetryInfo), and so is a peer that keeps presenting
credentials that aren't valid, without looking at the next one that wasn't seen before:
whoever was let in already isn't locked out by others at the same address.
"""

from collections import OrderedDict

from mesh.call import Call
from mesh.clock import SYSTEM, Clock
from mesh.errors import CredentialInvalid, InvalidArgument, RateLimited
from mesh.rpc.propagation import AUTHORIZATION_KEY, IDENTITY_KEY
from mesh.rpc.settings import RpcSettings
from mesh.rpc.stages.identity import Identities
from mesh.security.authenticator import Authenticator

PEERS_MAX = 10_000
METADATA_ENTRIES_MAX = 64
BUSY_RETRY_SECONDS = 0.25


class Peer:
    """One host at the other end. `failures` are credentials that weren't valid; they run
    down by themselves, as a bucket leaks."""

    __slots__ = ("calls", "failures", "looked")

    def __init__(self, now: float) -> None:
        self.calls = 0
        self.failures = 0.0
        self.looked = now


class UnderWay:
    """The calls that a server answers, or the streams. `peers` says who may begin one."""

    __slots__ = ("_count", "_count_max", "_peers", "_what")

    def __init__(self, what: str, count_max: int, peers: "Peers") -> None:
        self._what = what
        self._count = 0
        self._count_max = count_max
        self._peers = peers

    @property
    def count(self) -> int:
        """How many there are."""
        return self._count

    def begin(self, call: Call) -> Peer:
        """Counts a call. Raises RateLimited where there are too many, InvalidArgument for
        too much metadata."""
        if self._count >= self._count_max:
            raise _busy(f"the server has too many {self._what} under way")
        peer = self._peers.admitted(call)
        self._count += 1
        peer.calls += 1
        return peer

    def end(self, peer: Peer, call: Call, failure: BaseException | None) -> None:
        """Counts it no more; `failure` is what ended it, if something did. A credential that
        let it in and was revoked later is no failure of its peer."""
        peer.calls -= 1
        self._count -= 1
        if isinstance(failure, CredentialInvalid) and call.principal is None:
            peer.failures += 1


class Peers:
    """The other ends of connections, and what each may do by `settings`."""

    def __init__(
        self,
        settings: RpcSettings,
        authenticator: Authenticator,
        identities: Identities,
        clock: Clock = SYSTEM,
    ) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._identities = identities
        self._clock = clock
        self._peers: OrderedDict[str, Peer] = OrderedDict()
        self._connections: dict[str, Peer] = {}

    def admitted(self, call: Call) -> Peer:
        """The peer that calls, if it may. Raises RateLimited and InvalidArgument."""
        if len(call.metadata) > METADATA_ENTRIES_MAX:
            raise InvalidArgument.of("metadata", f"has more than {METADATA_ENTRIES_MAX} entries")
        peer = self._connections.get(call.peer) or self._connected(call.peer)
        if IDENTITY_KEY in call.metadata and self._is_ours(call, peer):
            # What Weft's own processes call for many is bounded where it came in.
            return Peer(0.0)
        if peer.calls >= self._settings.peer_calls_max:
            raise _busy("too many calls under way from this address")
        if peer.failures:
            self._leak(peer, call)
        return peer

    def _is_ours(self, call: Call, peer: Peer) -> bool:
        identity = call.metadata[IDENTITY_KEY]
        may_look = peer.failures < self._settings.peer_failures_max
        if not (may_look or self._identities.knows_identity(identity)):
            return False
        try:
            caller = self._identities.verify(identity, call.method).caller
        except CredentialInvalid:
            return False
        return call.acts_as is None or call.acts_as(caller)

    def _leak(self, peer: Peer, call: Call) -> None:
        now = self._clock.monotonic()
        per_second = self._settings.peer_failures_per_second
        peer.failures = max(0.0, peer.failures - (now - peer.looked) * per_second)
        peer.looked = now
        excess = peer.failures + 1 - self._settings.peer_failures_max
        if excess > 0 and not self._knows(call):
            raise RateLimited(
                "too many credentials from this address weren't valid",
                retry_seconds=excess / per_second,
            )

    def _knows(self, call: Call) -> bool:
        if IDENTITY_KEY in call.metadata:
            return False
        try:
            return self._authenticator.knows(call.metadata.get(AUTHORIZATION_KEY, ""))
        except CredentialInvalid:
            # What can't be a credential at all.
            return False

    def _connected(self, address: str) -> Peer:
        """The peer of a connection that wasn't seen before, or not for long."""
        host = host_of(address)
        peer = self._peers.get(host)
        if peer is None:
            peer = self._peers[host] = Peer(self._clock.monotonic())
        self._peers.move_to_end(host)
        if len(self._connections) >= PEERS_MAX:
            self._connections.clear()
        self._connections[address] = peer
        while len(self._peers) > PEERS_MAX:
            # One that comes again begins anew; its calls under way count down where they were.
            self._peers.popitem(last=False)
        return peer


def host_of(peer: str) -> str:
    """The host of gRPC's `ipv4:127.0.0.1:50000`, `ipv6:%5B::1%5D:50000` or `unix:`: all its
    connections are one peer."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else peer


def _busy(text: str) -> RateLimited:
    return RateLimited(text, retry_seconds=BUSY_RETRY_SECONDS)
