"""JSON Schemas that others wrote: accepted within bounds, and checked against at a bounded cost.

A schema can make its check as costly as its author likes: by patterns that backtrack, by
references that fan out, by lists that are compared. So here patterns don't count, which the
tool's own server checks, a schema has so many parts, each check so many steps and no more.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry

LENGTH_MAX = 65_536
DEPTH_MAX = 64
PARTS_MAX = 2_000
"""Most objects and lists of a schema; to look through each takes up to a millisecond."""
STEPS_MAX = 50_000
REFERENCE_STEPS = 10
"""What it takes to follow a reference, by that of other keywords."""
_DRAFT_7 = "http://json-schema.org/draft-07/schema"
_NAMED = frozenset(("properties", "$defs", "definitions", "dependentSchemas"))
"""Keywords whose value has schemas by name."""
_VALUES = frozenset(("const", "default", "enum", "examples"))
"""Keywords whose value is no schema."""
_LEFT_OUT = frozenset(
    # Those of the second line look through the schema by themselves, and the third has what is
    # below it checked by another version's validator: nothing would be counted there.
    (
        *("pattern", "patternProperties", "uniqueItems", "format"),
        *("unevaluatedProperties", "unevaluatedItems"),
        "$schema",
    )
)
_REFERENCES = frozenset(("$ref", "$dynamicRef"))
_CLOSED = "additionalProperties"

Keyword = Callable[[Any, Any, Any, Any], "Iterator[ValidationError] | None"]


class SchemaRefused(ValueError):
    """Why a schema isn't accepted, in words of ours."""


class TooCostly(Exception):
    """A check took more than its steps."""


def accepted(schema: Mapping[str, Any]) -> str:
    """The schema as JSON. SchemaRefused where it is too large or deep, isn't an object's, or
    is no JSON Schema. It may take a second: call it in a thread."""
    try:
        written = json.dumps(schema, ensure_ascii=False)
        written.encode()
    except (RecursionError, UnicodeEncodeError, ValueError, TypeError):
        raise SchemaRefused("its schema can't be written as JSON") from None
    if len(written) > LENGTH_MAX:
        raise SchemaRefused(f"its schema has more than {LENGTH_MAX} characters")
    depth, parts = _measured(schema)
    if depth > DEPTH_MAX:
        raise SchemaRefused(f"its schema is nested deeper than {DEPTH_MAX}")
    if parts > PARTS_MAX:
        raise SchemaRefused(f"its schema has more than {PARTS_MAX} objects and lists")
    if schema.get("type") != "object":
        raise SchemaRefused("its schema isn't that of an object")
    try:
        _draft(schema).check_schema(_simplified(schema))
    except (SchemaError, RecursionError):
        raise SchemaRefused("its schema is no JSON Schema") from None
    return written


class BoundedValidator:
    """Checks against one schema that others wrote."""

    def __init__(self, schema: str) -> None:
        parsed = json.loads(schema)
        self._steps = 0
        base = _draft(parsed)
        counted = {
            name: self._counted(name, keyword)
            for name, keyword in base.VALIDATORS.items()
            if name not in _LEFT_OUT
        }
        extended: Any = extend
        validator = extended(base, counted)
        # An empty registry: a reference can't make us fetch anything.
        self._validator = validator(_simplified(parsed), registry=Registry())

    def iter_errors(self, arguments: object) -> Iterator[ValidationError]:
        """What is wrong with the arguments. Raises TooCostly, RecursionError, and
        `referencing.exceptions.Unresolvable` where the schema refers to what isn't there."""
        self._steps = 0
        yield from self._validator.iter_errors(arguments)

    def _counted(self, name: str, keyword: Keyword) -> Keyword:
        def check(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            self._steps += _steps(name, value)
            if self._steps > STEPS_MAX:
                raise TooCostly
            return keyword(validator, value, instance, schema)

        return check


def _draft(schema: Mapping[str, Any]) -> Any:
    named = schema.get("$schema")
    is_draft_7 = isinstance(named, str) and named.rstrip("#") == _DRAFT_7
    return Draft7Validator if is_draft_7 else Draft202012Validator


def _steps(keyword: str, value: Any) -> int:
    if keyword in _REFERENCES:
        return REFERENCE_STEPS
    # The argument is compared with each.
    return 1 + (len(value) if keyword == "enum" else 0)


def _measured(value: object) -> tuple[int, int]:
    """How deep it is, and how many objects and lists it has; no further than they may be."""
    depth, parts, level = 0, 0, [value]
    while level and depth <= DEPTH_MAX and parts <= PARTS_MAX:
        depth += 1
        within = [each for each in level if isinstance(each, dict | list)]
        parts += len(within)
        level = [
            child
            for each in within
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    return depth, parts


def _simplified(schema: Any) -> Any:
    """The schema without what can't be checked at a bounded cost."""
    if isinstance(schema, list):
        return [_simplified(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for keyword, value in schema.items():
        if keyword in _LEFT_OUT:
            continue
        if keyword in _NAMED and isinstance(value, dict):
            kept[keyword] = {name: _simplified(each) for name, each in value.items()}
        else:
            kept[keyword] = value if keyword in _VALUES else _simplified(value)
    if "patternProperties" in schema:
        # Which properties these let in isn't known any more.
        kept.pop(_CLOSED, None)
    return kept
