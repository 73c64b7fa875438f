"""From what is known of the mesh to the xDS resources of a client in one zone. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from mesh.control.xds.endpoints import (
    Member,
    assignment,
    believed_unhealthy,
    members_of,
    nearest,
    one_at_each_address,
)
from mesh.control.xds.mesh_view import MeshView, Portion, RoutedService
from mesh.control.xds.messages import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    encoded,
    number,
    packed,
    seconds,
)
from mesh.control.xds.names import (
    AFFINITY_KEYS,
    CERTIFICATES,
    PLACE_COOKIE,
    RING_PLACES_MAX,
    TARGET,
)
from weft.xds.v1 import cluster_pb2, core_pb2, listener_pb2, route_pb2, tls_pb2

RING_PLACES = 256
"""Of each endpoint. Both bounds of the ring's size move with the endpoints: with fixed ones a
new endpoint moves twice as many keys as it must."""
REQUESTS_MAX = 8_192
"""Calls and streams of one client to one cluster at once."""
RETRIES_MAX = 3
RETRY_SECONDS = (0.01, 0.1)
"""Before the first retry, and at most."""

_PLACES = "places"
_REPEATABLE = (MethodOptions.NO_SIDE_EFFECTS, MethodOptions.IDEMPOTENT)


class Affinity(Enum):
    """How a client keeps the calls of one session or queue together."""

    RING = "by a hash of their header, which gRPC looks up on its ring"
    NAMED = "it names the instance in a cookie, and gRPC goes there if it can (gRFC A55, A60)"
    NONE = "not at all: any instance takes any call"


@dataclass(frozen=True, slots=True)
class Resources:
    """Encoded resources by type URL and name; `left_out` says which instances aren't in
    them, and why."""

    by_type: Mapping[str, Mapping[str, bytes]]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Planned:
    """A cluster to be: its name, who is in it, and its share of the service's calls."""

    name: str
    members: tuple[Member, ...]
    weight: int


def resources_of(view: MeshView, zone: str, affinity: Affinity = Affinity.RING) -> Resources:
    """All resources for clients in `zone`; "" for those that are nowhere in particular.

    Equal arguments give equal bytes, in every process.
    """
    members, left_out = members_of(view)
    routes: list[route_pb2.Route] = []
    clusters: dict[str, bytes] = {}
    endpoints: dict[str, bytes] = {}
    for service in view.services:
        planned, known = clusters_of(view, service, members)
        ring = affinity is Affinity.RING and service.name in AFFINITY_KEYS
        for plan in known.values():
            failing = believed_unhealthy(plan.members, view.unhealthy)
            places = RING_PLACES * len(nearest(plan.members, zone, failing)) if ring else 0
            clusters[plan.name] = encoded(_cluster(plan, places, view.trust_domain))
            endpoints[plan.name] = encoded(
                assignment(plan.name, plan.members, zone, failing, ring=ring)
            )
        routes += _routes(service, planned, affinity)
        if len(known) > 1:
            routes.append(_keeping(service, known))
    by_type = {
        CLUSTER_TYPE: clusters,
        ENDPOINT_TYPE: endpoints,
        LISTENER_TYPE: {TARGET: encoded(_listener(affinity))},
        ROUTE_TYPE: {TARGET: encoded(_route_configuration(routes))},
    }
    return Resources(by_type, left_out)


def clusters_of(
    view: MeshView, service: RoutedService, members: Iterable[Member]
) -> tuple[list[Planned], dict[str, Planned]]:
    """The clusters that take the service's calls now, and by name all that clients know, those
    of before and to come too. The members are the whole mesh's."""
    serving = one_at_each_address(
        each for each in members if service.name in each.instance.services
    )
    planned = _planned(service, serving, view.splits.get(service.name, ()))
    known = {plan.name: plan for plan in planned}
    if service.name in view.kept:
        kept = _planned(service, serving, view.kept[service.name])
        known = {plan.name: plan for plan in kept} | known
    return planned, known


def _planned(
    service: RoutedService, members: Sequence[Member], portions: Sequence[Portion]
) -> list[Planned]:
    """One cluster, or one per version of a split. A version without an instance that serves
    takes no part: its calls go to the others, and to whoever there is where those have none
    either, as when the last instance of an old version ends after an upgrade."""
    whole = [Planned(service.name, tuple(members), 1)]
    if not portions:
        return whole
    planned = [
        Planned(
            f"{service.name}/{portion.version}/{portion.revision}",
            tuple(each for each in members if each.instance.version == portion.version),
            portion.weight,
        )
        for portion in portions
    ]
    return [plan for plan in planned if nearest(plan.members, "", ())] or whole


def _listener(affinity: Affinity) -> listener_pb2.Listener:
    filters = [listener_pb2.HttpFilter(name="router", typed_config=packed(listener_pb2.Router()))]
    if affinity is Affinity.NAMED:
        # It does nothing but where a route says which cookie.
        places = listener_pb2.HttpFilter(
            name=_PLACES, typed_config=packed(listener_pb2.StatefulSession())
        )
        filters.insert(0, places)
    manager = listener_pb2.HttpConnectionManager(
        rds=listener_pb2.Rds(config_source=_same_stream(), route_config_name=TARGET),
        http_filters=filters,
    )
    return listener_pb2.Listener(
        name=TARGET, api_listener=listener_pb2.ApiListener(api_listener=packed(manager))
    )


def _route_configuration(routes: Iterable[route_pb2.Route]) -> route_pb2.RouteConfiguration:
    host = route_pb2.VirtualHost(name=TARGET, domains=["*"], routes=routes)
    return route_pb2.RouteConfiguration(name=TARGET, virtual_hosts=[host])


def _routes(
    service: RoutedService, planned: Sequence[Planned], affinity: Affinity
) -> list[route_pb2.Route]:
    """A route for each method that may be run again, then one for the rest of each contract."""
    rest = _action(service, planned, affinity)
    repeatable = route_pb2.RouteAction()
    repeatable.CopyFrom(rest)
    repeatable.retry_policy.CopyFrom(_retry_policy())
    routes = []
    for contract in service.contracts:
        prefix = f"/{contract.full_name}/"
        routes += [
            route_pb2.Route(match=route_pb2.RouteMatch(path=prefix + name), route=repeatable)
            for name in repeatable_methods(contract)
        ]
        routes.append(route_pb2.Route(match=route_pb2.RouteMatch(prefix=prefix), route=rest))
    if affinity is Affinity.NAMED and service.name in AFFINITY_KEYS:
        named = packed(_by_cookie())
        for route in routes:
            route.typed_per_filter_config[_PLACES].CopyFrom(named)
    return routes


def _by_cookie() -> listener_pb2.StatefulSessionPerRoute:
    cookie = listener_pb2.CookieBasedSessionState(cookie=listener_pb2.Cookie(name=PLACE_COOKIE))
    state = core_pb2.TypedExtensionConfig(name="cookie", typed_config=packed(cookie))
    return listener_pb2.StatefulSessionPerRoute(
        stateful_session=listener_pb2.StatefulSession(session_state=state)
    )


def _keeping(service: RoutedService, names: Iterable[str]) -> route_pb2.Route:
    """A route that no call takes, by which a client knows and is connected to each version of
    a split, those with weight 0 too, and of those before it and to come. grpc-go takes new
    routes a moment before the clusters that only they name, and fails what is called in
    between."""
    action = route_pb2.RouteAction()
    for name in sorted(names):
        action.weighted_clusters.clusters.add(name=name, weight=number(1))
    return route_pb2.Route(match=route_pb2.RouteMatch(path=f"/kept/{service.name}"), route=action)


def repeatable_methods(contract: ServiceDescriptor) -> list[str]:
    """Names of the methods that may be run again where it isn't known whether they ran."""
    return [
        method.name
        for method in contract.methods
        if method.GetOptions().idempotency_level in _REPEATABLE
    ]


def _action(
    service: RoutedService, planned: Sequence[Planned], affinity: Affinity
) -> route_pb2.RouteAction:
    taking = [plan for plan in planned if plan.weight > 0]
    action = route_pb2.RouteAction()
    if len(taking) > 1:
        for plan in taking:
            action.weighted_clusters.clusters.add(name=plan.name, weight=number(plan.weight))
    else:
        # Where the others' instances are all gone, who has weight 0 is better than nobody.
        action.cluster = (taking or planned)[0].name
    key = AFFINITY_KEYS.get(service.name)
    if key is not None and affinity is Affinity.RING:
        header = route_pb2.RouteAction.HashPolicy.Header(header_name=key)
        action.hash_policy.add(header=header, terminal=True)
    return action


def _retry_policy() -> route_pb2.RetryPolicy:
    base, most = RETRY_SECONDS
    return route_pb2.RetryPolicy(
        retry_on="unavailable",
        num_retries=number(RETRIES_MAX),
        retry_back_off=route_pb2.RetryPolicy.RetryBackOff(
            base_interval=seconds(base), max_interval=seconds(most)
        ),
    )


def _cluster(plan: Planned, ring_places: int, trust_domain: str) -> cluster_pb2.Cluster:
    cluster = cluster_pb2.Cluster(
        name=plan.name,
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(
            eds_config=_same_stream(), service_name=plan.name
        ),
        circuit_breakers=cluster_pb2.CircuitBreakers(
            thresholds=[cluster_pb2.CircuitBreakers.Thresholds(max_requests=number(REQUESTS_MAX))]
        ),
        outlier_detection=_outlier_detection(),
    )
    if ring_places:
        size = min(ring_places, RING_PLACES_MAX)
        cluster.lb_policy = cluster_pb2.Cluster.RING_HASH
        cluster.ring_hash_lb_config.minimum_ring_size.value = size
        cluster.ring_hash_lb_config.maximum_ring_size.value = size
    else:
        cluster.load_balancing_policy.CopyFrom(_by_load())
    if trust_domain:
        cluster.transport_socket.name = "envoy.transport_sockets.tls"
        cluster.transport_socket.typed_config.CopyFrom(packed(_tls(plan.members, trust_domain)))
    return cluster


def _by_load() -> cluster_pb2.LoadBalancingPolicy:
    """Endpoints in turn, by what they say of their load (ORCA) where they do; clients that
    can't read that take them simply in turn."""
    weighted = cluster_pb2.ClientSideWeightedRoundRobin(
        blackout_period=seconds(1), weight_update_period=seconds(1)
    )
    # Side by side within the zone: grpc-js refuses the whole where it knows none inside.
    in_zone = _policies(("weighted", weighted), ("in_turn", cluster_pb2.RoundRobin()))
    return _policies(("by_zone", cluster_pb2.WrrLocality(endpoint_picking_policy=in_zone)))


def _policies(
    *named: tuple[str, cluster_pb2.WrrLocality | cluster_pb2.RoundRobin]
    | tuple[str, cluster_pb2.ClientSideWeightedRoundRobin],
) -> cluster_pb2.LoadBalancingPolicy:
    return cluster_pb2.LoadBalancingPolicy(
        policies=[
            cluster_pb2.LoadBalancingPolicy.Policy(
                typed_extension_config=core_pb2.TypedExtensionConfig(
                    name=name, typed_config=packed(policy)
                )
            )
            for name, policy in named
        ]
    )


def _outlier_detection() -> cluster_pb2.OutlierDetection:
    """Leaves out for a moment who fails nearly everything. A client counts every status but
    OK, a NOT_FOUND too, so the bar is high and half of all stay in."""
    return cluster_pb2.OutlierDetection(
        interval=seconds(1),
        base_ejection_time=seconds(3),
        max_ejection_time=seconds(30),
        max_ejection_percent=number(50),
        enforcing_success_rate=number(0),
        failure_percentage_threshold=number(90),
        enforcing_failure_percentage=number(100),
        failure_percentage_minimum_hosts=number(2),
        failure_percentage_request_volume=number(20),
    )


def _tls(members: Iterable[Member], trust_domain: str) -> tls_pb2.UpstreamTlsContext:
    """Mutual TLS with those identities and no others."""
    provider = tls_pb2.CertificateProviderPluginInstance(instance_name=CERTIFICATES)
    identities = sorted({member.instance.spiffe_id for member in members})
    matchers = [tls_pb2.StringMatcher(exact=identity) for identity in identities]
    checks = tls_pb2.CertificateValidationContext(
        # Without a name every certificate of the authority would do.
        match_subject_alt_names=matchers
        or [tls_pb2.StringMatcher(exact=f"spiffe://{trust_domain}/")],
        ca_certificate_provider_instance=provider,
    )
    return tls_pb2.UpstreamTlsContext(
        common_tls_context=tls_pb2.CommonTlsContext(
            tls_certificate_provider_instance=provider, validation_context=checks
        )
    )


def _same_stream() -> core_pb2.ConfigSource:
    return core_pb2.ConfigSource(ads=core_pb2.AggregatedConfigSource())
