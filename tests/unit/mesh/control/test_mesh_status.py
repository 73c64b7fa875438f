"""The mesh at a glance, and where calls go, read from what clients are told."""

from mesh.control.mesh_status import left_without, routes_of, status_of
from mesh.control.xds.mesh_view import MeshView, Portion
from tests.support.memory_instances import MemoryInstances
from tests.support.xds_mesh import SERVICES, instance_at
from weft.control.v1 import instances_pb2
from weft.control.v1 import mesh_service_pb2 as pb

DRAINING = instances_pb2.INSTANCE_STATE_DRAINING
NEAR = instance_at("near", "127.0.0.1:1", zone="here")
FAR = instance_at("far", "127.0.0.1:2", zone="there", version="2")
ENDING = instance_at("ending", "127.0.0.1:3", zone="here", state=DRAINING)


def test_a_service_is_told_with_who_takes_its_calls_and_who_drains() -> None:
    status = status_of("state", MemoryInstances(NEAR, FAR, ENDING))
    assert (status.serving, status.draining) == (2, 1)
    assert list(status.zones) == ["here", "there"]
    assert list(status.versions) == ["1", "2"]
    assert status_of("models", MemoryInstances(NEAR)) == pb.ServiceStatus(name="models")


def test_an_instance_is_the_last_where_others_only_drain() -> None:
    assert left_without(NEAR, MemoryInstances(NEAR, FAR)) == []
    assert left_without(NEAR, MemoryInstances(NEAR, ENDING)) == ["state", "vectors"]


def test_routes_are_those_that_a_client_of_the_zone_is_told() -> None:
    view = MeshView(SERVICES, (NEAR, FAR, ENDING), unhealthy=frozenset({"instances/far"}))
    told = routes_of(view, "here", "vectors")
    (route,) = told.routes
    assert (route.service, route.affinity_header) == ("vectors", "")
    assert "weft.vectors.v1.VectorService/GetCollection" in route.retryable_methods
    (cluster,) = route.clusters
    assert cluster.name == "vectors"
    found = [(e.instance, e.address, e.zone, e.priority, e.health) for e in cluster.endpoints]
    assert found == [
        ("instances/ending", "127.0.0.1:3", "here", 0, pb.ENDPOINT_HEALTH_DRAINING),
        ("instances/near", "127.0.0.1:1", "here", 0, pb.ENDPOINT_HEALTH_HEALTHY),
        ("instances/far", "127.0.0.1:2", "there", 1, pb.ENDPOINT_HEALTH_UNHEALTHY),
    ]


def test_a_split_is_told_with_its_portions_and_affinity_with_its_header() -> None:
    splits = {"state": (Portion("1", 90), Portion("2", 10))}
    told = routes_of(MeshView(SERVICES, (NEAR, FAR), splits=splits), "")
    by_service = {route.service: route for route in told.routes}
    clusters = by_service["state"].clusters
    assert [(each.name, each.weight) for each in clusters] == [("state/1/1", 90), ("state/2/1", 10)]
    assert [[e.instance for e in each.endpoints] for each in clusters] == [
        ["instances/near"],
        ["instances/far"],
    ]
    assert by_service["state"].affinity_header == "x-weft-session"
    assert len(by_service["vectors"].clusters) == 1


def test_who_is_not_told_is_said_with_the_reason() -> None:
    elsewhere = instance_at("named", "some-host:1")
    told = routes_of(MeshView(SERVICES, (elsewhere,)), "")
    assert list(told.left_out) == ["instances/named: no IP address with a port"]
    assert not told.routes[0].clusters[0].endpoints
