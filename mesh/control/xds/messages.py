"""Envoy's names for the messages of `weft.xds.v1`, and `Any` under those names.

Source: the xDS API, v3, as gRPC proposals A27, A28, A29, A42, A50, A55 and A58 have it.
"""

from datetime import timedelta
from typing import Any

from google.protobuf import any_pb2, duration_pb2, wrappers_pb2
from google.protobuf.message import Message

from weft.xds.v1 import (
    cluster_pb2,
    discovery_pb2,
    endpoint_pb2,
    listener_pb2,
    load_pb2,
    route_pb2,
    status_pb2,
    tls_pb2,
)

_EXTENSIONS = "envoy.extensions"
_BALANCING = f"{_EXTENSIONS}.load_balancing_policies"
_HTTP = f"{_EXTENSIONS}.filters.network.http_connection_manager.v3"
_SESSIONS = f"{_EXTENSIONS}.filters.http.stateful_session.v3"

ENVOY_NAMES: dict[type[Message], str] = {
    listener_pb2.Listener: "envoy.config.listener.v3.Listener",
    listener_pb2.HttpConnectionManager: f"{_HTTP}.HttpConnectionManager",
    listener_pb2.Router: f"{_EXTENSIONS}.filters.http.router.v3.Router",
    listener_pb2.StatefulSession: f"{_SESSIONS}.StatefulSession",
    listener_pb2.StatefulSessionPerRoute: f"{_SESSIONS}.StatefulSessionPerRoute",
    listener_pb2.CookieBasedSessionState: (
        f"{_EXTENSIONS}.http.stateful_session.cookie.v3.CookieBasedSessionState"
    ),
    route_pb2.RouteConfiguration: "envoy.config.route.v3.RouteConfiguration",
    cluster_pb2.Cluster: "envoy.config.cluster.v3.Cluster",
    cluster_pb2.WrrLocality: f"{_BALANCING}.wrr_locality.v3.WrrLocality",
    cluster_pb2.ClientSideWeightedRoundRobin: (
        f"{_BALANCING}.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin"
    ),
    cluster_pb2.RoundRobin: f"{_BALANCING}.round_robin.v3.RoundRobin",
    endpoint_pb2.ClusterLoadAssignment: "envoy.config.endpoint.v3.ClusterLoadAssignment",
    tls_pb2.UpstreamTlsContext: f"{_EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext",
    load_pb2.OrcaLoadReport: "xds.data.orca.v3.OrcaLoadReport",
    status_pb2.ClientStatusResponse: "envoy.service.status.v3.ClientStatusResponse",
    discovery_pb2.DiscoveryRequest: "envoy.service.discovery.v3.DiscoveryRequest",
    discovery_pb2.DiscoveryResponse: "envoy.service.discovery.v3.DiscoveryResponse",
}
"""Of all messages that are sent or read by themselves, or in `Any`."""

ADS_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
ADS_METHOD = "StreamAggregatedResources"


def type_url(message_type: type[Message]) -> str:
    """Under which a message goes into `Any`."""
    return f"type.googleapis.com/{ENVOY_NAMES[message_type]}"


LISTENER_TYPE = type_url(listener_pb2.Listener)
ROUTE_TYPE = type_url(route_pb2.RouteConfiguration)
CLUSTER_TYPE = type_url(cluster_pb2.Cluster)
ENDPOINT_TYPE = type_url(endpoint_pb2.ClusterLoadAssignment)
RESOURCE_TYPES = (CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE)
"""In the order in which they are told: what is routed to is there before its route."""


def encoded(message: Message) -> bytes:
    """Its bytes, the same for equal messages."""
    return message.SerializeToString(deterministic=True)


def packed(message: Message) -> any_pb2.Any:
    """The message in `Any`, under Envoy's name."""
    return any_pb2.Any(type_url=type_url(type(message)), value=encoded(message))


def seconds(value: float) -> duration_pb2.Duration:
    """A span of so many seconds."""
    duration = duration_pb2.Duration()
    duration.FromTimedelta(timedelta(seconds=value))
    return duration


def number(value: int) -> Any:
    """A number that is there even where it is 0."""
    return wrappers_pb2.UInt32Value(value=value)
