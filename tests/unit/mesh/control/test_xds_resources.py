"""What clients are told: routes, clusters and endpoints, from what is known of the mesh."""

from collections.abc import Sequence
from typing import Any, TypeVar

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from mesh.control.xds.endpoints import WEIGHT_MAX, address_of
from mesh.control.xds.mesh_view import MeshView, Portion
from mesh.control.xds.messages import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    LISTENER_TYPE,
    RESOURCE_TYPES,
    ROUTE_TYPE,
)
from mesh.control.xds.names import RING_PLACES_MAX
from mesh.control.xds.resources import (
    RING_PLACES,
    Affinity,
    Resources,
    repeatable_methods,
    resources_of,
)
from tests.support.xds_mesh import SERVICES, instance_at
from weft.control.v1 import instances_pb2
from weft.xds.v1 import cluster_pb2, endpoint_pb2, listener_pb2, route_pb2, tls_pb2

M = TypeVar("M", bound=Message)
DRAINING = instances_pb2.INSTANCE_STATE_DRAINING
UNSPECIFIED = instances_pb2.INSTANCE_STATE_UNSPECIFIED


def told(resources: Resources, kind: str, message_type: type[M], name: str) -> M:
    return message_type.FromString(resources.by_type[kind][name])


def cluster_of(resources: Resources, name: str = "vectors") -> cluster_pb2.Cluster:
    return told(resources, CLUSTER_TYPE, cluster_pb2.Cluster, name)


def endpoints_of(resources: Resources, name: str = "vectors") -> endpoint_pb2.ClusterLoadAssignment:
    return told(resources, ENDPOINT_TYPE, endpoint_pb2.ClusterLoadAssignment, name)


def statuses(resources: Resources, name: str = "vectors") -> dict[int, str]:
    """Health by port."""
    return {
        endpoint.endpoint.address.socket_address.port_value: endpoint_pb2.HealthStatus.Name(
            endpoint.health_status
        )
        for zone in endpoints_of(resources, name).endpoints
        for endpoint in zone.lb_endpoints
    }


def routes_of(resources: Resources) -> Sequence[route_pb2.Route]:
    found = told(resources, ROUTE_TYPE, route_pb2.RouteConfiguration, "weft")
    return found.virtual_hosts[0].routes


def route_of(resources: Resources, path: str) -> route_pb2.RouteAction:
    """That of the first route which matches, as clients look for it."""
    for route in routes_of(resources):
        match = route.match
        if path == match.path or (match.prefix and path.startswith(match.prefix)):
            return route.route
    raise LookupError(path)


def local(name: str, port: int, **fields: Any) -> instances_pb2.Instance:
    return instance_at(name, f"127.0.0.1:{port}", **fields)


def view(*instances: instances_pb2.Instance, **fields: Any) -> MeshView:
    return MeshView(SERVICES, instances, **fields)


def manager_of(resources: Resources) -> listener_pb2.HttpConnectionManager:
    listener = told(resources, LISTENER_TYPE, listener_pb2.Listener, "weft")
    return listener_pb2.HttpConnectionManager.FromString(listener.api_listener.api_listener.value)


def test_one_target_leads_to_all_services() -> None:
    resources = resources_of(view(local("a", 1)), "")
    assert manager_of(resources).rds.route_config_name == "weft"
    assert route_of(resources, "/weft.vectors.v1.VectorService/GetCollection").cluster == "vectors"
    assert route_of(resources, "/weft.state.v1.SessionService/CreateSession").cluster == "state"
    with pytest.raises(LookupError):
        route_of(resources, "/weft.vectors.v1.VectorServices/GetCollection")


def test_only_what_may_run_again_is_tried_again() -> None:
    resources = resources_of(view(local("a", 1)), "")
    for service in SERVICES:
        for contract in service.contracts:
            repeatable = repeatable_methods(contract)
            assert 0 < len(repeatable) < len(contract.methods)
            for method in contract.methods:
                action = route_of(resources, f"/{contract.full_name}/{method.name}")
                assert action.HasField("retry_policy") == (method.name in repeatable)


def test_sessions_go_by_a_ring_that_grows_with_the_endpoints_of_the_clients_zone() -> None:
    east = [local(f"e{port}", port, zone="east") for port in range(1, 4)]
    resources = resources_of(view(*east, local("w", 9, zone="west")), "east")
    action = route_of(resources, "/weft.state.v1.SessionService/GetSession")
    assert action.hash_policy[0].header.header_name == "x-weft-session"
    ring = cluster_of(resources, "state")
    assert ring.lb_policy == cluster_pb2.Cluster.RING_HASH
    assert ring.ring_hash_lb_config.minimum_ring_size.value == 3 * RING_PLACES
    assert ring.ring_hash_lb_config.maximum_ring_size.value == 3 * RING_PLACES
    assert not cluster_of(resources).HasField("ring_hash_lb_config")
    assert not route_of(resources, "/weft.vectors.v1.VectorService/Search").hash_policy


@pytest.mark.parametrize("affinity", [Affinity.NAMED, Affinity.NONE])
def test_a_client_whose_rings_fail_is_given_none(affinity: Affinity) -> None:
    resources = resources_of(view(local("a", 1), local("b", 2)), "", affinity)
    assert cluster_of(resources, "state").load_balancing_policy == (
        cluster_of(resources).load_balancing_policy
    )
    assert not route_of(resources, "/weft.state.v1.SessionService/GetSession").hash_policy


def test_a_client_that_names_places_is_told_by_which_cookie_where_sessions_are() -> None:
    for affinity in Affinity:
        resources = resources_of(view(local("a", 1)), "", affinity)
        named = affinity is Affinity.NAMED
        filters = [each.name for each in manager_of(resources).http_filters]
        assert filters == ["places"] * named + ["router"]
        for route in routes_of(resources):
            configured = dict(route.typed_per_filter_config)
            assert list(configured) == ["places"] * (named and route.route.cluster == "state")
            for place in configured.values():
                assert b"weft-place" in place.value


def test_a_client_that_knows_no_balancing_by_load_takes_turns() -> None:
    [policy] = cluster_of(resources_of(view(local("a", 1)), "")).load_balancing_policy.policies
    by_zone = cluster_pb2.WrrLocality.FromString(policy.typed_extension_config.typed_config.value)
    # Not beside it: grpc-js refuses a WrrLocality of which it knows nothing inside.
    inside = [
        each.typed_extension_config.typed_config.type_url.rpartition(".")[2]
        for each in by_zone.endpoint_picking_policy.policies
    ]
    assert inside == ["ClientSideWeightedRoundRobin", "RoundRobin"]


def test_a_ring_is_bounded() -> None:
    many = [local(f"i{port}", port) for port in range(1, 400)]
    ring = cluster_of(resources_of(view(*many), ""), "state").ring_hash_lb_config
    assert ring.maximum_ring_size.value == RING_PLACES_MAX


def test_the_clients_zone_comes_first_and_all_others_together() -> None:
    instances = (local("a", 1, zone="east"), local("b", 2, zone="west"), local("c", 3, zone="mid"))
    by_zone = {
        zone: {
            each.locality.zone: each.priority
            for each in endpoints_of(resources_of(view(*instances), zone)).endpoints
        }
        for zone in ("east", "west", "nowhere", "")
    }
    assert by_zone["east"] == {"east": 0, "west": 1, "mid": 1}
    assert by_zone["west"] == {"west": 0, "east": 1, "mid": 1}
    assert by_zone["nowhere"] == by_zone[""] == {"east": 0, "west": 0, "mid": 0}


def test_zones_weigh_what_their_instances_do_and_on_a_ring_each_endpoint_does() -> None:
    instances = (
        *(local("a", 1, zone="east"), local("b", 2, zone="east", weight=50)),
        local("c", 3, zone="west", weight=10 * WEIGHT_MAX),
    )
    resources = resources_of(view(*instances), "")
    weights = {
        name: {
            zone.locality.zone: zone.load_balancing_weight.value
            for zone in endpoints_of(resources, name).endpoints
        }
        for name in ("vectors", "state")
    }
    assert weights == {
        "vectors": {"east": 150, "west": WEIGHT_MAX},
        "state": {"east": 1, "west": 1},
    }


def test_who_drains_or_fails_its_checks_gets_no_calls() -> None:
    instances = (local("a", 1), local("b", 2), local("c", 3, state=DRAINING))
    unhealthy = frozenset({"instances/b"})
    assert statuses(resources_of(view(*instances, unhealthy=unhealthy), "")) == {
        1: "HEALTHY",
        2: "UNHEALTHY",
        3: "DRAINING",
    }


def test_checks_that_fail_nearly_everywhere_are_not_believed() -> None:
    instances = [local(f"i{port}", port) for port in range(1, 11)]
    names = [instance.name for instance in instances]
    for failing, unhealthy_told in ((8, 8), (9, 0), (10, 0)):
        found = statuses(resources_of(view(*instances, unhealthy=frozenset(names[:failing])), ""))
        assert list(found.values()).count("UNHEALTHY") == unhealthy_told


def test_a_split_has_a_cluster_for_each_version_by_its_revision() -> None:
    instances = (local("a", 1, version="1.0"), local("b", 2, version="2.0"))
    split = {"vectors": (Portion("1.0", 90), Portion("2.0", 10, revision=3))}
    resources = resources_of(view(*instances, splits=split), "")
    action = route_of(resources, "/weft.vectors.v1.VectorService/GetCollection")
    shares = {each.name: each.weight.value for each in action.weighted_clusters.clusters}
    assert shares == {"vectors/1.0/1": 90, "vectors/2.0/3": 10}
    assert set(statuses(resources, "vectors/1.0/1")) == {1}
    assert set(statuses(resources, "vectors/2.0/3")) == {2}
    assert set(statuses(resources, "state")) == {1, 2}


def test_a_version_of_weight_0_gets_no_calls_and_stays_known() -> None:
    instances = (local("a", 1, version="1"), local("b", 2, version="2"))
    split = {"vectors": (Portion("1", 0), Portion("2", 100))}
    resources = resources_of(view(*instances, splits=split), "")
    action = route_of(resources, "/weft.vectors.v1.VectorService/GetCollection")
    assert action.cluster == "vectors/2/1"
    assert set(statuses(resources, "vectors/1/1")) == {1}
    # A client knows both before and behind each change: grpc-go fails calls else.
    kept = route_of(resources, "/kept/vectors").weighted_clusters.clusters
    assert {each.name for each in kept} == {"vectors/1/1", "vectors/2/1"}


@pytest.mark.parametrize("gone", [(), (local("b", 2, version="2", state=DRAINING),)])
def test_calls_of_a_version_that_nobody_serves_go_to_the_others(
    gone: tuple[instances_pb2.Instance, ...],
) -> None:
    split = {"vectors": (Portion("1", 10), Portion("2", 90))}
    resources = resources_of(view(local("a", 1, version="1"), *gone, splits=split), "")
    action = route_of(resources, "/weft.vectors.v1.VectorService/GetCollection")
    assert action.cluster == "vectors/1/1"


def test_where_no_version_of_a_split_is_served_calls_go_to_whoever_there_is() -> None:
    split = {"vectors": (Portion("1", 10), Portion("2", 90))}
    instances = (local("a", 1, version="3"), local("b", 2, version="2", state=DRAINING))
    resources = resources_of(view(*instances, splits=split), "")
    assert route_of(resources, "/weft.vectors.v1.VectorService/GetCollection").cluster == "vectors"
    assert len(statuses(resources)) == 2


def test_a_service_that_nobody_serves_has_a_route_all_the_same() -> None:
    split = {"state": (Portion("1", 10), Portion("2", 90))}
    resources = resources_of(view(splits=split), "")
    for path, cluster in (
        ("/weft.vectors.v1.VectorService/GetCollection", "vectors"),
        ("/weft.state.v1.SessionService/GetSession", "state"),
    ):
        assert route_of(resources, path).cluster == cluster
        assert not endpoints_of(resources, cluster).endpoints


def test_who_claims_an_address_takes_no_other_service_from_who_is_there() -> None:
    there, claims = local("a", 1), local("b", 1, state=DRAINING)
    claims.start_time.seconds = there.start_time.seconds + 1
    resources = resources_of(view(there, claims), "")
    assert statuses(resources) == {1: "HEALTHY"}
    claims.state = instances_pb2.INSTANCE_STATE_SERVING
    claims.services[:] = ["vectors"]
    resources = resources_of(view(there, claims), "")
    assert statuses(resources, "state") == {1: "HEALTHY"}


def test_of_two_at_one_address_the_later_counts() -> None:
    old, new = local("zombie", 1, version="1"), local("alive", 1, version="2")
    old.start_time.FromSeconds(100)
    new.start_time.FromSeconds(200)
    split = {"vectors": (Portion("1", 50), Portion("2", 50))}
    resources = resources_of(view(new, old, splits=split), "")
    assert set(resources.by_type[ENDPOINT_TYPE]) == {"vectors/2/1", "state"}


def test_who_cannot_be_dialled_is_left_out_with_the_reason() -> None:
    instances = (
        *(instance_at("a", "localhost:1"), instance_at("b", "10.0.0.1:1"), local("c", 3)),
        local("d", 4, state=UNSPECIFIED),
    )
    resources = resources_of(view(*instances), "")
    assert set(statuses(resources)) == {3}
    assert resources.left_out == (
        "instances/a: no IP address with a port",
        "instances/b: plain text goes to loopback only",
    )


def test_with_a_trust_domain_only_its_own_are_dialled_and_only_by_their_names() -> None:
    ours = "spiffe://weft.test/process/state.vectors"
    theirs = "spiffe://weft.test.evil/process/state.vectors"
    instances = (
        *(instance_at("a", "10.0.0.1:1", spiffe_id=ours), local("b", 2, spiffe_id=theirs)),
        # It runs one of the two services that it says it serves.
        *(local("c", 3), local("d", 4, spiffe_id="spiffe://weft.test/process/vectors")),
    )
    resources = resources_of(view(*instances, trust_domain="weft.test"), "")
    assert set(statuses(resources)) == {1}
    left_out = {text.partition(":")[0] for text in resources.left_out}
    assert left_out == {"instances/b", "instances/c", "instances/d"}
    socket = cluster_of(resources).transport_socket
    tls = tls_pb2.UpstreamTlsContext.FromString(socket.typed_config.value).common_tls_context
    assert [name.exact for name in tls.validation_context.match_subject_alt_names] == [ours]
    assert tls.tls_certificate_provider_instance.instance_name == "weft"
    nobody = cluster_of(resources_of(view(trust_domain="weft.test"), "")).transport_socket
    tls = tls_pb2.UpstreamTlsContext.FromString(nobody.typed_config.value).common_tls_context
    assert tls.validation_context.match_subject_alt_names


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("127.0.0.1:8440", ("127.0.0.1", 8440)),
        ("[::1]:1", ("::1", 1)),
        ("[::ffff:10.0.0.7]:1", ("10.0.0.7", 1)),
        ("[::ffff:a00:7]:1", ("10.0.0.7", 1)),
        ("::1:1", None),
        ("[127.0.0.1]:1", None),
        ("[fe80::1%eth0]:1", None),
        ("127.0.0.1", None),
        ("127.0.0.1:0", None),
        ("127.0.0.1:65536", None),
        ("127.0.0.1:-1", None),
        ("127.0.0.1:²", None),
        ("unix:/x", None),
        ("", None),
    ],
)
def test_an_address_is_an_ip_with_a_port(target: str, address: tuple[str, int] | None) -> None:
    assert address_of(target) == address


instances_of_any_kind = st.lists(
    st.builds(
        lambda name, port, **fields: instance_at(name, f"127.0.0.1:{port}", **fields),
        name=st.sampled_from("abcdefgh"),
        port=st.integers(0, 6),
        zone=st.sampled_from(["", "east", "west"]),
        version=st.sampled_from(["1", "2"]),
        weight=st.integers(0, 2**32 - 1),
        state=st.sampled_from(instances_pb2.InstanceState.values()),
    ),
    max_size=8,
    unique_by=lambda instance: instance.name,
)


@given(
    instances_of_any_kind,
    st.frozensets(st.sampled_from([f"instances/{name}" for name in "abcdefgh"])),
    st.lists(st.builds(Portion, st.sampled_from("123"), st.integers(0, 100)), max_size=3),
    st.sampled_from(["", "east", "elsewhere"]),
)
def test_clients_are_never_told_what_they_refuse(
    instances: list[instances_pb2.Instance],
    unhealthy: frozenset[str],
    portions: list[Portion],
    zone: str,
) -> None:
    splits = {"vectors": tuple({each.version: each for each in portions}.values())}
    mesh = view(*instances, unhealthy=unhealthy, splits=splits)
    resources = resources_of(mesh, zone)
    assert resources == resources_of(
        view(*reversed(instances), unhealthy=unhealthy, splits=splits), zone
    )
    assert set(resources.by_type) == set(RESOURCE_TYPES)
    clusters = set(resources.by_type[CLUSTER_TYPE])
    assert clusters == set(resources.by_type[ENDPOINT_TYPE])
    for route in routes_of(resources):
        shares = route.route.weighted_clusters.clusters
        named = [share.name for share in shares] or [route.route.cluster]
        assert set(named) <= clusters
        assert all(share.weight.value > 0 for share in shares)
    for name in clusters:
        zones = endpoints_of(resources, name).endpoints
        priorities = {each.priority for each in zones}
        assert priorities == set(range(len(priorities)))
        found = [endpoint for each in zones for endpoint in each.lb_endpoints]
        ports = [each.endpoint.address.socket_address.port_value for each in found]
        assert len(set(ports)) == len(ports)
        assert all(each.load_balancing_weight.value > 0 for each in zones)
        assert all(each.load_balancing_weight.value > 0 for each in found)
        taking = [each for each in found if each.health_status == endpoint_pb2.HEALTHY]
        serving = [each for each in found if each.health_status != endpoint_pb2.DRAINING]
        assert bool(taking) == bool(serving)
