"""Spans as a collector receives them."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client import CollectorRegistry, generate_latest

from mesh.call import Call
from mesh.errors import ModelUnavailable, NotFound
from mesh.rpc.channel import RemoteChannel
from mesh.rpc.local import LocalChannel
from mesh.rpc.pipeline import bind
from mesh.rpc.server import RpcServer
from mesh.rpc.settings import RpcSettings
from mesh.sockets import bind_first_free
from mesh.telemetry import traces
from services.models.metrics import OTHER, SERIES_MAX, ModelMetrics
from services.models.service import ModelsService
from services.models.settings import ModelsSettings
from tests.support.budgets import memory_budgets
from tests.support.cached import memory_cache
from tests.support.edge import pipeline
from tests.support.openai_server import refused, said, serve_openai
from tests.support.rpc_service import SmallService
from weft.models.v1 import model_service_pb2 as models
from weft.models.v1 import models_pb2
from weft.vectors.v1 import vector_service_pb2 as pb
from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SETTINGS = RpcSettings()
REQUEST = pb.GetCollectionRequest(name="tenants/default/collections/docs")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: dict[str, Any] = {}
        self.resources: list[dict[str, str]] = []

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        for batch in request.resource_spans:
            self.resources.append(attributes_of(batch.resource))
            for scope in batch.scope_spans:
                self.spans.update({span.name: span for span in scope.spans})
        return trace_service_pb2.ExportTraceServiceResponse()


def attributes_of(holder: Any) -> dict[str, Any]:
    return {
        item.key: getattr(item.value, item.value.WhichOneof("value")) for item in holder.attributes
    }


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    collector = Collector()
    server = grpc.aio.server()
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    assert traces.start("instance-1")
    yield collector
    await asyncio.to_thread(traces.stop, 5)
    await server.stop(None)


async def exported(collector: Collector) -> dict[str, Any]:
    await asyncio.to_thread(traces.stop, 5)
    return collector.spans


@pytest.mark.parametrize("way", ["local", "wire"])
async def test_a_call_is_one_span_under_the_callers(collector: Collector, way: str) -> None:
    service = SmallService()
    endpoints = bind(service.handlers, pipeline(SETTINGS), SETTINGS)
    server = RpcServer(endpoints, SETTINGS, pipeline(SETTINGS))
    channel = RemoteChannel(f"127.0.0.1:{await server.start('127.0.0.1', 0)}", SETTINGS)
    stub: Any = VectorServiceStub(
        channel if way == "wire" else LocalChannel(endpoints)  # type: ignore[call-overload]
    )
    with pytest.raises(NotFound):
        await stub.GetCollection(REQUEST, metadata=(("traceparent", PARENT),))
    await channel.close()
    await server.stop()
    spans = await exported(collector)
    (span,) = spans.values()
    assert span.name == "weft.vectors.v1.VectorService/GetCollection"
    assert span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert span.parent_span_id.hex() == "b7ad6b7169203331"
    attributes = attributes_of(span)
    assert attributes["rpc.response.status_code"] == attributes["error.type"] == "NOT_FOUND"
    (call,) = service.vectors.calls
    assert attributes["weft.request_id"] == call.request_id
    assert call.traceparent == f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01"
    assert collector.resources[0]["service.name"] == "weft"
    assert collector.resources[0]["service.instance.id"] == "instance-1"


async def test_model_and_tool_spans_carry_the_genai_attributes(collector: Collector) -> None:
    with traces.model_span("chat", "builtin", "extractive", PARENT) as span:
        span.set(traces.GEN_AI_USAGE_INPUT_TOKENS, 12)
        span.set(traces.GEN_AI_USAGE_OUTPUT_TOKENS, 3)
    with (
        pytest.raises(ValueError, match="wrong"),
        traces.tool_span("calculator", "c-1", span.traceparent),
    ):
        raise ValueError("wrong")
    spans = await exported(collector)
    model, tool = spans["chat extractive"], spans["execute_tool calculator"]
    assert attributes_of(model) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "builtin",
        "gen_ai.request.model": "extractive",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 3,
    }
    assert attributes_of(tool) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "calculator",
        "gen_ai.tool.call.id": "c-1",
        "error.type": "ValueError",
    }
    assert model.parent_span_id.hex() == "b7ad6b7169203331"
    assert tool.parent_span_id == model.span_id
    assert "wrong" not in str(tool)


async def test_a_parent_that_is_not_sampled_is_followed(collector: Collector) -> None:
    with traces.model_span("chat", "p", "m", PARENT.removesuffix("01") + "00") as span:
        assert span.traceparent.endswith("-00")
    assert await exported(collector) == {}


async def test_a_collector_that_is_away_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with bind_first_free("127.0.0.1", 0) as silent:
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        traces.start("instance-1")
        with traces.tool_span("calculator", "c-1", ""):
            pass
        await asyncio.wait_for(asyncio.to_thread(traces.stop, 0.2), 5)
    assert not traces.active()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, False),
        ({"OTEL_SDK_DISABLED": "false", "OTEL_TRACES_EXPORTER": "otlp"}, True),
    ],
)
def test_traces_are_off_unless_the_environment_asks(
    environment: dict[str, str], expected: bool
) -> None:
    assert traces.wanted(environment) is expected


def test_while_off_spans_cost_nothing_and_hand_their_parent_on() -> None:
    with traces.model_span("chat", "p", "m", PARENT) as span:
        span.set(traces.GEN_AI_USAGE_INPUT_TOKENS, 1)
        assert span.traceparent == PARENT


async def test_the_models_service_tells_what_a_call_took_and_no_word_of_it(
    collector: Collector,
) -> None:
    registry = CollectorRegistry()
    async with serve_openai() as endpoint:
        endpoint.script = [said("se", "cret-answer"), refused(500)]
        provider = {
            "name": "mine",
            "base_url": endpoint.base_url,
            "attempts_max": 1,
            "models": [{"name": "small"}],
        }
        service = ModelsService(
            ModelsSettings(providers=[provider]), memory_cache(), memory_budgets(), registry
        )
        about = Call("test", time.monotonic() + 10, "r1", traceparent=PARENT)
        asked = models.GenerateRequest(parent="tenants/default", model="mine/small")
        asked.conversation.messages.add(role=models_pb2.ROLE_USER, text="secret-question")
        await service.generate(asked, about)
        asked.model = "mine/other"
        with pytest.raises(ModelUnavailable):
            await service.generate(asked, about)
        texts = models.EmbedRequest(parent="tenants/default", texts=["secret-text"])
        await service.embed(texts, about)
        await service.stop()
    spans = await exported(collector)
    told = attributes_of(spans["chat small"])
    first_seconds = told.pop("gen_ai.response.time_to_first_chunk")
    assert first_seconds > 0
    assert told.pop("gen_ai.response.finish_reasons").values[0].string_value == "stop"
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mine",
        "gen_ai.request.model": "small",
        "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 0,
    }
    assert spans["chat small"].parent_span_id.hex() == "b7ad6b7169203331"
    assert attributes_of(spans["chat other"])["error.type"] == "ModelUnavailable"
    embedded = attributes_of(spans["embeddings hashing"])
    assert embedded["gen_ai.provider.name"] == "weft"
    assert embedded["gen_ai.embeddings.dimension.count"] == 384
    scraped = generate_latest(registry).decode()
    labels = (
        'gen_ai_operation_name="chat",gen_ai_provider_name="mine",gen_ai_request_model="small",'
        'weft_provider="mine"'
    )
    assert (
        f'gen_ai_client_inference_duration_seconds_count{{error_type="",{labels}}} 1.0' in scraped
    )
    assert f"gen_ai_client_inference_operation_input_tokens_sum{{{labels}}} 11.0" in scraped
    assert f"gen_ai_client_inference_operation_output_tokens_sum{{{labels}}} 5.0" in scraped
    assert f"gen_ai_client_inference_time_to_first_chunk_seconds_count{{{labels}}} 1.0" in scraped
    assert 'error_type="ModelUnavailable"' in scraped
    assert "gen_ai_client_embeddings_duration_seconds_count" in scraped
    assert 'weft_models_breaker_open{provider="mine"} 0.0' in scraped
    assert "secret" not in scraped
    assert "secret" not in str(spans)


async def test_a_name_that_only_callers_know_is_no_label() -> None:
    registry = CollectorRegistry()
    async with serve_openai() as endpoint:
        endpoint.script = [said("Done.")]
        endpoint.listed = {"data": [{"id": "listed"}]}
        mine = {"name": "mine", "base_url": endpoint.base_url, "models": [{"name": "priced"}]}
        route = {"name": "sure", "models": ["mine/routed"]}
        service = ModelsService(
            ModelsSettings(providers=[mine], routes=[route]),
            memory_cache(),
            memory_budgets(),
            registry,
        )
        about = Call("test", time.monotonic() + 10, "r1")
        parent = "tenants/default"
        await service.list_models(models.ListModelsRequest(parent=parent), about)
        for model in ("listed", "priced", "routed", "made-up-1", "made-up-2"):
            asked = models.GenerateRequest(parent=parent, model=f"mine/{model}")
            asked.conversation.messages.add(role=models_pb2.ROLE_USER, text="Say it.")
            await service.generate(asked, about)
        embeds = models.EmbedRequest(parent=parent, model="mine/made-up-3", texts=["a"])
        await service.embed(embeds, about)
        embeds.model = "builtin/made-up-4"
        with pytest.raises(NotFound):
            await service.embed(embeds, about)
        await service.stop()
    scraped = generate_latest(registry).decode()
    labels = set(re.findall(r'gen_ai_request_model="([^"]*)"', scraped))
    assert labels == {"listed", "priced", "routed", OTHER}
    count = 'gen_ai_client_inference_duration_seconds_count{error_type="",'
    assert next(line for line in scraped.splitlines() if count in line and OTHER in line).endswith(
        " 2.0"
    )


def test_names_of_models_of_a_process_are_bounded() -> None:
    metrics = ModelMetrics()
    named = [metrics.names("chat", "p", "p", f"m{number}") for number in range(SERIES_MAX + 10)]
    assert len(set(named)) == SERIES_MAX + 1
    assert metrics.names("chat", "p", "p", "m0") == named[0]
