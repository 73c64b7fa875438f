"""Routes: who is asked first, who next, and what a provider that fails costs the others."""

import asyncio
import inspect
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mesh.call import Call
from mesh.errors import (
    InvalidArgument,
    ModelBadAnswer,
    ModelRateLimited,
    ModelRefused,
    ModelUnavailable,
    NotFound,
    WeftError,
)
from services.models.routing import FRESH_SECONDS, PROBE_SECONDS, Latencies
from services.models.service import ModelsService
from services.models.settings import ModelsSettings
from tests.support.budgets import memory_budgets
from tests.support.cached import memory_cache
from tests.support.openai_server import (
    OpenAIServer,
    Reply,
    chunk,
    refused,
    said,
    serve_openai,
    streamed,
    typed,
)
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

PARENT = "tenants/default"

Make = Callable[..., ModelsService]


@pytest.fixture(autouse=True)
def _no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def one() -> AsyncIterator[OpenAIServer]:
    async with serve_openai() as running:
        running.script = [said("one")]
        yield running


@pytest.fixture
async def two() -> AsyncIterator[OpenAIServer]:
    async with serve_openai() as running:
        running.script = [said("two")]
        yield running


@pytest.fixture
async def make(one: OpenAIServer, two: OpenAIServer) -> AsyncIterator[Make]:
    made: list[ModelsService] = []

    def service(
        choose: str = "order",
        models_one: dict[str, Any] | None = None,
        models_two: dict[str, Any] | None = None,
        only_one: dict[str, Any] | None = None,
        **fields: Any,
    ) -> ModelsService:
        patience = {"retry_base_seconds": 0.01, "retry_max_seconds": 0.05, "attempts_max": 1}
        providers = [
            {
                "name": name,
                "base_url": server.base_url,
                "models": [{"name": "m", **(known or {})}],
                **(patience | fields | own),
            }
            for name, server, known, own in (
                ("one", one, models_one, only_one or {}),
                ("two", two, models_two, {}),
            )
        ]
        routes = [{"name": "r", "models": ["one/m", "two/m"], "choose": choose}]
        settings = ModelsSettings(providers=providers, routes=routes, default_model="route/r")
        made.append(ModelsService(settings, memory_cache(), memory_budgets()))
        return made[-1]

    yield service
    for each in made:
        await each.stop()


def call(seconds: float = 20) -> Call:
    return Call(method="test", deadline=time.monotonic() + seconds, request_id="r1")


def request(labels: Mapping[str, str] | None = None, **fields: Any) -> pb.GenerateRequest:
    told = [models_pb2.ModelLabel(key=key, value=value) for key, value in (labels or {}).items()]
    made = pb.GenerateRequest(parent=PARENT, labels=told, **fields)
    made.conversation.messages.add(role=models_pb2.ROLE_USER, text="Hello")
    return made


async def answer(service: ModelsService, **fields: Any) -> str:
    response = await service.generate(request(**fields), call())
    assert response.model == f"{response.message.text}/m"
    return response.message.text


FAULTS: dict[str, Reply] = {
    "refuses": refused(401),
    "limits": refused(429, Retry_After="60"),
    "fails": refused(500),
    "cuts": streamed([chunk({"role": "assistant"})], is_cut=True),
    "cuts its text": streamed([chunk({"content": "Hal"})], is_cut=True),
    "talks nonsense": typed("<html></html>", "text/html"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_next_model_answers_where_the_first_fails(
    fault: str, one: OpenAIServer, make: Make
) -> None:
    one.script = [FAULTS[fault]]
    assert await answer(make()) == "two"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("refuses", ModelRefused),
        ("limits", ModelRateLimited),
        ("fails", ModelUnavailable),
        ("talks nonsense", ModelBadAnswer),
    ],
)
async def test_where_all_fail_the_last_ones_error_is_raised(
    fault: str, error: type[WeftError], one: OpenAIServer, two: OpenAIServer, make: Make
) -> None:
    one.script, two.script = [refused(500)], [FAULTS[fault]]
    with pytest.raises(error):
        await answer(make())


async def test_nobody_goes_on_where_another_model_broke_off(
    one: OpenAIServer, two: OpenAIServer, make: Make
) -> None:
    one.script = [streamed([chunk({"content": "Hal"})], is_cut=True)]
    stream = make().stream_generate(pb.StreamGenerateRequest(request=request()), call())
    assert (await anext(stream)).text_delta == "Hal"
    with pytest.raises(ModelUnavailable):
        await anext(stream)
    assert not two.requests


async def test_a_model_that_is_named_has_no_fallback(
    one: OpenAIServer, two: OpenAIServer, make: Make
) -> None:
    one.script = [refused(500)]
    with pytest.raises(ModelUnavailable):
        await answer(make(), model="one/m")
    assert not two.requests


async def test_a_provider_that_failed_too_often_isnt_asked_any_more(
    one: OpenAIServer, make: Make
) -> None:
    one.script = [refused(500)]
    service = make(breaker_failures_max=3, breaker_pause_seconds=60)
    for _ in range(10):
        assert await answer(service) == "two"
    assert len(one.requests) == 3


async def test_a_provider_that_is_back_is_asked_again(one: OpenAIServer, make: Make) -> None:
    one.script = [refused(500)]
    service = make(breaker_failures_max=1, breaker_pause_seconds=0.05)
    assert await answer(service) == "two"
    one.script = [said("one")]
    for _ in range(500):
        if await answer(service) == "one":
            break
        await asyncio.sleep(0.01)
    assert [await answer(service) for _ in range(3)] == ["one"] * 3


async def test_while_a_provider_flaps_every_call_is_answered_and_it_isnt_flooded(
    one: OpenAIServer, two: OpenAIServer, make: Make
) -> None:
    chance = random.Random(7)
    faults = [*FAULTS.values(), streamed([0.2]), said("one"), said("one")]
    one.script = [chance.choice(faults) for _ in range(400)]
    impatient = {"first_token_timeout_seconds": 0.1, "breaker_pause_seconds": 0.1}
    service = make(only_one=impatient, attempts_max=3, concurrency_max=4)
    room = asyncio.Semaphore(32)

    async def ask() -> str:
        async with room:
            return await answer(service)

    answers = await asyncio.gather(*(ask() for _ in range(200)))
    assert "two" in answers
    # Three attempts each would be 600: limits and breaker keep what can't go out from going out.
    assert len(one.requests) < 400


async def test_refusals_and_limits_dont_open_the_breaker(one: OpenAIServer, make: Make) -> None:
    service = make(breaker_failures_max=1)
    for fault in ("refuses", "limits", "talks nonsense"):
        one.script = [FAULTS[fault]]
        assert await answer(service) == "two"
    one.script = [said("one")]
    assert await answer(service) == "one"


async def test_a_caller_in_a_hurry_doesnt_open_the_breaker(one: OpenAIServer, make: Make) -> None:
    one.script = [streamed([1.0])]
    service = make(breaker_failures_max=1)
    with pytest.raises(ModelUnavailable):
        await service.generate(request(model="one/m"), call(0.1))
    one.script = [said("one")]
    assert await answer(service) == "one"


PRICES = ("input_price_usd_micros_per_mtok", "output_price_usd_micros_per_mtok")
DEAR_TO_WRITE = dict(zip(PRICES, (1, 50), strict=True))
DEAR_TO_READ = dict(zip(PRICES, (50, 1), strict=True))


async def test_the_cheaper_model_for_the_request_is_asked(make: Make) -> None:
    service = make("cost", DEAR_TO_WRITE, DEAR_TO_READ)
    assert await answer(service) == "two"
    long = "word " * 4_000
    assert await answer(service, instructions=long) == "one"
    bound = models_pb2.Parameters(output_tokens_max=8_000)
    assert await answer(service, instructions=long, parameters=bound) == "two"


async def test_a_model_without_prices_is_asked_last(make: Make) -> None:
    assert await answer(make("cost", None, DEAR_TO_READ)) == "two"


async def test_the_model_that_began_sooner_is_asked(
    one: OpenAIServer, two: OpenAIServer, make: Make
) -> None:
    one.script = [streamed([0.3, chunk({"content": "one"}), chunk(finish="stop")])]
    service = make("latency")
    # Each is tried once, then the faster one has all.
    assert {await answer(service), await answer(service)} == {"one", "two"}
    assert [await answer(service) for _ in range(5)] == ["two"] * 5
    two.script = [refused(500)]
    assert await answer(service) == "one"


async def test_a_caller_in_a_hurry_doesnt_make_a_model_slow(
    one: OpenAIServer, two: OpenAIServer, make: Make
) -> None:
    quick = streamed([0.2, chunk({"content": "one"}), chunk(finish="stop")])
    one.script = [quick]
    two.script = [streamed([0.6, chunk({"content": "two"}), chunk(finish="stop")])]
    service = make("latency")
    assert {await answer(service), await answer(service)} == {"one", "two"}
    one.script = [streamed([30.0])]
    with pytest.raises(ModelUnavailable):
        await service.generate(request(), call(0.1))
    one.script = [quick]
    assert await answer(service) == "one"


async def test_labels_choose_among_the_models_of_a_route(
    one: OpenAIServer, two: OpenAIServer, make: Make
) -> None:
    labels = {"region": "eu", "size": "big"}
    service = make("order", {"labels": {"region": "us"}}, {"labels": labels})
    assert await answer(service) == "one"
    assert await answer(service, labels={"region": "eu"}) == "two"
    assert await answer(service, labels=labels) == "two"
    one.script, two.script = [said("one")], [refused(500)]
    with pytest.raises(ModelUnavailable):
        await answer(service, labels={"region": "eu"})
    with pytest.raises(NotFound):
        await answer(service, labels={"region": "mars"})
    with pytest.raises(NotFound):
        await answer(service, model="one/m", labels={"region": "eu"})


async def test_routes_are_listed_with_the_smallest_window_and_can_be_the_default(
    make: Make,
) -> None:
    service = make("cost", {"context_tokens_max": 9_000}, {"context_tokens_max": 8_000})
    listed = await service.list_models(pb.ListModelsRequest(parent=PARENT), call())
    found = {model.id: model for model in listed.models}
    assert (found["route/r"].context_tokens_max, found["route/r"].is_default) == (8_000, True)
    assert found["route/r"].description == "Route, by cost: one/m, two/m"


async def test_any_name_that_a_request_may_hold_goes_to_the_endpoint(
    one: OpenAIServer, make: Make
) -> None:
    one.script = [refused(404)]
    name = "x" * 196
    with pytest.raises(ModelRefused):
        await answer(make(), model=f"one/{name}")
    assert one.requests[0]["model"] == name


async def test_a_route_that_isnt_there_is_not_found(make: Make) -> None:
    with pytest.raises(NotFound):
        await answer(make(), model="route/other")


def test_latencies_forget_and_try_one_call_at_a_time() -> None:
    clock = [0.0]
    seen = Latencies(lambda: clock[0])
    assert seen.expected_seconds("a") == 0
    seen.tried("a")
    assert seen.expected_seconds("a") == float("inf")
    clock[0] += PROBE_SECONDS + 1
    assert seen.expected_seconds("a") == 0
    for seconds in (1.0, 2.0):
        seen.note("a", seconds)
    assert seen.expected_seconds("a") == pytest.approx(1.2)
    clock[0] += FRESH_SECONDS + 1
    assert seen.expected_seconds("a") == 0
    seen.note("a", 5.0)
    assert seen.expected_seconds("a") == 5.0


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"routes": [{"name": "r", "models": ["nobody/m"]}]}, "no provider runs nobody/m"),
        ({"routes": [{"name": "r", "models": []}]}, "routes"),
        ({"routes": [{"name": "r", "models": ["builtin/extractive"]}] * 2}, "r is there twice"),
        ({"default_model": "route/none"}, "no route none"),
        ({"default_model": "qwen3"}, "no provider runs qwen3"),
        ({"providers": [{"name": "builtin"}]}, "Weft's own"),
        ({"providers": [{"name": "a", "base_url": "ftp://x"}]}, "base_url"),
        ({"providers": [{"name": "a", "kind": "telepathy"}]}, "kind"),
        ({"providers": [{"name": "a", "colour": "red"}]}, "unknown key"),
        ({"providers": [{"name": "a", "api_key": "k", "api_key_variable": "K"}]}, "set one"),
    ],
)
def test_settings_that_dont_fit_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        ModelsSettings(**fields)


def test_the_key_comes_from_where_it_is_named_and_is_never_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = "sk-canary-99"
    file = tmp_path / "key"
    file.write_text(f"{key}\n")
    monkeypatch.setenv("SOME_KEY", key)
    sources = ({"api_key": key}, {"api_key_variable": "SOME_KEY"}, {"api_key_file": str(file)})
    providers = [{"name": f"p{n}", **source} for n, source in enumerate(sources)]
    settings = ModelsSettings(providers=providers)
    assert [provider.key() for provider in settings.providers] == [key] * 3
    assert key not in repr(settings)
    assert key not in settings.model_dump_json()


@pytest.mark.parametrize(
    "source", [{"api_key_variable": "WEFT_NO_SUCH"}, {"api_key_file": "/no/such/file"}]
)
def test_a_key_that_isnt_there_is_refused_at_the_start(source: dict[str, str]) -> None:
    settings = ModelsSettings(providers=[{"name": "p", **source}])
    with pytest.raises(InvalidArgument, match="p: ") as caught:
        ModelsService(settings, memory_cache(), memory_budgets())
    assert "/no/such" not in caught.value.message


def test_providers_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-canary-11"
    monkeypatch.setenv("WEFT_MODELS_PROVIDERS", f'[{{"name": "a", "api_key": "{secret}"}}]')
    monkeypatch.setenv("WEFT_MODELS_ROUTES", '[{"name": "r", "models": ["a/m"]}]')
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    settings = ModelsSettings()
    assert [provider.name for provider in settings.every_provider] == ["openai", "a"]
    monkeypatch.setenv("WEFT_MODELS_PROVIDERS", f'[{{"name": "A B", "api_key": "{secret}"}}]')
    with pytest.raises(InvalidArgument) as caught:
        ModelsSettings()
    assert secret not in str(caught.value.__dict__)
    monkeypatch.setenv("WEFT_MODELS_PROVIDERS", f'[{{"name": "a", "api_key": "{secret}"')
    with pytest.raises(InvalidArgument) as caught:
        ModelsSettings()
    assert secret not in caught.value.message


def test_a_provider_named_openai_takes_the_place_of_the_variables() -> None:
    providers = [{"name": "openai", "base_url": "http://127.0.0.1:1/v1"}]
    settings = ModelsSettings(providers=providers, openai_base_url="http://127.0.0.1:2/v1")
    assert [provider.url for provider in settings.every_provider] == ["http://127.0.0.1:1/v1"]


def test_the_example_in_the_settings_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written = inspect.getdoc(ModelsSettings) or ""
    lines = [line[4:] for line in written.splitlines() if line.startswith("    ") or not line]
    (tmp_path / "weft.toml").write_text("\n".join(lines))
    monkeypatch.setenv("WEFT_CONFIG", str(tmp_path / "weft.toml"))
    found = ModelsSettings()
    assert [(each.name, each.kind) for each in found.providers] == [
        ("anthropic", "anthropic"),
        ("responses", "openai-responses"),
        ("dashscope", "openai"),
        ("vllm", "openai"),
        ("ollama", "openai"),
    ]
    assert found.model("anthropic/claude-sonnet-4-5").labels == {"region": "us"}
    assert found.model("vllm/unknown").input_price_usd_micros_per_mtok is None
    for each in found.providers:
        if each.api_key_variable:
            monkeypatch.setenv(each.api_key_variable, "sk-some")
    ModelsService(found, memory_cache(), memory_budgets())
