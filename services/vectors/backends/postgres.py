"""A passage index in PostgreSQL, with pgvector for the vectors.

Vectors are found by an HNSW index, so approximately: a neighbour may be missed. Where a
filter leaves few passages, or the index finds too few of those that it leaves, they are
looked through one by one.
"""

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from psycopg_pool import AsyncConnectionPool

from mesh.errors import (
    AlreadyExists,
    LimitExceeded,
    NotFound,
    RequestIdReused,
    Unavailable,
)
from services.vectors.backends import postgres_schema as schema
from services.vectors.backends.filter_sql import rows
from services.vectors.backends.postgres_connection import (
    Connection,
    configure,
    copy_into,
    faults,
    fetch_all,
    fetch_one,
    prepare,
    run,
)
from services.vectors.backends.postgres_search import DIALECT, match, nearest, written
from services.vectors.backends.postgres_words import lexemes
from services.vectors.backends.rows import collection_of, refuse_other_dimension
from services.vectors.backends.schema import PASSAGES_MAX
from services.vectors.domain.filters import Filter
from services.vectors.domain.metadata import read_metadata
from services.vectors.domain.vectors import Metric, Vector
from services.vectors.index import (
    NOTHING,
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

S = schema.SCHEMA
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
_COLLECTION = (
    "SELECT name, description, create_time_ns, document_count, passage_count, dimension,"
    f" metric, model FROM {S}.collections WHERE tenant = %s"
)
_log = structlog.get_logger(__name__)


class PostgresIndex:
    """The passage index in the database at `url`, which holds no password.

    A call waits for a connection for `connect_seconds`. `waiting_max` bounds the calls that
    wait; further ones get LimitExceeded. `collections_max` bounds the collections of one
    tenant, `passages_max` the passages of a collection.
    """

    def __init__(
        self,
        url: str,
        password: str = "",
        *,
        connections_max: int,
        connect_seconds: float,
        waiting_max: int,
        collections_max: int,
        passages_max: int,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._collections_max = collections_max
        self._passages_max = passages_max
        self._now_ns = now_ns
        self._prepared = False
        self._preparing = asyncio.Lock()
        options: dict[str, Any] = {"connect_timeout": math.ceil(connect_seconds)}
        if password:
            options["password"] = password
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            url,
            kwargs=options,
            min_size=0,
            max_size=connections_max,
            max_waiting=waiting_max,
            timeout=connect_seconds,
            open=False,
            configure=configure,
        )

    async def open(self) -> None:
        """See PassageIndex. A database that is out of reach now may be there later."""
        await self._pool.open()
        try:
            async with self._transaction():
                return
        except Unavailable as error:
            _log.warning("the database of collections can't be reached yet", error=error.message)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self._pool.close()

    async def create(
        self, key: CollectionKey, spec: CollectionSpec, request: Request
    ) -> collections_pb2.Collection:
        async def change(connection: Connection) -> Stored:
            await self._make(connection, key, spec)
            return NOTHING

        await self._once(key.tenant, request, change)
        return await self.get(key)

    async def get(self, key: CollectionKey) -> collections_pb2.Collection:
        async with self._transaction() as connection:
            row = await fetch_one(
                connection, f"{_COLLECTION} AND name = %s", key.tenant, key.collection
            )
        if row is None:
            raise NotFound.of("collection", str(key))
        return _collection(key.tenant, row)

    async def page(
        self, tenant: str, after: str, count: int
    ) -> Sequence[collections_pb2.Collection]:
        statement = f"{_COLLECTION} AND name > %s ORDER BY name LIMIT %s"
        async with self._transaction() as connection:
            found = await fetch_all(connection, statement, tenant, after, count)
        return [_collection(tenant, row) for row in found]

    async def delete(self, key: CollectionKey, request: Request) -> None:
        async def change(connection: Connection) -> Stored:
            identity, _, _ = await self._locked(connection, key)
            await run(connection, f"DROP TABLE {S}.passages_{identity}")
            await run(connection, f"DELETE FROM {S}.collections WHERE id = %s", identity)
            return NOTHING

        await self._once(key.tenant, request, change)

    async def present(self, key: CollectionKey, uris: Sequence[str]) -> Mapping[str, Present]:
        async with self._transaction() as connection:
            identity, _, _ = await self._found(connection, key)
            found = await fetch_all(
                connection,
                f"SELECT uri, digest, passage_count FROM {S}.documents"
                " WHERE collection = %s AND uri_digest = ANY(%s)",
                identity,
                [_uri_digest(uri) for uri in uris],
            )
        return {uri.decode(): Present(digest, count) for uri, digest, count in found}

    async def upsert(
        self,
        key: CollectionKey,
        documents: Sequence[SplitDocument],
        request: Request,
        unchanged: Stored = NOTHING,
    ) -> Stored:
        # Splitting into words takes longer than storing them, and needs no connection.
        words = await asyncio.to_thread(lambda: [_words(document) for document in documents])

        async def change(connection: Connection) -> Stored:
            identity, dimension, _ = await self._locked(connection, key)
            uris = [document.uri for document in documents]
            _refuse_unfit(documents, dimension)
            await self._take_out(connection, identity, *_by_uris(uris))
            passages = sum(len(document.passages) for document in documents)
            await self._count(connection, identity, len(documents), passages)
            if documents:
                await self._put(connection, identity, documents, words)
            return Stored(
                len(documents) + unchanged.documents,
                passages + unchanged.passages,
                unchanged.documents,
            )

        return await self._once(key.tenant, request, change)

    async def remove(self, key: CollectionKey, uris: Sequence[str], request: Request) -> Stored:
        return await self._remove(key, lambda _: _by_uris(uris), request)

    async def remove_matching(self, key: CollectionKey, only: Filter, request: Request) -> Stored:
        def which(identity: int) -> tuple[str, tuple[Any, ...]]:
            condition = DIALECT.condition(only, identity)
            return condition.sql, condition.values

        return await self._remove(key, which, request)

    async def match(
        self, key: CollectionKey, query: str, count: int, only: Filter | None = None
    ) -> Sequence[Hit]:
        async with self._transaction() as connection:
            identity, _, _ = await self._found(connection, key)
            return await match(connection, identity, query, count, only)

    async def nearest(
        self, key: CollectionKey, vector: Vector, count: int, only: Filter | None = None
    ) -> Sequence[Hit]:
        async with self._transaction() as connection:
            identity, dimension, metric = await self._found(connection, key)
            refuse_other_dimension(vector, dimension)
            return await nearest(connection, identity, metric, vector, count, only)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        async with faults(), self._pool.connection() as connection:
            if not self._prepared:
                # Apart from the caller's transaction, which may be taken back.
                async with self._preparing, connection.transaction():
                    await prepare(connection)
                self._prepared = True
            async with connection.transaction():
                yield connection

    async def _once(
        self, tenant: str, request: Request, change: Callable[[Connection], Awaitable[Stored]]
    ) -> Stored:
        """Does and remembers `change`, or returns what it did when it was done before."""
        async with self._transaction() as connection:
            if not request.id:
                return await change(connection)
            # Whoever sends the same request meanwhile waits for what becomes of it.
            await run(connection, _LOCK, f"{S} request {tenant} {request.id}")
            row = await fetch_one(
                connection,
                f"SELECT digest, documents, passages, unchanged FROM {S}.requests"
                " WHERE tenant = %s AND id = %s",
                tenant,
                request.id,
            )
            if row is not None:
                if row[0] != request.digest:
                    raise RequestIdReused.of("request_id", "was used before with another body")
                return Stored(*row[1:])
            stored = await change(connection)
            await run(
                connection,
                f"WITH made AS (INSERT INTO {S}.requests"
                " (tenant, id, digest, documents, passages, unchanged)"
                " VALUES (%s, %s, %s, %s, %s, %s) RETURNING number)"
                f" DELETE FROM {S}.requests WHERE number <= (SELECT number FROM made) - %s",
                *(tenant, request.id, request.digest),
                *(stored.documents, stored.passages, stored.unchanged, REQUESTS_MAX),
            )
            return stored

    async def _found(
        self, connection: Connection, key: CollectionKey, lock: str = ""
    ) -> tuple[int, int, Metric]:
        """Id, dimension and metric of the collection."""
        row = await fetch_one(
            connection,
            f"SELECT id, dimension, metric FROM {S}.collections"
            f" WHERE tenant = %s AND name = %s {lock}",
            key.tenant,
            key.collection,
        )
        if row is None:
            raise NotFound.of("collection", str(key))
        return int(row[0]), int(row[1]), Metric(row[2])

    async def _locked(self, connection: Connection, key: CollectionKey) -> tuple[int, int, Metric]:
        """As `_found`; whoever changes the collection, too, waits for this one's end."""
        return await self._found(connection, key, "FOR UPDATE")

    async def _make(self, connection: Connection, key: CollectionKey, spec: CollectionSpec) -> None:
        await run(connection, _LOCK, f"{S} tenant {key.tenant}")
        statement = (
            f"SELECT count(*), count(*) FILTER (WHERE name = %s) FROM {S}.collections"
            " WHERE tenant = %s"
        )
        row = await fetch_one(connection, statement, key.collection, key.tenant)
        if row is not None and row[1]:
            raise AlreadyExists(f"{key} is there already", metadata={"resource": str(key)})
        if row is not None and row[0] >= self._collections_max:
            raise LimitExceeded(f"a tenant has at most {self._collections_max} collections")
        made = await fetch_one(
            connection,
            f"INSERT INTO {S}.collections"
            " (tenant, name, description, create_time_ns, dimension, metric, model)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING id",
            *(key.tenant, key.collection, spec.description.encode(), self._now_ns()),
            *(spec.dimension, str(spec.metric), spec.model),
        )
        assert made is not None
        await connection.execute(
            schema.passages_table(int(made[0]), spec.dimension, spec.metric).encode()
        )

    async def _put(
        self,
        connection: Connection,
        identity: int,
        documents: Sequence[SplitDocument],
        words: Sequence[Sequence[str]],
    ) -> None:
        """Stores documents whose uris aren't there, all in three statements."""
        made = await fetch_all(
            connection,
            f"INSERT INTO {S}.documents"
            " (collection, uri_digest, uri, title, passage_count, digest, metadata)"
            " SELECT %s, * FROM unnest"
            " (%s::bytea[], %s::bytea[], %s::bytea[], %s::int[], %s::bytea[], %s::bytea[])"
            " RETURNING uri_digest, id",
            identity,
            [_uri_digest(document.uri) for document in documents],
            [document.uri.encode() for document in documents],
            [document.title.encode() for document in documents],
            [len(document.passages) for document in documents],
            [document.digest for document in documents],
            [document.metadata.SerializeToString(deterministic=True) for document in documents],
        )
        numbers = dict(made)
        numbered = [
            (int(numbers[_uri_digest(document.uri)]), document, each)
            for document, each in zip(documents, words, strict=True)
        ]
        has_vectors = any(document.vectors for document in documents)
        columns = "id, document, headings, text, line, page, words"
        columns += ", vector" if has_vectors else ""
        passages = (
            row[:-1] if not has_vectors else row
            for number, document, each in numbered
            for row in _passage_rows(number, document, each)
        )
        await copy_into(connection, f"{S}.passages_{identity} ({columns})", passages)
        attributes = (
            (identity, number, key, kind, *((value, None) if kind == "s" else (None, value)))
            for number, document, _ in numbered
            for key, kind, value in rows(read_metadata(document.metadata, "metadata"))
        )
        columns = "collection, document, key, kind, text, number"
        await copy_into(connection, f"{S}.attributes ({columns})", attributes)

    async def _remove(
        self,
        key: CollectionKey,
        which: Callable[[int], tuple[str, Sequence[Any]]],
        request: Request,
    ) -> Stored:
        async def change(connection: Connection) -> Stored:
            identity, _, _ = await self._locked(connection, key)
            return await self._take_out(connection, identity, *which(identity))

        return await self._once(key.tenant, request, change)

    async def _take_out(
        self, connection: Connection, identity: int, which: str, values: Sequence[Any]
    ) -> Stored:
        row = await fetch_one(
            connection,
            f"WITH gone AS (DELETE FROM {S}.documents d WHERE d.collection = %s AND ({which})"
            " RETURNING passage_count)"
            " SELECT count(*), coalesce(sum(passage_count), 0) FROM gone",
            identity,
            *values,
        )
        assert row is not None
        taken = Stored(int(row[0]), int(row[1]))
        await self._count(connection, identity, -taken.documents, -taken.passages)
        return taken

    async def _count(
        self, connection: Connection, identity: int, documents: int, passages: int
    ) -> None:
        row = await fetch_one(
            connection,
            f"UPDATE {S}.collections SET document_count = document_count + %s,"
            " passage_count = passage_count + %s WHERE id = %s RETURNING passage_count",
            documents,
            passages,
            identity,
        )
        if passages > 0 and row is not None and row[0] > self._passages_max:
            raise LimitExceeded(f"a collection has at most {self._passages_max} passages")


def _by_uris(uris: Sequence[str]) -> tuple[str, tuple[Any, ...]]:
    return "d.uri_digest = ANY(%s)", ([_uri_digest(uri) for uri in uris],)


def _uri_digest(uri: str) -> bytes:
    # An index entry can't hold the longest uris.
    return hashlib.sha256(uri.encode()).digest()


def _refuse_unfit(documents: Sequence[SplitDocument], dimension: int) -> None:
    for document in documents:
        if len(document.passages) > PASSAGES_MAX:
            raise LimitExceeded(f"a document has at most {PASSAGES_MAX} passages")
        for vector in document.vectors:
            if vector is not None:
                refuse_other_dimension(vector, dimension)


def _passage_rows(
    number: int, document: SplitDocument, words: Sequence[str]
) -> Iterator[tuple[Any, ...]]:
    vectors = document.vectors or [None] * len(document.passages)
    each = zip(document.passages, vectors, words, strict=True)
    for place, (passage, vector, lexemes_of_it) in enumerate(each):
        yield (
            *(number * PASSAGES_MAX + place, number, "\n".join(passage.headings).encode()),
            *(passage.text.encode(), passage.line, passage.page, lexemes_of_it),
            None if vector is None else written(vector),
        )


def _words(document: SplitDocument) -> list[str]:
    """The words of each passage, as a tsvector."""
    return [
        lexemes([(document.title, "B"), ("\n".join(passage.headings), "A"), (passage.text, "D")])
        for passage in document.passages
    ]


def _collection(tenant: str, row: tuple[Any, ...]) -> collections_pb2.Collection:
    return collection_of(tenant, (row[0], row[1].decode(), *row[2:]))
