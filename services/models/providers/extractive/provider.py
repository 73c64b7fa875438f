"""The offline model as a provider."""

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence

from mesh.errors import NotFound
from services.models.providers.extractive.reply import reply
from weft.models.v1 import model_service_pb2, models_pb2

MODEL = "extractive"

_WORDS_PER_DELTA = 6
_WORD_GROUP = re.compile(rf"(?:\S+\s*|\s+){{1,{_WORDS_PER_DELTA}}}")


class ExtractiveProvider:
    """`builtin/extractive`: deterministic, offline, quotes what tools return."""

    name = "builtin"

    def __init__(self, context_tokens_max: int) -> None:
        self._model = models_pb2.Model(
            id=f"{self.name}/{MODEL}",
            description=(
                "Offline extractive model without weights: chooses tools by matching words, "
                "answers by quoting what they return with its source"
            ),
            context_tokens_max=context_tokens_max,
        )

    async def models(self) -> Sequence[models_pb2.Model]:
        """The one model."""
        return [self._model]

    async def stream(
        self, request: model_service_pb2.GenerateRequest, model: str, timeout_seconds: float
    ) -> AsyncGenerator[str | model_service_pb2.GenerateResponse, None]:
        """The answer in groups of words, then whole. Raises NotFound for another model."""
        if model != MODEL:
            raise NotFound.of("model", f"{self.name}/{model}")
        response = reply(request)
        response.model = self._model.id
        for group in _WORD_GROUP.findall(response.message.text):
            yield group
            # Others get their turn between groups, as with a model that takes its time.
            await asyncio.sleep(0)
        yield response

    async def close(self) -> None:
        """Nothing to give back."""
