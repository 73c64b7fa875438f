"""JSON Schemas of protobuf messages."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from services.tools.comments import comments_of
from services.tools.message_schema import message_schema
from tests.support.protos import compiled_files, contract_pool, message_type
from weft.tools.v1 import tool_service_pb2

KINDS = "kinds.v1.Kinds"
CONTRACTS = Path(tool_service_pb2.__file__).parents[2]


def own_requests() -> list[Descriptor]:
    """The request types of every method of Weft's own contracts."""
    modules = sorted(CONTRACTS.rglob("*_service_pb2.py"))
    found: list[Descriptor] = []
    for path in modules:
        name = ".".join(("weft", *path.relative_to(CONTRACTS).with_suffix("").parts))
        file = import_module(name).DESCRIPTOR
        for service in file.services_by_name.values():
            found.extend(method.input_type for method in service.methods)
    return found


def schema_of(full_name: str) -> dict[str, Any]:
    descriptor = contract_pool().FindMessageTypeByName(full_name)
    schema = message_schema(descriptor, comments_of(compiled_files()))
    assert schema is not None
    return schema


@pytest.mark.parametrize("request_type", own_requests(), ids=lambda each: each.full_name)
def test_every_request_of_ours_has_a_valid_schema(request_type: Descriptor) -> None:
    schema = message_schema(request_type, {})
    assert schema is not None
    Draft202012Validator.check_schema(schema)
    assert schema["type"] == "object"
    assert set(schema["properties"]) == {field.name for field in request_type.fields}


def test_requests_of_ours_were_found() -> None:
    assert "weft.tools.v1.InvokeToolRequest" in {each.full_name for each in own_requests()}


def test_fields_that_must_be_set_are_required() -> None:
    assert schema_of(KINDS)["required"] == ["string_field"]
    schema = message_schema(tool_service_pb2.GetToolRequest.DESCRIPTOR, {})
    assert schema is not None
    assert schema["required"] == ["name"]


def test_comments_become_descriptions() -> None:
    schema = schema_of(KINDS)
    assert schema["description"].startswith("Every kind of field.")
    assert schema["properties"]["string_field"]["description"] == "It has to be set."
    assert schema["properties"]["maybe"]["description"] == "May be left out."
    assert schema["$defs"]["kinds.v1.Kinds.Node"]["description"] == "A node of a tree."
    assert comments_of(compiled_files())["ledger.v1.Ledger.Credit"] == (
        "Adds an amount to an account and\nreturns its balance."
    )


def test_a_choice_is_noted_and_an_optional_field_is_not() -> None:
    description = schema_of(KINDS)["description"]
    assert "At most one of these may be set: one, other." in description
    assert "maybe" not in description


ACCEPTED = [
    ("double_field", 1.5),
    ("int32_field", -(2**31)),
    ("int64_field", 2**63 - 1),
    ("int64_field", "-9223372036854775808"),
    ("uint32_field", 2**32 - 1),
    ("uint64_field", "18446744073709551615"),
    ("sint64_field", -1),
    ("fixed64_field", 1),
    ("bool_field", True),
    ("bytes_field", "YWJj"),
    ("colour", "COLOUR_RED"),
    ("node", {"label": "a", "children": [{"children": [{}]}], "kinds": {"string_field": ""}}),
    ("numbers", [1, 2]),
    ("nodes", {"a": {"label": "b"}}),
    ("names", {"-5": "x"}),
    ("flags", {"true": "YQ=="}),
    ("one", "x"),
    ("maybe", ""),
    ("time", "2026-01-31T12:00:00.5+01:00"),
    ("duration", "-1.5s"),
    ("struct", {"a": [1, None, {"b": "c"}]}),
    ("value", None),
    ("value", [1, "a"]),
    ("list", [1, {"a": 2}]),
    ("mask", "a,b.c"),
    ("any", {"@type": "type.googleapis.com/kinds.v1.Size", "length": 1}),
    ("empty", {}),
    ("null", None),
    ("int64_value", "5"),
    ("uint32_value", 5),
    ("bool_value", False),
    ("string_value", "x"),
    ("bytes_value", "YQ=="),
]
REFUSED = [
    ("double_field", "x"),
    ("int32_field", 2**31),
    ("int32_field", 1.5),
    ("int64_field", "1.5"),
    ("int64_field", 2**63),
    ("uint32_field", -1),
    ("uint64_field", "-1"),
    ("bool_field", 1),
    ("string_field", 1),
    ("colour", "COLOUR_BLUE"),
    ("node", {"unknown": 1}),
    ("numbers", 1),
    ("names", {"x": "y"}),
    ("flags", {"yes": "YQ=="}),
    ("duration", "1 minute"),
    ("struct", []),
    ("any", {}),
    ("empty", {"a": 1}),
    ("null", 0),
    ("unknown", 1),
]


@pytest.mark.parametrize(("field", "value"), ACCEPTED)
def test_what_the_schema_accepts_becomes_a_message(field: str, value: object) -> None:
    arguments = {"string_field": "", field: value}
    Draft202012Validator(schema_of(KINDS)).validate(arguments)
    message = message_type(KINDS)()
    json_format.ParseDict(arguments, message, descriptor_pool=contract_pool())


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_what_is_no_such_message_is_refused(field: str, value: object) -> None:
    validator = Draft202012Validator(schema_of(KINDS))
    assert not validator.is_valid({"string_field": "", field: value})


@pytest.mark.parametrize(
    ("name", "is_object"),
    [("Empty", True), ("Struct", True), ("Any", True), ("StringValue", False), ("Value", False)],
)
def test_only_a_json_object_can_be_arguments(name: str, is_object: bool) -> None:
    descriptor = contract_pool().FindMessageTypeByName(f"google.protobuf.{name}")
    assert (message_schema(descriptor, {}) is not None) == is_object


@given(st.integers(-(2**70), 2**70))
def test_the_schema_of_an_integer_accepts_what_fits(number: int) -> None:
    validator = Draft202012Validator(schema_of(KINDS))
    fits = -(2**63) <= number < 2**63
    assert validator.is_valid({"string_field": "", "int64_field": number}) == fits


def test_a_schema_is_text_that_any_reader_of_json_takes() -> None:
    schema = schema_of(KINDS)
    assert json.loads(json.dumps(schema)) == schema
    Draft202012Validator.check_schema(schema)
