"""The three protocols, against a real server: one answer, whichever it is written in, and
requests that the official client's types take."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseCreatedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseOutputItemAddedEvent,
    ResponseTextDeltaEvent,
)
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming
from pydantic import BaseModel, TypeAdapter

from mesh.errors import ModelBadAnswer, ModelUnavailable
from services.models.provider_settings import ProviderSettings
from services.models.providers.http import HttpProvider
from services.models.providers.http.dialect import is_strict
from tests.support import model_events
from tests.support.budgets import unnoticed
from tests.support.model_events import KINDS
from tests.support.openai_server import OpenAIServer, serve_openai
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

KEY = "sk-canary-7a1b"
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}},
    "required": ["answer"],
    "additionalProperties": False,
}
EVENTS: dict[str, type[BaseModel]] = {
    "response.created": ResponseCreatedEvent,
    "response.output_item.added": ResponseOutputItemAddedEvent,
    "response.output_text.delta": ResponseTextDeltaEvent,
    "response.function_call_arguments.delta": ResponseFunctionCallArgumentsDeltaEvent,
    "response.function_call_arguments.done": ResponseFunctionCallArgumentsDoneEvent,
    "response.completed": ResponseCompletedEvent,
}

Provide = Callable[..., HttpProvider]
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with serve_openai() as running:
        yield running


@pytest.fixture
async def provide(server: OpenAIServer) -> AsyncIterator[Provide]:
    made: list[HttpProvider] = []

    def make(kind: str, **changes: Any) -> HttpProvider:
        fields: dict[str, Any] = {
            "name": "p",
            "kind": kind,
            "base_url": server.base_url,
            "api_key": KEY,
            "retry_base_seconds": 0.01,
            "retry_max_seconds": 0.05,
        }
        made.append(HttpProvider(ProviderSettings(**(fields | changes))))
        return made[-1]

    yield make
    for provider in made:
        await provider.close()


def request() -> pb.GenerateRequest:
    made = pb.GenerateRequest(instructions="Be brief.")
    made.conversation.messages.add(role=models_pb2.ROLE_USER, text="6 * 7?")
    return made


def long_request() -> pb.GenerateRequest:
    """One with everything in it."""
    made = request()
    calls = [
        models_pb2.ToolCall(id=f"c.{number}", tool="calculator", arguments_json='{"x":1}')
        for number in range(2)
    ]
    messages = made.conversation.messages
    messages.add(role=models_pb2.ROLE_ASSISTANT, text="Let me see.", tool_calls=calls)
    messages.add(role=models_pb2.ROLE_TOOL, tool_call_id="c.0", text="42")
    messages.add(role=models_pb2.ROLE_TOOL, tool_call_id="c.1", text="broken", is_error=True)
    messages.add(role=models_pb2.ROLE_USER, text="And now?")
    made.tools.add(
        name="calculator",
        description="Calculates",
        parameters_json_schema='{"type":"object","properties":{"x":{"type":"integer"}}}',
    )
    made.parameters.temperature = 0.2
    made.parameters.output_tokens_max = 64
    made.response_json_schema = json.dumps(SCHEMA)
    return made


async def run(
    provider: HttpProvider, asked: pb.GenerateRequest | None = None
) -> tuple[list[str], pb.GenerateResponse]:
    deltas: list[str] = []
    found: list[pb.GenerateResponse] = []
    async with aclosing(provider.stream(asked or request(), "small", 10, unnoticed)) as parts:
        async for part in parts:
            if isinstance(part, str):
                deltas.append(part)
            else:
                found.append(part)
    (response,) = found
    return deltas, response


def behind(word: str, events: list[Any]) -> int:
    """The place behind the event that has the word."""
    return next(index for index, event in enumerate(events, 1) if word in json.dumps(event))


@each_kind
async def test_streams_text_and_reports_usage(
    kind: str, server: OpenAIServer, provide: Provide
) -> None:
    server.script = [model_events.reply(kind, model_events.said(kind, ["For", "ty-", "two"]))]
    deltas, response = await run(provide(kind))
    assert deltas == ["For", "ty-", "two"]
    assert response.message.text == "Forty-two"
    assert response.finish_reason == models_pb2.FINISH_REASON_STOP
    assert response.model == "p/small"
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.estimated) == (11, 5, False)
    assert usage.cached_input_tokens == model_events.CACHED
    thought = 0 if kind == "anthropic" else model_events.THOUGHT
    assert usage.reasoning_tokens == thought


@each_kind
async def test_puts_tool_calls_together(kind: str, server: OpenAIServer, provide: Provide) -> None:
    server.script = [model_events.reply(kind, model_events.said(kind, ["Hm."], calls=2))]
    deltas, response = await run(provide(kind))
    assert deltas == ["Hm."]
    assert [call.id for call in response.message.tool_calls] == ["call_0", "call_1"]
    for call in response.message.tool_calls:
        assert call.tool == "calculator"
        assert json.loads(call.arguments_json) == {"expression": "6 * 7"}
    assert response.finish_reason == models_pb2.FINISH_REASON_TOOL_CALLS


async def test_arguments_that_come_with_the_begin_of_a_call_are_taken(
    server: OpenAIServer, provide: Provide
) -> None:
    # As servers send it that speak Anthropic's protocol without streaming the input.
    events = model_events.said("anthropic", [], calls=2)
    whole, parts = (
        each["content_block"]
        for each in events
        if each["type"] == "content_block_start" and each["content_block"]["type"] == "tool_use"
    )
    whole["input"], parts["input"] = {"expression": "1 + 1", "é": [1]}, {"expression": "old"}
    index = next(each["index"] for each in events if each.get("content_block") is whole)
    events = [
        each for each in events if each["type"] != "content_block_delta" or each["index"] != index
    ]
    server.script = [model_events.reply("anthropic", events)]
    _, response = await run(provide("anthropic"))
    arguments = [json.loads(call.arguments_json) for call in response.message.tool_calls]
    assert arguments == [{"expression": "1 + 1", "é": [1]}, {"expression": "6 * 7"}]


@each_kind
@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("length", models_pb2.FINISH_REASON_LENGTH),
        ("filter", models_pb2.FINISH_REASON_CONTENT_FILTER),
    ],
)
async def test_says_why_the_model_stopped(
    kind: str, finish: str, reason: int, server: OpenAIServer, provide: Provide
) -> None:
    server.script = [model_events.reply(kind, model_events.said(kind, ["Hal"], finish=finish))]
    _, response = await run(provide(kind))
    assert response.finish_reason == reason


@each_kind
@pytest.mark.parametrize("fault", ["cut", "ended", "failed"])
async def test_a_stream_that_breaks_off_is_repeated_before_its_text_and_not_after(
    kind: str, fault: str, server: OpenAIServer, provide: Provide
) -> None:
    events = model_events.said(kind, ["one ", "two"])
    end = [model_events.failed(kind)] if fault == "failed" else []
    begin = events[: behind("one ", events)]
    early = model_events.reply(kind, [*events[:1], *end], is_cut=fault == "cut")
    late = model_events.reply(kind, [*begin, *end], is_cut=fault == "cut")
    server.script = [early, late, model_events.reply(kind, events)]
    parts = provide(kind).stream(request(), "small", 10, unnoticed)
    assert await anext(parts) == "one "
    with pytest.raises(ModelUnavailable):
        await anext(parts)
    assert len(server.requests) == 2


@each_kind
async def test_arguments_that_are_no_json_are_a_bad_answer(
    kind: str, server: OpenAIServer, provide: Provide
) -> None:
    events = model_events.said(kind, [], calls=1)
    broken = json.loads(json.dumps(events).replace('* 7\\"}', "* 7"))
    server.script = [model_events.reply(kind, broken)]
    with pytest.raises(ModelBadAnswer):
        await run(provide(kind))
    assert len(server.requests) == 1


@each_kind
async def test_a_pause_between_tokens_ends_the_call(
    kind: str, server: OpenAIServer, provide: Provide
) -> None:
    events = model_events.said(kind, ["one"])
    place = behind("one", events)
    server.script = [model_events.reply(kind, [*events[:place], 3.0, *events[place:]])]
    with pytest.raises(ModelUnavailable, match="too long"):
        await run(provide(kind, between_tokens_timeout_seconds=0.2))


async def test_chat_completions_are_such_as_the_official_client_sends(
    server: OpenAIServer, provide: Provide
) -> None:
    events = model_events.said("openai", ["{}"], calls=1)
    server.script = [model_events.reply("openai", events)]
    asked = long_request()
    asked.parameters.seed = 7
    await run(provide("openai"), asked)
    sent = server.requests[0]
    TypeAdapter(CompletionCreateParamsStreaming).validate_python(sent)
    assert sent["response_format"]["json_schema"]["schema"] == SCHEMA
    assert sent["response_format"]["json_schema"]["strict"] is True
    assert (sent["max_tokens"], sent["seed"]) == (64, 7)
    for event in events:
        ChatCompletionChunk.model_validate(event)


async def test_responses_are_such_as_the_official_client_sends(
    server: OpenAIServer, provide: Provide
) -> None:
    events = model_events.said("openai-responses", ["{}"], calls=1)
    server.script = [model_events.reply("openai-responses", events)]
    await run(provide("openai-responses"), long_request())
    sent = server.requests[0]
    TypeAdapter(ResponseCreateParamsStreaming).validate_python(sent)
    assert server.paths == ["/v1/responses"]
    assert (sent["instructions"], sent["store"]) == ("Be brief.", False)
    assert sent["text"]["format"]["schema"] == SCHEMA
    assert sent["input"][1] == {"role": "assistant", "content": "Let me see."}
    assert [item.get("type") for item in sent["input"][2:]] == [
        *["function_call"] * 2,
        *["function_call_output"] * 2,
        None,
    ]
    assert sent["input"][5]["output"] == "Error: broken"
    for event in events:
        EVENTS[event["type"]].model_validate(event)


async def test_messages_are_such_as_anthropic_wants_them(
    server: OpenAIServer, provide: Provide
) -> None:
    server.script = [model_events.reply("anthropic", model_events.said("anthropic", ["{}"]))]
    await run(provide("anthropic"), long_request())
    sent, headers = server.requests[0], server.headers[0]
    assert server.paths == ["/v1/messages"]
    assert (headers["x-api-key"], headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert "authorization" not in headers
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "user"]
    use = {"type": "tool_use", "name": "calculator", "input": {"x": 1}}
    assert sent["messages"][1]["content"] == [
        {"type": "text", "text": "Let me see."},
        {**use, "id": "c_0"},
        {**use, "id": "c_1"},
    ]
    assert sent["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "c_0", "content": "42"},
        {"type": "tool_result", "tool_use_id": "c_1", "content": "broken", "is_error": True},
        {"type": "text", "text": "And now?"},
    ]
    assert (sent["system"], sent["max_tokens"], sent["stream"]) == ("Be brief.", 64, True)
    assert sent["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert sent["tools"][0]["input_schema"]["properties"] == {"x": {"type": "integer"}}


@each_kind
async def test_json_goes_on_as_it_is_written(
    kind: str, server: OpenAIServer, provide: Provide
) -> None:
    server.script = [model_events.reply(kind, model_events.said(kind, ["{}"]))]
    asked = request()
    deep = '{"a":' * 300 + "1" + "}" * 300
    message = asked.conversation.messages.add(role=models_pb2.ROLE_ASSISTANT)
    message.tool_calls.add(id="c", tool="t", arguments_json=f'{{"n": {2**70}, "deep": {deep}}}')
    asked.conversation.messages.add(role=models_pb2.ROLE_TOOL, text="42", tool_call_id="c")
    asked.tools.add(name="t", parameters_json_schema=f'{{"maximum": {2**71}}}')
    asked.response_json_schema = f'{{"maximum": {2**72}}}'
    await run(provide(kind), asked)
    sent = json.dumps(server.requests[0])
    assert all(str(number) in sent for number in (2**70, 2**71, 2**72))


async def test_anthropic_is_always_told_a_bound(server: OpenAIServer, provide: Provide) -> None:
    server.script = [model_events.reply("anthropic", model_events.said("anthropic", ["ok"]))]
    await run(provide("anthropic", output_tokens_max=123))
    assert server.requests[0]["max_tokens"] == 123


@each_kind
@pytest.mark.parametrize("way", ["json_object", "instructions"])
async def test_an_endpoint_that_takes_no_schema_is_told_it_in_words(
    kind: str, way: str, server: OpenAIServer, provide: Provide
) -> None:
    server.script = [model_events.reply(kind, model_events.said(kind, ["{}"]))]
    asked = request()
    asked.response_json_schema = json.dumps(SCHEMA)
    await run(provide(kind, structured_output=way), asked)
    sent = server.requests[0]
    told = sent.get("instructions") or sent.get("system") or sent["messages"][0]["content"]
    assert told.startswith("Be brief.\n\nAnswer with JSON alone")
    assert json.dumps(SCHEMA) in told
    format_of = {
        "openai": sent.get("response_format"),
        "openai-responses": sent.get("text", {}).get("format"),
        "anthropic": sent.get("output_config"),
    }
    wants = way == "json_object" and kind != "anthropic"
    assert format_of[kind] == ({"type": "json_object"} if wants else None)


@pytest.mark.parametrize(
    ("change", "strict"),
    [
        ({}, True),
        ({"additionalProperties": True}, False),
        ({"required": []}, False),
        ({"properties": {"answer": {"type": "object"}}}, False),
        ({"properties": {"answer": {"anyOf": [{"type": "object", "properties": {}}]}}}, False),
    ],
)
def test_a_schema_is_strict_where_every_object_is_closed_and_complete(
    change: dict[str, Any], strict: bool
) -> None:
    assert is_strict(SCHEMA | change) is strict


class TestTheOfficialClient:
    """The server that stands in for a provider speaks the protocol as OpenAI's own client
    understands it, so that what is proven against it counts."""

    @pytest.fixture
    async def client(self, server: OpenAIServer) -> AsyncIterator[openai.AsyncOpenAI]:
        async with openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url) as made:
            yield made

    async def test_it_streams_with_tools(
        self, server: OpenAIServer, client: openai.AsyncOpenAI, provide: Provide
    ) -> None:
        events = model_events.said("openai", ["For", "ty"], calls=1)
        server.script = [model_events.reply("openai", events)]
        async with client.chat.completions.stream(
            model="small", messages=[{"role": "user", "content": "6 * 7?"}]
        ) as stream:
            theirs = (await stream.get_final_completion()).choices[0]
        _, ours = await run(provide("openai"))
        assert theirs.message.content == ours.message.text
        calls = theirs.message.tool_calls or []
        assert [call.function.arguments for call in calls] == [
            call.arguments_json for call in ours.message.tool_calls
        ]

    async def test_it_reads_responses(
        self, server: OpenAIServer, client: openai.AsyncOpenAI, provide: Provide
    ) -> None:
        events = model_events.said("openai-responses", ["For", "ty"])
        server.script = [model_events.reply("openai-responses", events)]
        stream = await client.responses.create(model="small", input="6 * 7?", stream=True)
        deltas = [
            event.delta async for event in stream if event.type == "response.output_text.delta"
        ]
        assert deltas == (await run(provide("openai-responses")))[0]

    async def test_it_embeds(
        self, server: OpenAIServer, client: openai.AsyncOpenAI, provide: Provide
    ) -> None:
        texts = ["a", "bcd"]
        theirs = await client.embeddings.create(
            model="small", input=texts, dimensions=4, encoding_format="float"
        )
        ours = await provide("openai").embed(texts, "small", 4, 10, unnoticed)
        by_index = sorted(theirs.data, key=lambda each: each.index)
        assert ours.values == [each.embedding for each in by_index]
        assert ours.usage.input_tokens == theirs.usage.prompt_tokens
        TypeAdapter(EmbeddingCreateParams).validate_python(server.requests[-1])


async def test_answers_at_once_share_the_connections(
    server: OpenAIServer, provide: Provide
) -> None:
    server.script = [model_events.reply("openai", model_events.said("openai", ["ok"]))]
    provider = provide("openai", concurrency_max=3)
    await asyncio.gather(*(run(provider) for _ in range(12)))
    assert len(set(server.callers)) <= 3
