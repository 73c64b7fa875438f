"""One call to an endpoint: HTTP, its time limits, and the table of its failures.

What the server says in words goes to the log; errors hold our words only, and neither
holds the key.
"""

import asyncio
import email.utils
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import httpx2
import orjson
import structlog

from mesh.errors import (
    ModelBadAnswer,
    ModelRateLimited,
    ModelRefused,
    ModelUnavailable,
    WeftError,
)
from services.models.provider_settings import ProviderSettings
from services.models.providers.http import embeddings
from services.models.providers.http.dialect import Dialect
from services.models.providers.provider import Vectors
from weft.models.v1 import model_service_pb2

_LOGGED_BYTES_MAX = 2_000
_EVENT_BYTES_MAX = 4_194_304
_RETRY_DEFAULT_SECONDS = 1.0
_DRAIN_SECONDS = 0.2
_RETRY_MAX_SECONDS = 86_400.0
_LIST_BYTES_MAX = 4_194_304
_EMBEDDINGS_BYTES_MAX = 67_108_864
_FAILURES = frozenset({"error", "response.failed"})
"""Types of events that say that the endpoint failed while it answered."""

log = structlog.get_logger(__name__)


class Endpoint:
    """An endpoint that speaks `dialect`, over one pool of connections. Raises ValueError
    where its key can't be read."""

    def __init__(self, settings: ProviderSettings, dialect: Dialect) -> None:
        self._settings = settings
        self._dialect = dialect
        self._key = settings.key()
        self._client: httpx2.AsyncClient | None = None

    def _connected(self) -> httpx2.AsyncClient:
        """The client, made on first use so that a process without calls has none."""
        if self._client is None:
            settings = self._settings
            self._client = httpx2.AsyncClient(
                headers=self._dialect.headers(self._key),
                timeout=httpx2.Timeout(
                    settings.between_tokens_timeout_seconds,
                    connect=settings.connect_timeout_seconds,
                    # The first token has a limit of its own, below.
                    read=None,
                ),
                limits=httpx2.Limits(
                    max_connections=settings.connections_max,
                    max_keepalive_connections=settings.connections_max,
                    keepalive_expiry=30.0,
                ),
            )
        return self._client

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def listed(self) -> list[dict[str, Any]]:
        """The entries of `GET /models`. Raises WeftError as `answer` does."""
        url = f"{self._settings.url}{self._dialect.models_path}"
        request = self._connected().build_request("GET", url)
        limit = asyncio.get_running_loop().time() + self._settings.list_timeout_seconds
        body = await self._json(request, limit, _LIST_BYTES_MAX)
        data = body.get("data") if isinstance(body, dict) else None
        if not isinstance(data, list):
            raise ModelBadAnswer("the model's endpoint lists no models")
        return [entry for entry in data if isinstance(entry, dict)]

    async def embed(
        self, texts: Sequence[str], model: str, dimension: int, deadline: float
    ) -> Vectors:
        """Embeds the texts by one request; `deadline` is on the event loop's clock. Raises as
        `answer` does."""
        request = self._post(
            embeddings.PATH, embeddings.request_body(texts, model, dimension), "application/json"
        )
        first = asyncio.get_running_loop().time() + self._settings.first_token_timeout_seconds
        body = await self._json(request, min(deadline, first), _EMBEDDINGS_BYTES_MAX)
        return embeddings.read(body, texts, dimension)

    async def answer(
        self, request: model_service_pb2.GenerateRequest, model: str, deadline: float
    ) -> AsyncGenerator[str | model_service_pb2.GenerateResponse, None]:
        """Calls `model` once. Yields text, then the whole; `deadline` is on the event
        loop's clock. Raises ModelRefused, ModelRateLimited, ModelUnavailable or
        ModelBadAnswer."""
        loop = asyncio.get_running_loop()
        settings = self._settings
        answer = self._dialect.answer()
        limit = min(deadline, loop.time() + settings.first_token_timeout_seconds)
        body = self._dialect.body(request, model, settings)
        http_request = self._post(self._dialect.path, body, "text/event-stream")
        async with self._failures_mapped():
            async with self._sent(http_request, "text/event-stream", limit) as response:
                source = httpx2.EventSource(response, max_event_size=_EVENT_BYTES_MAX)
                async with aclosing(self._data(source)) as events:
                    while (data := await _next_before(events, limit)) is not None:
                        text = answer.add(self._event(data))
                        if answer.has_begun:
                            between = settings.between_tokens_timeout_seconds
                            limit = min(deadline, loop.time() + between)
                        if text:
                            yield text
            if not answer.is_finished:
                raise ModelUnavailable("the model's answer broke off")
            yield answer.build(request, f"{settings.name}/{model}")

    def _post(self, path: str, body: bytes, accept: str) -> httpx2.Request:
        return self._connected().build_request(
            "POST",
            f"{self._settings.url}{path}",
            content=body,
            headers={"content-type": "application/json", "accept": accept},
        )

    def _event(self, data: str) -> dict[str, Any]:
        event = _parsed(data)
        if not isinstance(event, dict):
            raise ModelBadAnswer("the model's endpoint sent an event that isn't an object")
        if event.get("error") or event.get("type") in _FAILURES:
            self._log_server_text("model_stream_error", data)
            raise ModelUnavailable("the model's endpoint failed while answering")
        return event

    async def _data(self, source: httpx2.EventSource) -> AsyncGenerator[str, None]:
        """The data of the events up to `[DONE]`, at most as many bytes as are allowed."""
        received_bytes = 0
        events = aiter(source)
        async for event in events:
            if event.data.strip() == "[DONE]":
                await _drain(events)
                return
            received_bytes += len(event.data.encode())
            if received_bytes > self._settings.response_bytes_max:
                raise ModelBadAnswer("the model's answer is longer than is allowed")
            if event.data:
                yield event.data

    async def _json(self, request: httpx2.Request, limit: float, bytes_max: int) -> object:
        """What the endpoint answers, parsed."""
        async with (
            self._failures_mapped(),
            asyncio.timeout_at(limit),
            self._sent(request, "application/json") as response,
        ):
            return _parsed(await _read(response, bytes_max))

    @asynccontextmanager
    async def _sent(
        self, request: httpx2.Request, content_type: str, limit: float | None = None
    ) -> AsyncGenerator[httpx2.Response, None]:
        """The response to `request`, known to be a success of the right type."""
        async with asyncio.timeout_at(limit):
            response = await self._connected().send(request, stream=True)
        try:
            if response.status_code != httpx2.codes.OK:
                raise await self._refusal(response)
            found = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if found != content_type:
                self._log_server_text("model_bad_content_type", await _start_of(response))
                raise ModelBadAnswer(f"the model's endpoint answered something not {content_type}")
            yield response
        finally:
            await response.aclose()

    async def _refusal(self, response: httpx2.Response) -> WeftError:
        status = response.status_code
        self._log_server_text("model_refused", await _start_of(response), status=status)
        if status == httpx2.codes.TOO_MANY_REQUESTS:
            return ModelRateLimited(
                "the model's endpoint limits our rate",
                retry_seconds=_retry_after_seconds(response) or _RETRY_DEFAULT_SECONDS,
            )
        if status >= 500 or status == httpx2.codes.REQUEST_TIMEOUT:
            return ModelUnavailable(
                f"the model's endpoint failed with HTTP status {status}",
                retry_seconds=_retry_after_seconds(response),
            )
        if status >= 400:
            return ModelRefused(
                f"the model's endpoint refused the request with HTTP status {status}",
                metadata={"http_status": str(status)},
            )
        return ModelBadAnswer(f"the model's endpoint answered with HTTP status {status}")

    @asynccontextmanager
    async def _failures_mapped(self) -> AsyncGenerator[None, None]:
        try:
            yield
        except TimeoutError as error:
            raise ModelUnavailable("the model's endpoint took too long") from error
        except httpx2.SSEError as error:
            raise ModelBadAnswer("the model's endpoint broke the event stream format") from error
        except (httpx2.DecodingError, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise ModelBadAnswer("the model's endpoint can't be understood") from error
        except httpx2.ConnectTimeout as error:
            raise ModelUnavailable("the model's endpoint can't be reached in time") from error
        except httpx2.ConnectError as error:
            raise ModelUnavailable("the model's endpoint can't be reached") from error
        except httpx2.TransportError as error:
            raise ModelUnavailable("the connection to the model's endpoint broke") from error

    def _log_server_text(self, event: str, text: str, **fields: object) -> None:
        """Logs what the server said, cut, and without the key should it echo it."""
        shown = text.replace(self._key, "***") if self._key else text
        log.warning(event, server_text=shown[:_LOGGED_BYTES_MAX], **fields)


async def _next_before(events: AsyncGenerator[str, None], limit: float) -> str | None:
    async with asyncio.timeout_at(limit):
        return await anext(events, None)


async def _drain(events: AsyncIterator[httpx2.ServerSentEvent]) -> None:
    """Reads to the end of the body: only then can the connection be used again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in events:
                pass


async def _read(response: httpx2.Response, bytes_max: int) -> bytes:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > bytes_max:
            raise ModelBadAnswer("the model's endpoint sent more than is allowed")
    return bytes(body)


async def _start_of(response: httpx2.Response) -> str:
    """The beginning of a body, for the log; empty where it doesn't come at once."""
    body = bytearray()
    try:
        async with asyncio.timeout(1.0):
            async for part in response.aiter_bytes():
                body += part
                if len(body) > _LOGGED_BYTES_MAX:
                    break
    except (TimeoutError, httpx2.TransportError, httpx2.DecodingError) as error:
        log.debug("model_error_body_unreadable", error=type(error).__name__)
    return body[:_LOGGED_BYTES_MAX].decode(errors="replace")


def _parsed(data: str | bytes) -> object:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ModelBadAnswer("the model's endpoint sent what isn't JSON") from error


def _retry_after_seconds(response: httpx2.Response) -> float | None:
    """`Retry-After` in seconds, given as a number or as a date (RFC 9110, 10.2.3)."""
    written = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(written)
    except ValueError:
        parsed = email.utils.parsedate_tz(written)
        if parsed is None:
            return None
        try:
            seconds = email.utils.mktime_tz(parsed) - time.time()
        except (ValueError, OverflowError):
            return None
    # Longer than a day is a day: neither is waited for.
    return None if math.isnan(seconds) else min(max(0.0, seconds), _RETRY_MAX_SECONDS)
