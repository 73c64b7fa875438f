"""What is done in the tables of the embedded index; blocking. `schema.py` has the tables.

The file is in WAL mode and every change is synced before it is answered.

Vectors are looked through one by one, so what is found is exact. Those of a collection
that goes by the cosine are stored with the length 1: then the cosine follows from the
distance. A dot product is the cosine times both lengths: from the distance it would be
lost where one vector is much longer than the other.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import sqlite_vec

from mesh.errors import (
    AlreadyExists,
    FailedPrecondition,
    LimitExceeded,
    NotFound,
    NotServing,
    RequestIdReused,
)
from services.vectors.backends import schema
from services.vectors.backends.filter_sql import Condition, Dialect, rows
from services.vectors.backends.ranking import (
    TERMS_MAX,
    Candidate,
    Term,
    candidates_count,
    match_expression,
    ranked,
    rarity,
)
from services.vectors.backends.rows import collection_of, passage_of, refuse_other_dimension
from services.vectors.backends.schema import PASSAGES_MAX
from services.vectors.backends.words import stems_of, words_of
from services.vectors.domain.filters import Filter
from services.vectors.domain.metadata import read_metadata
from services.vectors.domain.vectors import LENGTH_MIN, Metric, Vector, square_of, unit
from services.vectors.index import (
    CollectionKey,
    CollectionSpec,
    Hit,
    Present,
    Request,
    SplitDocument,
    Stored,
)
from weft.vectors.v1 import collections_pb2

REQUESTS_MAX = 10_000
"""Requests that are remembered; the oldest are forgotten first."""

_BUSY_MILLISECONDS = 5_000
_TITLE_WEIGHT, _HEADINGS_WEIGHT, _TEXT_WEIGHT = 2.0, 3.0, 1.0
_DIALECT = Dialect("?", "attributes", {str: "value", float: "value", bool: "value"})
_COLLECTION = """
SELECT name, description, create_time_ns, document_count, passage_count, dimension, metric, model
FROM collections WHERE tenant = ?
"""
_PLACE = "p.title, p.headings, p.text, p.line, ifnull(g.page, 0), d.uri, d.metadata"


class Tables:
    """What `SqliteIndex` does, without its thread. Every method says in the port's terms
    what it does; faults of SQLite come out as they are."""

    def __init__(
        self,
        path: Path,
        *,
        collections_max: int,
        passages_max: int,
        now_ns: Callable[[], int],
    ) -> None:
        self._path = path
        self._collections_max = collections_max
        self._passages_max = passages_max
        self._now_ns = now_ns
        self._connection: apsw.Connection | None = None

    def open(self) -> None:
        connection = apsw.Connection(str(self._path))
        self._connection = connection
        connection.set_busy_timeout(_BUSY_MILLISECONDS)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full")
        connection.enable_load_extension(True)
        connection.load_extension(sqlite_vec.loadable_path())
        connection.enable_load_extension(False)
        version = connection.pragma("user_version")
        if version > schema.FORMAT_VERSION:
            raise FailedPrecondition(f"{self._path.name} was written by a newer version of Weft")
        with connection:
            for change in schema.CHANGES[version:]:
                connection.execute(change)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def create(
        self, key: CollectionKey, spec: CollectionSpec, request: Request
    ) -> collections_pb2.Collection:
        def change() -> Stored:
            self._make(key, spec)
            return Stored(0, 0)

        self._once(key.tenant, request, change)
        return self.get(key)

    def get(self, key: CollectionKey) -> collections_pb2.Collection:
        row = self._row(f"{_COLLECTION} AND name = ?", key.tenant, key.collection)
        if row is None:
            raise NotFound.of("collection", str(key))
        return collection_of(key.tenant, row)

    def page(self, tenant: str, after: str, count: int) -> Sequence[collections_pb2.Collection]:
        statement = f"{_COLLECTION} AND name > ? ORDER BY name LIMIT ?"
        found = self._sql.execute(statement, (tenant, after, count))
        return [collection_of(tenant, row) for row in found]

    def delete(self, key: CollectionKey, request: Request) -> None:
        def change() -> Stored:
            identity = self._id(key)
            self._sql.execute(f"DROP TABLE IF EXISTS temp.words_{identity}")
            self._sql.execute(f"DROP TABLE passages_{identity}")
            self._sql.execute(f"DROP TABLE IF EXISTS vectors_{identity}")
            self._sql.execute(
                f"DELETE FROM pages WHERE passage / {PASSAGES_MAX} IN"
                " (SELECT id FROM documents WHERE collection = ?)",
                (identity,),
            )
            self._sql.execute("DELETE FROM attributes WHERE collection = ?", (identity,))
            self._sql.execute("DELETE FROM documents WHERE collection = ?", (identity,))
            self._sql.execute("DELETE FROM collections WHERE id = ?", (identity,))
            return Stored(0, 0)

        self._once(key.tenant, request, change)

    def present(self, key: CollectionKey, uris: Sequence[str]) -> Mapping[str, Present]:
        identity = self._id(key)
        found = {}
        for uri in uris:
            row = self._row(
                "SELECT digest, passage_count FROM documents WHERE collection = ? AND uri = ?",
                identity,
                uri,
            )
            if row is not None:
                found[uri] = Present(*row)
        return found

    def upsert(
        self,
        key: CollectionKey,
        documents: Sequence[SplitDocument],
        request: Request,
        unchanged: Stored,
    ) -> Stored:
        def change() -> Stored:
            identity = self._id(key)
            self._take_out(identity, self._documents(identity, documents))
            self._put_all(identity, documents)
            return Stored(
                len(documents) + unchanged.documents,
                sum(len(each.passages) for each in documents) + unchanged.passages,
                unchanged.documents,
            )

        return self._once(key.tenant, request, change)

    def remove(self, key: CollectionKey, uris: Sequence[str], request: Request) -> Stored:
        def change() -> Stored:
            identity = self._id(key)
            statement = "SELECT id, passage_count FROM documents WHERE collection = ? AND uri = ?"
            found = [self._row(statement, identity, uri) for uri in dict.fromkeys(uris)]
            return self._take_out(identity, [row for row in found if row is not None])

        return self._once(key.tenant, request, change)

    def remove_matching(self, key: CollectionKey, only: Filter, request: Request) -> Stored:
        def change() -> Stored:
            identity = self._id(key)
            condition = _DIALECT.condition(only, identity)
            found = self._sql.execute(
                "SELECT d.id, d.passage_count FROM documents d"
                f" WHERE d.collection = ? AND ({condition.sql})",
                (identity, *condition.values),
            )
            return self._take_out(identity, found.fetchall())

        return self._once(key.tenant, request, change)

    def match(
        self, key: CollectionKey, query: str, count: int, only: Filter | None
    ) -> Sequence[Hit]:
        identity = self._id(key)
        terms = self._terms(identity, query)
        if not terms:
            return []
        weights = f"{_TITLE_WEIGHT}, {_HEADINGS_WEIGHT}, {_TEXT_WEIGHT}"
        condition = self._condition(only, identity)
        found = self._sql.execute(
            f"SELECT p.rowid, -bm25(passages_{identity}, {weights}) AS fit, {_PLACE}"
            f" FROM passages_{identity} p JOIN documents d ON d.id = p.rowid / {PASSAGES_MAX}"
            " LEFT JOIN pages g ON g.passage = p.rowid"
            f" WHERE passages_{identity} MATCH ? AND ({condition.sql})"
            " ORDER BY fit DESC, p.rowid LIMIT ?",
            (match_expression(terms), *condition.values, candidates_count(count)),
        )
        candidates = [
            Candidate(
                row[1], stems_of(self._sql, "\n".join(row[2:5])), Hit(row[0], passage_of(row[2:]))
            )
            for row in found
        ]
        return ranked(candidates, terms)[:count]

    def nearest(
        self, key: CollectionKey, vector: Vector, count: int, only: Filter | None
    ) -> Sequence[Hit]:
        identity = self._id(key)
        dimension, metric = self._kind(identity)
        refuse_other_dimension(vector, dimension)
        vector = unit(vector) if metric is Metric.COSINE else vector
        condition = self._condition(only, identity)
        square, squares_min = square_of(vector), LENGTH_MIN**2
        scored: tuple[Any, ...] = (vector.tobytes(),)
        match metric:
            case Metric.L2:
                score = "-vec_distance_l2(v.vector, ?)"
            case Metric.COSINE:
                score = "1 - pow(vec_distance_l2(v.vector, ?), 2) / 2"
            case Metric.DOT:
                # What is shorter has no direction in sqlite-vec's 32-bit floats.
                score = (
                    "CASE WHEN min(v.square, ?) < ? THEN 0.0"
                    " ELSE (1 - vec_distance_cosine(v.vector, ?)) * sqrt(v.square * ?) END"
                )
                scored = (square, squares_min, *scored, square)
        # Whom the filter leaves in is known before vectors are looked at.
        source = f"vectors_{identity} v"
        if only is not None:
            source = (
                f"documents d CROSS JOIN vectors_{identity} v ON v.passage"
                f" BETWEEN d.id * {PASSAGES_MAX} AND d.id * {PASSAGES_MAX} + {PASSAGES_MAX - 1}"
            )
        found = self._sql.execute(
            f"SELECT n.passage, n.score, {_PLACE}"
            f" FROM (SELECT v.passage, {score} AS score FROM {source} WHERE {condition.sql}"
            "  ORDER BY score DESC, v.passage LIMIT ?) n"
            f" JOIN passages_{identity} p ON p.rowid = n.passage"
            f" JOIN documents d ON d.id = n.passage / {PASSAGES_MAX}"
            " LEFT JOIN pages g ON g.passage = n.passage"
            " ORDER BY n.score DESC, n.passage",
            (*scored, *condition.values, count),
        )
        return [Hit(row[0], passage_of(row[2:], row[1])) for row in found]

    @property
    def _sql(self) -> apsw.Connection:
        if self._connection is None:
            raise NotServing("the index of collections is closed")
        return self._connection

    def _row(self, statement: str, *values: Any) -> tuple[Any, ...] | None:
        found = self._sql.execute(statement, values).fetchall()
        return found[0] if found else None

    def _id(self, key: CollectionKey) -> int:
        statement = "SELECT id FROM collections WHERE tenant = ? AND name = ?"
        row = self._row(statement, key.tenant, key.collection)
        if row is None:
            raise NotFound.of("collection", str(key))
        return int(row[0])

    def _kind(self, identity: int) -> tuple[int, Metric]:
        row = self._row("SELECT dimension, metric FROM collections WHERE id = ?", identity)
        assert row is not None
        return int(row[0]), Metric(row[1])

    def _condition(self, only: Filter | None, identity: int) -> Condition:
        return Condition("1", ()) if only is None else _DIALECT.condition(only, identity)

    def _once(self, tenant: str, request: Request, change: Callable[[], Stored]) -> Stored:
        """Does and remembers `change`, or returns what it did when it was done before."""
        earlier = self._earlier(tenant, request)
        if earlier is not None:
            return earlier
        with self._sql:
            stored = change()
            if request.id:
                self._remember(tenant, request, stored)
        return stored

    def _earlier(self, tenant: str, request: Request) -> Stored | None:
        row = self._row(
            "SELECT digest, documents, passages, unchanged FROM requests"
            " WHERE tenant = ? AND id = ?",
            tenant,
            request.id,
        )
        if row is None:
            return None
        if row[0] != request.digest:
            raise RequestIdReused.of("request_id", "was used before with another body")
        return Stored(*row[1:])

    def _remember(self, tenant: str, request: Request, stored: Stored) -> None:
        self._sql.execute(
            "INSERT INTO requests (tenant, id, digest, documents, passages, unchanged)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                *(tenant, request.id, request.digest),
                *(stored.documents, stored.passages, stored.unchanged),
            ),
        )
        forgotten = "DELETE FROM requests WHERE number <= ?"
        self._sql.execute(forgotten, (self._sql.last_insert_rowid() - REQUESTS_MAX,))

    def _make(self, key: CollectionKey, spec: CollectionSpec) -> None:
        statement = "SELECT count(*), total(name = ?) FROM collections WHERE tenant = ?"
        row = self._row(statement, key.collection, key.tenant)
        if row is not None and row[1]:
            raise AlreadyExists(f"{key} is there already", metadata={"resource": str(key)})
        if row is not None and row[0] >= self._collections_max:
            raise LimitExceeded(f"a tenant has at most {self._collections_max} collections")
        self._sql.execute(
            "INSERT INTO collections"
            " (tenant, name, description, create_time_ns, dimension, metric, model)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                *(key.tenant, key.collection, spec.description, self._now_ns()),
                *(spec.dimension, str(spec.metric), spec.model),
            ),
        )
        identity = self._sql.last_insert_rowid()
        self._sql.execute(schema.passages_table(identity))
        if spec.dimension:
            self._sql.execute(schema.vectors_table(identity))

    def _put_all(self, identity: int, documents: Sequence[SplitDocument]) -> None:
        dimension, metric = self._kind(identity)
        passages = sum(len(document.passages) for document in documents)
        row = self._row("SELECT passage_count FROM collections WHERE id = ?", identity)
        if row is not None and row[0] + passages > self._passages_max:
            raise LimitExceeded(f"a collection has at most {self._passages_max} passages")
        for document in documents:
            for vector in document.vectors:
                if vector is not None:
                    refuse_other_dimension(vector, dimension)
            self._put(identity, document, metric)
        self._count(identity, len(documents), passages)

    def _put(self, identity: int, document: SplitDocument, metric: Metric) -> None:
        count = len(document.passages)
        if count > PASSAGES_MAX:
            raise LimitExceeded(f"a document has at most {PASSAGES_MAX} passages")
        self._sql.execute(
            "INSERT INTO documents (collection, uri, title, passage_count, digest, metadata)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                *(identity, document.uri, document.title, count, document.digest),
                document.metadata.SerializeToString(deterministic=True),
            ),
        )
        number = self._sql.last_insert_rowid()
        first = number * PASSAGES_MAX
        passages = list(enumerate(document.passages, first))
        self._sql.executemany(
            f"INSERT INTO passages_{identity} (rowid, title, headings, text, line)"
            " VALUES (?, ?, ?, ?, ?)",
            (
                (rowid, document.title, "\n".join(each.headings), each.text, each.line)
                for rowid, each in passages
            ),
        )
        self._sql.executemany(
            "INSERT INTO pages VALUES (?, ?)",
            ((rowid, each.page) for rowid, each in passages if each.page),
        )
        self._sql.executemany(
            "INSERT INTO attributes VALUES (?, ?, ?, ?, ?)",
            (
                (identity, number, *row)
                for row in rows(read_metadata(document.metadata, "metadata"))
            ),
        )
        for rowid, vector in enumerate(document.vectors, first):
            if vector is not None:
                placed = unit(vector) if metric is Metric.COSINE else vector
                self._sql.execute(
                    f"INSERT INTO vectors_{identity} VALUES (?, ?, ?)",
                    (rowid, square_of(placed), placed.tobytes()),
                )

    def _documents(
        self, identity: int, documents: Sequence[SplitDocument]
    ) -> Sequence[tuple[Any, ...]]:
        """Id and count of passages of those that are there under the documents' uris."""
        statement = "SELECT id, passage_count FROM documents WHERE collection = ? AND uri = ?"
        found = (self._row(statement, identity, document.uri) for document in documents)
        return [row for row in found if row is not None]

    def _take_out(self, identity: int, documents: Sequence[tuple[Any, ...]]) -> Stored:
        """Takes out documents that are named by their id and their count of passages."""
        has_vectors = self._kind(identity)[0] > 0
        for number, _ in documents:
            passages = (number * PASSAGES_MAX, (number + 1) * PASSAGES_MAX - 1)
            delete = "DELETE FROM {} WHERE {} BETWEEN ? AND ?"
            self._sql.execute(delete.format(f"passages_{identity}", "rowid"), passages)
            self._sql.execute(delete.format("pages", "passage"), passages)
            if has_vectors:
                self._sql.execute(delete.format(f"vectors_{identity}", "passage"), passages)
            self._sql.execute("DELETE FROM attributes WHERE document = ?", (number,))
            self._sql.execute("DELETE FROM documents WHERE id = ?", (number,))
        taken = Stored(len(documents), sum(count for _, count in documents))
        self._count(identity, -taken.documents, -taken.passages)
        return taken

    def _count(self, identity: int, documents: int, passages: int) -> None:
        self._sql.execute(
            "UPDATE collections SET document_count = document_count + ?,"
            " passage_count = passage_count + ? WHERE id = ?",
            (documents, passages, identity),
        )

    def _terms(self, identity: int, query: str) -> Mapping[str, Term]:
        """The query's words that occur in the collection, by their stems."""
        self._sql.execute(
            f"CREATE VIRTUAL TABLE IF NOT EXISTS temp.words_{identity}"
            f" USING fts5vocab(main, passages_{identity}, row)"
        )
        passages = self._row("SELECT passage_count FROM collections WHERE id = ?", identity)
        terms: dict[str, Term] = {}
        for word, stem in words_of(self._sql, query):
            if stem in terms or len(terms) == TERMS_MAX:
                continue
            row = self._row(f"SELECT doc FROM temp.words_{identity} WHERE term = ?", stem)
            if row is not None and passages is not None:
                terms[stem] = Term(word, rarity(passages[0], row[0]))
        return terms
