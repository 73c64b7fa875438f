"""Where the calls of one session or queue should go, so that they find it in memory.

By rendezvous hashing: each client ranks the instances by a hash of their names with the key's,
so all agree without a word, and when an instance comes or goes, no key moves but to or from it.
Source: Thaler and Ravishankar, Using Name-Based Mappings to Increase Hit Rates (1998); with
weights Schindelhauer and Schomaker, Weighted Distributed Hash Tables (2005).
"""

import math
from base64 import b64encode
from collections.abc import Callable, Sequence
from hashlib import blake2b

from mesh.control.xds.endpoints import (
    Member,
    believed_unhealthy,
    members_of,
    nearest,
    one_at_each_address,
    weight_of,
)
from mesh.control.xds.mesh_view import MeshView
from mesh.control.xds.names import PLACE_COOKIE
from mesh.sockets import address_at

PLACES = 2
"""Of each version, so that a session has a next instance while its first is being found lost."""
KEYS_MAX = 16_384
"""Whose places are remembered."""


class Placement:
    """What a client in `zone` names as the places of a key, as far as `view` knows the mesh."""

    def __init__(self, view: Callable[[], MeshView], zone: str = "") -> None:
        self._view = view
        self._zone = zone
        self._seen: MeshView | None = None
        self._members: dict[str, list[Member]] = {}
        self._cookies: dict[tuple[str, str], str] = {}

    def cookie(self, service: str, key: str) -> str:
        """The cookie by which a call of the service says its key's places, best first; empty
        where nobody serves it. Of each version some: which one takes a call, its split says."""
        view = self._view()
        if view is not self._seen:
            self._seen = view
            self._members.clear()
            self._cookies.clear()
        found = self._cookies.get((service, key))
        if found is None:
            if len(self._cookies) >= KEYS_MAX:
                self._cookies.clear()
            places = ",".join(address_at(*each) for each in self._places(view, service, key))
            found = f"{PLACE_COOKIE}={b64encode(places.encode()).decode()}" if places else ""
            self._cookies[service, key] = found
        return found

    def _places(self, view: MeshView, service: str, key: str) -> list[tuple[str, int]]:
        members = self._members.get(service)
        if members is None:
            members = self._members[service] = _taking(view, service, self._zone)
        taken: dict[str, int] = {}
        places = []
        for member in ranked(members, key):
            version = member.instance.version
            taken[version] = taken.get(version, 0) + 1
            if taken[version] <= PLACES:
                places.append((member.address, member.port))
        return places


def ranked(members: Sequence[Member], key: str) -> list[Member]:
    """The members, best first: each is first for its share of all keys, by its weight."""
    return sorted(members, key=lambda member: _score(member, key), reverse=True)


def _score(member: Member, key: str) -> float:
    text = f"{member.instance.name}\n{key}"
    drawn = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
    # Of 52 bits, so that it is in (0, 1) and never either as a float.
    return weight_of(member.instance) / -math.log(((drawn >> 12) + 0.5) / 2**52)


def _taking(view: MeshView, service: str, zone: str) -> list[Member]:
    members, _ = members_of(view)
    serving = one_at_each_address(each for each in members if service in each.instance.services)
    return nearest(serving, zone, believed_unhealthy(serving, view.unhealthy))
