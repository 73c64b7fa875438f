"""OpenAI's embeddings: the request as JSON, the vectors out of the answer."""

from collections.abc import Sequence
from typing import Any

import orjson

from mesh.errors import ModelBadAnswer
from services.models.providers.http.answer import items, mapping, usage_of
from services.models.providers.provider import Vectors
from services.models.tokens import tokens_estimate
from weft.models.v1 import models_pb2

PATH = "/embeddings"
_FLOAT_MAX = 3.4028234663852886e38
"""The largest number of 32 bits; past it a vector would hold infinity."""


def request_body(texts: Sequence[str], model: str, dimension: int) -> bytes:
    """The request's JSON; 0 for the model's own dimension."""
    body: dict[str, Any] = {"model": model, "input": list(texts), "encoding_format": "float"}
    if dimension:
        body["dimensions"] = dimension
    return orjson.dumps(body)


def read(answer: object, texts: Sequence[str], dimension: int) -> Vectors:
    """The vectors of the texts. Raises ModelBadAnswer where there isn't one for each, all of
    the same dimension, that which was asked for."""
    body = mapping(answer, "embeddings")
    found: dict[int, list[float]] = {}
    for position, entry in enumerate(items(body.get("data"), "data")):
        one = mapping(entry, "an embedding")
        index = one.get("index", position)
        if not isinstance(index, int):
            raise ModelBadAnswer("the model's endpoint sent an embedding of no text")
        found[index] = _numbers(one.get("embedding"))
    dimensions = {len(numbers) for numbers in found.values()}
    if sorted(found) != list(range(len(texts))) or len(dimensions) != 1:
        raise ModelBadAnswer("the model's endpoint sent embeddings that don't match the texts")
    if dimension and dimensions != {dimension}:
        raise ModelBadAnswer("the model's endpoint sent embeddings of another dimension")
    usage = mapping(body.get("usage"), "usage")
    estimate = models_pb2.Usage(input_tokens=sum(map(tokens_estimate, texts)), estimated=True)
    return Vectors(
        [found[index] for index in range(len(texts))],
        usage_of(usage.get("prompt_tokens"), 0) or estimate,
    )


def _numbers(value: object) -> list[float]:
    numbers = items(value, "an embedding")
    if not numbers or not all(_is_number(number) for number in numbers):
        raise ModelBadAnswer("the model's endpoint sent an embedding that isn't numbers")
    return [float(number) for number in numbers if isinstance(number, int | float)]


def _is_number(value: object) -> bool:
    # Not a number is no less than any.
    return type(value) in (int, float) and abs(value) <= _FLOAT_MAX  # type: ignore[arg-type]
