"""The server's health, as `grpc.health.v1` tells it."""

from mesh.cli.connection import Client

HEALTH_SECONDS = 5.0


def health(client: Client, service: str = "") -> str:
    """The state of a service, or of the whole server: `SERVING`, `NOT_SERVING`, or
    `SERVICE_UNKNOWN` where it doesn't offer the service, or no health service at all.
    RpcError where the server can't be reached."""
    import grpc
    from grpc_health.v1 import health_pb2
    from grpc_health.v1.health_pb2_grpc import HealthStub

    from mesh.cli.failures import is_not_found, is_unimplemented

    stub: HealthStub = client.stub(HealthStub)
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        answer = client.call(stub.Check, request, HEALTH_SECONDS)  # type: ignore[attr-defined]
    except grpc.RpcError as error:
        if is_not_found(error) or is_unimplemented(error):
            return "SERVICE_UNKNOWN"
        raise
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
