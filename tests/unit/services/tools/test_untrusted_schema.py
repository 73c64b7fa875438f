"""Schemas that others wrote: what is accepted, and what a check costs."""

import json
from typing import Any

import pytest

from services.tools.schema import ArgumentChecker, ArgumentsRefused
from services.tools.untrusted_schema import DEPTH_MAX, PARTS_MAX, SchemaRefused, accepted
from weft.tools.v1 import tools_pb2


def tool(schema: Any) -> tools_pb2.Tool:
    return tools_pb2.Tool(
        etag=str(hash(json.dumps(schema))),
        parameters_json_schema=json.dumps(schema),
        mcp=tools_pb2.McpTool(tool="t"),
    )


def check(schema: Any, arguments: Any) -> None:
    ArgumentChecker(8).check(tool(schema), json.dumps(arguments))


def nested(depth: int) -> Any:
    schema: Any = {}
    for _ in range(depth):
        schema = {"not": schema}
    return {"type": "object", **schema}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {},
        {"type": "object", "properties": []},
        {"type": "object", "minProperties": -1},
        {"type": "object", "description": "x" * 70_000},
        {"type": "object", "description": "\ud800"},
        nested(DEPTH_MAX + 1),
        {"type": "object", "allOf": [{}] * PARTS_MAX},
    ],
    ids=["string", "empty", "list", "negative", "long", "surrogate", "deep", "parts"],
)
def test_what_is_no_schema_of_an_object_within_bounds_is_refused(schema: Any) -> None:
    with pytest.raises(SchemaRefused):
        accepted(schema)


def test_a_schema_is_shown_as_it_came() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {"pattern": {"type": "string", "pattern": "^(a+)+$"}},
    }
    assert json.loads(accepted(schema)) == schema


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"properties": {"n": {"type": "integer"}}}, {"n": "x"}),
        ({"properties": {"pattern": {"type": "integer"}}}, {"pattern": "x"}),
        ({"required": ["n"]}, {}),
        ({"additionalProperties": False}, {"n": 1}),
        ({"$defs": {"n": {"enum": [1]}}, "properties": {"n": {"$ref": "#/$defs/n"}}}, {"n": 2}),
        ({"properties": {"n": {"const": {"pattern": 1}}}}, {"n": {}}),
        ({"properties": {"n": {"$ref": "#/nowhere"}}}, {"n": 2}),
        ({"properties": {"n": {"$ref": "https://a.example/s.json"}}}, {"n": 2}),
    ],
)
def test_arguments_that_dont_fit_are_refused(schema: Any, arguments: Any) -> None:
    with pytest.raises(ArgumentsRefused):
        check({"type": "object", **schema}, arguments)


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"properties": {"n": {"pattern": "^(a+)+$"}}}, {"n": "a" * 5_000 + "b"}),
        (
            {"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False},
            {"a" * 99 + "b": 1},
        ),
        ({"properties": {"n": {"uniqueItems": True}}}, {"n": [[{}]] * 5_000}),
    ],
    ids=["pattern", "names", "unique"],
)
def test_what_could_cost_much_isnt_checked_here(schema: Any, arguments: Any) -> None:
    # They don't fit, which who looks finds out after minutes.
    check({"type": "object", **schema}, arguments)


def test_references_that_fan_out_end_the_check() -> None:
    definitions: dict[str, Any] = {"d0": {"type": "integer"}}
    for index in range(1, 60):
        definitions[f"d{index}"] = {"allOf": [{"$ref": f"#/$defs/d{index - 1}"}] * 2}
    schema = {"type": "object", "$defs": definitions, "properties": {"n": {"$ref": "#/$defs/d59"}}}
    assert accepted(schema)
    with pytest.raises(ArgumentsRefused, match=r"too long|too deep"):
        check(schema, {"n": 1})


def test_references_that_fan_out_with_the_arguments_end_the_check() -> None:
    schema = {"type": "object", "properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}}
    arguments: Any = {}
    for _ in range(60):
        arguments = {"a": arguments}
    with pytest.raises(ArgumentsRefused, match=r"too long|too deep"):
        check(schema, arguments)


def test_a_function_s_schema_costs_no_more_than_a_server_s() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "string", "pattern": "^(a+)+$"}}}
    made = tool(schema)
    made.function.name = "tenants/t/functions/f"
    arguments = {"n": "a" * 5_000 + "b"}
    assert ArgumentChecker(8).check(made, json.dumps(arguments)) == arguments
    with pytest.raises(ArgumentsRefused, match="is not of type"):
        ArgumentChecker(8).check(made, '{"n": 1}')


def test_each_value_of_an_enum_counts() -> None:
    schema = {"items": {"not": {"enum": [[index] for index in range(1_000)]}}}
    with pytest.raises(ArgumentsRefused, match="too long"):
        check({"type": "object", "properties": {"n": schema}}, {"n": [["x"]] * 100})


@pytest.mark.parametrize("version", ["draft-06/schema#", "draft-04/schema#"])
def test_another_version_within_a_schema_is_counted_too(version: str) -> None:
    definitions: dict[str, Any] = {"d7": {}}
    for index in range(7):
        definitions[f"d{index}"] = {
            "$schema": f"http://json-schema.org/{version}",
            "allOf": [{"$ref": f"#/$defs/d{index + 1}"}] * 4,
        }
    with pytest.raises(ArgumentsRefused, match="too long"):
        check({"type": "object", "$defs": definitions, "allOf": [{"$ref": "#/$defs/d0"}]}, {})


def test_what_looks_through_the_schema_by_itself_isnt_checked() -> None:
    definitions: dict[str, Any] = {"d30": {}}
    for index in range(30):
        next_one = {"$ref": f"#/$defs/d{index + 1}"}
        definitions[f"d{index}"] = {"dependentSchemas": dict.fromkeys("abcd", next_one)}
    schema = {"unevaluatedProperties": False, "$defs": definitions, "$ref": "#/$defs/d0"}
    with pytest.raises(ArgumentsRefused, match="too long"):
        check({"type": "object", **schema}, dict.fromkeys("abcd", 1))
