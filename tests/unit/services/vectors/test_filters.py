"""Filters over metadata: what they mean, and that they mean it in SQL."""

import operator
from collections.abc import Iterator, Mapping
from typing import Any as Any_

import apsw
import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import InvalidArgument
from services.vectors.backends.filter_sql import Dialect, rows
from services.vectors.domain.filters import (
    All,
    Any,
    Comparison,
    Filter,
    Not,
    OneOf,
    Operator,
    Present,
    parse_filter,
)
from services.vectors.domain.metadata import Metadata, Value, read_metadata

DIALECT = Dialect("?", "attributes", dict.fromkeys((str, float, bool), "value"))
COMPARED = {
    Operator.EQUAL: operator.eq,
    Operator.LESS: operator.lt,
    Operator.LESS_OR_EQUAL: operator.le,
    Operator.GREATER: operator.gt,
    Operator.GREATER_OR_EQUAL: operator.ge,
}
KEYS = ("a", "b", "year", "AND_x", "in-y")
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3).map(float)
values: st.SearchStrategy[Value] = st.one_of(
    st.sampled_from(["x", "y", ""]), texts, numbers, st.booleans()
)
ordered = st.one_of(st.sampled_from(["x", "y"]), texts, numbers)
keys = st.sampled_from(KEYS)
terms: st.SearchStrategy[Filter] = st.one_of(
    st.builds(Comparison, keys, st.sampled_from([Operator.EQUAL, Operator.NOT_EQUAL]), values),
    st.builds(Comparison, keys, st.sampled_from(list(Operator)), ordered),
    st.builds(OneOf, keys, st.lists(values, min_size=1, max_size=3).map(tuple)),
    st.builds(Present, keys),
)
filters = st.recursive(
    terms,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(All, st.lists(inner, min_size=2, max_size=3).map(tuple)),
        st.builds(Any, st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)
metadatas: st.SearchStrategy[Metadata] = st.dictionaries(
    keys, st.lists(values, max_size=3).map(tuple), max_size=4
)


def holds(tested: Filter, metadata: Metadata) -> bool:
    """What a filter means, said in Python."""
    match tested:
        case Not(inner):
            return not holds(inner, metadata)
        case All(parts):
            return all(holds(part, metadata) for part in parts)
        case Any(parts):
            return any(holds(part, metadata) for part in parts)
        case Present(key):
            return bool(metadata.get(key))
        case OneOf(key, choices):
            return any(same(value, each) for value in metadata.get(key, ()) for each in choices)
        case Comparison(key, Operator.NOT_EQUAL, wanted):
            found = metadata.get(key, ())
            return bool(found) and not any(same(value, wanted) for value in found)
        case Comparison(key, compared, wanted):
            return any(
                type(value) is type(wanted) and COMPARED[compared](value, wanted)
                for value in metadata.get(key, ())
            )


def same(value: Value, wanted: Value) -> bool:
    return type(value) is type(wanted) and value == wanted


def written(tested: Filter) -> str:
    """The filter as text."""
    match tested:
        case Not(inner):
            return f"NOT ({written(inner)})"
        case All(parts):
            return " AND ".join(f"({written(part)})" for part in parts)
        case Any(parts):
            return " OR ".join(f"({written(part)})" for part in parts)
        case Present(key):
            return f"{key}:*"
        case OneOf(key, choices):
            return f"{key} IN ({', '.join(map(literal, choices))})"
        case Comparison(key, compared, wanted):
            return f"{key} {compared} {literal(wanted)}"


def literal(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class Attributes:
    """A table of two collections, each with one document."""

    def __init__(self, metadata: Mapping[int, Metadata]) -> None:
        self._sql = apsw.Connection(":memory:")
        self._sql.execute("CREATE TABLE attributes (collection, document, key, kind, value)")
        self._sql.execute("CREATE TABLE documents (id INTEGER PRIMARY KEY)")
        for number, known in metadata.items():
            self._sql.execute("INSERT INTO documents VALUES (?)", (number,))
            for row in rows(known):
                insert = "INSERT INTO attributes VALUES (?, ?, ?, ?, ?)"
                self._sql.execute(insert, (number, number, *row))

    def found(self, tested: Filter, collection: int) -> list[int]:
        """The collection's document, where the filter holds for it."""
        condition = DIALECT.condition(tested, collection)
        statement = f"SELECT d.id FROM documents d WHERE d.id = ? AND ({condition.sql})"
        return [row[0] for row in self._sql.execute(statement, (collection, *condition.values))]


@given(filters, metadatas, metadatas)
def test_sql_says_what_the_filter_means(tested: Filter, ours: Metadata, other: Metadata) -> None:
    table = Attributes({1: ours, 2: other})
    assert table.found(tested, 1) == ([1] if holds(tested, ours) else [])
    assert table.found(tested, 2) == ([2] if holds(tested, other) else [])


@given(filters, metadatas)
def test_a_filter_that_is_written_and_read_means_the_same(
    tested: Filter,
    metadata: Metadata,
) -> None:
    read = parse_filter(written(tested))
    assert read is not None
    assert holds(read, metadata) == holds(tested, metadata)


@given(st.text("abAND ORNOT()=<>!:*,.\"'\\019+-e", max_size=40) | st.text(max_size=40))
def test_whatever_is_sent_is_a_filter_or_refused_with_a_place(text: str) -> None:
    refused = None
    try:
        parse_filter(text)
    except InvalidArgument as error:
        refused = error
    if refused is not None:
        assert [each.field for each in refused.violations] == ["filter"]
        assert "at character" in refused.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("author", "expected =, !=, <, <=, >, >=, IN or :* at character 7"),
        ("author = Ann", "expected a string in quotes, a number, true or false at character 10"),
        ("author = 'Ann", "the string has no end at character 10"),
        ("= 3", "expected a key at character 1"),
        ("a = 1 b = 2", "expected AND, OR or the end at character 7"),
        ("a = 1 AND b = 2 OR c = 3", "AND beside OR needs parentheses at character 17"),
        ("(a = 1", "expected ) at character 7"),
        ("a IN 1", "expected ( at character 6"),
        ("a IN ()", "expected a string in quotes, a number, true or false at character 7"),
        ("draft > true", "true and false have no order; = and != are for them at character 7"),
        ("a = 1e999", "the number is too large at character 5"),
        ("a = 1.2.3", "can't be read at character 5"),
        ("a = 1; DROP TABLE x", "can't be read at character 6"),
        ("a.b = 1", "can't be read at character 2"),
        ("NOT", "expected a key at character 4"),
        ('a = "\0"', "a string can't hold NUL at character 5"),
        ("NOT " * 17 + "a = 1", "at most 16 NOTs and parentheses may be nested at character 65"),
        (" AND ".join(["a = 1"] * 65), "at most 64 comparisons are accepted at character 641"),
        (f"a IN ({'1,' * 100}1)", "IN takes at most 100 values at character 206"),
        (f"{'a' * 64} = 1", "a key has at most 63 characters at character 1"),
        (f"a = '{'x' * 513}'", "a string has at most 512 characters at character 5"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_filter(text)
    assert caught.value.message == f"filter: {said}"


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_nothing_is_no_filter(text: str) -> None:
    assert parse_filter(text) is None


def test_nots_bind_closer_than_ands() -> None:
    one, two = (Comparison(key, Operator.EQUAL, 1.0) for key in "ab")
    assert parse_filter("NOT a = 1 AND b = 1") == All((Not(one), two))
    assert parse_filter("NOT (a = 1 AND b = 1)") == Not(All((one, two)))


def test_a_list_of_choices_is_one_question_for_each_type() -> None:
    choices = ", ".join(["true", "'a'", *map(str, range(98))])
    only = parse_filter(f"a IN ({choices})")
    assert only is not None
    assert DIALECT.condition(only, 1).sql.count("SELECT") == 3


def refused() -> Iterator[tuple[str, dict[str, Any_]]]:
    yield "metadata.deep", {"deep": {"er": 1}}
    yield "metadata.none", {"none": None}
    yield "metadata.deep", {"deep": [[1]]}
    yield "metadata.long", {"long": "x" * 513}
    yield "metadata.nul", {"nul": "a\0b"}
    yield "metadata.many", {"many": list(range(65))}
    yield "metadata", {f"k{number}": 1 for number in range(33)}
    yield "metadata", {"a.b": 1}
    yield "metadata", {"": 1}
    yield "metadata.endless", {"endless": float("inf")}


@pytest.mark.parametrize(("field", "given_values"), list(refused()))
def test_metadata_is_bounded(field: str, given_values: dict[str, Any_]) -> None:
    metadata = Struct()
    metadata.update(given_values)
    with pytest.raises(InvalidArgument) as caught:
        read_metadata(metadata, "metadata")
    assert [each.field for each in caught.value.violations] == [field]
