"""What models, and those who make agents, are told of the tools that Weft brings.

The calculator and the clock are trusted. What fetches or reads blobs isn't: anybody may have
written there. A search, or a query of a database, is as its collection or database is declared.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from google.protobuf.duration_pb2 import Duration

from services.tools.builtins import calculator
from services.tools.builtins.blobs import PIECE_BYTES, PIECE_BYTES_MAX, TEXT_LENGTH_MAX
from services.tools.builtins.fetch import URL_LENGTH_MAX
from services.tools.builtins.sql import QUERY_LENGTH_MAX
from services.tools.domain import tool_name, with_etag
from weft.options.v1 import options_pb2
from weft.tools.v1 import tools_pb2

TIMEOUT_SECONDS = 10
FETCH_TIMEOUT_SECONDS = 30
PASSAGES_MAX = 20
ID_PATTERN = "^[a-z0-9][a-z0-9-]{0,62}$"


@dataclass(frozen=True, slots=True)
class _Definition:
    """What is known of a tool."""

    description: str
    properties: Mapping[str, Any]
    required: tuple[str, ...] = ()
    trust: "tools_pb2.Trust.ValueType" = tools_pb2.TRUST_TRUSTED
    effect: "options_pb2.Effect.ValueType" = options_pb2.EFFECT_READ
    scopes: tuple[str, ...] = ()
    timeout_seconds: int = TIMEOUT_SECONDS

    def schema(self) -> str:
        return json.dumps(
            {
                "type": "object",
                "properties": self.properties,
                "required": list(self.required),
                "additionalProperties": False,
            }
        )


_BLOB = {"type": "string", "description": "Id of the blob.", "pattern": ID_PATTERN}
_DEFINITIONS = {
    "blob-read": _Definition(
        "Reads a piece of a blob that holds text, such as the whole of a result of which only"
        " the beginning and the end were shown. Says at which offset the next piece begins.",
        {
            "blob": _BLOB,
            "offset": {
                "type": "integer",
                "description": "First byte of the piece; 0 where it isn't said.",
                "minimum": 0,
                "maximum": 2**53,
            },
            "length": {
                "type": "integer",
                "description": f"Most bytes of the piece; {PIECE_BYTES} where it isn't said.",
                "minimum": 16,
                "maximum": PIECE_BYTES_MAX,
            },
        },
        ("blob",),
        tools_pb2.TRUST_UNTRUSTED,
        scopes=("blobs.get",),
    ),
    "blob-write": _Definition(
        "Writes a text into a new blob, or over one that this conversation wrote before.",
        {
            "blob": _BLOB,
            "text": {
                "type": "string",
                "description": "What it is to hold.",
                "maxLength": TEXT_LENGTH_MAX,
            },
            "content_type": {
                "type": "string",
                "description": "Media type, such as 'text/markdown'; 'text/plain' where it"
                " isn't said.",
                "pattern": "^[A-Za-z0-9+.-]+/[A-Za-z0-9+.-]+$",
                "maxLength": 100,
            },
        },
        ("blob", "text"),
        effect=options_pb2.EFFECT_IDEMPOTENT,
        scopes=("blobs.put",),
    ),
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
    "fetch": _Definition(
        "Gets a page or a document of the web by its URL, and returns its text.",
        {
            "url": {
                "type": "string",
                "description": "The whole URL, such as 'https://example.com/news'.",
                "minLength": 1,
                "maxLength": URL_LENGTH_MAX,
            }
        },
        ("url",),
        tools_pb2.TRUST_UNTRUSTED,
        timeout_seconds=FETCH_TIMEOUT_SECONDS,
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
                "pattern": ID_PATTERN,
            },
            "passages_max": {
                "type": "integer",
                "description": "Most passages to return; 8 where it isn't said.",
                "minimum": 1,
                "maximum": PASSAGES_MAX,
            },
        },
        ("query", "collection"),
        tools_pb2.TRUST_BY_RESULT,
    ),
    "sql": _Definition(
        "Reads a SQLite database: runs one SELECT and returns its rows."
        " 'SELECT name, sql FROM sqlite_master' tells which tables there are.",
        {
            "database": {"type": "string", "description": "The database."},
            "query": {
                "type": "string",
                "description": "One SELECT statement of SQLite.",
                "minLength": 1,
                "maxLength": QUERY_LENGTH_MAX,
            },
        },
        ("database", "query"),
        tools_pb2.TRUST_BY_RESULT,
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
def builtin_tools(tenant: str, databases: tuple[str, ...] = ()) -> Mapping[str, tools_pb2.Tool]:
    """The built-in tools as the tenant sees them, by id; not to be changed. Without databases
    that it may query there is no `sql`."""
    return {
        tool_id: with_etag(
            tools_pb2.Tool(
                name=tool_name(tenant, tool_id),
                description=definition.description,
                parameters_json_schema=_schema(tool_id, definition, databases),
                effect=definition.effect,
                timeout=Duration(seconds=definition.timeout_seconds),
                builtin=tools_pb2.BuiltinTool(),
                trust=definition.trust,
                required_scopes=definition.scopes,
            )
        )
        for tool_id, definition in _DEFINITIONS.items()
        if tool_id != "sql" or databases
    }


def is_builtin(tool_id: str) -> bool:
    """Whether a built-in tool has this id."""
    return tool_id in _DEFINITIONS


def _schema(tool_id: str, definition: _Definition, databases: tuple[str, ...]) -> str:
    schema = definition.schema()
    if tool_id != "sql":
        return schema
    named = json.loads(schema)
    named["properties"]["database"]["enum"] = list(databases)
    return json.dumps(named)
