"""A model endpoint that fails: the turn says why, and never hangs."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.openai_server import (
    OpenAIServer,
    chunk,
    refused,
    said,
    serve_openai,
    streamed,
    typed,
)
from tests.support.platform import Platform
from tests.support.turn_client import TurnClient
from weft.agents.v1 import agent_pb2
from weft.errors.v1 import errors_pb2
from weft.models.v1 import model_service_pb2
from weft.models.v1.model_service_pb2_grpc import ModelServiceStub

TURN_SECONDS_MAX = 20.0

FAULTS = {
    "refuses credentials": ([refused(401)], errors_pb2.REASON_MODEL_REFUSED),
    "doesn't know the model": ([refused(404)], errors_pb2.REASON_MODEL_REFUSED),
    "limits the rate": ([refused(429)], errors_pb2.REASON_MODEL_RATE_LIMITED),
    "fails": ([refused(500)], errors_pb2.REASON_MODEL_UNAVAILABLE),
    "is slow": ([streamed([3.0, chunk({"content": "late"})])], errors_pb2.REASON_MODEL_UNAVAILABLE),
    "stops in the middle": (
        [streamed([chunk({"content": "Hal"}), 3.0])],
        errors_pb2.REASON_MODEL_UNAVAILABLE,
    ),
    "cuts the stream": (
        [streamed([chunk({"content": "Hal"})], is_cut=True)],
        errors_pb2.REASON_MODEL_UNAVAILABLE,
    ),
    "talks nonsense": ([streamed(["{nonsense"])], errors_pb2.REASON_MODEL_BAD_ANSWER),
    "answers a page": ([typed("<html></html>", "text/html")], errors_pb2.REASON_MODEL_BAD_ANSWER),
}


@pytest.fixture(scope="module")
async def endpoint() -> AsyncIterator[OpenAIServer]:
    async with serve_openai() as server:
        yield server


@pytest.fixture(scope="module")
async def weft(
    endpoint: OpenAIServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Platform]:
    patient = {
        "base_url": endpoint.base_url,
        "first_token_timeout_seconds": 0.5,
        "between_tokens_timeout_seconds": 0.5,
        "retry_base_seconds": 0.05,
        "attempts_max": 2,
        # Each fault is to be seen, however many there were before.
        "breaker_failures_max": 1_000,
    }
    platform = Platform(
        tmp_path_factory.mktemp("faults") / "data",
        {
            "WEFT_MODELS_PROVIDERS": json.dumps(
                [
                    {"name": "openai", "default_model": "small", "api_key": "sk-canary", **patient},
                    {"name": "spare", **patient},
                ]
            ),
            "WEFT_MODELS_ROUTES": '[{"name": "sure", "models": ["openai/small", "spare/small"]}]',
        },
        configured_models=True,
    )
    await platform.start()
    await platform.apply("bot", agent_pb2.AgentSpec())
    yield platform
    await platform.kill()


async def asked(weft: Platform) -> TurnClient:
    client = TurnClient(await weft.session("tenants/default/agents/bot"), "How are you?")
    async with asyncio.timeout(TURN_SECONDS_MAX):
        await client.run(weft)
    return client


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_turn_fails_with_the_reason(
    fault: str, endpoint: OpenAIServer, weft: Platform
) -> None:
    endpoint.script, reason = list(FAULTS[fault][0]), FAULTS[fault][1]
    client = await asked(weft)
    assert client.kinds == ["accepted", "failed"]
    error = client.events[-1].failed.error
    assert errors_pb2.Reason.Name(error.reason) == errors_pb2.Reason.Name(reason)
    assert error.message
    assert "canary" not in error.message
    assert "canary" not in weft.log_file.read_text()


async def test_a_fault_that_passes_is_retried(endpoint: OpenAIServer, weft: Platform) -> None:
    endpoint.script = [refused(503), said("I am ", "well.")]
    client = await asked(weft)
    assert client.kinds == ["accepted", "model_step", "completed"]
    assert client.text == "I am well."
    assert client.events[-1].completed.usage.input_tokens == 11


async def test_an_endpoint_that_is_down_fails_the_turn_and_the_next_one_works(
    endpoint: OpenAIServer, weft: Platform, tmp_path: Path
) -> None:
    away = Platform(
        tmp_path / "data",
        {
            "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
            "OPENAI_MODEL": "small",
            "WEFT_MODELS_OPENAI_ATTEMPTS_MAX": "1",
        },
        configured_models=True,
    )
    await away.start()
    try:
        await away.apply("bot", agent_pb2.AgentSpec())
        client = await asked(away)
        assert client.kinds == ["accepted", "failed"]
        assert client.events[-1].failed.error.reason == errors_pb2.REASON_MODEL_UNAVAILABLE
    finally:
        await away.kill()
    endpoint.script = [said("Fine.")]
    assert (await asked(weft)).text == "Fine."


async def test_a_model_calls_tools_and_gets_their_results(
    endpoint: OpenAIServer, weft: Platform
) -> None:
    await weft.apply("clerk", agent_pb2.AgentSpec(tools=[agent_pb2.ToolBinding(tool="calculator")]))
    call = {"name": "calculator", "arguments": '{"expression": "6 * 7"}'}
    asks = chunk({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": call}]})
    endpoint.script = [streamed([asks, chunk(finish="tool_calls")]), said("It is 42.")]
    endpoint.requests.clear()
    client = TurnClient(await weft.session("tenants/default/agents/clerk"), "6 * 7?")
    await client.run(weft)
    assert client.kinds == [
        "accepted",
        "model_step",
        "tool_call",
        "tool_result",
        "model_step",
        "completed",
    ]
    messages = endpoint.requests[-1]["messages"]
    assert messages[-1]["role"] == "tool"
    assert messages[-1]["content"] == "42"


async def test_a_turn_goes_on_with_the_next_model_of_its_route(
    endpoint: OpenAIServer, weft: Platform
) -> None:
    await weft.apply("sure", agent_pb2.AgentSpec(model="route/sure"))
    endpoint.script = [refused(401), said("Still here.")]
    client = TurnClient(await weft.session("tenants/default/agents/sure"), "Are you there?")
    await client.run(weft)
    assert client.kinds == ["accepted", "model_step", "completed"]
    assert client.text == "Still here."
    step = next(event.model_step for event in client.events if event.HasField("model_step"))
    assert step.model == "spare/small"


async def test_texts_are_embedded_over_the_wire(endpoint: OpenAIServer, weft: Platform) -> None:
    assert weft.channel is not None
    stub: Any = ModelServiceStub(weft.channel)
    request = model_service_pb2.EmbedRequest(
        parent="tenants/default", model="spare/small", texts=["one", "three"], dimension=4
    )
    request.cache_ttl.FromSeconds(60)
    found = [await stub.Embed(request, timeout=10) for _ in range(2)]
    assert [[each.values[0] for each in answer.embeddings] for answer in found] == [[3, 5]] * 2
    assert [answer.cached for answer in found] == [0, 2]
