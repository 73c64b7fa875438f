"""The mesh at a glance: who serves what, and where a client's calls go, by what is in memory."""

from collections.abc import Mapping, Sequence

from mesh.control.registry import Registry
from mesh.control.xds.endpoints import members_of
from mesh.control.xds.mesh_view import MeshView
from mesh.control.xds.messages import ENDPOINT_TYPE, ROUTE_TYPE
from mesh.control.xds.names import TARGET
from mesh.control.xds.resources import resources_of
from mesh.sockets import address_at
from weft.control.v1 import mesh_service_pb2 as pb
from weft.control.v1.instances_pb2 import INSTANCE_STATE_DRAINING, Instance
from weft.xds.v1 import endpoint_pb2, route_pb2

_HEALTH = {
    endpoint_pb2.HEALTHY: pb.ENDPOINT_HEALTH_HEALTHY,
    endpoint_pb2.UNHEALTHY: pb.ENDPOINT_HEALTH_UNHEALTHY,
    endpoint_pb2.DRAINING: pb.ENDPOINT_HEALTH_DRAINING,
}


def status_of(service: str, registry: Registry) -> pb.ServiceStatus:
    """Who serves the service of that name."""
    having, serving = registry.instances(service), registry.serving(service)
    return pb.ServiceStatus(
        name=service,
        serving=len(serving),
        draining=sum(each.state == INSTANCE_STATE_DRAINING for each in having),
        zones=sorted({each.zone for each in serving}),
        versions=sorted({each.version for each in serving}),
    )


def left_without(leaving: Instance, registry: Registry) -> list[str]:
    """The services for which nobody would take calls once `leaving` doesn't."""
    return [
        service
        for service in leaving.services
        if all(each.name == leaving.name for each in registry.serving(service))
    ]


def routes_of(view: MeshView, zone: str, service: str = "") -> pb.ListRoutesResponse:
    """What a client in `zone` is told of the service, or of all: read from the very resources
    that it gets."""
    resources = resources_of(view, zone)
    told = route_pb2.RouteConfiguration.FromString(resources.by_type[ROUTE_TYPE][TARGET])
    routes = told.virtual_hosts[0].routes
    members, _ = members_of(view)
    names = {address_at(each.address, each.port): each.instance.name for each in members}
    response = pb.ListRoutesResponse(left_out=resources.left_out, zone=zone)
    for routed in view.services:
        if service not in ("", routed.name):
            continue
        prefixes = tuple(f"/{contract.full_name}/" for contract in routed.contracts)
        own = [
            each for each in routes if (each.match.path or each.match.prefix).startswith(prefixes)
        ]
        response.routes.append(_route(routed.name, own, resources.by_type[ENDPOINT_TYPE], names))
    return response


def _route(
    service: str,
    routes: Sequence[route_pb2.Route],
    assignments: Mapping[str, bytes],
    names: Mapping[str, str],
) -> pb.ServiceRoute:
    made = pb.ServiceRoute(service=service)
    made.retryable_methods.extend(
        each.match.path[1:] for each in routes if each.route.HasField("retry_policy")
    )
    for action in [each.route for each in routes][:1]:
        portions = [(each.name, each.weight.value) for each in action.weighted_clusters.clusters]
        for cluster, weight in portions or [(action.cluster, 1)]:
            endpoints = _endpoints(assignments[cluster], names)
            made.clusters.add(name=cluster, weight=weight, endpoints=endpoints)
        for policy in action.hash_policy:
            made.affinity_header = policy.header.header_name
    return made


def _endpoints(data: bytes, names: Mapping[str, str]) -> list[pb.RouteEndpoint]:
    told = endpoint_pb2.ClusterLoadAssignment.FromString(data)
    found = []
    for group in told.endpoints:
        for each in group.lb_endpoints:
            place = each.endpoint.address.socket_address
            address = address_at(place.address, place.port_value)
            found.append(
                pb.RouteEndpoint(
                    instance=names[address],
                    address=address,
                    zone=group.locality.zone,
                    priority=group.priority,
                    health=_HEALTH[each.health_status],
                    weight=each.load_balancing_weight.value,
                )
            )
    return sorted(found, key=lambda each: (each.priority, each.zone, each.instance))
