"""The OpenAI-compatible provider: retries, the call's time, the list of models."""

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import structlog

from mesh.errors import ModelRateLimited, ModelUnavailable, WeftError
from services.models.providers.openai.endpoint import Endpoint
from services.models.settings import ModelsSettings
from weft.models.v1 import model_service_pb2, models_pb2

_MODELS_MAX = 1_000
_ID = re.compile(r"[A-Za-z0-9._:/@-]{1,190}")
_WINDOW_FIELDS = ("max_model_len", "context_length", "context_window")

log = structlog.get_logger(__name__)


class OpenAIProvider:
    """`openai/<model>`: any endpoint that speaks Chat Completions.

    A failed call is repeated while nothing of its answer was passed on: after 429, 5xx,
    a timeout or a broken connection, with full jitter, at least as long as the server
    asked for.
    """

    name = "openai"

    def __init__(self, settings: ModelsSettings) -> None:
        self._settings = settings
        self._endpoint = Endpoint(settings)
        self._models: list[models_pb2.Model] = []
        self._first_listed = ""
        self._listed_until = 0.0
        self._listing = asyncio.Lock()

    async def models(self) -> Sequence[models_pb2.Model]:
        """What the endpoint lists and the configured model, cached for a while; the
        configured one alone while the endpoint doesn't answer."""
        loop = asyncio.get_running_loop()
        async with self._listing:
            if loop.time() >= self._listed_until:
                self._models = await self._list()
                self._listed_until = loop.time() + self._settings.openai_list_cache_seconds
        return self._models

    async def default_model(self) -> str:
        """The id of the configured model, else of the first that the endpoint lists.

        Raises ModelUnavailable where there is neither.
        """
        if self._settings.openai_model:
            return f"{self.name}/{self._settings.openai_model}"
        await self.models()
        if not self._first_listed:
            raise ModelUnavailable("no model is configured and the model's endpoint lists none")
        return self._first_listed

    async def _list(self) -> list[models_pb2.Model]:
        try:
            entries = await self._endpoint.listed()
        except WeftError as error:
            log.warning("model_list_failed", error=error.message)
            entries = []
        ids = [entry["id"] for entry in entries if _is_id(entry.get("id"))]
        self._first_listed = f"{self.name}/{ids[0]}" if ids else ""
        named = {entry["id"]: entry for entry in entries[:_MODELS_MAX] if entry.get("id") in ids}
        if self._settings.openai_model:
            named.setdefault(self._settings.openai_model, {})
        return [self._model(model, entry) for model, entry in named.items()]

    def _model(self, model: str, entry: Mapping[str, Any]) -> models_pb2.Model:
        windows = [entry.get(name) for name in _WINDOW_FIELDS]
        known = [window for window in windows if isinstance(window, int) and 0 < window < 2**32]
        return models_pb2.Model(
            id=f"{self.name}/{model}",
            description="Model of the configured OpenAI-compatible endpoint",
            context_tokens_max=known[0] if known else self._settings.openai_context_tokens_max,
        )

    async def stream(
        self, request: model_service_pb2.GenerateRequest, model: str, timeout_seconds: float
    ) -> AsyncGenerator[str | model_service_pb2.GenerateResponse, None]:
        """The answer as it comes, then whole; see the port for what it raises."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(timeout_seconds, self._settings.openai_timeout_seconds)
        for attempt in range(1, self._settings.openai_attempts_max + 1):
            has_yielded = False
            try:
                async with aclosing(self._endpoint.answer(request, model, deadline)) as parts:
                    async for part in parts:
                        has_yielded = True
                        yield part
                return
            except (ModelUnavailable, ModelRateLimited) as error:
                pause = self._pause_seconds(attempt, error)
                is_last = attempt == self._settings.openai_attempts_max
                if has_yielded or is_last or pause is None or loop.time() + pause >= deadline:
                    raise
                log.info("model_call_retried", attempt=attempt, error=error.message)
            await asyncio.sleep(pause)

    def _pause_seconds(self, attempt: int, error: WeftError) -> float | None:
        """Seconds before the next attempt; None where the server asks for more than we wait.

        Full jitter: a random share of a bound that doubles.
        """
        longest = self._settings.openai_retry_max_seconds
        bound = min(longest, self._settings.openai_retry_base_seconds * 2 ** (attempt - 1))
        asked = error.retry_seconds or 0.0
        return None if asked > longest else asked + random.uniform(0, bound)

    async def close(self) -> None:
        """Closes the connections."""
        await self._endpoint.close()


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None
