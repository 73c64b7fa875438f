"""Which endpoints a cluster has for a client in one zone, and which of them take calls."""

import ipaddress
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mesh.control.xds.mesh_view import MeshView
from mesh.control.xds.messages import number
from mesh.security.spiffe import parse_process_id
from weft.control.v1 import instances_pb2
from weft.xds.v1 import core_pb2, endpoint_pb2

HEALTHY_SHARE_MIN = 0.2
"""Where a smaller share of a cluster is healthy, checks are believed no more: it is likelier
that the checks fail than that nearly everybody does, and few can't carry what all did."""
INSTANCES_MAX = 10_000
"""All that are told of; a client takes 4 MiB of endpoints in one response."""
WEIGHT_DEFAULT = 100
WEIGHT_MAX = 10_000
_CACHED_MAX = 8_192

_SERVING = instances_pb2.INSTANCE_STATE_SERVING
_DRAINING = instances_pb2.INSTANCE_STATE_DRAINING


@dataclass(frozen=True, slots=True)
class Member:
    """An instance at an address that clients can dial."""

    instance: instances_pb2.Instance
    address: str
    port: int


def members_of(view: MeshView) -> tuple[tuple[Member, ...], tuple[str, ...]]:
    """The instances that can be told to clients, by name, and why each other one isn't.

    One wrong endpoint would have clients refuse all of a cluster's: an address must be an
    IP with a port.
    """
    members: list[Member] = []
    left_out: list[str] = []
    for instance in sorted(view.instances, key=lambda each: each.name):
        if instance.state not in (_SERVING, _DRAINING):
            continue
        place = address_of(instance.target)
        fault = "no IP address with a port" if place is None else _insecurity(view, instance, place)
        if place is None or fault:
            left_out.append(f"{instance.name}: {fault}")
            continue
        members.append(Member(instance, *place))
    left_out += [f"{each.instance.name}: too many" for each in members[INSTANCES_MAX:]]
    return tuple(members[:INSTANCES_MAX]), tuple(left_out)


def one_at_each_address(members: Iterable[Member]) -> list[Member]:
    """Those of a service, by name: clients refuse a cluster that has an address twice. Of
    several at one address the latest counts that takes calls, as the others must be gone."""
    by_address = {
        (member.address, member.port): member for member in sorted(members, key=_likelihood)
    }
    return sorted(by_address.values(), key=lambda member: member.instance.name)


@lru_cache(_CACHED_MAX)
def address_of(target: str) -> tuple[str, int] | None:
    """IP address and port of `127.0.0.1:8440` or `[::1]:8440`; None for anything else. One of
    IPv4 is the same however it is written."""
    host, _, port = target.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        return None
    # A scope, as in fe80::1%eth0, means nothing to others.
    if (address.version == 6) != bracketed or "%" in host:
        return None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        return None
    # `::ffff:10.0.0.7` is written in several ways: gRPC's core would know another of them.
    mapped = address.ipv4_mapped if address.version == 6 else None
    return str(mapped or address), int(port)


def believed_unhealthy(members: Sequence[Member], unhealthy: Collection[str]) -> frozenset[str]:
    """Which of a cluster's members get no calls since their checks fail: never all of them."""
    serving = [each.instance.name for each in members if each.instance.state == _SERVING]
    failing = frozenset(name for name in serving if name in unhealthy)
    if len(serving) - len(failing) < HEALTHY_SHARE_MIN * len(serving):
        return frozenset()
    return failing


def assignment(
    cluster: str,
    members: Iterable[Member],
    zone: str,
    failing: Collection[str],
    *,
    ring: bool,
) -> endpoint_pb2.ClusterLoadAssignment:
    """The members by zone: the client's own first, all others together behind it.

    On a `ring` all zones of a priority have one weight, since there the weight of a zone
    multiplies that of each of its endpoints; elsewhere it is what its endpoints sum to.
    """
    made = endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster)
    by_zone: dict[str, list[Member]] = {}
    for member in members:
        by_zone.setdefault(member.instance.zone, []).append(member)
    # Priorities have no gaps, or clients refuse them.
    others = 1 if zone and zone in by_zone else 0
    for name in sorted(by_zone, key=lambda each: (each != zone, each)):
        weight = 1 if ring else sum(weight_of(each.instance) for each in by_zone[name])
        made.endpoints.add(
            locality=core_pb2.Locality(zone=name),
            lb_endpoints=[_endpoint(member, failing) for member in by_zone[name]],
            load_balancing_weight=number(weight),
            priority=0 if name == zone else others,
        )
    return made


def nearest(members: Sequence[Member], zone: str, failing: Collection[str]) -> list[Member]:
    """The members that take the calls of a client in that zone."""
    taking = [
        member
        for member in members
        if member.instance.state == _SERVING and member.instance.name not in failing
    ]
    own = [member for member in taking if zone and member.instance.zone == zone]
    return own or taking


def weight_of(instance: instances_pb2.Instance) -> int:
    """Its share of its zone's calls, as far as a weight may go."""
    return min(instance.weight or WEIGHT_DEFAULT, WEIGHT_MAX)


def _endpoint(member: Member, failing: Collection[str]) -> endpoint_pb2.LbEndpoint:
    if member.instance.state == _DRAINING:
        status = endpoint_pb2.DRAINING
    elif member.instance.name in failing:
        status = endpoint_pb2.UNHEALTHY
    else:
        status = endpoint_pb2.HEALTHY
    return _made(member.address, member.port, status, weight_of(member.instance))


@lru_cache(_CACHED_MAX)
def _made(
    address: str, port: int, status: "endpoint_pb2.HealthStatus.ValueType", weight: int
) -> endpoint_pb2.LbEndpoint:
    """Most endpoints are the same in every service, and after every change of another one;
    nobody changes what they get."""
    place = endpoint_pb2.SocketAddress(address=address, port_value=port)
    return endpoint_pb2.LbEndpoint(
        endpoint=endpoint_pb2.Endpoint(address=endpoint_pb2.Address(socket_address=place)),
        health_status=status,
        load_balancing_weight=number(weight),
    )


@lru_cache(_CACHED_MAX)
def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _insecurity(view: MeshView, instance: instances_pb2.Instance, place: tuple[str, int]) -> str:
    if not view.trust_domain:
        stays = view.plain_text or _is_loopback(place[0])
        return "" if stays else "plain text goes to loopback only"
    process = parse_process_id(instance.spiffe_id)
    if process is None or process.trust_domain != view.trust_domain:
        return "its SPIFFE id isn't of the trust domain"
    posing = [each for each in instance.services if not process.may_act_as(each)]
    return f"its SPIFFE id isn't that of {posing[0]}" if posing else ""


def _likelihood(member: Member) -> tuple[bool, int, int, str]:
    instance = member.instance
    started = instance.start_time
    return instance.state == _SERVING, started.seconds, started.nanos, instance.name
