"""Checking arguments against a tool's schema."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.tools.schema import ArgumentChecker, ArgumentsRefused
from weft.tools.v1 import tools_pb2

SCHEMA = {
    "type": "object",
    "properties": {
        "account": {"type": "string", "maxLength": 5},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
    },
    "required": ["account"],
    "additionalProperties": False,
    "$defs": {
        "item": {
            "type": "object",
            "properties": {"count": {"type": "integer"}, "next": {"$ref": "#/$defs/item"}},
        }
    },
}


def tool(schema: object = SCHEMA, etag: str = "e1") -> tools_pb2.Tool:
    return tools_pb2.Tool(parameters_json_schema=json.dumps(schema), etag=etag)


def nested(depth: int) -> str:
    return '{"account": "a", "items": [' + '{"next": ' * depth + "{}" + "}" * depth + "]}"


def test_arguments_that_fit_are_returned() -> None:
    checker = ArgumentChecker(8)
    assert checker.check(tool(), '{"account": "abc"}') == {"account": "abc"}


@pytest.mark.parametrize("text", ["", "  ", "{}"])
def test_nothing_at_all_is_an_empty_object(text: str) -> None:
    assert ArgumentChecker(8).check(tool({"type": "object"}), text) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "aren't JSON"),
        ("nonsense", "aren't JSON"),
        ('{"account": NaN}', "NaN is no number"),
        ('{"account": ' + "1" * 5_000 + "}", "aren't JSON"),
        ("[1]", "aren't a JSON object"),
        ("null", "aren't a JSON object"),
        ("{}", "arguments: 'account' is a required property"),
        ('{"account": 1}', "account: 1 is not of type 'string'"),
        ('{"account": "toolong"}', "account: 'toolong' is too long"),
        ('{"account": "a", "x": 1}', "'x' was unexpected"),
        ('{"account": "a", "items": [{}, {"count": "1"}]}', r"items\[1\].count: '1' is not"),
        ('{"account": "\\ud800"}', "half of a character"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, says: str) -> None:
    with pytest.raises(ArgumentsRefused, match=says):
        ArgumentChecker(8).check(tool(), text)


def test_a_number_that_becomes_infinity_is_refused() -> None:
    with pytest.raises(ArgumentsRefused, match="too large a number"):
        ArgumentChecker(8).check(tool({"type": "object"}), '{"n": -1e999}')


def test_a_number_too_large_to_be_divided_is_refused() -> None:
    schema = {"type": "object", "properties": {"n": {"multipleOf": 0.1}}}
    with pytest.raises(ArgumentsRefused, match="too large to be checked"):
        ArgumentChecker(8).check(tool(schema), f'{{"n": 1{"0" * 400}}}')


def test_arguments_nested_beyond_reason_are_refused_or_pass() -> None:
    assert ArgumentChecker(8).check(tool(), nested(5))
    with pytest.raises(ArgumentsRefused, match="nested too deep"):
        ArgumentChecker(8).check(tool(), nested(900))


def test_a_refusal_is_bounded() -> None:
    many = json.dumps({"account": "a" * 10_000, "items": [{"count": "x"}] * 100})
    with pytest.raises(ArgumentsRefused) as caught:
        ArgumentChecker(8).check(tool(), many)
    assert len(str(caught.value)) < 3_000


def test_another_etag_is_another_schema() -> None:
    checker = ArgumentChecker(1)
    assert checker.check(tool(), '{"account": "a"}')
    with pytest.raises(ArgumentsRefused):
        checker.check(tool({"type": "object", "maxProperties": 0}, "e2"), '{"account": "a"}')
    assert checker.check(tool(), '{"account": "a"}')


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.one_of(st.text(), _json.map(json.dumps)))
def test_any_text_passes_or_is_refused(text: str) -> None:
    try:
        outcome = str(ArgumentChecker(8).check(tool(), text))
    except ArgumentsRefused as error:
        outcome = str(error)
    assert outcome.encode()
