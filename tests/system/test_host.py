"""A process: what it starts, in which order, and how it ends."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from mesh.errors import FailedPrecondition
from mesh.runtime.host import Host
from mesh.runtime.service import Mesh, Service, ServiceEntry
from mesh.runtime.settings import RuntimeSettings
from services.catalog import CATALOGUE, access
from tests.support.edge import open_access
from tests.support.platform import Platform
from tests.support.turn_client import TurnClient
from weft.agents.v1 import agent_pb2


def settings(folder: Path) -> RuntimeSettings:
    return RuntimeSettings(data_dir=folder, grpc_port=0, http_port=0, nats_port=0, notice_seconds=0)


class Recorder:
    """A service that notes when it is started and stopped."""

    def __init__(self, name: str, log: list[str], *, fails: bool = False) -> None:
        self._name = name
        self._log = log
        self._fails = fails

    @property
    def handlers(self) -> Mapping[str, object]:
        return {}

    async def start(self) -> None:
        if self._fails:
            raise FailedPrecondition(f"{self._name} can't start")
        self._log.append(f"start {self._name}")

    async def stop(self) -> None:
        self._log.append(f"stop {self._name}")


def recorded(name: str, log: list[str], *calls: str, fails: bool = False) -> ServiceEntry:
    def build(mesh: Mesh) -> Service:
        return Recorder(name, log, fails=fails)

    return ServiceEntry(name, name, (), calls, build)


async def test_services_start_in_call_order_and_stop_in_reverse(tmp_path: Path) -> None:
    log: list[str] = []
    catalogue = [recorded("top", log, "base"), recorded("base", log)]
    async with Host(catalogue, settings(tmp_path / "data"), open_access):
        assert log == ["start base", "start top"]
    assert log[2:] == ["stop top", "stop base"]


async def test_a_start_that_fails_stops_what_was_started_and_frees_the_folder(
    tmp_path: Path,
) -> None:
    log: list[str] = []
    catalogue = [recorded("top", log, "base", fails=True), recorded("base", log)]
    with pytest.raises(FailedPrecondition, match="top can't start"):
        async with Host(catalogue, settings(tmp_path / "data"), open_access):
            raise AssertionError("it must not start")
    assert log == ["start base", "stop top", "stop base"]
    async with Host([recorded("base", log)], settings(tmp_path / "data"), open_access):
        assert log[-1] == "start base"


async def test_probes_say_which_part_is_not_ready(tmp_path: Path) -> None:
    async with Host(CATALOGUE, settings(tmp_path / "data"), access) as host:
        base = f"http://{host.addresses['http']}"
        assert (await _get(f"{base}/healthz"))[0] == 200
        code, body = await _get(f"{base}/readyz")
        assert code == 200, body
        code, body = await _get(f"{base}/metrics")
        assert b"weft_rpc" in body
        assert host._nats is not None
        await host._nats.stop()
        code, body = await _until_not_ready(f"{base}/readyz")
        assert code == 503
        assert b"events" in body


async def test_health_names_every_service(tmp_path: Path) -> None:
    async with (
        Host(CATALOGUE, settings(tmp_path / "data"), access) as host,
        grpc.aio.insecure_channel(host.addresses["grpc"]) as channel,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        names = [contract.full_name for entry in CATALOGUE for contract in entry.contracts]
        for name in ["", *names]:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, name


async def test_the_address_file_is_there_while_it_serves(tmp_path: Path) -> None:
    path = tmp_path / "data" / "run" / "address.json"
    async with Host(CATALOGUE, settings(tmp_path / "data"), access) as host:
        assert json.loads(path.read_text())["grpc"] == host.addresses["grpc"]
    assert not path.exists()


async def test_a_port_that_is_taken_makes_way_and_is_told(tmp_path: Path) -> None:
    async with Host(CATALOGUE, settings(tmp_path / "one"), access) as first:
        taken = int(first.addresses["grpc"].rpartition(":")[2])
        asked = settings(tmp_path / "two").model_copy(update={"grpc_port": taken})
        async with Host(CATALOGUE, asked, access) as second:
            assert second.addresses["grpc"] != first.addresses["grpc"]
            assert any(str(taken) in note for note in second.notes)


class _Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        for batch in request.resource_spans:
            for scope in batch.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_a_turn_is_one_trace_with_genai_spans(tmp_path: Path) -> None:
    collector, server = _Collector(), grpc.aio.server()
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    weft = Platform(
        tmp_path / "data",
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        },
        configured_models=True,
    )
    await weft.start()
    try:
        tools = [agent_pb2.ToolBinding(tool="calculator")]
        agent = await weft.apply("bot", agent_pb2.AgentSpec(tools=tools))
        await TurnClient(await weft.session(agent), "How much is 6 * 7?").run(weft)
        assert await weft.stop() == 0
    finally:
        await weft.kill()
        await server.stop(None)
    spans = {span.name: span for span in collector.spans}
    run = spans["weft.agents.v1.TurnService/RunTurn"]
    for name in ("chat extractive", "execute_tool calculator"):
        assert spans[name].trace_id == run.trace_id, name
    chat = {item.key: item.value for item in spans["chat extractive"].attributes}
    assert chat["gen_ai.provider.name"].string_value == "weft"
    assert chat["gen_ai.usage.input_tokens"].int_value > 0


async def _get(url: str) -> tuple[int, bytes]:
    def get() -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    return await asyncio.to_thread(get)


async def _until_not_ready(url: str) -> tuple[int, bytes]:
    async with asyncio.timeout(10):
        while (answer := await _get(url))[0] == 200:  # noqa: ASYNC110 - it is asked over HTTP
            await asyncio.sleep(0.1)
    return answer
