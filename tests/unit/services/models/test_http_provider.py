"""A provider that speaks Chat Completions, against a real server, in health and in all its
faults."""

import email.utils
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from mesh.errors import (
    ModelBadAnswer,
    ModelRateLimited,
    ModelRefused,
    ModelUnavailable,
    WeftError,
)
from services.models.provider_settings import ProviderSettings
from services.models.providers.http import HttpProvider
from tests.support.budgets import unnoticed
from tests.support.openai_server import (
    OpenAIServer,
    Reply,
    chunk,
    refused,
    said,
    serve_openai,
    streamed,
    typed,
    usage_chunk,
)
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

KEY = "sk-canary-5f2e"

Provide = Callable[..., HttpProvider]


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with serve_openai() as running:
        yield running


@pytest.fixture
async def provide(server: OpenAIServer) -> AsyncIterator[Provide]:
    made: list[HttpProvider] = []

    def make(**changes: Any) -> HttpProvider:
        settings: dict[str, Any] = {
            "base_url": server.base_url,
            "api_key": SecretStr(KEY),
            "name": "openai",
            "retry_base_seconds": 0.01,
            "retry_max_seconds": 0.05,
            "first_token_timeout_seconds": 2.0,
            "between_tokens_timeout_seconds": 2.0,
            "list_timeout_seconds": 2.0,
        }
        made.append(HttpProvider(ProviderSettings(**(settings | changes))))
        return made[-1]

    yield make
    for provider in made:
        await provider.close()


def request(text: str = "Hello") -> pb.GenerateRequest:
    made = pb.GenerateRequest(instructions="Be brief.")
    made.conversation.messages.add(role=models_pb2.ROLE_USER, text=text)
    return made


async def run(
    provider: HttpProvider, asked: pb.GenerateRequest | None = None, timeout_seconds: float = 5
) -> tuple[list[str], pb.GenerateResponse]:
    deltas: list[str] = []
    async with aclosing(
        provider.stream(asked or request(), "small", timeout_seconds, unnoticed)
    ) as parts:
        async for part in parts:
            if isinstance(part, pb.GenerateResponse):
                return deltas, part
            deltas.append(part)
    raise AssertionError("the stream had no end")


async def test_streams_text_and_reports_usage(server: OpenAIServer, provide: Provide) -> None:
    server.script = [said("Hel", "lo ", "there")]
    deltas, response = await run(provide())
    assert deltas == ["Hel", "lo ", "there"]
    assert response.message.text == "Hello there"
    assert response.message.role == models_pb2.ROLE_ASSISTANT
    assert (response.usage.input_tokens, response.usage.output_tokens) == (11, 5)
    assert not response.usage.estimated
    assert response.finish_reason == models_pb2.FINISH_REASON_STOP
    assert response.model == "openai/small"


async def test_sends_the_conversation_as_the_protocol_wants_it(
    server: OpenAIServer, provide: Provide
) -> None:
    server.script = [said("ok")]
    asked = request("What is 2 + 2?")
    call = models_pb2.ToolCall(id="c1", tool="calculator", arguments_json='{"expression":"2+2"}')
    asked.conversation.messages.add(role=models_pb2.ROLE_ASSISTANT, tool_calls=[call])
    asked.conversation.messages.add(
        role=models_pb2.ROLE_TOOL, tool_call_id="c1", text="broken", is_error=True
    )
    asked.tools.add(name="calculator", description="Calculates", parameters_json_schema='{"a":1}')
    asked.parameters.temperature = 0.2
    asked.parameters.output_tokens_max = 64
    asked.parameters.seed = 7
    await run(provide(), asked)
    sent = server.requests[0]
    assert [message["role"] for message in sent["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
    ]
    assert sent["messages"][2]["tool_calls"][0]["function"] == {
        "name": "calculator",
        "arguments": '{"expression":"2+2"}',
    }
    assert sent["messages"][3] == {
        "role": "tool",
        "content": "Error: broken",
        "tool_call_id": "c1",
    }
    assert sent["tools"][0]["function"]["parameters"] == {"a": 1}
    assert (sent["model"], sent["temperature"], sent["max_tokens"], sent["seed"]) == (
        "small",
        0.2,
        64,
        7,
    )
    assert sent["stream_options"] == {"include_usage": True}
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_puts_tool_calls_together_by_index(server: OpenAIServer, provide: Provide) -> None:
    def piece(index: int, arguments: str, **head: Any) -> dict[str, Any]:
        function = {"arguments": arguments} | ({"name": head["name"]} if head else {})
        call = {"index": index, "function": function} | ({"id": head["id"]} if head else {})
        return chunk({"tool_calls": [call]})

    server.script = [
        streamed(
            [
                piece(0, "", id="a", name="search"),
                piece(1, '{"x"', id="b", name="add"),
                piece(0, '{"query":'),
                piece(1, ":1}"),
                piece(0, '"cats"}'),
                chunk(finish="tool_calls"),
            ]
        )
    ]
    deltas, response = await run(provide())
    assert deltas == []
    assert [(call.id, call.tool) for call in response.message.tool_calls] == [
        ("a", "search"),
        ("b", "add"),
    ]
    assert [json.loads(call.arguments_json) for call in response.message.tool_calls] == [
        {"query": "cats"},
        {"x": 1},
    ]
    assert response.finish_reason == models_pb2.FINISH_REASON_TOOL_CALLS


async def test_estimates_usage_that_the_endpoint_does_not_tell(
    server: OpenAIServer, provide: Provide
) -> None:
    server.script = [streamed([chunk({"content": "Good day"}), chunk(finish="length")])]
    _, response = await run(provide())
    assert response.usage.estimated
    assert response.usage.output_tokens == 2
    assert response.usage.input_tokens > 0
    assert response.finish_reason == models_pb2.FINISH_REASON_LENGTH


@pytest.mark.parametrize(
    "fault",
    [
        refused(500),
        refused(503, Retry_After="0.01"),
        refused(429, Retry_After="0.01"),
        streamed([chunk({"role": "assistant"})], is_cut=True),
        streamed([chunk({"role": "assistant"})], is_done=False),
        streamed(['{"error": {"message": "overloaded"}}']),
    ],
    ids=["500", "503", "429", "cut", "ended", "error event"],
)
async def test_repeats_what_failed_before_the_first_token(
    fault: Reply, server: OpenAIServer, provide: Provide
) -> None:
    server.script = [fault, said("fine")]
    deltas, _ = await run(provide())
    assert deltas == ["fine"]
    assert len(server.requests) == 2


async def test_repeats_after_a_slow_first_token(server: OpenAIServer, provide: Provide) -> None:
    server.script = [streamed([chunk({"role": "assistant"}), 1.0, chunk(finish="stop")]), said("a")]
    deltas, _ = await run(provide(first_token_timeout_seconds=0.2))
    assert deltas == ["a"]


async def test_does_not_repeat_once_text_was_passed_on(
    server: OpenAIServer, provide: Provide
) -> None:
    server.script = [streamed([chunk({"content": "Hal"})], is_cut=True), said("never")]
    parts = provide().stream(request(), "small", 5, unnoticed)
    assert await anext(parts) == "Hal"
    with pytest.raises(ModelUnavailable):
        await anext(parts)
    assert len(server.requests) == 1


async def test_gives_up_after_the_last_attempt(server: OpenAIServer, provide: Provide) -> None:
    server.script = [refused(500)]
    with pytest.raises(ModelUnavailable):
        await run(provide(attempts_max=3))
    assert len(server.requests) == 3


async def test_does_not_wait_longer_than_its_bound_for_a_rate_limit(
    server: OpenAIServer, provide: Provide
) -> None:
    server.script = [refused(429, Retry_After="120")]
    with pytest.raises(ModelRateLimited) as caught:
        await run(provide())
    assert caught.value.retry_seconds == 120
    assert len(server.requests) == 1


async def test_a_rate_limit_may_be_told_as_a_date(server: OpenAIServer, provide: Provide) -> None:
    date = email.utils.formatdate(time.time() + 3_600, usegmt=True)
    server.script = [refused(429, Retry_After=date)]
    with pytest.raises(ModelRateLimited) as caught:
        await run(provide())
    assert 3_000 < (caught.value.retry_seconds or 0) <= 3_600
    past = email.utils.formatdate(time.time() - 60, usegmt=True)
    server.script = [refused(503, Retry_After=past), said("fine")]
    assert (await run(provide()))[0] == ["fine"]


async def test_a_rate_limit_of_days_is_not_waited_for(
    server: OpenAIServer, provide: Provide
) -> None:
    server.script = [refused(429, Retry_After="100000")]
    with pytest.raises(ModelRateLimited) as caught:
        await run(provide())
    assert caught.value.retry_seconds == 86_400
    assert len(server.requests) == 1


async def test_a_date_that_is_none_tells_nothing(server: OpenAIServer, provide: Provide) -> None:
    server.script = [refused(503, Retry_After="Fri, 31 Dec 99999 23:59:59 GMT"), said("fine")]
    assert (await run(provide()))[0] == ["fine"]


async def test_usage_that_no_call_can_have_is_estimated(
    server: OpenAIServer, provide: Provide
) -> None:
    told = usage_chunk(2**53 - 1, 1)
    server.script = [streamed([chunk({"content": "Hi"}), chunk(finish="stop"), told])]
    usage = (await run(provide()))[1].usage
    assert usage.estimated
    assert usage.input_tokens < 100


async def test_tool_calls_without_an_index_are_told_apart_by_their_ids(
    server: OpenAIServer, provide: Provide
) -> None:
    first = {"id": "a", "function": {"name": "f", "arguments": '{"n": '}}
    rest = {"function": {"arguments": "1}"}}
    other = {"id": "b", "index": None, "function": {"name": "g", "arguments": "{}"}}
    pieces = [chunk({"tool_calls": [piece]}) for piece in (first, rest, other)]
    server.script = [streamed([*pieces, chunk(finish="tool_calls")])]
    calls = (await run(provide()))[1].message.tool_calls
    assert [(each.id, each.tool, each.arguments_json) for each in calls] == [
        ("a", "f", '{"n": 1}'),
        ("b", "g", "{}"),
    ]


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/v1", "http://host:port/v1", "http://[x"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        ProviderSettings(name="p", base_url=url)


@pytest.mark.parametrize("key", ["sk-ü", "sk-1\nsk-2", "sk-\0"])
def test_a_key_that_no_header_holds_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="p: the key") as caught:
        ProviderSettings(name="p", api_key=SecretStr(key)).key()
    assert key not in str(caught.value)
    assert ProviderSettings(name="p", api_key=SecretStr("sk-1\n")).key() == "sk-1"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_refusals_are_not_repeated(
    status: int, server: OpenAIServer, provide: Provide
) -> None:
    server.script = [refused(status)]
    with pytest.raises(ModelRefused) as caught:
        await run(provide())
    assert caught.value.metadata == {"http_status": str(status)}
    assert len(server.requests) == 1


BROKEN_ARGUMENTS = {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x": '}}


@pytest.mark.parametrize(
    "nonsense",
    [
        streamed(["no json"]),
        streamed(["[1, 2]"]),
        streamed([{"choices": "none"}]),
        streamed([{"choices": [{"delta": "text"}]}]),
        streamed([chunk({"content": 5})]),
        streamed([chunk({"tool_calls": [BROKEN_ARGUMENTS]}), chunk(finish="tool_calls")]),
        streamed([chunk({"tool_calls": [{"index": 9_999}]}), chunk(finish="tool_calls")]),
        streamed([chunk({"tool_calls": "f"})]),
        typed("<html>Welcome</html>", "text/html"),
        typed('{"choices": []}', "application/json"),
        refused(302, Location="/elsewhere"),
    ],
    ids=[
        *("not json", "a list", "no choices", "no delta", "content not text"),
        *("broken arguments", "index", "calls not a list", "html", "not a stream", "redirect"),
    ],
)
async def test_nonsense_is_a_bad_answer_and_not_repeated(
    nonsense: Reply, server: OpenAIServer, provide: Provide
) -> None:
    server.script = [nonsense]
    with pytest.raises(ModelBadAnswer):
        await run(provide())
    assert len(server.requests) == 1


async def test_an_answer_cut_by_its_bound_keeps_no_half_tool_call(
    server: OpenAIServer, provide: Provide
) -> None:
    server.script = [streamed([chunk({"tool_calls": [BROKEN_ARGUMENTS]}), chunk(finish="length")])]
    _, response = await run(provide())
    assert not response.message.tool_calls
    assert response.finish_reason == models_pb2.FINISH_REASON_LENGTH


async def test_an_answer_without_end_is_bounded(server: OpenAIServer, provide: Provide) -> None:
    server.script = [streamed([chunk({"content": "x" * 1_000})] * 50)]
    with pytest.raises(ModelBadAnswer):
        await run(provide(response_bytes_max=10_000))


async def test_a_pause_between_tokens_ends_the_call(server: OpenAIServer, provide: Provide) -> None:
    server.script = [streamed([chunk({"content": "a"}), 2.0, chunk(finish="stop")])]
    with pytest.raises(ModelUnavailable):
        await run(provide(between_tokens_timeout_seconds=0.2))


async def test_the_whole_call_is_bounded_by_the_callers_time(
    server: OpenAIServer, provide: Provide
) -> None:
    server.script = [streamed([part for _ in range(60) for part in (chunk({"content": "a"}), 0.1)])]
    with pytest.raises(ModelUnavailable):
        await run(provide(), timeout_seconds=0.5)


async def test_an_endpoint_that_is_down_is_unavailable() -> None:
    async with serve_openai() as gone:
        base_url = gone.base_url
    provider = HttpProvider(
        ProviderSettings(name="openai", base_url=base_url, retry_base_seconds=0.01)
    )
    with pytest.raises(ModelUnavailable):
        await run(provider)
    await provider.close()


async def test_connections_are_used_again(server: OpenAIServer, provide: Provide) -> None:
    server.script = [said("a")]
    provider = provide()
    for _ in range(3):
        await run(provider)
    assert len(set(server.callers)) == 1


@pytest.mark.parametrize("status", [401, 429, 500])
async def test_neither_key_nor_server_text_is_in_the_error_and_no_key_in_the_log(
    status: int, server: OpenAIServer, provide: Provide
) -> None:
    server.script = [refused(status, f"wrong key {KEY} at internal-host")]
    with structlog.testing.capture_logs() as logs, pytest.raises(WeftError) as caught:
        await run(provide(attempts_max=1))
    assert KEY not in repr(caught.value)
    assert "internal-host" not in caught.value.message
    assert any("internal-host" in str(entry) for entry in logs)
    assert KEY not in str(logs)


async def test_lists_models_once_and_keeps_the_list(server: OpenAIServer, provide: Provide) -> None:
    server.listed = {"data": [{"id": "b", "max_model_len": 8_192}, {"id": "a"}, {"id": "no good"}]}
    provider = provide()
    models = {model.id: model.context_tokens_max for model in await provider.models()}
    assert models == {"openai/b": 8_192, "openai/a": 16_384}
    await provider.models()
    assert server.list_calls == 1
    assert await provider.default_model() == "openai/b"


async def test_lists_the_configured_model_while_the_endpoint_fails(
    server: OpenAIServer, provide: Provide
) -> None:
    provider = provide(default_model="mine")
    assert [model.id for model in await provider.models()] == ["openai/mine"]
    assert await provider.default_model() == "openai/mine"


async def test_without_any_model_there_is_no_default(
    server: OpenAIServer, provide: Provide
) -> None:
    with pytest.raises(ModelUnavailable):
        await provide().default_model()
