"""The models that come with Weft: offline, deterministic, without weights."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from mesh.errors import InvalidArgument, ModelRefused, NotFound
from services.models.provider_settings import BUILTIN
from services.models.providers import hashing
from services.models.providers.extractive import ExtractiveProvider
from services.models.providers.provider import Sent, Vectors
from services.models.tokens import tokens_estimate
from weft.models.v1 import model_service_pb2, models_pb2

EXTRACTIVE_ID = f"{BUILTIN}/extractive"
"""The offline model, the default where no endpoint is configured."""
HASHING = "hashing"
HASHING_ID = f"{BUILTIN}/{HASHING}"
"""The offline embedding, the default."""


class BuiltinProvider:
    """`builtin/extractive` answers, `builtin/hashing` embeds."""

    name = BUILTIN
    system = "weft"
    embedding_texts_max = 16
    embedding_requests_max = 1

    def __init__(self, context_tokens_max: int) -> None:
        self._extractive = ExtractiveProvider(context_tokens_max)
        self._hashing = models_pb2.Model(
            id=HASHING_ID,
            description=(
                "Offline embedding by hashing of words and parts of words, no neural model: "
                "finds texts that share words, not such as mean the same in others"
            ),
            context_tokens_max=tokens_estimate("x" * hashing.CHARACTERS_MAX),
            embeds=True,
        )

    async def models(self) -> Sequence[models_pb2.Model]:
        """Both."""
        return [*await self._extractive.models(), self._hashing]

    def knows(self, model: str) -> bool:
        """There are no others."""
        return f"{self.name}/{model}" in (EXTRACTIVE_ID, HASHING_ID)

    async def default_model(self) -> str:
        """The one that answers."""
        return EXTRACTIVE_ID

    async def stream(
        self,
        request: model_service_pb2.GenerateRequest,
        model: str,
        timeout_seconds: float,
        sent: Sent,
    ) -> AsyncGenerator[str | model_service_pb2.GenerateResponse, None]:
        """The offline model's answer; it writes no JSON (ModelRefused)."""
        if request.response_json_schema:
            raise ModelRefused("the offline model can't answer by a JSON Schema")
        async with aclosing(self._extractive.stream(request, model, timeout_seconds)) as parts:
            async for part in parts:
                yield part

    async def embed(
        self,
        texts: Sequence[str],
        model: str,
        dimension: int,
        timeout_seconds: float,
        sent: Sent,
    ) -> Vectors:
        """Raises NotFound for another model, InvalidArgument for a dimension that is too
        small."""
        if model != HASHING:
            raise NotFound.of("embedding model", f"{self.name}/{model}")
        if dimension and dimension < hashing.DIMENSION_MIN:
            raise InvalidArgument.of("dimension", f"must be at least {hashing.DIMENSION_MIN}")
        size = dimension or hashing.DIMENSION
        # A long text takes tens of milliseconds; others get their turn meanwhile.
        values = await asyncio.to_thread(lambda: [hashing.embed(text, size) for text in texts])
        tokens = sum(map(tokens_estimate, texts))
        return Vectors(values, models_pb2.Usage(input_tokens=tokens, estimated=True))

    async def close(self) -> None:
        """Nothing to give back."""
