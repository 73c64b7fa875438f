"""What one client wants, has and refused: the state of a stream of ADS. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from google.protobuf import any_pb2

from mesh.control.xds.messages import CLUSTER_TYPE, LISTENER_TYPE, RESOURCE_TYPES
from mesh.control.xds.resources import Resources
from mesh.errors import LimitExceeded
from weft.xds.v1 import discovery_pb2

NAMES_MAX = 4_096
"""Resources of one type that a client may want."""
_WHOLE = frozenset({CLUSTER_TYPE, LISTENER_TYPE})
"""Types of which a response holds everything that is wanted: what it lacks isn't there."""


@dataclass(slots=True)
class _Type:
    names: frozenset[str] = frozenset()
    sent: dict[str, bytes] = field(default_factory=dict)
    answered: bool = False
    """Whether what is wanted was answered once; a type without resources is, too."""
    nonce: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response that the client refused."""

    type_url: str
    version: str
    message: str


class Subscriptions:
    """The types that a client asked for on one stream."""

    def __init__(self) -> None:
        self._types: dict[str, _Type] = {}
        self._responses = 0

    def take(self, request: discovery_pb2.DiscoveryRequest) -> Refusal | None:
        """Notes what the client wants and has now; returns what it refused, if it did.

        What it wants no more is forgotten, so that it is told anew where it asks again.
        What it refused counts as told: only a change is sent again. An answer to any but
        the last response of its type says nothing that the answer to that one won't.
        Raises LimitExceeded past NAMES_MAX.
        """
        if request.type_url not in RESOURCE_TYPES:
            return None
        if len(request.resource_names) > NAMES_MAX:
            raise LimitExceeded(f"more than {NAMES_MAX} resources of one type")
        kind = self._types.setdefault(request.type_url, _Type())
        refuses = request.HasField("error_detail")
        if (request.response_nonce or refuses) and request.response_nonce != kind.nonce:
            return None
        names = frozenset(request.resource_names)
        if names - kind.names:
            kind.answered = False
        kind.names = names
        kind.sent = {name: data for name, data in kind.sent.items() if name in names}
        if not refuses:
            return None
        return Refusal(request.type_url, kind.version, request.error_detail.message)

    def due(self, resources: Resources) -> Iterator[discovery_pb2.DiscoveryResponse]:
        """The responses that bring the client up to these resources, in the order that
        breaks nothing: clusters before what routes to them.

        A resource that is gone stays with the client until it wants it no more: its routes
        name no cluster that is gone, but they come after the clusters.
        """
        for type_url in RESOURCE_TYPES:
            kind = self._types.get(type_url)
            if kind is None or not kind.names:
                continue
            there = resources.by_type.get(type_url, {})
            wanted = {name: there[name] for name in sorted(kind.names) if name in there}
            changed = {name: data for name, data in wanted.items() if kind.sent.get(name) != data}
            whole = type_url in _WHOLE
            if not changed and (kind.answered or not whole):
                continue
            kind.answered = True
            kind.sent |= changed
            yield self._response(type_url, kind, kind.sent if whole else changed)

    def _response(
        self, type_url: str, kind: _Type, told: Mapping[str, bytes]
    ) -> discovery_pb2.DiscoveryResponse:
        self._responses += 1
        kind.nonce = str(self._responses)
        kind.version = _version(kind.sent)
        return discovery_pb2.DiscoveryResponse(
            version_info=kind.version,
            type_url=type_url,
            nonce=kind.nonce,
            resources=[any_pb2.Any(type_url=type_url, value=data) for data in told.values()],
        )


def _version(resources: Mapping[str, bytes]) -> str:
    """The same for equal resources, whichever control plane they come from."""
    digest = sha256()
    for name in sorted(resources):
        digest.update(sha256(resources[name]).digest())
    return digest.hexdigest()[:16]
