"""Searches in PostgreSQL's tables."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import apsw

from services.vectors.backends import postgres_schema as schema
from services.vectors.backends.filter_sql import Condition, Dialect
from services.vectors.backends.postgres_connection import Connection, fetch_all, fetch_one
from services.vectors.backends.postgres_words import quoted
from services.vectors.backends.ranking import (
    TERMS_MAX,
    Candidate,
    Term,
    candidates_count,
    ranked,
    rarity,
)
from services.vectors.backends.rows import passage_of
from services.vectors.backends.words import stems_of, words_of
from services.vectors.domain.filters import Filter
from services.vectors.domain.vectors import Metric, Vector
from services.vectors.index import Hit

EXACT_PASSAGES_MAX = 10_000
"""Where a filter leaves no more, they are looked through one by one."""

S = schema.SCHEMA
DIALECT = Dialect("%s", f"{S}.attributes", {str: "text", float: "number", bool: "number"})
# Of words in the text (D), the title (B) and the headings (A).
_WEIGHTS = "'{0.33, 0, 0.66, 1}'"
_PLACE = "d.title, p.headings, p.text, p.line, p.page, d.uri, d.metadata"


async def match(
    connection: Connection, identity: int, query: str, count: int, only: Filter | None
) -> Sequence[Hit]:
    """The passages of a collection that have a word of the query, best first."""
    terms = await _terms(connection, identity, query)
    if not terms:
        return []
    condition = _condition(only, identity)
    queries = [quoted(stem) for stem in terms]
    found = await fetch_all(
        connection,
        f"SELECT p.id, f.fit, {_PLACE} FROM {S}.passages_{identity} p"
        f" JOIN {S}.documents d ON d.id = p.document CROSS JOIN LATERAL"
        f" (SELECT sum(t.rarity * ts_rank({_WEIGHTS}, p.words, t.query, 1)) AS fit"
        "   FROM unnest(%s::tsquery[], %s::float8[]) AS t(query, rarity)) f"
        f" WHERE p.words @@ %s::tsquery AND ({condition.sql})"
        " ORDER BY f.fit DESC, p.id LIMIT %s",
        queries,
        [term.rarity for term in terms.values()],
        " | ".join(queries),
        *condition.values,
        candidates_count(count),
    )
    hits = await asyncio.to_thread(_ranked, found, terms)
    return hits[:count]


async def nearest(
    connection: Connection,
    identity: int,
    metric: Metric,
    vector: Vector,
    count: int,
    only: Filter | None,
) -> Sequence[Hit]:
    """The passages of a collection whose vectors are nearest, best first."""
    condition = _condition(only, identity)
    search = _Nearest(identity, metric, written(vector), count, condition)
    if only is None or await _is_many(connection, identity, condition):
        found = await search.approximate(connection)
        if only is None or len(found) == count:
            return _hits(found)
    return _hits(await search.exact(connection))


def written(vector: Vector) -> str:
    """The vector as pgvector reads it."""
    return f"[{','.join(map(repr, vector))}]"


async def _terms(connection: Connection, identity: int, query: str) -> Mapping[str, Term]:
    """The query's words that occur in the collection, by their stems."""
    words: dict[str, str] = {}
    for word, stem in words_of(apsw.Connection(":memory:"), query):
        if len(words) == TERMS_MAX:
            break
        words.setdefault(stem, word)
    found = await fetch_all(
        connection,
        f"SELECT (SELECT count(*) FROM {S}.passages_{identity} p WHERE p.words @@ t.query)"
        " FROM unnest(%s::tsquery[]) WITH ORDINALITY AS t(query, place) ORDER BY place",
        [quoted(stem) for stem in words],
    )
    row = await fetch_one(
        connection, f"SELECT passage_count FROM {S}.collections WHERE id = %s", identity
    )
    assert row is not None
    return {
        stem: Term(word, rarity(row[0], having))
        for (stem, word), (having,) in zip(words.items(), found, strict=True)
        if having
    }


async def _is_many(connection: Connection, identity: int, condition: Condition) -> bool:
    """Whether a filter leaves too many passages to look through one by one."""
    row = await fetch_one(
        connection,
        f"SELECT sum(passage_count) > %s FROM {S}.documents d"
        f" WHERE d.collection = %s AND ({condition.sql})",
        EXACT_PASSAGES_MAX,
        identity,
        *condition.values,
    )
    return bool(row and row[0])


class _Nearest:
    """One search by a vector."""

    def __init__(
        self, identity: int, metric: Metric, vector: str, count: int, condition: Condition
    ) -> None:
        self._identity = identity
        self._vector = vector
        self._count = count
        self._condition = condition
        operator, self._score = schema.operator_of(metric)
        self._distance = f"vector {operator} %s::vector"
        self._source = (
            f"{S}.passages_{identity} p JOIN {S}.documents d ON d.id = p.document"
            f" WHERE d.collection = {identity} AND ({condition.sql})"
        )

    async def approximate(self, connection: Connection) -> list[tuple[Any, ...]]:
        """By the index."""
        source = self._source if self._condition.values else f"{S}.passages_{self._identity} p"
        return await self._rows(
            connection,
            f"SELECT p.id, p.{self._distance} AS distance FROM {source} ORDER BY distance LIMIT %s",
            (self._vector, *self._condition.values, self._count),
        )

    async def exact(self, connection: Connection) -> list[tuple[Any, ...]]:
        """One by one."""
        return await self._rows(
            connection,
            f"SELECT m.id, m.{self._distance} AS distance FROM left_in m"
            " ORDER BY distance, m.id LIMIT %s",
            (*self._condition.values, self._vector, self._count),
            f"WITH left_in AS MATERIALIZED (SELECT p.id, p.vector FROM {self._source}"
            " AND p.vector IS NOT NULL) ",
        )

    async def _rows(
        self, connection: Connection, nearest: str, values: tuple[Any, ...], before: str = ""
    ) -> list[tuple[Any, ...]]:
        return await fetch_all(
            connection,
            f"{before}SELECT n.id, {self._score}(n.distance), {_PLACE} FROM ({nearest}) n"
            f" JOIN {S}.passages_{self._identity} p ON p.id = n.id"
            f" JOIN {S}.documents d ON d.id = p.document"
            " WHERE n.distance IS NOT NULL ORDER BY n.distance, n.id",
            *values,
        )


def _condition(only: Filter | None, identity: int) -> Condition:
    return Condition("true", ()) if only is None else DIALECT.condition(only, identity)


def _hits(found: Sequence[tuple[Any, ...]]) -> list[Hit]:
    """Hits of rows: id, score, and the passage with its texts as bytes."""
    hits = []
    for number, score, title, headings, text, line, page, uri, metadata in found:
        texts = (title.decode(), headings.decode(), text.decode())
        place = (*texts, line, page, uri.decode(), metadata)
        hits.append(Hit(number, passage_of(place, float(score))))
    return hits


def _ranked(found: Sequence[tuple[Any, ...]], terms: Mapping[str, Term]) -> Sequence[Hit]:
    tokenizer = apsw.Connection(":memory:")
    candidates = []
    for hit in _hits(found):
        shown = hit.passage
        text = "\n".join((shown.title, *shown.headings, shown.text))
        candidates.append(Candidate(shown.score, stems_of(tokenizer, text), hit))
    return ranked(candidates, terms)
