"""Results that are too long to be given: kept whole as blobs, and shown in part."""

import re

from mesh.errors import WeftError
from mesh.ids import new_id
from services.tools.builtins.blobs import BlobTools
from services.tools.results import ToolResult, cut
from services.tools.settings import ToolsSettings
from weft.tools.v1 import tool_service_pb2 as pb

SOURCES_MAX = 100
PUT_SECONDS_MAX = 10.0
_SESSION = re.compile(r"(tenants/([^/]+)/agents/[^/]+/sessions/[^/]+)/")


class LongResults:
    """Makes answers of results. What is kept of a session goes with it."""

    def __init__(self, blobs: BlobTools | None, settings: ToolsSettings) -> None:
        self._blobs = blobs
        self._settings = settings

    async def answer(
        self, tenant: str, result: ToolResult, session: str, key: str, seconds_left: float
    ) -> pb.InvokeToolResponse:
        """The result, or its beginning and its end and where the whole is. Where that can't be
        put, only the beginning."""
        response = pb.InvokeToolResponse(
            content=result.content,
            is_error=result.is_error,
            sources=result.sources[:SOURCES_MAX],
            untrusted=result.untrusted,
        )
        length_max = self._settings.content_length_max
        if len(result.content) <= length_max:
            return response
        response.content = cut(result.content, length_max)
        if self._blobs is None or not self._settings.result_seconds:
            return response
        seconds = (min(PUT_SECONDS_MAX, seconds_left / 2), self._settings.result_seconds)
        try:
            blob = await self._blobs.keep(tenant, result.content, session, key or new_id(), seconds)
        except WeftError:
            # The tool has run: better a part of what it said than an error.
            return response
        response.blob = blob.name
        response.content = _preview(
            result.content,
            min(self._settings.preview_length_max, length_max),
            f"blob {blob.name.rpartition('/')[2]} has all {blob.size_bytes} bytes of it;"
            " blob-read reads it in pieces",
        )
        return response


def session_of(tenant: str, idempotency_key: str) -> str:
    """The session that a call of the agents service is made for; empty where the key names none
    of the tenant's."""
    match = _SESSION.match(idempotency_key)
    return match[1] if match is not None and match[2] == tenant else ""


def _preview(text: str, length_max: int, where: str) -> str:
    """Three quarters of it from the beginning, the rest from the end."""
    note = f"\n[... {len(text)} characters in all: {where} ...]\n"
    shown = max(0, length_max - len(note))
    tail = shown // 4
    return text[: shown - tail] + note + (text[-tail:] if tail else "")
