"""Reads a tool's JSON Schema into flat properties, and what kind of tool it is."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from services.models.providers.extractive.lexicon import word_set
from services.models.providers.extractive.text import parts, stem, terms

_DEPTH_MAX = 4
_PROPERTIES_MAX = 64

_QUERY_NAMES = word_set("query question search keyword keywords q term terms phrase topic")
_QUERY_NAMES_IF_SEARCH = word_set("text input prompt string")
_SEARCH_STEMS = frozenset(
    stem(word)
    for word in word_set(
        """search find lookup retrieve passage passages knowledge wiki corpus excerpt
    documents document docs articles handbook faq semantic"""
    )
)
_EXPRESSION_NAMES = word_set("expression formula equation calculation arithmetic expr")
_CALCULATOR_STEMS = frozenset(
    stem(word) for word in word_set("calculate calculator arithmetic math maths compute evaluate")
)
_OTHER_LANGUAGES = word_set("cron regex regular sql jq jsonpath xpath cel")


@dataclass(frozen=True, slots=True)
class Property:
    """One argument of a tool. `path` leads to it through nested objects."""

    path: tuple[str, ...]
    type: str
    description: str = ""
    values: tuple[Any, ...] = ()
    is_required: bool = False
    format: str = ""
    default: Any = None
    item_type: str = ""
    length_max: int | None = None
    has_pattern: bool = False

    @property
    def name_parts(self) -> list[str]:
        """The words of its own name: `maxResults` is `max`, `results`."""
        return parts(self.path[-1])

    @property
    def name_stems(self) -> frozenset[str]:
        """Stems of the name's words, those of the objects around it included."""
        return frozenset(stem(part) for name in self.path for part in parts(name))


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as the offline model sees it.

    `query` is the property that takes search words, `expression` the one that takes
    arithmetic; a tool has at most one of them.
    """

    name: str
    description: str
    properties: tuple[Property, ...]
    query: Property | None = None
    expression: Property | None = None

    @property
    def name_stems(self) -> frozenset[str]:
        """Stems of the words in the tool's name."""
        return frozenset(stem(part) for part in parts(self.name))

    @property
    def vocabulary(self) -> frozenset[str]:
        """Stems of all that the tool's definition says."""
        found = set(self.name_stems) | set(terms(self.description))
        for item in self.properties:
            found |= item.name_stems | set(terms(item.description))
            found |= {stem(part) for value in item.values for part in parts(str(value))}
        return frozenset(found)


@lru_cache(maxsize=512)
def read_tool(name: str, description: str, schema_json: str) -> Tool:
    """The tool of a definition; a schema that isn't an object has no properties."""
    schema = _object(schema_json)
    properties = tuple(islice(_properties(schema, schema, (), True, 0), _PROPERTIES_MAX))
    tool = Tool(name, description, properties)
    expression = next((item for item in properties if _takes_expression(tool, item)), None)
    query = None
    if expression is None:
        query = next((item for item in properties if _takes_query(tool, item)), None)
    return Tool(name, description, properties, query, expression)


def _object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _properties(
    root: Mapping[str, Any],
    schema: Mapping[str, Any],
    path: tuple[str, ...],
    is_required: bool,
    depth: int,
) -> Iterator[Property]:
    members = schema.get("properties")
    required = schema.get("required")
    required = required if isinstance(required, list) else []
    for name, member in members.items() if isinstance(members, dict) else ():
        found = _resolved(root, member)
        needed = is_required and name in required
        if _type(found) == "object" and depth < _DEPTH_MAX:
            yield from _properties(root, found, (*path, name), needed, depth + 1)
        else:
            yield _property((*path, name), found, _resolved(root, found.get("items")), needed)


def _resolved(root: Mapping[str, Any], schema: object) -> Mapping[str, Any]:
    """Follows a local `$ref` and takes the first branch of `anyOf` that isn't null."""
    for _ in range(_DEPTH_MAX):
        if not isinstance(schema, dict):
            return {}
        reference, branches = schema.get("$ref"), schema.get("anyOf") or schema.get("oneOf")
        if isinstance(reference, str) and reference.startswith("#"):
            target: object = root
            for step in filter(None, reference[1:].split("/")):
                target = target.get(step) if isinstance(target, dict) else None
            told = {key: schema[key] for key in ("description",) if key in schema}
            schema = {**target, **told} if isinstance(target, dict) else None
        elif isinstance(branches, list) and branches and "type" not in schema:
            chosen = [
                one for one in branches if isinstance(one, dict) and one.get("type") != "null"
            ]
            extra = {key: schema[key] for key in ("description", "default") if key in schema}
            schema = {**chosen[0], **extra} if chosen else {}
        else:
            return schema
    return {}


def _type(schema: Mapping[str, Any]) -> str:
    declared = schema.get("type")
    if isinstance(declared, list):
        declared = next((one for one in declared if one != "null"), None)
    if isinstance(declared, str):
        return declared
    return "object" if isinstance(schema.get("properties"), dict) else "string"


def _property(
    path: tuple[str, ...], schema: Mapping[str, Any], items: Mapping[str, Any], is_required: bool
) -> Property:
    values = schema.get("enum")
    if "const" in schema:
        values = [schema["const"]]
    length_max = schema.get("maxLength")
    return Property(
        path=path,
        type=_type(schema),
        description=str(schema.get("description") or schema.get("title") or ""),
        values=tuple(values) if isinstance(values, list) else (),
        is_required=is_required,
        format=str(schema.get("format") or schema.get("contentEncoding") or ""),
        default=schema.get("default"),
        item_type=_type(items) if items else "",
        length_max=length_max if isinstance(length_max, int) else None,
        has_pattern="pattern" in schema,
    )


def _takes_expression(tool: Tool, item: Property) -> bool:
    if item.type != "string" or item.values:
        return False
    said = set(terms(f"{tool.description} {item.description}")) | tool.name_stems
    if said & _OTHER_LANGUAGES:
        return False
    named = not _EXPRESSION_NAMES.isdisjoint(item.name_parts)
    return named or (item.is_required and bool(said & _CALCULATOR_STEMS) and not item.format)


def _takes_query(tool: Tool, item: Property) -> bool:
    if item.type != "string" or item.values or item.format:
        return False
    said = {stem(word) for word in tool.description.lower().split()} | tool.name_stems
    if said & _OTHER_LANGUAGES:
        return False
    if not _QUERY_NAMES.isdisjoint(item.name_parts):
        return True
    searches = not said.isdisjoint(_SEARCH_STEMS)
    return searches and item.path[-1].lower() in _QUERY_NAMES_IF_SEARCH
