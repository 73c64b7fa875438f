"""The tools that Weft brings: what models are told of them, and what runs them."""

import json
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from google.protobuf.duration_pb2 import Duration

from mesh.clock import Clock
from mesh.errors import InvalidArgument, NotFound, ToolUnavailable, Unavailable
from services.tools import calculator
from services.tools.current_time import current_time
from services.tools.domain import tool_name, with_etag
from services.tools.results import ToolResult, failed
from weft.options.v1 import options_pb2
from weft.tools.v1 import tools_pb2
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as vectors_pb

TIMEOUT_SECONDS = 10
PASSAGES_MAX = 20


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
class _Definition:
    """What a model is told of a tool."""

    description: str
    properties: Mapping[str, Any]
    required: tuple[str, ...] = ()

    def schema(self) -> str:
        return json.dumps(
            {
                "type": "object",
                "properties": self.properties,
                "required": list(self.required),
                "additionalProperties": False,
            }
        )


_DEFINITIONS = {
    "calculator": _Definition(
        "Calculates the value of an arithmetic expression, exactly where that is possible."
        " Use it for every calculation. Knows + - * / // % ** ( ), percentages such as"
        " '12% of 340', sqrt, abs, round (half to even), min, max, floor, ceil, log (natural,"
        " or with a base as second argument), exp, sin, cos, tan, pi and e.",
        {
            "expression": {
                "type": "string",
                "description": "The expression, such as '(2 + 3) * 1.5'.",
                "minLength": 1,
                "maxLength": calculator.LENGTH_MAX,
            }
        },
        ("expression",),
    ),
    "search": _Definition(
        "Searches a collection of documents and returns the passages that fit best, each"
        " with its source. Use it before answering from documents.",
        {
            "query": {
                "type": "string",
                "description": "What to look for, in everyday words.",
                "minLength": 1,
                "maxLength": 4_096,
            },
            "collection": {
                "type": "string",
                "description": "Id of the collection.",
                "pattern": "^[a-z0-9][a-z0-9-]{0,62}$",
            },
            "passages_max": {
                "type": "integer",
                "description": "Most passages to return; 8 where it isn't said.",
                "minimum": 1,
                "maximum": PASSAGES_MAX,
            },
        },
        ("query", "collection"),
    ),
    "time": _Definition(
        "Tells the date and the time of now, in ISO 8601.",
        {
            "timezone": {
                "type": "string",
                "description": "IANA time zone, such as 'Europe/Paris'; UTC where it isn't said.",
                "maxLength": 100,
            }
        },
    ),
}


@lru_cache(maxsize=1_024)
def builtin_tools(tenant: str) -> Mapping[str, tools_pb2.Tool]:
    """The built-in tools as the tenant sees them, by id; not to be changed."""
    return {
        tool_id: with_etag(
            tools_pb2.Tool(
                name=tool_name(tenant, tool_id),
                description=definition.description,
                parameters_json_schema=definition.schema(),
                effect=options_pb2.EFFECT_READ,
                timeout=Duration(seconds=TIMEOUT_SECONDS),
                builtin=tools_pb2.BuiltinTool(),
            )
        )
        for tool_id, definition in _DEFINITIONS.items()
    }


def is_builtin(tool_id: str) -> bool:
    """Whether a built-in tool has this id."""
    return tool_id in _DEFINITIONS


class BuiltinTools:
    """Runs the built-in tools. Arguments have passed the tool's schema."""

    def __init__(self, clock: Clock, vectors: SearchStub) -> None:
        self._clock = clock
        self._vectors = vectors

    async def invoke(
        self, tenant: str, tool_id: str, arguments: Mapping[str, Any], timeout_seconds: float
    ) -> ToolResult:
        """What the tool answers; ToolUnavailable where what it calls can't be reached."""
        if tool_id == "calculator":
            return _calculate(arguments["expression"])
        if tool_id == "time":
            return self._time(arguments.get("timezone", ""))
        return await self._search(tenant, arguments, timeout_seconds)

    def _time(self, timezone: str) -> ToolResult:
        try:
            return ToolResult(current_time(self._clock.now_ns(), timezone))
        except ValueError as error:
            return failed(str(error))

    async def _search(
        self, tenant: str, arguments: Mapping[str, Any], timeout_seconds: float
    ) -> ToolResult:
        request = vectors_pb.SearchRequest(
            name=f"tenants/{tenant}/collections/{arguments['collection']}",
            query=arguments["query"],
            passages_max=int(arguments.get("passages_max", 0)),
        )
        try:
            response = await self._vectors.Search(request, timeout=timeout_seconds)
        except (NotFound, InvalidArgument) as error:
            return failed(error.message)
        except Unavailable as error:
            raise ToolUnavailable("the collections can't be searched right now") from error
        return ToolResult(
            json.dumps(
                {"passages": [_shown(each) for each in response.passages]}, ensure_ascii=False
            ),
            sources=[_source(each) for each in response.passages],
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
