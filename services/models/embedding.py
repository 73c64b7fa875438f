"""Embedding texts in batches, and keeping their vectors."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from mesh.cache.cache import Cache
from mesh.cache.codecs import MessageCodec
from mesh.clock import NANOSECONDS
from mesh.errors import LimitExceeded, WeftError
from services.models.providers.provider import Vectors
from services.models.routing import Candidate
from services.models.tokens import add_usage
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

NUMBERS_MAX = 2_097_152
LOOKS_MAX = 64
"""Texts of one call that are looked for in the cache at once."""

Embed = Callable[[Candidate, Sequence[str]], Awaitable[Vectors]]
"""Embeds a batch of texts, by one call of the candidate's provider."""
_Made = tuple[dict[str, pb.Embedding], models_pb2.Usage]
"""The vectors of a batch, by text, and what they took."""


class Embeddings:
    """Vectors of texts: those that are kept, and for the others batches as large as the
    provider takes, several under way at once. A text that comes twice is embedded once."""

    def __init__(self, cache: Cache) -> None:
        self._kept = cache.of("models.embeddings", MessageCodec(pb.Embedding))

    async def embed(
        self, request: pb.EmbedRequest, candidate: Candidate, embed: Embed
    ) -> pb.EmbedResponse:
        """The answer to the request. Where one batch fails so does the whole, and batches
        under way are given up. Raises LimitExceeded where the vectors are more than an answer
        holds, and what `embed` raises."""
        texts = list(dict.fromkeys(request.texts))
        found = await self._looked_up(request, candidate, texts)
        missing = [text for text in texts if text not in found]
        response = pb.EmbedResponse(
            model=candidate.id, cached=sum(text in found for text in request.texts)
        )
        response.usage.SetInParent()
        size = candidate.provider.embedding_texts_max
        batches = [missing[start : start + size] for start in range(0, len(missing), size)]
        for made, usage in await self._embedded(request, candidate, batches, embed):
            add_usage(response.usage, usage)
            found |= made
        _check_size(len(request.texts), len(found[texts[0]].values))
        response.embeddings.extend(found[text] for text in request.texts)
        return response

    async def _embedded(
        self,
        request: pb.EmbedRequest,
        candidate: Candidate,
        batches: Sequence[Sequence[str]],
        embed: Embed,
    ) -> list[_Made]:
        places = asyncio.Semaphore(candidate.provider.embedding_requests_max)

        async def one(batch: Sequence[str]) -> _Made:
            async with places:
                vectors = await embed(candidate, batch)
            # Before the rest is paid for in vain.
            _check_size(len(request.texts), len(vectors.values[0]))
            made = {
                text: pb.Embedding(values=values)
                for text, values in zip(batch, vectors.values, strict=True)
            }
            # Here: another batch may fail, and this one is paid for.
            for text, embedding in made.items():
                self._keep(request, candidate, text, embedding)
            return made, vectors.usage

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(batch)) for batch in batches]
        except* WeftError as errors:
            raise _first(errors) from None
        return [task.result() for task in tasks]

    async def _looked_up(
        self, request: pb.EmbedRequest, candidate: Candidate, texts: Sequence[str]
    ) -> dict[str, pb.Embedding]:
        """The vectors that are kept, by text."""
        if not request.HasField("cache_ttl"):
            return {}
        tenant = _tenant(request)
        places = asyncio.Semaphore(LOOKS_MAX)

        async def look(text: str) -> pb.Embedding | None:
            async with places:
                return await self._kept.find(tenant, _key(request, candidate, text))

        kept = await asyncio.gather(*(look(text) for text in texts))
        found = zip(texts, kept, strict=True)
        return {text: embedding for text, embedding in found if embedding is not None}

    def _keep(
        self, request: pb.EmbedRequest, candidate: Candidate, text: str, embedding: pb.Embedding
    ) -> None:
        if request.HasField("cache_ttl"):
            seconds = request.cache_ttl.ToNanoseconds() / NANOSECONDS
            key = _key(request, candidate, text)
            self._kept.put(_tenant(request), key, embedding, ttl_seconds=seconds)


def _tenant(request: pb.EmbedRequest) -> str:
    return request.parent.split("/")[1]


def _key(request: pb.EmbedRequest, candidate: Candidate, text: str) -> bytes:
    return f"{candidate.id}\0{request.dimension}\0{text}".encode()


def _check_size(texts: int, dimension: int) -> None:
    if texts * dimension > NUMBERS_MAX:
        raise LimitExceeded(
            f"{texts} vectors of {dimension} numbers are more than {NUMBERS_MAX} numbers: "
            "embed fewer texts at once"
        )


def _first(group: BaseExceptionGroup[WeftError]) -> WeftError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
