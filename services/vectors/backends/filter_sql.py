"""Filters as conditions of SQL, of either back end: what they compare are parameters, always.

Each value of a document's metadata is a row (collection, document, key, kind, and the
value). A part of a filter asks for the documents that have such a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from services.vectors.domain.filters import (
    All,
    Any,
    Comparison,
    Filter,
    Not,
    OneOf,
    Operator,
    Present,
)
from services.vectors.domain.metadata import Metadata, Value, entries

KINDS = {str: "s", float: "n", bool: "b"}


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on the column `d.id`, with the values of its parameters in their order."""

    sql: str
    values: tuple[str | float | int, ...]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a back end marks parameters, where its table is, and which of its columns has
    values of a type."""

    mark: str
    table: str
    columns: Mapping[type, str]

    def condition(self, filter: Filter, collection: int) -> Condition:  # noqa: A002
        """The condition that the filter holds for a document of the collection."""
        match filter:
            case Not(inner):
                found = self.condition(inner, collection)
                return Condition(f"NOT ({found.sql})", found.values)
            case All(parts):
                return self._joined(" AND ", parts, collection)
            case Any(parts):
                return self._joined(" OR ", parts, collection)
            case Present(key):
                return self._having(collection, key)
            case OneOf(key, values):
                # One question for each type, not for each value: every one takes time to prepare.
                types = dict.fromkeys(map(type, values))
                each = [
                    self._among(collection, key, [each for each in values if type(each) is one])
                    for one in types
                ]
                return _join(" OR ", each)
            case Comparison(key, Operator.NOT_EQUAL, value):
                equal = self._compared(collection, key, Operator.EQUAL, value)
                unequal = Condition(f"NOT ({equal.sql})", equal.values)
                return _join(" AND ", [self._having(collection, key), unequal])
            case Comparison(key, operator, value):
                return self._compared(collection, key, operator, value)

    def _joined(self, word: str, parts: tuple[Filter, ...], collection: int) -> Condition:
        return _join(word, [self.condition(part, collection) for part in parts])

    def _among(self, collection: int, key: str, values: list[Value]) -> Condition:
        """That one of the key's values is among `values`, which are of one type."""
        marks = ", ".join([self.mark] * len(values))
        return self._valued(collection, key, f"IN ({marks})", values)

    def _compared(self, collection: int, key: str, operator: Operator, value: Value) -> Condition:
        # The operator is one of six of ours.
        return self._valued(collection, key, f"{operator} {self.mark}", [value])

    def _valued(self, collection: int, key: str, test: str, values: list[Value]) -> Condition:
        """That one of the key's values, of the type of `values`, stands `test` with them."""
        kind = type(values[0])
        having = self._having(collection, key)
        return Condition(
            having.sql[:-1] + f" AND kind = {self.mark} AND {self.columns[kind]} {test})",
            (*having.values, KINDS[kind], *(stored(value)[1] for value in values)),
        )

    def _having(self, collection: int, key: str) -> Condition:
        return Condition(
            f"d.id IN (SELECT document FROM {self.table}"
            f" WHERE collection = {self.mark} AND key = {self.mark})",
            (collection, key),
        )


def stored(value: Value) -> tuple[str, str | float]:
    """The kind of a value, and the value as it is stored."""
    return KINDS[type(value)], float(value) if isinstance(value, bool) else value


def rows(metadata: Metadata) -> list[tuple[str, str, str | float]]:
    """Key, kind and value of each row that stands for the metadata."""
    return [(key, *stored(value)) for key, value in entries(metadata)]


def _join(word: str, conditions: list[Condition]) -> Condition:
    sql = word.join(f"({condition.sql})" for condition in conditions)
    return Condition(sql, tuple(value for condition in conditions for value in condition.values))
