"""The tools that Weft brings: what runs each of them. `definitions.py` says what models are
told of them."""

import json
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mesh.clock import Clock
from mesh.errors import InvalidArgument, NotFound, ToolUnavailable, Unavailable
from services.tools.builtins import calculator
from services.tools.builtins.blobs import BlobTools
from services.tools.builtins.current_time import current_time
from services.tools.builtins.fetch import Fetch
from services.tools.builtins.sql import SqlTool
from services.tools.egress import EgressPolicy
from services.tools.results import ToolResult, failed
from services.tools.settings import ToolsSettings
from weft.tools.v1 import tools_pb2
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as vectors_pb


class SearchMethod(Protocol):
    """`VectorServiceStub.Search`."""

    def __call__(
        self, request: vectors_pb.SearchRequest, *, timeout: float
    ) -> Awaitable[vectors_pb.SearchResponse]: ...


class SearchStub(Protocol):
    """What the search needs of a `VectorServiceStub`."""

    @property
    def Search(self) -> SearchMethod: ...  # noqa: N802 - as generated stubs name it


@dataclass(frozen=True, slots=True)
class BuiltinCall:
    """A call of a built-in tool. Arguments have passed its schema. `session` is the one that it
    is made for, `key` is the call's idempotency key; both are empty where there is none."""

    tenant: str
    tool_id: str
    arguments: Mapping[str, Any]
    timeout_seconds: float
    session: str = ""
    key: str = ""


class BuiltinTools:
    """Runs the built-in tools. `blobs` is None where nothing keeps any."""

    def __init__(
        self,
        settings: ToolsSettings,
        clock: Clock,
        vectors: SearchStub,
        blobs: BlobTools | None,
        egress: EgressPolicy,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._vectors = vectors
        self._blobs = blobs
        self._fetch = Fetch(egress, settings)
        self._sql = SqlTool(settings)

    async def close(self) -> None:
        """Closes all connections."""
        await self._fetch.close()

    async def invoke(self, call: BuiltinCall) -> ToolResult:
        """What the tool answers; ToolUnavailable where what it calls can't be reached."""
        arguments = call.arguments
        match call.tool_id:
            case "calculator":
                return _calculate(arguments["expression"])
            case "time":
                return self._time(arguments.get("timezone", ""))
            case "fetch":
                return await self._fetch.fetch(arguments["url"], call.timeout_seconds)
            case "sql":
                return await self._sql.query(
                    call.tenant, arguments["database"], arguments["query"], call.timeout_seconds
                )
            case "blob-read" | "blob-write":
                return await self._blob(call)
            case _:
                return await self._search(call)

    async def _blob(self, call: BuiltinCall) -> ToolResult:
        if self._blobs is None:
            raise ToolUnavailable("nothing keeps blobs here")
        name = f"tenants/{call.tenant}/blobs/{call.arguments['blob']}"
        try:
            if call.tool_id == "blob-read":
                return await self._blobs.read(name, call.arguments, call.timeout_seconds)
            return await self._blobs.write(
                name, call.arguments, call.session, call.key, call.timeout_seconds
            )
        except Unavailable as error:
            raise ToolUnavailable("the blobs can't be reached right now") from error

    def _time(self, timezone: str) -> ToolResult:
        try:
            return ToolResult(current_time(self._clock.now_ns(), timezone))
        except ValueError as error:
            return failed(str(error))

    async def _search(self, call: BuiltinCall) -> ToolResult:
        request = vectors_pb.SearchRequest(
            name=f"tenants/{call.tenant}/collections/{call.arguments['collection']}",
            query=call.arguments["query"],
            passages_max=int(call.arguments.get("passages_max", 0)),
        )
        try:
            response = await self._vectors.Search(request, timeout=call.timeout_seconds)
        except (NotFound, InvalidArgument) as error:
            return failed(error.message)
        except Unavailable as error:
            raise ToolUnavailable("the collections can't be searched right now") from error
        return ToolResult(
            json.dumps(
                {"passages": [_shown(each) for each in response.passages]}, ensure_ascii=False
            ),
            sources=[_source(each) for each in response.passages],
            untrusted=request.name not in self._settings.trusted_collections,
        )


def _calculate(expression: str) -> ToolResult:
    try:
        return ToolResult(calculator.evaluate(expression))
    except calculator.CalculatorError as error:
        return failed(str(error))


def _shown(passage: collections_pb2.Passage) -> dict[str, Any]:
    shown = {
        "uri": passage.uri,
        "title": passage.title,
        "headings": list(passage.headings),
        "line": passage.line,
        "text": passage.text,
        "score": round(passage.score, 4),
    }
    return shown | {"page": passage.page} if passage.page else shown


def _source(passage: collections_pb2.Passage) -> tools_pb2.Source:
    place = f"page {passage.page}" if passage.page else f"line {passage.line}"
    locator = " > ".join((*passage.headings, place))
    return tools_pb2.Source(uri=passage.uri, title=passage.title, locator=locator[-1_024:])
