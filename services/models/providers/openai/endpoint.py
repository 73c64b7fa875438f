"""One call to the endpoint: HTTP, its time limits, and the table of its failures.

What the server says in words goes to the log; errors hold our words only, and neither
holds the key.
"""

import asyncio
import email.utils
import time
from collections.abc import AsyncGenerator, AsyncIterator
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
from services.models.providers.openai.wire import AnswerBuilder, request_body
from services.models.settings import ModelsSettings
from weft.models.v1 import model_service_pb2

OFFICIAL_BASE_URL = "https://api.openai.com/v1"

_LOGGED_BYTES_MAX = 2_000
_EVENT_BYTES_MAX = 1_048_576
_RETRY_DEFAULT_SECONDS = 1.0
_DRAIN_SECONDS = 0.2
_LIST_BYTES_MAX = 4_194_304

log = structlog.get_logger(__name__)


class Endpoint:
    """An endpoint that speaks Chat Completions, over one pool of connections."""

    def __init__(self, settings: ModelsSettings) -> None:
        self._settings = settings
        self._base_url = (settings.openai_base_url or OFFICIAL_BASE_URL).rstrip("/")
        # OpenAI's newer models refuse `max_tokens`; most others know nothing else.
        is_official = self._base_url == OFFICIAL_BASE_URL
        self._tokens_field = "max_completion_tokens" if is_official else "max_tokens"
        key = settings.openai_api_key
        self._key = key.get_secret_value() if key else ""
        self._client: httpx2.AsyncClient | None = None

    def _connected(self) -> httpx2.AsyncClient:
        """The client, made on first use so that a process without calls has none."""
        if self._client is None:
            settings = self._settings
            self._client = httpx2.AsyncClient(
                headers={"authorization": f"Bearer {self._key}"} if self._key else None,
                timeout=httpx2.Timeout(
                    settings.openai_between_tokens_timeout_seconds,
                    connect=settings.openai_connect_timeout_seconds,
                    # The first token has a limit of its own, below.
                    read=None,
                ),
                limits=httpx2.Limits(
                    max_connections=settings.openai_connections_max,
                    max_keepalive_connections=settings.openai_connections_max,
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
        async with (
            self._failures_mapped(),
            asyncio.timeout(self._settings.openai_list_timeout_seconds),
        ):
            request = self._connected().build_request("GET", f"{self._base_url}/models")
            async with self._sent(request, "application/json") as response:
                body = _parsed(await _read(response, _LIST_BYTES_MAX))
        data = body.get("data") if isinstance(body, dict) else None
        if not isinstance(data, list):
            raise ModelBadAnswer("the model's endpoint lists no models")
        return [entry for entry in data if isinstance(entry, dict)]

    async def answer(
        self, request: model_service_pb2.GenerateRequest, model: str, deadline: float
    ) -> AsyncGenerator[str | model_service_pb2.GenerateResponse, None]:
        """Calls `model` once. Yields text, then the whole; `deadline` is on the event
        loop's clock. Raises ModelRefused, ModelRateLimited, ModelUnavailable or
        ModelBadAnswer."""
        loop = asyncio.get_running_loop()
        settings = self._settings
        builder = AnswerBuilder()
        limit = min(deadline, loop.time() + settings.openai_first_token_timeout_seconds)
        http_request = self._connected().build_request(
            "POST",
            f"{self._base_url}/chat/completions",
            content=request_body(request, model, self._tokens_field),
            headers={"content-type": "application/json", "accept": "text/event-stream"},
        )
        async with self._failures_mapped():
            async with self._sent(http_request, "text/event-stream", limit) as response:
                source = httpx2.EventSource(response, max_event_size=_EVENT_BYTES_MAX)
                async with aclosing(self._data(source)) as events:
                    while (data := await _next_before(events, limit)) is not None:
                        text = builder.add(self._chunk(data))
                        if builder.has_begun:
                            between = settings.openai_between_tokens_timeout_seconds
                            limit = min(deadline, loop.time() + between)
                        if text:
                            yield text
            if not builder.is_finished:
                raise ModelUnavailable("the model's answer broke off")
            yield builder.build(request, f"openai/{model}")

    def _chunk(self, data: str) -> object:
        chunk = _parsed(data)
        if isinstance(chunk, dict) and chunk.get("error"):
            self._log_server_text("model_stream_error", data)
            raise ModelUnavailable("the model's endpoint failed while answering")
        return chunk

    async def _data(self, source: httpx2.EventSource) -> AsyncGenerator[str, None]:
        """The data of the events up to `[DONE]`, at most as many bytes as are allowed."""
        received_bytes = 0
        events = aiter(source)
        async for event in events:
            if event.data.strip() == "[DONE]":
                await _drain(events)
                return
            received_bytes += len(event.data.encode())
            if received_bytes > self._settings.openai_response_bytes_max:
                raise ModelBadAnswer("the model's answer is longer than is allowed")
            if event.data:
                yield event.data

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
        seconds = email.utils.mktime_tz(parsed) - time.time()
    return max(0.0, seconds) if seconds < 86_400 else None
