"""Where the calls of one session or queue should go, so that they find it in memory.

By rendezvous hashing: each client ranks the instances by a hash of their names with the key's,
so all agree without a word, and when an instance comes or goes, no key moves but to or from it.
Source: Thaler and Ravishankar, Using Name-Based Mappings to Increase Hit Rates (1998); with
weights Schindelhauer and Schomaker, Weighted Distributed Hash Tables (2005).
"""

from base64 import b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from heapq import nlargest
from math import log

from mesh.control.xds.endpoints import (
    Member,
    believed_unhealthy,
    members_of,
    nearest,
    weight_of,
)
from mesh.control.xds.mesh_view import MeshView
from mesh.control.xds.names import PLACE_COOKIE
from mesh.control.xds.resources import clusters_of
from mesh.sockets import address_at

PLACES = 2
"""Of each cluster, so that a session has a next instance while its first is being found lost."""
KEYS_MAX = 16_384
"""Of a service, whose places are remembered."""
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instance that takes calls, with all that its rank is made of: a session that is new
    asks for the ranks of all, so that nothing is looked up then."""

    address: str
    seed: int
    weight: int


@dataclass(frozen=True, slots=True)
class _Served:
    """Who takes a service's calls by `view`, by cluster, and the cookies that were made of them."""

    view: MeshView
    clusters: tuple[tuple[Candidate, ...], ...]
    cookies: dict[str, str]


class Placement:
    """What a client in `zone` names as the places of a key, as far as `view` knows the mesh."""

    def __init__(self, view: Callable[[], MeshView], zone: str = "") -> None:
        self._view = view
        self._zone = zone
        self._seen: MeshView | None = None
        self._members: tuple[Member, ...] = ()
        self._served: dict[str, _Served] = {}

    def cookie(self, service: str, key: str) -> str:
        """The cookie by which a call of the service says its key's places, best first; empty
        where nobody serves it. Of each cluster some: which one takes a call, its split says."""
        view = self._view()
        if view is not self._seen:
            self._seen = view
            self._members, _ = members_of(view)
        served = self._served.get(service)
        if served is None or served.view is not view:
            served = self._served[service] = self._now(view, service, served)
        found = served.cookies.get(key)
        if found is None:
            if len(served.cookies) >= KEYS_MAX:
                served.cookies.clear()
            places = ",".join(each.address for each in placed(served.clusters, key))
            found = f"{PLACE_COOKIE}={b64encode(places.encode()).decode()}" if places else ""
            served.cookies[key] = found
        return found

    def _now(self, view: MeshView, service: str, before: _Served | None) -> _Served:
        """Where nothing changed for the service, its cookies are as they were."""
        clusters = _taking(view, service, self._members, self._zone)
        cookies = before.cookies if before and before.clusters == clusters else {}
        return _Served(view, clusters, cookies)


def placed(clusters: Iterable[Iterable[Candidate]], key: str) -> list[Candidate]:
    """The places of a key among those who take calls, best first, PLACES of each cluster: each
    instance is first for its share of all keys, by its weight."""
    hashed = _hash(key)
    scored = {
        candidate: score
        for cluster in clusters
        for score, candidate in nlargest(PLACES, _scored(cluster, hashed), key=lambda each: each[0])
    }
    return sorted(scored, key=scored.__getitem__, reverse=True)


def _scored(cluster: Iterable[Candidate], hashed: int) -> Iterable[tuple[float, Candidate]]:
    for each in cluster:
        # The two rounds of SplitMix64 (Steele, Lea, Flood 2014), by one shift less.
        mixed = (each.seed ^ hashed) * 0xBF58476D1CE4E5B9 & _MASK
        mixed = (mixed ^ mixed >> 32) * 0x94D049BB133111EB & _MASK
        # Of 52 bits, so that it is in (0, 1) and never either as a float.
        yield each.weight / -log(((mixed >> 12) + 0.5) / 2**52), each


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def _taking(
    view: MeshView, service: str, members: Iterable[Member], zone: str
) -> tuple[tuple[Candidate, ...], ...]:
    """Who takes the calls of a client in the zone, in each cluster that it knows."""
    routed = [each for each in view.services if each.name == service]
    known = [plan for each in routed for plan in clusters_of(view, each, members)[1].values()]
    return tuple(
        tuple(
            Candidate(
                address_at(member.address, member.port),
                _hash(member.instance.name),
                weight_of(member.instance),
            )
            for member in nearest(
                plan.members, zone, believed_unhealthy(plan.members, view.unhealthy)
            )
        )
        for plan in known
    )
