"""Probes and scrapes over HTTP."""

import signal
from collections.abc import AsyncIterator

import httpx2
import pytest

from mesh.telemetry.http import TelemetryServer
from mesh.telemetry.metrics import RpcMetrics, new_registry

ready = {"events": True, "agents": True}


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    registry = new_registry()
    method = RpcMetrics(registry).method("weft.agents.v1.AgentService", "GetAgent")
    method.in_flight += 1
    method.ended("OK", 0.002)
    server = TelemetryServer(registry, lambda: ready)
    port = await server.start("127.0.0.1", 0)
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=5) as client:
        yield client
    await server.stop()


async def test_a_live_process_is_healthy(client: httpx2.AsyncClient) -> None:
    response = await client.get("/healthz")
    assert (response.status_code, response.text) == (200, "ok\n")


async def test_a_process_is_ready_when_all_parts_are(client: httpx2.AsyncClient) -> None:
    response = await client.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {"ready": True, "waiting_for": []}


async def test_parts_that_are_not_ready_are_named(client: httpx2.AsyncClient) -> None:
    ready["events"] = False
    try:
        response = await client.get("/readyz")
    finally:
        ready["events"] = True
    assert response.status_code == 503
    assert response.json() == {"ready": False, "waiting_for": ["events"]}


async def test_metrics_are_scraped_as_text(client: httpx2.AsyncClient) -> None:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    labels = 'code="OK",method="GetAgent",service="weft.agents.v1.AgentService"'
    assert f"weft_rpc_calls_total{{{labels}}} 1.0" in response.text
    assert "process_resident_memory_bytes" in response.text


async def test_other_paths_are_not_found(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/")).status_code == 404


async def test_a_taken_port_gives_the_next_one_and_a_stopped_server_frees_it() -> None:
    first, second = (TelemetryServer(new_registry(), dict) for _ in range(2))
    port = await first.start("127.0.0.1", 0)
    assert await second.start("127.0.0.1", port) > port
    await second.stop()
    await first.stop()
    third = TelemetryServer(new_registry(), dict)
    assert await third.start("127.0.0.1", port) == port
    await third.stop()


async def test_the_handling_of_signals_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    server = TelemetryServer(new_registry(), dict)
    await server.start("127.0.0.1", 0)
    during = signal.getsignal(signal.SIGTERM)
    await server.stop()
    assert during == before
