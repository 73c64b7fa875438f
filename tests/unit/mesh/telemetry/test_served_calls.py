"""How many calls of each service ended, and failed, as the registry tells it."""

from mesh.runtime.registration import LoadMeter
from mesh.telemetry.metrics import RpcMetrics, Served, new_registry


def test_calls_are_counted_by_service_and_failures_are_those_of_the_server() -> None:
    metrics = RpcMetrics(new_registry())
    get = metrics.method("weft.agents.v1.AgentService", "GetAgent")
    watch = metrics.method("weft.agents.v1.TurnService", "WatchTurn", streams=True)
    metrics.method("weft.models.v1.ModelService", "Generate")
    foreign = metrics.method("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo")
    refused = ("OK", "NOT_FOUND", "RESOURCE_EXHAUSTED", "CANCELLED", "UNIMPLEMENTED")
    failed = ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS", "DEADLINE_EXCEEDED")
    for method in (get, watch, foreign):
        for code in (*refused, *failed):
            method.ended(code, 2.0)
        # No server could have kept that.
        method.ended("DEADLINE_EXCEEDED", 0.1)
    # A watch that ends at its deadline didn't fail.
    assert metrics.served() == {"agents": Served(calls=22, failures=5 + 4)}


def test_the_load_tells_of_them() -> None:
    load = LoadMeter(lambda: 3, lambda: {"agents": Served(20, 9)}).read()
    assert load.calls == 3
    assert [(each.service, each.calls, each.failures) for each in load.served] == [
        ("agents", 20, 9)
    ]
