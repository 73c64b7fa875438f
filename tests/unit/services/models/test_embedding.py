"""Embeddings: the offline ones, batches of a provider's, and what is kept of them."""

import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response

from mesh.cache.cache import Cache
from mesh.call import Call
from mesh.errors import (
    InvalidArgument,
    LimitExceeded,
    ModelBadAnswer,
    ModelRefused,
    ModelUnavailable,
    NotFound,
    WeftError,
)
from services.models.providers import hashing
from services.models.service import ModelsService
from services.models.settings import ModelsSettings
from tests.support.budgets import memory_budgets
from tests.support.cached import memory_cache
from tests.support.openai_server import OpenAIServer, Reply, refused, serve_openai
from weft.models.v1 import model_service_pb2 as pb

PARENT = "tenants/default"
MODEL = "p/small"
KNOWN = [
    -0.2491,
    0.0,
    0.0,
    -0.2491,
    0.0,
    0.0,
    0.0,
    -0.2491,
    -0.2491,
    -0.8305,
    0.0,
    0.0,
    0.2491,
    0.0,
    0.0,
    0.0,
]

Make = Callable[..., ModelsService]


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with serve_openai() as running:
        yield running


@pytest.fixture
async def make(server: OpenAIServer) -> AsyncIterator[Make]:
    made: list[ModelsService] = []

    def service(cache: Cache | None = None, **fields: Any) -> ModelsService:
        provider = {"name": "p", "base_url": server.base_url, "attempts_max": 1, **fields}
        anthropic = {"name": "a", "kind": "anthropic", "base_url": server.base_url}
        found = ModelsSettings(providers=[provider, anthropic])
        made.append(ModelsService(found, cache or memory_cache(), memory_budgets()))
        return made[-1]

    yield service
    for each in made:
        await each.stop()


def call() -> Call:
    return Call(method="test", deadline=time.monotonic() + 20, request_id="r1")


def request(*texts: str, model: str = MODEL, seconds: int = 0, **fields: Any) -> pb.EmbedRequest:
    made = pb.EmbedRequest(parent=PARENT, model=model, texts=texts, **fields)
    if seconds:
        made.cache_ttl.FromSeconds(seconds)
    return made


def lengths(response: pb.EmbedResponse) -> list[float]:
    return [embedding.values[0] for embedding in response.embeddings]


async def test_without_a_model_the_offline_one_embeds_and_says_what_it_is(make: Make) -> None:
    response = await make().embed(request("a cat", model=""), call())
    assert response.model == "builtin/hashing"
    assert len(response.embeddings[0].values) == hashing.DIMENSION
    assert response.usage.estimated
    listed = await make().list_models(pb.ListModelsRequest(parent=PARENT), call())
    described = {model.id: model.description for model in listed.models}
    assert "no neural model" in described["builtin/hashing"]


async def test_texts_go_in_batches_and_come_back_in_their_order(
    server: OpenAIServer, make: Make
) -> None:
    texts = ["x" * size for size in range(1, 24)]
    service = make(embedding_texts_max=5, embedding_requests_max=2)
    response = await service.embed(request(*texts, dimension=4), call())
    assert lengths(response) == [float(size) for size in range(1, 24)]
    assert {len(embedding.values) for embedding in response.embeddings} == {4}
    assert sorted(len(sent["input"]) for sent in server.requests) == [3, 5, 5, 5, 5]
    assert {sent["dimensions"] for sent in server.requests} == {4}
    assert server.under_way_max == 2
    assert (response.usage.input_tokens, response.usage.estimated) == (23, False)
    assert response.model == MODEL


async def test_a_text_that_comes_twice_is_embedded_once(server: OpenAIServer, make: Make) -> None:
    response = await make().embed(request("aa", "b", "aa"), call())
    assert lengths(response) == [2, 1, 2]
    assert server.requests[0]["input"] == ["aa", "b"]


async def test_what_is_kept_isnt_embedded_again(server: OpenAIServer, make: Make) -> None:
    service = make()
    first = await service.embed(request("a", "bb", seconds=60), call())
    assert first.cached == 0
    second = await service.embed(request("bb", "ccc", "a", seconds=60), call())
    assert (lengths(second), second.cached) == ([2, 3, 1], 2)
    assert [sent["input"] for sent in server.requests] == [["a", "bb"], ["ccc"]]
    assert second.usage.input_tokens == 1
    third = await service.embed(request("a", "bb", seconds=60), call())
    assert (third.embeddings, third.cached) == (first.embeddings, 2)
    assert third.usage.input_tokens == 0
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "other",
    [{}, {"seconds": 60, "model": "p/other"}, {"seconds": 60, "dimension": 3}, {"tenant": "b"}],
    ids=["not asked for", "another model", "another dimension", "another tenant"],
)
async def test_what_is_kept_is_for_who_asks_the_same(
    other: dict[str, Any], server: OpenAIServer, make: Make
) -> None:
    service = make()
    await service.embed(request("a", seconds=60), call())
    tenant = other.get("tenant")
    fields = {"seconds": 60} if tenant else other
    asked = request("a", **fields)
    if tenant:
        asked.parent = f"tenants/{tenant}"
    assert (await service.embed(asked, call())).cached == 0
    assert len(server.requests) == 2


def answered(**body: Any) -> Reply:
    async def reply() -> Response:
        return JSONResponse({"data": [], **body})

    return reply


def entry(index: int, numbers: Any) -> dict[str, Any]:
    return {"index": index, "embedding": numbers}


@pytest.mark.parametrize(
    "reply",
    [
        answered(),
        answered(data=[entry(0, [1.0])]),
        answered(data=[entry(0, [1.0]), entry(0, [1.0])]),
        answered(data=[entry(0, [1.0]), entry(1, [1.0, 2.0])]),
        answered(data=[entry(0, [1.0]), entry(7, [1.0])]),
        answered(data=[entry(0, [1e300]), entry(1, [1.0])]),
        answered(data=[entry(0, ["x"]), entry(1, [1.0])]),
        answered(data=[entry(0, []), entry(1, [])]),
        answered(data="none"),
    ],
)
async def test_vectors_that_dont_match_the_texts_are_a_bad_answer(
    reply: Reply, server: OpenAIServer, make: Make
) -> None:
    server.embeddings_script = [reply]
    with pytest.raises(ModelBadAnswer):
        await make().embed(request("a", "b"), call())


async def test_one_batch_that_fails_fails_the_call_with_its_error(
    server: OpenAIServer, make: Make
) -> None:
    server.embeddings_script = [refused(500)]
    with pytest.raises(ModelUnavailable):
        await make(embedding_texts_max=1).embed(request("a", "b", "c", "d"), call())
    assert len(server.requests) < 8


async def test_what_was_paid_for_is_kept_where_another_batch_fails(
    server: OpenAIServer, make: Make
) -> None:
    service = make(embedding_texts_max=1, embedding_requests_max=1)
    texts = ("a", "bb", "ccc")

    async def too_long() -> Response:
        # The third one's turn: the two before it were answered.
        return Response("too long", status_code=400)

    first, second = (answered(data=[entry(0, [length])]) for length in (1.0, 2.0))
    server.embeddings_script = [first, second, too_long]
    with pytest.raises(ModelRefused):
        await service.embed(request(*texts, seconds=60), call())
    server.requests.clear()
    response = await service.embed(request(*texts, seconds=60), call())
    assert (lengths(response), response.cached) == ([1, 2, 3], 2)
    assert [sent["input"] for sent in server.requests] == [["ccc"]]


async def test_a_batch_is_repeated_as_other_calls_are(server: OpenAIServer, make: Make) -> None:
    server.embeddings_script = [refused(429, Retry_After="0.01")]
    service = make(attempts_max=2, retry_base_seconds=0.01)
    assert lengths(await service.embed(request("abc"), call())) == [3]


async def test_more_vectors_than_an_answer_holds_are_refused_before_the_rest_is_paid(
    server: OpenAIServer, make: Make
) -> None:
    server.embedding_dimension = 8_192
    texts = [f"t{number}" for number in range(300)]
    service = make(embedding_texts_max=1, embedding_requests_max=1)
    with pytest.raises(LimitExceeded, match="fewer texts"):
        await service.embed(request(*texts), call())
    assert len(server.requests) < 5


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (request("a", model="nobody/x"), NotFound),
        (request("a", model="builtin/extractive"), NotFound),
        (request("a", model="a/claude"), NotFound),
        (request("a", model="route/r"), NotFound),
        (request("a", " "), InvalidArgument),
        (request("a", model="builtin/hashing", dimension=3), InvalidArgument),
    ],
)
async def test_what_cant_be_embedded_is_refused(
    asked: pb.EmbedRequest, error: type[WeftError], make: Make
) -> None:
    with pytest.raises(error):
        await make().embed(asked, call())


async def test_a_time_of_nothing_is_refused(make: Make) -> None:
    asked = request("a")
    asked.cache_ttl.SetInParent()
    with pytest.raises(InvalidArgument, match="cache_ttl"):
        await make().embed(asked, call())


@given(st.text(max_size=300), st.integers(hashing.DIMENSION_MIN, 600))
@settings(max_examples=200)
def test_every_text_has_a_vector_of_length_one(text: str, dimension: int) -> None:
    vector = hashing.embed(text, dimension)
    assert len(vector) == dimension
    assert math.isclose(math.fsum(value * value for value in vector), 1.0)
    assert vector == hashing.embed(text, dimension)


def cosine(one: str, two: str) -> float:
    vectors = (hashing.embed(one), hashing.embed(two))
    return math.fsum(first * second for first, second in zip(*vectors, strict=True))


def test_texts_that_share_words_or_parts_of_words_are_closer() -> None:
    event = "How are events stored in the log?"
    assert cosine(event, "The log stores events in streams") > cosine(event, "Bread needs yeast")
    assert cosine("configuration", "configure") > 2 * abs(cosine("configuration", "butterfly"))
    assert cosine(event, event.upper()) == pytest.approx(1)


def test_the_vectors_are_the_same_for_ever() -> None:
    # Kept vectors would be worthless with another hash; change the model's name then.
    vector = hashing.embed("weft", 16)
    assert [round(value, 4) for value in vector] == KNOWN
