"""Vectors of texts, made by the models service."""

from array import array
from collections.abc import Awaitable, Iterator, Sequence
from typing import Protocol

from google.protobuf.duration_pb2 import Duration

from mesh.call import Call
from mesh.errors import ModelBadAnswer
from services.vectors.domain.vectors import LENGTH_MAX, LENGTH_MIN, Vector, square_of
from weft.models.v1 import model_service_pb2 as models_pb

TEXTS_AT_ONCE = 256
BYTES_AT_ONCE = 1 << 20
KEPT_SECONDS = 3_600
"""How long the models service keeps a vector: people ask the same again, and whoever was cut
off in an ingest sends the same again."""


class EmbedMethod(Protocol):
    """`ModelServiceStub.Embed`."""

    def __call__(
        self, request: models_pb.EmbedRequest, *, timeout: float
    ) -> Awaitable[models_pb.EmbedResponse]: ...


class ModelStub(Protocol):
    """What vectors need of a `ModelServiceStub`."""

    @property
    def Embed(self) -> EmbedMethod: ...  # noqa: N802 - as generated stubs name it


class Embedder:
    """Asks the models service for vectors, in batches, one after the other: that service
    bounds what goes to a provider at once."""

    def __init__(self, models: ModelStub) -> None:
        self._models = models

    async def dimension(self, tenant: str, model: str, call: Call) -> int:
        """How many numbers the model's vectors have. Raises what Embed raises."""
        (vector,) = await self._batch(tenant, model, 0, ["dimension"], call)
        return len(vector)

    async def passages(
        self, tenant: str, model: str, dimension: int, texts: Sequence[str], call: Call
    ) -> list[Vector | None]:
        """A vector for each text; None for one that means nothing to the model, whose vector
        has no direction. Raises what Embed raises."""
        vectors: list[Vector | None] = []
        for batch in _batches(texts):
            made = await self._batch(tenant, model, dimension, batch, call)
            vectors += (_or_none(vector) for vector in made)
        return vectors

    async def query(
        self, tenant: str, model: str, dimension: int, text: str, call: Call
    ) -> Vector | None:
        """The vector of a query, as `passages`."""
        made = await self._batch(tenant, model, dimension, [text], call)
        return _or_none(made[0])

    async def _batch(
        self,
        tenant: str,
        model: str,
        dimension: int,
        texts: Sequence[str],
        call: Call,
    ) -> list[Vector]:
        request = models_pb.EmbedRequest(
            parent=f"tenants/{tenant}",
            model=model,
            texts=texts,
            dimension=dimension,
            cache_ttl=Duration(seconds=KEPT_SECONDS),
        )
        response = await self._models.Embed(request, timeout=call.remaining_seconds())
        vectors = [array("f", each.values) for each in response.embeddings]
        if len(vectors) != len(texts):
            raise ModelBadAnswer("the model's vectors aren't as many as the texts")
        if any(len(vector) != (dimension or len(vectors[0])) for vector in vectors):
            raise ModelBadAnswer("the model's vectors aren't of the collection's dimension")
        if not all(square_of(vector) <= LENGTH_MAX**2 for vector in vectors):
            raise ModelBadAnswer("the model's vectors hold what isn't a number")
        return vectors


def _or_none(vector: Vector) -> Vector | None:
    return vector if square_of(vector) >= LENGTH_MIN**2 else None


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size_bytes = 0
    for text in texts:
        length = len(text.encode())
        if batch and (len(batch) == TEXTS_AT_ONCE or size_bytes + length > BYTES_AT_ONCE):
            yield batch
            batch, size_bytes = [], 0
        batch.append(text)
        size_bytes += length
    if batch:
        yield batch
