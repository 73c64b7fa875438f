"""Which tools the offline model calls, and with what."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.models.providers.extractive.arguments import fill
from services.models.providers.extractive.reply import reply
from services.models.providers.extractive.schema import read_tool
from tests.unit.services.models.assistant import CALCULATOR, CLOCK, SEARCH, asked, calls, tool
from weft.models.v1 import models_pb2

ORDER = tool("get-order", "Returns an order of the shop.", {"order_id": {"type": "string"}})
HOTEL = tool(
    "book-hotel",
    "Books a hotel room.",
    {
        "stay": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "checkIn": {"type": "string", "format": "date"},
                "nights": {"type": "integer"},
                "roomType": {
                    "type": "string",
                    "enum": ["ROOM_TYPE_UNSPECIFIED", "ROOM_TYPE_SINGLE", "ROOM_TYPE_DOUBLE"],
                },
                "breakfast": {"type": "boolean"},
            },
            "required": ["city", "checkIn", "nights"],
        }
    },
    ["stay"],
)
ECHO = tool("echo", "Repeats a text.", {"text": {"type": "string"}}, ["text"])
FLIGHTS = tool(
    "find-flights",
    "Lists flights from an airport to another one.",
    {"origin": {"type": "string"}, "destination": {"type": "string"}},
    ["origin", "destination"],
)
RATES = tool(
    "exchange-rate",
    "Converts an amount of money.",
    {
        "amount": {"type": "number"},
        "currency": {"type": "string", "enum": ["EUR", "USD", "GBP"]},
    },
    ["amount", "currency"],
)
TICKET = tool(
    "create-ticket",
    "Creates a support ticket.",
    {
        "title": {"type": "string"},
        "email": {"type": "string", "format": "email"},
        "priority": {"type": "integer"},
    },
    ["title", "email"],
)
ALL = (SEARCH, CALCULATOR, CLOCK, ORDER, HOTEL, ECHO, FLIGHTS, RATES, TICKET)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is 12.5% of 340?", [("calculator", {"expression": "12.5 / 100 * 340"})]),
        ("What time is it in Tokyo?", [("time", {"timezone": "Asia/Tokyo"})]),
        ("What time is it?", [("time", {})]),
        ("Tell me the current date in Europe/Berlin", [("time", {"timezone": "Europe/Berlin"})]),
        ("How much time does the build take?", [("search", {"query": "time build take"})]),
        ("What is the time limit of a turn?", [("search", {"query": "time limit turn"})]),
        ("What is the status of order A-17?", [("get-order", {"order_id": "A-17"})]),
        ("Where is order number 1234?", [("get-order", {"order_id": "1234"})]),
        ("How do I order a new laptop?", [("search", {"query": "order new laptop"})]),
        ('Search for "remote work"', [("search", {"query": "remote work"})]),
        ("Echo hello there", [("echo", {"text": "hello there"})]),
        ('echo "a: b"', [("echo", {"text": "a: b"})]),
        (
            "Find flights from Oslo to New York",
            [("find-flights", {"origin": "Oslo", "destination": "New York"})],
        ),
        (
            "Convert the amount 99.5 to USD",
            [("exchange-rate", {"amount": 99.5, "currency": "USD"})],
        ),
        (
            'Create a ticket, title: "Printer broken", email ann@example.org, priority 2',
            [
                (
                    "create-ticket",
                    {"title": "Printer broken", "email": "ann@example.org", "priority": 2},
                )
            ],
        ),
        (
            "Book a double hotel room in Paris for three nights from May 4, 2025, with breakfast",
            [
                (
                    "book-hotel",
                    {
                        "stay": {
                            "city": "Paris",
                            "checkIn": "2025-05-04",
                            "nights": 3,
                            "roomType": "ROOM_TYPE_DOUBLE",
                            "breakfast": True,
                        }
                    },
                )
            ],
        ),
        (
            "What is the default port, and what is 17 times 23?",
            [("search", {"query": "default port"}), ("calculator", {"expression": "17 * 23"})],
        ),
        (
            "What time is it and what does the handbook say about sick leave?",
            [("time", {}), ("search", {"query": "handbook sick leave"})],
        ),
        ("the default port plus 10", [("search", {"query": "default port"})]),
    ],
)
def test_calls_what_the_question_needs(question: str, expected: list[tuple[str, Any]]) -> None:
    assert calls(question, *ALL) == expected


@pytest.mark.parametrize("question", ["Hello!", "Thanks.", "Who are you?", "", "???"])
def test_small_talk_calls_nothing(question: str) -> None:
    assert calls(question, *ALL) == []


def test_a_tool_without_its_required_arguments_is_not_called() -> None:
    assert calls("Find flights", FLIGHTS) == []


def test_the_search_whose_description_fits_is_chosen() -> None:
    query = {"query": {"type": "string"}}
    recipes = tool("search-recipes", "Searches cooking recipes.", query, ["query"])
    laws = tool("search-laws", "Searches laws and court rulings.", query, ["query"])
    assert [name for name, _ in calls("Which recipes use saffron?", recipes, laws)] == [
        "search-recipes"
    ]


def test_a_query_in_another_language_is_not_taken_for_a_search() -> None:
    sql = tool("run", "Runs an SQL query.", {"query": {"type": "string"}}, ["query"])
    assert calls("How many users are there?", sql) == []


def test_a_collection_is_taken_from_the_question() -> None:
    properties = {
        "query": {"type": "string"},
        "collection": {"type": "string", "pattern": "^[a-z0-9-]+$"},
    }
    search = tool("search", "Searches a collection.", properties, ["query", "collection"])
    [(name, arguments)] = calls("What do the docs collection and its pages say of leave?", search)
    assert (name, arguments["collection"]) == ("search", "docs")


def test_references_within_a_schema_are_followed() -> None:
    schema = {
        "type": "object",
        "properties": {"order": {"$ref": "#/$defs/shop.v1.Key"}, "self": {"$ref": "#"}},
        "$defs": {"shop.v1.Key": {"type": "object", "properties": {"id": {"type": "string"}}}},
    }
    ship = models_pb2.ToolDefinition(
        name="ship-order",
        description="Ships an order.",
        parameters_json_schema=json.dumps(schema),
    )
    assert calls("Ship order A-17", ship) == [("ship-order", {"order": {"id": "A-17"}})]


def test_the_same_request_gets_the_same_bytes() -> None:
    request = asked("What is the default port, and what is 17 times 23?", *ALL)
    assert reply(request).SerializeToString() == reply(request).SerializeToString()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "required", "enum", "anyOf", "$ref", "items", "query", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_JSON, st.text(max_size=80))
def test_no_schema_and_no_text_makes_it_fail(schema: Any, text: str) -> None:
    odd = models_pb2.ToolDefinition(
        name="x", description="Searches", parameters_json_schema=json.dumps(schema)
    )
    message = reply(asked(text, odd)).message
    assert message.text or message.tool_calls


@given(st.text(max_size=120))
def test_arguments_are_json_of_their_type(text: str) -> None:
    for definition in ALL:
        found = fill(
            read_tool(definition.name, definition.description, definition.parameters_json_schema),
            text,
        )
        if found is not None:
            assert json.loads(json.dumps(found.values)) == found.values
