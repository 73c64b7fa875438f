"""The built-in `fetch`: reads a page or a document of the web."""

import asyncio
import json
import zlib
from collections.abc import AsyncIterator
from email.message import Message
from typing import Any

import httpx2

from mesh.errors import ToolUnavailable
from services.tools.builtins.html_text import html_text
from services.tools.egress import EgressPolicy, EgressRefused, guarded_transport
from services.tools.results import ToolResult, cut, failed
from services.tools.settings import ToolsSettings
from weft.tools.v1 import tools_pb2

URL_LENGTH_MAX = 2_048
ERROR_LENGTH_MAX = 1_000
PIECE_BYTES = 65_536
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {
    "accept": "text/html, text/*;q=0.9, application/json;q=0.9, application/xml;q=0.8",
    "accept-encoding": "identity",
    "user-agent": "weft",
}
_HTML = ("text/html", "application/xhtml+xml")
_TEXTS = ("application/json", "application/xml", "application/javascript", *_HTML)
# What tells zlib which form comes; both say so at their beginning.
_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class _Refused(Exception):
    """Why what came isn't read, in words for the model."""


class Fetch:
    """Gets URLs by the policy, without cookies or credentials. Nothing of one call is known in
    the next one, but for open connections."""

    def __init__(self, policy: EgressPolicy, settings: ToolsSettings) -> None:
        self._policy = policy
        self._settings = settings
        self._transport = guarded_transport(policy)

    async def close(self) -> None:
        """Closes all connections."""
        await self._transport.aclose()

    async def fetch(self, url: str, timeout_seconds: float) -> ToolResult:
        """The text at the URL, behind a bounded number of redirects. What the settings or the
        other side refuse is a result with `is_error`; ToolUnavailable where that can't be
        reached, or takes longer than the settings let it."""
        seconds = min(timeout_seconds, self._settings.fetch_seconds)
        try:
            async with asyncio.timeout(seconds):
                return await self._followed(self._policy.check_url(url))
        except (EgressRefused, _Refused) as error:
            return failed(str(error))
        except TimeoutError as error:
            raise ToolUnavailable("the URL took too long to be fetched") from error
        except httpx2.TransportError as error:
            raise ToolUnavailable("the URL's host can't be reached, or broke off") from error
        except (httpx2.InvalidURL, UnicodeError, ValueError):
            return failed("that isn't a URL that can be fetched")

    async def _followed(self, url: httpx2.URL) -> ToolResult:
        for _ in range(self._settings.fetch_redirects_max + 1):
            request = httpx2.Request("GET", url, headers=_HEADERS)
            response = await self._transport.handle_async_request(request)
            try:
                location = response.headers.get("location", "")
                if response.status_code not in _REDIRECTS or not location:
                    return await self._read(url, response)
                onward = self._policy.check_url(str(url.join(location)))
            finally:
                await response.aclose()
            if (url.scheme, onward.scheme) == ("https", "http"):
                raise _Refused("it redirects from https to http, which isn't followed")
            url = onward
        raise _Refused(f"it redirects more than {self._settings.fetch_redirects_max} times")

    async def _read(self, url: httpx2.URL, response: httpx2.Response) -> ToolResult:
        media_type, charset = _content_type(response.headers.get("content-type", ""))
        if not (media_type.startswith("text/") or media_type in _TEXTS or _is_suffixed(media_type)):
            raise _Refused(f"it is {media_type[:100] or 'of no type'}, not text")
        data = bytearray()
        async for piece in _decoded(response):
            data += piece
            if len(data) > self._settings.fetch_bytes_max:
                raise _Refused(f"it has more than {self._settings.fetch_bytes_max} bytes")
        try:
            text = data.decode(charset or "utf-8", errors="replace")
        except LookupError:
            text = data.decode(errors="replace")
        title = ""
        if media_type in _HTML:
            found = await asyncio.to_thread(html_text, text)
            text, title = found.text, found.title[:1_000]
        shown = {"url": str(url), "status": response.status_code, "content_type": media_type}
        if response.status_code >= 400:
            # Its text may help, but not at length.
            return failed(json.dumps(shown | {"text": cut(text, ERROR_LENGTH_MAX)}))
        content = json.dumps(shown | {"title": title, "text": text}, ensure_ascii=False)
        source = tools_pb2.Source(uri=str(url)[:2_048], title=title)
        return ToolResult(content, sources=[source])


async def _decoded(response: httpx2.Response) -> AsyncIterator[bytes]:
    """The body as it was before it was compressed, in bounded pieces: a little that is made to
    become much stops with the bound on the whole."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        async for piece in response.aiter_raw():
            yield piece
        return
    if encoding not in _ENCODINGS:
        raise _Refused("it is compressed in a way that wasn't asked for")
    inflater = zlib.decompressobj(_ENCODINGS[encoding])
    try:
        async for piece in response.aiter_raw():
            yield inflater.decompress(piece, PIECE_BYTES)
            while inflater.unconsumed_tail:
                yield inflater.decompress(inflater.unconsumed_tail, PIECE_BYTES)
    except zlib.error:
        raise _Refused("it can't be decompressed") from None


def _content_type(header: str) -> tuple[str, str]:
    parsed = Message()
    parsed["content-type"] = header[:500].replace("\r", " ").replace("\n", " ")
    if not header:
        return "", ""
    charset: Any = parsed.get_param("charset", "")
    return parsed.get_content_type(), charset if isinstance(charset, str) else ""


def _is_suffixed(media_type: str) -> bool:
    return media_type.endswith(("+json", "+xml"))
