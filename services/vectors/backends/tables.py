"""The tables of the FTS5 index, and what is done in them; blocking.

The file is in WAL mode and every change is synced before it is answered. Each
collection has a full-text table of its own, so that the weights of words come from it
alone. The rowid of a passage is its document's id times `PASSAGES_MAX`, plus its number
in the document: the passages of a document are a range of rowids.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import apsw

from mesh.errors import (
    AlreadyExists,
    FailedPrecondition,
    LimitExceeded,
    NotFound,
    NotServing,
    RequestIdReused,
)
from services.vectors.backends.ranking import (
    TERMS_MAX,
    Candidate,
    Term,
    match_expression,
    ranked,
    rarity,
)
from services.vectors.index import CollectionKey, Request, SplitDocument, Stored
from weft.vectors.v1 import collections_pb2

FORMAT_VERSION = 1
PASSAGES_MAX = 1 << 20
"""Most passages of one document."""
REQUESTS_MAX = 10_000
"""Requests that are remembered; the oldest are forgotten first."""
CANDIDATES_MIN = 64
"""Passages that are ranked anew, at least."""

_BUSY_MILLISECONDS = 5_000
_TOKENIZER = ("porter", ["unicode61", "remove_diacritics", "2"])
_TITLE_WEIGHT, _HEADINGS_WEIGHT, _TEXT_WEIGHT = 2.0, 3.0, 1.0
_SCHEMA = f"""
CREATE TABLE collections (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  tenant TEXT NOT NULL,
  name TEXT NOT NULL,
  description TEXT NOT NULL,
  create_time_ns INTEGER NOT NULL,
  UNIQUE (tenant, name)
);
CREATE TABLE documents (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  collection INTEGER NOT NULL,
  uri TEXT NOT NULL,
  title TEXT NOT NULL,
  passage_count INTEGER NOT NULL,
  UNIQUE (collection, uri)
);
CREATE TABLE requests (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  tenant TEXT NOT NULL,
  id TEXT NOT NULL,
  digest BLOB NOT NULL,
  documents INTEGER NOT NULL,
  passages INTEGER NOT NULL,
  UNIQUE (tenant, id)
);
PRAGMA user_version = {FORMAT_VERSION};
"""
_COLLECTION = """
SELECT name, description, create_time_ns,
  (SELECT count(*) FROM documents WHERE collection = c.id),
  (SELECT ifnull(sum(passage_count), 0) FROM documents WHERE collection = c.id)
FROM collections c WHERE tenant = ?
"""


class Tables:
    """What `FtsIndex` does, without its thread. Every method says in the port's terms
    what it does; faults of SQLite come out as they are."""

    def __init__(self, path: Path, *, collections_max: int, now_ns: Callable[[], int]) -> None:
        self._path = path
        self._collections_max = collections_max
        self._now_ns = now_ns
        self._connection: apsw.Connection | None = None

    def open(self) -> None:
        connection = apsw.Connection(str(self._path))
        self._connection = connection
        connection.set_busy_timeout(_BUSY_MILLISECONDS)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full")
        version = connection.pragma("user_version")
        if version > FORMAT_VERSION:
            raise FailedPrecondition(f"{self._path.name} was written by a newer version of Weft")
        if version == 0:
            with connection:
                connection.execute(_SCHEMA)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def create(
        self, key: CollectionKey, description: str, request: Request
    ) -> collections_pb2.Collection:
        def change() -> Stored:
            self._make(key, description)
            return Stored(0, 0)

        self._once(key.tenant, request, change)
        return self.get(key)

    def get(self, key: CollectionKey) -> collections_pb2.Collection:
        row = self._row(f"{_COLLECTION} AND name = ?", key.tenant, key.collection)
        if row is None:
            raise NotFound.of("collection", str(key))
        return _collection(key.tenant, row)

    def page(self, tenant: str, after: str, count: int) -> Sequence[collections_pb2.Collection]:
        statement = f"{_COLLECTION} AND name > ? ORDER BY name LIMIT ?"
        rows = self._sql.execute(statement, (tenant, after, count))
        return [_collection(tenant, row) for row in rows]

    def delete(self, key: CollectionKey, request: Request) -> None:
        def change() -> Stored:
            identity = self._id(key)
            self._sql.execute(f"DROP TABLE IF EXISTS temp.words_{identity}")
            self._sql.execute(f"DROP TABLE passages_{identity}")
            self._sql.execute("DELETE FROM documents WHERE collection = ?", (identity,))
            self._sql.execute("DELETE FROM collections WHERE id = ?", (identity,))
            return Stored(0, 0)

        self._once(key.tenant, request, change)

    def upsert(
        self, key: CollectionKey, documents: Sequence[SplitDocument], request: Request
    ) -> Stored:
        def change() -> Stored:
            identity = self._id(key)
            self._take_out(identity, [document.uri for document in documents])
            for document in documents:
                self._put(identity, document)
            return Stored(len(documents), sum(len(each.passages) for each in documents))

        return self._once(key.tenant, request, change)

    def remove(self, key: CollectionKey, uris: Sequence[str], request: Request) -> Stored:
        return self._once(key.tenant, request, lambda: self._take_out(self._id(key), uris))

    def search(
        self, key: CollectionKey, query: str, count: int
    ) -> Sequence[collections_pb2.Passage]:
        identity = self._id(key)
        terms = self._terms(identity, query)
        if not terms:
            return []
        weights = f"{_TITLE_WEIGHT}, {_HEADINGS_WEIGHT}, {_TEXT_WEIGHT}"
        rows = self._sql.execute(
            f"SELECT p.rowid, -bm25(passages_{identity}, {weights}) AS fit,"
            "  p.title, p.headings, p.text, p.line, d.uri"
            f" FROM passages_{identity} p JOIN documents d ON d.id = p.rowid / {PASSAGES_MAX}"
            f" WHERE passages_{identity} MATCH ? ORDER BY fit DESC, p.rowid LIMIT ?",
            (match_expression(terms), max(CANDIDATES_MIN, 4 * count)),
        )
        candidates = [
            Candidate(row[1], self._stems("\n".join(row[2:5])), _passage(row)) for row in rows
        ]
        return ranked(candidates, terms)[:count]

    @property
    def _sql(self) -> apsw.Connection:
        if self._connection is None:
            raise NotServing("the index of collections is closed")
        return self._connection

    def _row(self, statement: str, *values: Any) -> tuple[Any, ...] | None:
        rows = self._sql.execute(statement, values).fetchall()
        return rows[0] if rows else None

    def _id(self, key: CollectionKey) -> int:
        statement = "SELECT id FROM collections WHERE tenant = ? AND name = ?"
        row = self._row(statement, key.tenant, key.collection)
        if row is None:
            raise NotFound.of("collection", str(key))
        return int(row[0])

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
        statement = "SELECT digest, documents, passages FROM requests WHERE tenant = ? AND id = ?"
        row = self._row(statement, tenant, request.id)
        if row is None:
            return None
        if row[0] != request.digest:
            raise RequestIdReused.of("request_id", "was used before with another body")
        return Stored(row[1], row[2])

    def _remember(self, tenant: str, request: Request, stored: Stored) -> None:
        self._sql.execute(
            "INSERT INTO requests (tenant, id, digest, documents, passages) VALUES (?, ?, ?, ?, ?)",
            (tenant, request.id, request.digest, stored.documents, stored.passages),
        )
        forgotten = "DELETE FROM requests WHERE number <= ?"
        self._sql.execute(forgotten, (self._sql.last_insert_rowid() - REQUESTS_MAX,))

    def _make(self, key: CollectionKey, description: str) -> None:
        statement = "SELECT count(*), total(name = ?) FROM collections WHERE tenant = ?"
        row = self._row(statement, key.collection, key.tenant)
        if row is not None and row[1]:
            raise AlreadyExists(f"{key} is there already", metadata={"resource": str(key)})
        if row is not None and row[0] >= self._collections_max:
            raise LimitExceeded(f"a tenant has at most {self._collections_max} collections")
        self._sql.execute(
            "INSERT INTO collections (tenant, name, description, create_time_ns)"
            " VALUES (?, ?, ?, ?)",
            (key.tenant, key.collection, description, self._now_ns()),
        )
        tokenizer = " ".join((_TOKENIZER[0], *_TOKENIZER[1]))
        self._sql.execute(
            f"CREATE VIRTUAL TABLE passages_{self._sql.last_insert_rowid()} USING"
            f" fts5(title, headings, text, line UNINDEXED, tokenize = '{tokenizer}')"
        )

    def _put(self, identity: int, document: SplitDocument) -> None:
        count = len(document.passages)
        if count > PASSAGES_MAX:
            raise LimitExceeded(f"a document has at most {PASSAGES_MAX} passages")
        self._sql.execute(
            "INSERT INTO documents (collection, uri, title, passage_count) VALUES (?, ?, ?, ?)",
            (identity, document.uri, document.title, count),
        )
        first = self._sql.last_insert_rowid() * PASSAGES_MAX
        self._sql.executemany(
            f"INSERT INTO passages_{identity} (rowid, title, headings, text, line)"
            " VALUES (?, ?, ?, ?, ?)",
            (
                (first + number, document.title, "\n".join(each.headings), each.text, each.line)
                for number, each in enumerate(document.passages)
            ),
        )

    def _take_out(self, identity: int, uris: Sequence[str]) -> Stored:
        documents = passages = 0
        statement = "SELECT id, passage_count FROM documents WHERE collection = ? AND uri = ?"
        for uri in uris:
            row = self._row(statement, identity, uri)
            if row is None:
                continue
            first = row[0] * PASSAGES_MAX
            self._sql.execute(
                f"DELETE FROM passages_{identity} WHERE rowid BETWEEN ? AND ?",
                (first, first + PASSAGES_MAX - 1),
            )
            self._sql.execute("DELETE FROM documents WHERE id = ?", (row[0],))
            documents, passages = documents + 1, passages + row[1]
        return Stored(documents, passages)

    def _terms(self, identity: int, query: str) -> Mapping[str, Term]:
        """The query's words that occur in the collection, by their stems."""
        self._sql.execute(
            f"CREATE VIRTUAL TABLE IF NOT EXISTS temp.words_{identity}"
            f" USING fts5vocab(main, passages_{identity}, row)"
        )
        count = "SELECT total(passage_count) FROM documents WHERE collection = ?"
        passages = self._row(count, identity)
        terms: dict[str, Term] = {}
        for word, stem in self._words(query):
            if stem in terms or len(terms) == TERMS_MAX:
                continue
            row = self._row(f"SELECT doc FROM temp.words_{identity} WHERE term = ?", stem)
            if row is not None and passages is not None:
                terms[stem] = Term(word, rarity(passages[0], row[0]))
        return terms

    def _stems(self, text: str) -> frozenset[str]:
        return frozenset(stem for _, stem in self._words(text))

    def _words(self, text: str) -> Iterator[tuple[str, str]]:
        """The words of the text with their stems, as they are indexed."""
        encoded = text.encode()
        tokenizer = self._sql.fts5_tokenizer(*_TOKENIZER)
        found = tokenizer(encoded, apsw.FTS5_TOKENIZE_DOCUMENT, None, include_colocated=False)
        for start, end, stem in cast(Iterable[tuple[int, int, str]], found):
            yield encoded[start:end].decode(), stem


def _collection(tenant: str, row: tuple[Any, ...]) -> collections_pb2.Collection:
    name, description, create_time_ns, documents, passages = row
    collection = collections_pb2.Collection(
        name=str(CollectionKey(tenant, name)),
        description=description,
        document_count=documents,
        passage_count=passages,
    )
    collection.create_time.FromNanoseconds(create_time_ns)
    return collection


def _passage(row: tuple[Any, ...]) -> collections_pb2.Passage:
    title, headings, text, line, uri = row[2:]
    return collections_pb2.Passage(
        uri=uri,
        title=title,
        headings=headings.split("\n") if headings else (),
        line=line,
        text=text,
    )
