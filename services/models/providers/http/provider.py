"""A provider behind HTTP: retries, the call's time, the list of models."""

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import structlog

from mesh.errors import ModelRateLimited, ModelUnavailable, NotFound, WeftError
from services.models.provider_settings import ProviderSettings
from services.models.providers.http.breaker import Breaker
from services.models.providers.http.chat import Chat
from services.models.providers.http.dialect import Dialect
from services.models.providers.http.endpoint import Endpoint
from services.models.providers.http.limits import Limits
from services.models.providers.http.messages import Messages
from services.models.providers.http.responses import Responses
from services.models.providers.provider import HASTY_SECONDS, Sent, Vectors
from weft.models.v1 import model_service_pb2, models_pb2

T = TypeVar("T")
_MODELS_MAX = 1_000
_ID = re.compile(r"[A-Za-z0-9._:/@-]{1,190}")
_WINDOW_FIELDS = ("max_model_len", "context_length", "context_window", "max_input_tokens")
_DIALECTS: Mapping[str, type[Dialect]] = {
    "openai": Chat,
    "openai-responses": Responses,
    "anthropic": Messages,
}

log = structlog.get_logger(__name__)


class HttpProvider:
    """`<name>/<model>`: models of the endpoint that the settings describe.

    A failed call is repeated while nothing of its answer was passed on: after 429, 5xx,
    a timeout or a broken connection, with full jitter, at least as long as the server
    asked for. Each attempt passes the circuit breaker and the provider's limits; what those
    refuse isn't repeated. Raises ValueError where the key can't be read.
    """

    def __init__(self, settings: ProviderSettings) -> None:
        self.name = settings.name
        self.system = settings.system
        self.embedding_texts_max = settings.embedding_texts_max
        self.embedding_requests_max = settings.embedding_requests_max
        self._settings = settings
        self._endpoint = Endpoint(settings, _DIALECTS[settings.kind]())
        self._limits = Limits(settings)
        self.breaker = Breaker(
            settings.name,
            settings.breaker_failures_max,
            settings.breaker_pause_seconds,
            lambda: asyncio.get_running_loop().time(),
        )
        configured = [*(model.name for model in settings.models), settings.default_model]
        self._configured = [model for model in configured if model]
        self._models: list[models_pb2.Model] = []
        self._named = set(self._configured)
        self._first_listed = ""
        self._listed_until = 0.0
        self._listing = asyncio.Lock()

    async def models(self) -> Sequence[models_pb2.Model]:
        """What the endpoint lists and what is configured, cached for a while; the configured
        ones alone while the endpoint doesn't answer."""
        loop = asyncio.get_running_loop()
        async with self._listing:
            if loop.time() >= self._listed_until:
                self._models = await self._list()
                self._listed_until = loop.time() + self._settings.list_cache_seconds
        return self._models

    def knows(self, model: str) -> bool:
        """Whether it is configured, or was listed; see the port."""
        return model in self._named

    async def default_model(self) -> str:
        """The id of the configured model, else of the first that the endpoint lists.

        Raises ModelUnavailable where there is neither.
        """
        if self._settings.default_model:
            return f"{self.name}/{self._settings.default_model}"
        await self.models()
        if not self._first_listed:
            raise ModelUnavailable("no model is configured and the model's endpoint lists none")
        return self._first_listed

    async def _list(self) -> list[models_pb2.Model]:
        entries: list[dict[str, Any]] = []
        if self._settings.lists_models:
            try:
                entries = await self._endpoint.listed()
            except WeftError as error:
                log.warning("model_list_failed", provider=self.name, error=error.message)
        named = {entry["id"]: entry for entry in entries[:_MODELS_MAX] if _is_id(entry.get("id"))}
        first = next(iter([*named, *self._configured]), "")
        self._first_listed = f"{self.name}/{first}" if first else ""
        for model in self._configured:
            named.setdefault(model, {})
        self._named = set(named)
        return [self._model(model, entry) for model, entry in named.items()]

    def _model(self, model: str, entry: Mapping[str, Any]) -> models_pb2.Model:
        windows = [entry.get(name) for name in _WINDOW_FIELDS]
        known = [window for window in windows if isinstance(window, int) and 0 < window < 2**32]
        told = known[0] if known else self._settings.context_tokens_max
        settings = self._settings.model(model)
        return models_pb2.Model(
            id=f"{self.name}/{model}",
            description=settings.description or f"Model of the configured endpoint {self.name}",
            context_tokens_max=settings.context_tokens_max or told,
            embeds=settings.embedding_dimension is not None,
            labels=[
                models_pb2.ModelLabel(key=key, value=value)
                for key, value in sorted(settings.labels.items())
            ],
        )

    def stream(
        self,
        request: model_service_pb2.GenerateRequest,
        model: str,
        timeout_seconds: float,
        sent: Sent,
    ) -> AsyncGenerator[str | model_service_pb2.GenerateResponse, None]:
        """The answer as it comes, then whole; see the port for what it raises. Once text was
        passed on a failure ends the call: the caller has the begin of an answer and the error."""
        deadline = self._deadline(timeout_seconds)
        answer = partial(self._endpoint.answer, request, model, deadline)
        return self._repeated(answer, deadline, sent)

    async def embed(
        self,
        texts: Sequence[str],
        model: str,
        dimension: int,
        timeout_seconds: float,
        sent: Sent,
    ) -> Vectors:
        """The texts' vectors; see the port for what it raises."""
        if self._settings.kind == "anthropic":
            raise NotFound.of("embedding model", f"{self.name}/{model}")
        deadline = self._deadline(timeout_seconds)

        async def once() -> AsyncGenerator[Vectors, None]:
            yield await self._endpoint.embed(texts, model, dimension, deadline)

        found = [vectors async for vectors in self._repeated(once, deadline, sent)]
        return found[0]

    async def _repeated(
        self, call: Callable[[], AsyncGenerator[T, None]], deadline: float, sent: Sent
    ) -> AsyncGenerator[T, None]:
        """What `call` yields; made again where it fails before it yielded anything."""
        # While it waits for its turn, or for the next attempt, nobody bills it.
        sent(False)
        for attempt in range(1, self._settings.attempts_max + 1):
            has_begun = has_yielded = False
            try:
                async with self._attempt(deadline), aclosing(call()) as parts:
                    has_begun = True
                    sent(True)
                    async for part in parts:
                        has_yielded = True
                        yield part
                return
            except (ModelUnavailable, ModelRateLimited) as error:
                pause = self._pause_seconds(attempt, error, deadline)
                if has_yielded or not has_begun or pause is None:
                    raise
                log.info(
                    "model_call_retried",
                    provider=self.name,
                    attempt=attempt,
                    error=error.message,
                )
            sent(False)
            await asyncio.sleep(pause)

    @asynccontextmanager
    async def _attempt(self, deadline: float) -> AsyncGenerator[None, None]:
        """One call to the endpoint, once it may be made. How it ended the breaker learns."""
        self.breaker.check()
        async with self._limits.slot(deadline):
            began = asyncio.get_running_loop().time()
            epoch = self.breaker.enter()
            try:
                yield
                self.breaker.succeeded(epoch)
            except ModelUnavailable:
                is_late = asyncio.get_running_loop().time() >= deadline
                if not is_late or deadline - began >= HASTY_SECONDS:
                    self.breaker.failed(epoch)
                raise
            except WeftError:
                self.breaker.succeeded(epoch)
                raise
            finally:
                self.breaker.left(epoch)

    def _deadline(self, timeout_seconds: float) -> float:
        """When a call is over, on the event loop's clock."""
        seconds = min(timeout_seconds, self._settings.timeout_seconds)
        return asyncio.get_running_loop().time() + seconds

    def _pause_seconds(self, attempt: int, error: WeftError, deadline: float) -> float | None:
        """Seconds before the next attempt; None where none is to be made: after the last, where
        the time doesn't suffice, or where the server asks for more than we wait.

        Full jitter: a random share of a bound that doubles.
        """
        longest = self._settings.retry_max_seconds
        bound = min(longest, self._settings.retry_base_seconds * 2 ** (attempt - 1))
        asked = error.retry_seconds or 0.0
        pause = asked + random.uniform(0, bound)
        is_over = asyncio.get_running_loop().time() + pause >= deadline
        if attempt >= self._settings.attempts_max or asked > longest or is_over:
            return None
        return pause

    async def close(self) -> None:
        """Closes the connections."""
        await self._endpoint.close()


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None
