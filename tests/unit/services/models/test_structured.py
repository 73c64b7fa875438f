"""Answers that must fit a JSON Schema."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh.call import Call
from mesh.errors import InvalidArgument, ModelBadAnswer, ModelRefused
from services.models.service import ModelsService
from services.models.settings import ModelsSettings
from services.models.structured import schema_problem
from tests.support.budgets import memory_budgets
from tests.support.cached import memory_cache
from tests.support.openai_server import (
    OpenAIServer,
    chunk,
    said,
    serve_openai,
    streamed,
    usage_chunk,
)
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

PARENT = "tenants/default"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with serve_openai() as running:
        yield running


@pytest.fixture
async def service(server: OpenAIServer) -> AsyncIterator[ModelsService]:
    settings = ModelsSettings(openai_base_url=server.base_url, openai_model="m")
    made = ModelsService(settings, memory_cache(), memory_budgets())
    yield made
    await made.stop()


def call() -> Call:
    return Call(method="test", deadline=time.monotonic() + 10, request_id="r1")


def request(schema: Any = SCHEMA, **fields: Any) -> pb.GenerateRequest:
    written = schema if isinstance(schema, str) else json.dumps(schema)
    made = pb.GenerateRequest(parent=PARENT, response_json_schema=written, **fields)
    made.conversation.messages.add(role=models_pb2.ROLE_USER, text="How many?")
    return made


@pytest.mark.parametrize("said_so", ['{"n": 3}', ' {"n": 3}\n', '```json\n{"n": 3}\n```'])
async def test_an_answer_that_fits_is_the_bare_json(
    said_so: str, server: OpenAIServer, service: ModelsService
) -> None:
    server.script = [said(said_so)]
    response = await service.generate(request(), call())
    assert response.message.text == '{"n": 3}'
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ('{"n": "three"}', "at $.n: 'three' is not of type 'integer'"),
        ("{}", "at $: 'n' is a required property"),
        ("Three.", "it isn't JSON"),
        ('{"n": NaN}', "NaN is no number of JSON"),
        ("[" * 200_000, "it is nested too deep"),
    ],
)
async def test_the_model_is_told_what_is_wrong_and_asked_once_more(
    wrong: str, problem: str, server: OpenAIServer, service: ModelsService
) -> None:
    server.script = [said(wrong), said('{"n": 3}')]
    response = await service.generate(request(), call())
    assert response.message.text == '{"n": 3}'
    # What both calls used.
    assert (response.usage.input_tokens, response.usage.output_tokens) == (22, 10)
    again = server.requests[1]["messages"]
    assert [message["role"] for message in again] == ["user", "assistant", "user"]
    assert again[1]["content"] == wrong
    assert problem in again[2]["content"]


async def test_it_is_asked_twice_at_most(server: OpenAIServer, service: ModelsService) -> None:
    server.script = [said("{}")]
    with pytest.raises(ModelBadAnswer, match="doesn't fit"):
        await service.generate(request(), call())
    assert len(server.requests) == 2


async def test_an_answer_that_was_cut_isnt_asked_for_again(
    server: OpenAIServer, service: ModelsService
) -> None:
    server.script = [streamed([chunk({"content": '{"n":'}), chunk(finish="length")])]
    with pytest.raises(ModelBadAnswer):
        await service.generate(request(), call())
    assert len(server.requests) == 1


async def test_of_a_stream_nothing_is_passed_on_that_doesnt_fit(
    server: OpenAIServer, service: ModelsService
) -> None:
    server.script = [said('{"n"', ': "x"}'), said('{"n"', ": 3}")]
    asked = pb.StreamGenerateRequest(request=request())
    parts = [part async for part in service.stream_generate(asked, call())]
    assert [part.text_delta for part in parts] == ['{"n": 3}', ""]
    assert parts[-1].completed.message.text == '{"n": 3}'


async def test_an_answer_that_calls_tools_isnt_checked(
    server: OpenAIServer, service: ModelsService
) -> None:
    function = {"name": "count", "arguments": "{}"}
    asks = chunk({"tool_calls": [{"index": 0, "id": "c", "function": function}]})
    server.script = [streamed([asks, chunk(finish="tool_calls"), usage_chunk(1, 1)])]
    response = await service.generate(request(), call())
    assert [each.tool for each in response.message.tool_calls] == ["count"]


async def test_the_offline_model_says_that_it_cant(service: ModelsService) -> None:
    with pytest.raises(ModelRefused):
        await service.generate(request(model="builtin/extractive"), call())


@pytest.mark.parametrize(
    "schema",
    [
        "{",
        "[]",
        '"text"',
        '{"type": "nonsense"}',
        '{"minimum": "x"}',
        '{"patternProperties": {"(a+)+$": {}}}',
        '{"patternPropertie\\u0073": {"(a+)+$": {}}}',
        json.dumps({"allOf": [{"$schema": DRAFT, "pattern": "(a+)+$"}]}),
        json.dumps({"type": [part for n in range(5_000) for part in (n, f"{n:x}")]}),
        "[" * 60_000,
    ],
)
@pytest.mark.timeout(30)
async def test_a_schema_that_is_none_is_refused(schema: str, service: ModelsService) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await service.generate(request(schema), call())
    assert [each.field for each in caught.value.violations] == ["response_json_schema"]


def doubling(depth: int) -> dict[str, Any]:
    """A schema of a few hundred bytes whose check doubles with each step."""
    ways: dict[str, Any] = {
        f"s{level}": {"anyOf": [{"$ref": f"#/$defs/s{level + 1}"}] * 2} for level in range(depth)
    }
    return {"$defs": {**ways, f"s{depth}": False}, "$ref": "#/$defs/s0"}


HOSTILE: dict[str, tuple[Any, str]] = {
    "doubles": (doubling(40), "{}"),
    "refers to itself": ({"$ref": "#"}, "{}"),
    "pattern that backtracks": ({"pattern": "^(a+)+$"}, json.dumps("a" * 40 + "!")),
    "many unique items": (
        {"uniqueItems": True, "items": {"type": "object"}},
        json.dumps([{"n": n} for n in range(5_000)]),
    ),
    "refers to no schema": ({"title": "ab", "$ref": "#/title"}, "1"),
    "refers past a list": ({"allOf": [{}], "$ref": "#/allOf/x"}, "1"),
    "number past floats": ({"multipleOf": 0.5}, "1" + "0" * 400),
    "pattern that backtracks behind $schema": (
        {"$schema": DRAFT, "pattern": "^(a+)+$", "properties": {"a": {"$ref": "#"}}},
        json.dumps({"a": "a" * 40 + "!"}),
    ),
    "refers elsewhere": ({"$ref": "http://169.254.169.254/schema"}, "{}"),
    "refers to a file": ({"$ref": "file:///etc/passwd"}, "{}"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timeout(30)
async def test_no_schema_takes_for_ever_or_fetches_anything(
    name: str, server: OpenAIServer, service: ModelsService
) -> None:
    schema, text = HOSTILE[name]
    assert not schema_problem(json.dumps(schema))
    server.script = [said(text)]
    if name.startswith("pattern") or name == "many unique items":
        assert (await service.generate(request(schema), call())).message.text == text
    else:
        with pytest.raises(ModelBadAnswer):
            await service.generate(request(schema), call())
