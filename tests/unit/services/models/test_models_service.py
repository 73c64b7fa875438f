"""The models service."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from mesh.call import Call
from mesh.errors import InvalidArgument, NotFound
from services.models.service import ModelsService
from services.models.settings import ModelsSettings
from tests.support.budgets import memory_budgets
from tests.support.cached import memory_cache
from tests.support.openai_server import OpenAIServer, said, serve_openai
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

PARENT = "tenants/default"
QUESTION = "Write a poem about the sea"


def call() -> Call:
    return Call(method="test", deadline=time.monotonic() + 10, request_id="r1")


def request(text: str = QUESTION, **fields: Any) -> pb.GenerateRequest:
    made = pb.GenerateRequest(parent=PARENT, **fields)
    made.conversation.messages.add(role=models_pb2.ROLE_USER, text=text)
    return made


@pytest.fixture(autouse=True)
def _no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def service() -> AsyncIterator[ModelsService]:
    made = ModelsService(ModelsSettings(), memory_cache(), memory_budgets())
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with serve_openai() as running:
        running.script = [said("Hi ", "there")]
        yield running


def test_serves_its_contract() -> None:
    assert list(ModelsService(ModelsSettings(), memory_cache(), memory_budgets()).handlers) == [
        "weft.models.v1.BudgetService",
        "weft.models.v1.ModelService",
    ]


async def test_the_offline_model_is_the_default_without_an_endpoint(
    service: ModelsService,
) -> None:
    listed = await service.list_models(pb.ListModelsRequest(parent=PARENT), call())
    assert [(model.id, model.is_default) for model in listed.models] == [
        ("builtin/extractive", True),
        ("builtin/hashing", False),
    ]
    assert [model.embeds for model in listed.models] == [False, True]
    assert "without weights" in listed.models[0].description
    response = await service.generate(request(), call())
    assert response.model == "builtin/extractive"
    assert response.usage.estimated


async def test_a_stream_is_its_deltas_and_then_the_whole(service: ModelsService) -> None:
    asked = pb.StreamGenerateRequest(request=request())
    parts = [part async for part in service.stream_generate(asked, call())]
    deltas = [part.text_delta for part in parts[:-1]]
    assert len(deltas) > 2
    assert "".join(deltas) == parts[-1].completed.message.text
    assert parts[-1].completed == await service.generate(request(), call())


async def test_the_endpoints_model_is_the_default_where_there_is_one(server: OpenAIServer) -> None:
    server.listed = {"data": [{"id": "tiny"}, {"id": "big"}]}
    service = ModelsService(
        ModelsSettings(openai_base_url=server.base_url), memory_cache(), memory_budgets()
    )
    response = await service.generate(request(), call())
    assert (response.model, response.message.text) == ("openai/tiny", "Hi there")
    listed = await service.list_models(pb.ListModelsRequest(parent=PARENT), call())
    assert {model.id: model.is_default for model in listed.models} == {
        "builtin/extractive": False,
        "builtin/hashing": False,
        "openai/big": False,
        "openai/tiny": True,
    }
    chosen = await service.generate(request(model="builtin/extractive"), call())
    assert chosen.model == "builtin/extractive"
    await service.stop()


async def test_models_are_listed_while_the_endpoint_is_down(server: OpenAIServer) -> None:
    service = ModelsService(
        ModelsSettings(openai_base_url=server.base_url), memory_cache(), memory_budgets()
    )
    listed = await service.list_models(pb.ListModelsRequest(parent=PARENT), call())
    assert [model.id for model in listed.models] == ["builtin/extractive", "builtin/hashing"]
    await service.stop()


async def test_models_are_listed_by_the_page(server: OpenAIServer) -> None:
    server.listed = {"data": [{"id": f"m{number}"} for number in range(3)]}
    service = ModelsService(
        ModelsSettings(openai_base_url=server.base_url), memory_cache(), memory_budgets()
    )
    found: list[str] = []
    token = ""
    for _ in range(3):
        page = await service.list_models(
            pb.ListModelsRequest(parent=PARENT, page_size=2, page_token=token), call()
        )
        found += [model.id for model in page.models]
        token = page.next_page_token
    builtin = ["builtin/extractive", "builtin/hashing"]
    assert found == [*builtin, *(f"openai/m{number}" for number in range(3))]
    assert not token
    await service.stop()


@pytest.mark.parametrize("model", ["builtin/other", "nobody/model", "openai/small"])
async def test_an_unknown_model_is_not_found(model: str, service: ModelsService) -> None:
    with pytest.raises(NotFound) as caught:
        await service.generate(request(model=model), call())
    assert caught.value.metadata == {"resource": model}


def _wrong(field: str) -> pb.GenerateRequest:
    made = request()
    match field:
        case "conversation.messages":
            del made.conversation.messages[:]
        case "conversation.messages[1].role":
            made.conversation.messages.add(role=models_pb2.ROLE_ASSISTANT, text="Hi")
        case "parameters.temperature":
            made.parameters.temperature = 2.5
        case "parameters.top_p":
            made.parameters.top_p = 0
        case "tools[0].parameters_json_schema":
            made.tools.add(name="x", parameters_json_schema="[")
        case "conversation.messages[0].tool_calls[0].arguments_json":
            made.conversation.messages[0].tool_calls.add(tool="x", arguments_json="{")
    return made


@pytest.mark.parametrize(
    "field",
    [
        "conversation.messages",
        "conversation.messages[1].role",
        "parameters.temperature",
        "parameters.top_p",
        "tools[0].parameters_json_schema",
        "conversation.messages[0].tool_calls[0].arguments_json",
    ],
)
async def test_a_bad_field_is_named(field: str, service: ModelsService) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await service.generate(_wrong(field), call())
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_a_token_of_another_list_is_refused(service: ModelsService) -> None:
    with pytest.raises(InvalidArgument):
        await service.list_models(pb.ListModelsRequest(parent=PARENT, page_token="x"), call())


@pytest.mark.parametrize(
    "variables",
    [
        {"OPENAI_BASE_URL": "http://a/v1", "OPENAI_API_KEY": "k", "OPENAI_MODEL": "m"},
        {
            "WEFT_MODELS_OPENAI_BASE_URL": "http://a/v1",
            "WEFT_MODELS_OPENAI_API_KEY": "k",
            "WEFT_MODELS_OPENAI_MODEL": "m",
            "OPENAI_BASE_URL": "http://elsewhere/v1",
        },
    ],
    ids=["customary", "own first"],
)
def test_settings_come_from_the_environment(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    settings = ModelsSettings()
    assert settings.has_openai
    assert (settings.openai_base_url, settings.openai_model) == ("http://a/v1", "m")
    assert settings.openai_api_key == SecretStr("k")
    assert "k" not in repr(settings.openai_api_key)


def test_a_base_url_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        ModelsSettings(openai_base_url="ftp://example.org")


def again(text: str = QUESTION, seconds: int = 60, **fields: Any) -> pb.GenerateRequest:
    """What asks for an answer that may have been given before."""
    made = request(text, **fields)
    made.cache_ttl.FromSeconds(seconds)
    return made


async def test_an_answer_is_given_again_to_who_wants_it(server: OpenAIServer) -> None:
    server.script = [said(text) for text in ("one", "two", "three", "four", "five")]
    service = ModelsService(
        ModelsSettings(openai_base_url=server.base_url), memory_cache(), memory_budgets()
    )
    asked = [
        request(model="openai/a"),
        again(model="openai/a"),
        again(model="openai/a"),
        # Another question, another model, another tenant.
        again("else?", model="openai/a"),
        again(model="openai/b"),
        request(model="openai/a"),
    ]
    found = [await service.generate(each, call()) for each in asked]
    assert [each.message.text for each in found] == ["one", "two", "two", "three", "four", "five"]
    assert [each.cached for each in found] == [False, False, True, False, False, False]
    stream = pb.StreamGenerateRequest(request=again(model="openai/a"))
    parts = [part async for part in service.stream_generate(stream, call())]
    assert [part.text_delta for part in parts] == ["two", ""]
    assert parts[-1].completed == found[2]
    await service.stop()


async def test_an_answer_is_given_again_within_its_tenant_only(server: OpenAIServer) -> None:
    server.script = [said("one"), said("two")]
    service = ModelsService(
        ModelsSettings(openai_base_url=server.base_url), memory_cache(), memory_budgets()
    )
    other = again(model="openai/a")
    other.parent = "tenants/other"
    for asked, text in ((again(model="openai/a"), "one"), (other, "two")):
        assert (await service.generate(asked, call())).message.text == text
    await service.stop()


async def test_a_time_of_nothing_is_refused(service: ModelsService) -> None:
    with pytest.raises(InvalidArgument, match="cache_ttl"):
        await service.generate(again(seconds=0), call())
