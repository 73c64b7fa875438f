"""What every passage index keeps to; a back end joins with a class and a fixture."""

import asyncio
import math
import operator
import random
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from google.protobuf.struct_pb2 import Struct

from mesh.errors import (
    AlreadyExists,
    DataDamaged,
    FailedPrecondition,
    LimitExceeded,
    NotFound,
    RequestIdReused,
    Unavailable,
)
from services.vectors.backends.postgres import PostgresIndex
from services.vectors.backends.sqlite import SqliteIndex
from services.vectors.chunking import Passage
from services.vectors.domain.filters import parse_filter
from services.vectors.domain.vectors import Metric
from services.vectors.index import (
    CollectionKey,
    CollectionSpec,
    PassageIndex,
    Present,
    Request,
    SplitDocument,
    Stored,
)
from tests.support.postgres import running_postgres
from weft.vectors.v1 import collections_pb2

BOOKS = CollectionKey("acme", "books")
UNNAMED = Request("", b"")
PASSAGES_MAX = 2_000


def document(uri: str, *texts: str, title: str = "Untitled", heading: str = "") -> SplitDocument:
    headings = (heading,) if heading else ()
    passages = [Passage(headings, number, text) for number, text in enumerate(texts, 1)]
    return SplitDocument(uri, title, passages)


def placed(uri: str, vector: Sequence[float], **metadata: Any) -> SplitDocument:
    known = Struct()
    known.update(metadata)
    split = document(uri, "a word")
    return replace(split, vectors=[array("f", vector)], metadata=known)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.hypot(*one) / math.hypot(*other)


async def filled(index: PassageIndex, *documents: SplitDocument) -> None:
    await index.create(BOOKS, CollectionSpec("books"), UNNAMED)
    await index.upsert(BOOKS, documents, UNNAMED)


async def found(index: PassageIndex, query: str, count: int = 8) -> list[str]:
    return [hit.passage.uri for hit in await index.match(BOOKS, query, count)]


class PassageIndexContract:
    """A subclass brings the fixture `index`: an open, empty index for two collections
    of a tenant at most."""

    async def test_a_collection_is_returned_as_it_was_made(self, index: PassageIndex) -> None:
        made = await index.create(BOOKS, CollectionSpec("what we read"), UNNAMED)
        assert made.name == "tenants/acme/collections/books"
        assert made.description == "what we read"
        assert made.create_time.seconds > 0
        assert await index.get(BOOKS) == made

    async def test_counts_follow_what_is_stored(self, index: PassageIndex) -> None:
        await filled(index, document("a", "one", "two"), document("b", "three"))
        collection = await index.get(BOOKS)
        assert (collection.document_count, collection.passage_count) == (2, 3)
        await index.remove(BOOKS, ["a"], UNNAMED)
        collection = await index.get(BOOKS)
        assert (collection.document_count, collection.passage_count) == (1, 1)

    async def test_a_collection_is_made_once(self, index: PassageIndex) -> None:
        await index.create(BOOKS, CollectionSpec(), UNNAMED)
        with pytest.raises(AlreadyExists):
            await index.create(BOOKS, CollectionSpec(), UNNAMED)

    async def test_the_bound_on_collections_holds_per_tenant(self, index: PassageIndex) -> None:
        for name in ("a", "b"):
            await index.create(CollectionKey("acme", name), CollectionSpec(), UNNAMED)
        with pytest.raises(LimitExceeded):
            await index.create(CollectionKey("acme", "c"), CollectionSpec(), UNNAMED)
        await index.create(CollectionKey("other", "c"), CollectionSpec(), UNNAMED)

    async def test_a_repeated_request_changes_nothing_more(self, index: PassageIndex) -> None:
        first = await index.create(BOOKS, CollectionSpec(), Request("r1", b"1"))
        assert await index.create(BOOKS, CollectionSpec(), Request("r1", b"1")) == first
        documents = [document("a", "one", "two")]
        stored = await index.upsert(BOOKS, documents, Request("r2", b"2"))
        assert stored == Stored(1, 2)
        await index.remove(BOOKS, ["a"], UNNAMED)
        assert await index.upsert(BOOKS, documents, Request("r2", b"2")) == stored
        assert (await index.get(BOOKS)).document_count == 0

    async def test_the_same_request_twice_at_once_is_done_once(self, index: PassageIndex) -> None:
        makings = [index.create(BOOKS, CollectionSpec(), Request("r1", b"1")) for _ in range(4)]
        first, *others = await asyncio.gather(*makings)
        assert all(other == first for other in others)
        documents = [document("a", "one", "two")]
        storings = [index.upsert(BOOKS, documents, Request("r2", b"2")) for _ in range(4)]
        assert await asyncio.gather(*storings) == [Stored(1, 2)] * 4
        removals = [index.remove(BOOKS, ["a"], Request("r3", b"3")) for _ in range(4)]
        assert await asyncio.gather(*removals) == [Stored(1, 2)] * 4

    async def test_a_request_id_with_another_body_is_refused(self, index: PassageIndex) -> None:
        await index.create(BOOKS, CollectionSpec(), Request("r1", b"1"))
        with pytest.raises(RequestIdReused):
            await index.delete(BOOKS, Request("r1", b"2"))
        assert await index.get(BOOKS)

    async def test_a_failed_request_is_not_remembered(self, index: PassageIndex) -> None:
        with pytest.raises(NotFound):
            await index.upsert(BOOKS, [document("a", "one")], Request("r1", b"1"))
        await index.create(BOOKS, CollectionSpec(), UNNAMED)
        stored = await index.upsert(BOOKS, [document("a", "one")], Request("r1", b"1"))
        assert stored == Stored(1, 1)

    async def test_what_is_not_there_is_not_found(self, index: PassageIndex) -> None:
        for work in (
            index.get(BOOKS),
            index.delete(BOOKS, UNNAMED),
            index.upsert(BOOKS, [], UNNAMED),
            index.remove(BOOKS, ["a"], UNNAMED),
            index.match(BOOKS, "word", 8),
        ):
            with pytest.raises(NotFound, match="tenants/acme/collections/books"):
                await work

    async def test_a_page_goes_on_behind_an_id(self, index: PassageIndex) -> None:
        for name in ("b", "a"):
            await index.create(CollectionKey("acme", name), CollectionSpec(), UNNAMED)
        await index.create(CollectionKey("other", "z"), CollectionSpec(), UNNAMED)
        names = [each.name.rpartition("/")[2] for each in await index.page("acme", "", 10)]
        assert names == ["a", "b"]
        assert [each.name[-1] for each in await index.page("acme", "", 1)] == ["a"]
        assert [each.name[-1] for each in await index.page("acme", "a", 10)] == ["b"]
        assert not await index.page("nobody", "", 10)

    async def test_a_document_replaces_the_one_of_its_uri(self, index: PassageIndex) -> None:
        await filled(index, document("a", "about whales"), document("b", "about birds"))
        await index.upsert(BOOKS, [document("a", "about turtles")], UNNAMED)
        assert await found(index, "whales") == []
        assert await found(index, "turtles") == ["a"]
        assert (await index.get(BOOKS)).document_count == 2

    async def test_a_deleted_collection_comes_back_empty(self, index: PassageIndex) -> None:
        await filled(index, document("a", "about whales"))
        assert await found(index, "whales") == ["a"]
        await index.delete(BOOKS, UNNAMED)
        await index.create(BOOKS, CollectionSpec(), UNNAMED)
        assert await found(index, "whales") == []

    async def test_removing_counts_what_was_there(self, index: PassageIndex) -> None:
        await filled(index, document("a", "one", "two"))
        assert await index.remove(BOOKS, ["a", "never"], UNNAMED) == Stored(1, 2)
        assert await found(index, "one") == []

    async def test_a_passage_comes_back_whole(self, index: PassageIndex) -> None:
        text = "Grüße, 東京!\n\tline two\x00 end"
        split = SplitDocument("u", "Title", [Passage(("Top", "Sub"), 7, text)])
        await filled(index, split)
        (hit,) = await index.match(BOOKS, "grusse two", 8)
        passage = hit.passage
        assert (passage.uri, passage.title, passage.line) == ("u", "Title", 7)
        assert list(passage.headings) == ["Top", "Sub"]
        assert passage.text == text
        assert passage.score > 0

    async def test_words_match_in_their_other_forms(self, index: PassageIndex) -> None:
        await filled(index, document("a", "The servers were restarting quickly"))
        assert await found(index, "RESTARTED server") == ["a"]

    async def test_any_word_of_the_query_is_enough(self, index: PassageIndex) -> None:
        await filled(index, document("a", "a lease expires"), document("b", "a fish swims"))
        assert await found(index, "which lease is it, and why?") == ["a"]

    async def test_more_words_of_the_query_come_first(self, index: PassageIndex) -> None:
        await filled(
            index,
            document("often", "backup backup backup backup backup"),
            document("all", "a nightly backup is kept for thirty days"),
            document("one", "a short night"),
        )
        assert await found(index, "how long is a nightly backup kept") == ["all", "often", "one"]

    async def test_a_heading_counts_more_than_the_text(self, index: PassageIndex) -> None:
        text = "the same words in each of these passages about quotas"
        await filled(
            index,
            document("text", text),
            document("heading", text, heading="Quotas"),
            document("other", "something else entirely"),
        )
        assert (await found(index, "quotas"))[0] == "heading"

    async def test_scores_fall_and_the_count_bounds_them(self, index: PassageIndex) -> None:
        texts = ["alpha beta", "alpha", "beta gamma", "alpha beta gamma", "delta"]
        await filled(index, *(document(text, text) for text in texts))
        hits = await index.match(BOOKS, "alpha beta gamma", 3)
        passages = [hit.passage for hit in hits]
        scores = [passage.score for passage in passages]
        assert len(passages) == 3
        assert scores == sorted(scores, reverse=True)
        assert passages[0].uri == "alpha beta gamma"

    @pytest.mark.parametrize(
        "query",
        [
            '"',
            "'",
            "AND",
            "whale AND NOT whale",
            "NEAR(whale, 2)",
            "title: whale",
            "whale*",
            "^whale",
            "-whale",
            "{whale",
            "(whale",
            "whale)",
            "whale; DROP TABLE collections",
            "\x00whale",
            "🐋 whale",
            "whale " * 800,
        ],
    )
    async def test_nothing_in_a_query_has_a_meaning(self, index: PassageIndex, query: str) -> None:
        await filled(index, document("a", "a whale"), document("b", "a bird"))
        uris = await found(index, query)
        assert uris[:1] == (["a"] if "whale" in query else [])

    async def test_collections_do_not_see_each_other(self, index: PassageIndex) -> None:
        other = CollectionKey("other", "books")
        await filled(index, document("a", "about whales"))
        await index.create(other, CollectionSpec(), UNNAMED)
        assert not await index.match(other, "whales", 8)

    async def test_calls_at_the_same_time_all_count(self, index: PassageIndex) -> None:
        await index.create(BOOKS, CollectionSpec(), UNNAMED)
        documents = [document(f"d{number}", "a word") for number in range(20)]
        await asyncio.gather(*(index.upsert(BOOKS, [each], UNNAMED) for each in documents))
        assert (await index.get(BOOKS)).document_count == 20

    async def test_a_collection_tells_of_its_vectors(self, index: PassageIndex) -> None:
        spec = CollectionSpec("", 3, Metric.L2, "provider/model")
        made = await index.create(BOOKS, spec, UNNAMED)
        assert (made.dimension, made.metric) == (3, collections_pb2.METRIC_L2)
        assert made.model == "provider/model"
        assert await index.get(BOOKS) == made

    @pytest.mark.parametrize(
        ("metric", "uris", "best"),
        [
            (Metric.COSINE, ["far", "near", "aside"], 1.0),
            (Metric.DOT, ["far", "near", "aside"], 10.0),
            (Metric.L2, ["near", "aside", "far"], -1.0),
        ],
    )
    async def test_the_nearest_come_first_by_each_metric(
        self, index: PassageIndex, metric: Metric, uris: list[str], best: float
    ) -> None:
        await index.create(BOOKS, CollectionSpec("", 2, metric), UNNAMED)
        given = {"near": (2.0, 0.5), "far": (10.0, 0.0), "aside": (0.0, 2.0)}
        documents = [placed(uri, vector) for uri, vector in given.items()]
        await index.upsert(BOOKS, documents, UNNAMED)
        hits = await index.nearest(BOOKS, array("f", (1.0, 0.0)), 8)
        assert [hit.passage.uri for hit in hits] == uris
        assert hits[0].passage.score == pytest.approx(best, abs=0.2)
        scores = [hit.passage.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
        assert len(await index.nearest(BOOKS, array("f", (1.0, 0.0)), 2)) == 2

    async def test_nearest_agree_with_a_plain_computation(self, index: PassageIndex) -> None:
        chance = random.Random(1)
        await index.create(BOOKS, CollectionSpec("", 16, Metric.COSINE), UNNAMED)
        vectors = {
            str(number): array("f", (chance.gauss(0, 1) for _ in range(16)))
            for number in range(150)
        }
        documents = [placed(uri, vector) for uri, vector in vectors.items()]
        await index.upsert(BOOKS, documents, UNNAMED)
        for uri, query in list(vectors.items())[:5]:
            expected = sorted(vectors, key=lambda other: -cosine(query, vectors[other]))[:10]
            hits = await index.nearest(BOOKS, query, 10)
            assert [hit.passage.uri for hit in hits] == expected
            assert hits[0].passage.uri == uri
            for hit in hits:
                score = cosine(query, vectors[hit.passage.uri])
                assert hit.passage.score == pytest.approx(score, abs=1e-5)

    async def test_a_dot_product_is_right_whatever_the_lengths(self, index: PassageIndex) -> None:
        chance = random.Random(2)
        await index.create(BOOKS, CollectionSpec("", 16, Metric.DOT), UNNAMED)
        lengths = {"long": 1e6, "none": 0.0, "shortest": 1e-30, "short": 1e-5}
        vectors = {
            uri: array("f", (chance.gauss(0, 1) * lengths.get(uri, 1.0) for _ in range(16)))
            for uri in (*lengths, *map(str, range(60)))
        }
        await index.upsert(BOOKS, [placed(*each) for each in vectors.items()], UNNAMED)
        # One of them is long itself, and one has no direction.
        for query in (vectors["7"], vectors["long"], vectors["none"]):
            hits = await index.nearest(BOOKS, query, len(vectors))
            assert len(hits) == len(vectors)
            for hit in hits:
                other = vectors[hit.passage.uri]
                near = 1e-5 * math.hypot(*query) * math.hypot(*other) + 1e-9
                product = sum(map(operator.mul, query, other))
                assert hit.passage.score == pytest.approx(product, abs=near)

    async def test_passages_without_a_vector_are_found_by_words_only(
        self, index: PassageIndex
    ) -> None:
        await index.create(BOOKS, CollectionSpec("", 2), UNNAMED)
        some = replace(document("some", "one", "two"), vectors=[None, array("f", (1.0, 0.0))])
        await index.upsert(BOOKS, [document("none", "one"), some], UNNAMED)
        (hit,) = await index.nearest(BOOKS, array("f", (1.0, 0.0)), 8)
        assert (hit.passage.uri, hit.passage.text) == ("some", "two")
        assert sorted(await found(index, "one")) == ["none", "some"]

    async def test_a_vector_of_another_dimension_is_refused_and_nothing_stored(
        self, index: PassageIndex
    ) -> None:
        await index.create(BOOKS, CollectionSpec("", 2), UNNAMED)
        wrong = placed("wrong", (1.0, 2.0, 3.0))
        with pytest.raises(FailedPrecondition, match="2 numbers, not 3"):
            await index.upsert(BOOKS, [document("a", "one"), wrong], UNNAMED)
        with pytest.raises(FailedPrecondition):
            await index.nearest(BOOKS, array("f", (1.0,)), 8)
        assert (await index.get(BOOKS)).document_count == 0

    async def test_a_collection_without_vectors_has_no_neighbours(
        self, index: PassageIndex
    ) -> None:
        await filled(index, document("a", "one"))
        with pytest.raises(FailedPrecondition, match="no vectors"):
            await index.nearest(BOOKS, array("f", (1.0,)), 8)

    async def test_vectors_go_with_their_documents(self, index: PassageIndex) -> None:
        await index.create(BOOKS, CollectionSpec("", 2), UNNAMED)
        query = array("f", (1.0, 0.0))
        await index.upsert(BOOKS, [placed("a", (1, 0)), placed("b", (1, 1))], UNNAMED)
        await index.upsert(BOOKS, [placed("a", (-1, 0))], UNNAMED)
        assert [hit.passage.uri for hit in await index.nearest(BOOKS, query, 8)] == ["b", "a"]
        await index.remove(BOOKS, ["b"], UNNAMED)
        assert [hit.passage.uri for hit in await index.nearest(BOOKS, query, 8)] == ["a"]
        await index.delete(BOOKS, UNNAMED)
        await index.create(BOOKS, CollectionSpec("", 2), UNNAMED)
        assert not await index.nearest(BOOKS, query, 8)

    async def test_what_a_passage_is_known_by_comes_back(self, index: PassageIndex) -> None:
        metadata = Struct()
        metadata.update({"author": "Ann", "year": 2020, "tags": ["a", "b"], "draft": False})
        passage = Passage(("Top",), 3, "a whale", page=7)
        await filled(index, SplitDocument("u", "T", [passage], metadata=metadata))
        (hit,) = await index.match(BOOKS, "whale", 8)
        assert hit.passage.metadata == metadata
        assert (hit.passage.page, hit.passage.line) == (7, 3)

    @pytest.mark.parametrize(
        ("text", "uris"),
        [
            ('author = "Ann"', "ac"),
            ('author != "Ann"', "b"),
            ("year >= 2020", "ab"),
            ("year < 2020.5 AND year > 2019.5", "a"),
            ('tag = "red"', "ab"),
            ('tag != "red"', "c"),
            ('tag IN ("blue", "green")', "bc"),
            ("draft = true", "a"),
            ("draft = 1", ""),
            ('year = "2020"', ""),
            ("year:*", "abc"),
            ("NOT draft:*", "cd"),
            ('NOT author = "Ann"', "bd"),
            ('author = "Ann" AND (year > 2019 OR tag = "green")', "ac"),
            ('author > "Ann"', "b"),
            ('author = "\'; DROP TABLE documents; --"', ""),
            ('nothing = "Ann"', ""),
        ],
    )
    async def test_a_filter_leaves_in_whom_it_holds_for(
        self, index: PassageIndex, text: str, uris: str
    ) -> None:
        await index.create(BOOKS, CollectionSpec("", 2), UNNAMED)
        known: dict[str, dict[str, Any]] = {
            "a": {"author": "Ann", "year": 2020, "tag": ["red"], "draft": True},
            "b": {"author": "Bob", "year": 2021, "tag": ["red", "blue"], "draft": False},
            "c": {"author": "Ann", "year": 2019, "tag": "green"},
            "d": {},
        }
        documents = [placed(uri, (1, 0), **metadata) for uri, metadata in known.items()]
        await index.upsert(BOOKS, documents, UNNAMED)
        only = parse_filter(text)
        by_words = await index.match(BOOKS, "word", 8, only)
        by_vectors = await index.nearest(BOOKS, array("f", (1, 0)), 8, only)
        assert sorted(hit.passage.uri for hit in by_words) == list(uris)
        assert sorted(hit.passage.uri for hit in by_vectors) == list(uris)
        assert only is not None
        removed = await index.remove_matching(BOOKS, only, UNNAMED)
        assert removed == Stored(len(uris), len(uris))
        assert (await index.get(BOOKS)).document_count == 4 - len(uris)
        left = await index.nearest(BOOKS, array("f", (1, 0)), 8)
        assert {hit.passage.uri for hit in left} == set("abcd") - set(uris)

    async def test_a_filter_comes_before_the_count(self, index: PassageIndex) -> None:
        await index.create(BOOKS, CollectionSpec("", 2), UNNAMED)
        near = [placed(f"near{number}", (1, 0), year=1) for number in range(300)]
        far = [placed(f"far{number}", (0, 1), year=2) for number in range(3)]
        await index.upsert(BOOKS, [*near, *far], UNNAMED)
        only = parse_filter("year = 2")
        for hits in (
            await index.nearest(BOOKS, array("f", (1, 0)), 3, only),
            await index.match(BOOKS, "word", 3, only),
        ):
            assert sorted(hit.passage.uri for hit in hits) == ["far0", "far1", "far2"]

    async def test_what_is_there_is_told_by_its_digest(self, index: PassageIndex) -> None:
        await filled(index, replace(document("a", "one", "two"), digest=b"d"))
        assert await index.present(BOOKS, ["a", "b"]) == {"a": Present(b"d", 2)}
        stored = await index.upsert(BOOKS, [document("b", "x")], UNNAMED, Stored(1, 2))
        assert stored == Stored(2, 3, 1)

    async def test_the_passages_of_a_collection_are_bounded(self, index: PassageIndex) -> None:
        await filled(index, document("a", *["word"] * (PASSAGES_MAX - 1)))
        with pytest.raises(LimitExceeded):
            await index.upsert(BOOKS, [document("b", "one", "two")], UNNAMED)
        assert (await index.get(BOOKS)).passage_count == PASSAGES_MAX - 1
        # What is replaced makes room.
        await index.upsert(BOOKS, [document("a", "one", "two")], UNNAMED)

    async def test_a_tenant_never_finds_what_is_another_ones(self, index: PassageIndex) -> None:
        """The same names, texts, vectors and metadata: only the tenant differs."""
        theirs = CollectionKey("other", "books")
        vector = array("f", (1, 0))
        for key, uri in ((BOOKS, "ours"), (theirs, "theirs")):
            await index.create(key, CollectionSpec("", 2), UNNAMED)
            await index.upsert(key, [placed(uri, (1, 0), year=1)], UNNAMED)
        for text in ("year = 1", "NOT year = 2", "NOT nothing:*", "year = 1 OR NOT year = 1"):
            only = parse_filter(text)
            assert only is not None
            for key, uri in ((BOOKS, "ours"), (theirs, "theirs")):
                by_words = await index.match(key, "word", 8, only)
                by_vectors = await index.nearest(key, vector, 8, only)
                assert [hit.passage.uri for hit in (*by_words, *by_vectors)] == [uri, uri]
        everything = parse_filter("NOT nothing:*")
        assert everything is not None
        assert await index.remove_matching(BOOKS, everything, UNNAMED) == Stored(1, 1)
        assert (await index.get(theirs)).document_count == 1
        assert not await index.present(BOOKS, ["theirs"])


class TestSqliteIndex(PassageIndexContract):
    @pytest.fixture
    async def index(self, tmp_path: Path) -> AsyncIterator[PassageIndex]:
        index = SqliteIndex(
            tmp_path / "index.sqlite3", waiting_max=64, collections_max=2, passages_max=PASSAGES_MAX
        )
        await index.open()
        yield index
        await index.close()


async def test_a_file_keeps_what_was_stored(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite3"
    for expected in (0, 1):
        index = SqliteIndex(path, waiting_max=8, collections_max=2, passages_max=PASSAGES_MAX)
        await index.open()
        assert len(await index.page("acme", "", 8)) == expected
        if not expected:
            await filled(index, document("a", "about whales"))
        assert await found(index, "whales") == ["a"]
        await index.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite3"
    path.write_bytes(b"this was never a database" * 400)
    with pytest.raises(DataDamaged, match=r"index\.sqlite3 in the data folder is damaged"):
        await SqliteIndex(path, waiting_max=8, collections_max=2, passages_max=PASSAGES_MAX).open()


async def test_damage_in_the_middle_of_the_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite3"
    index = SqliteIndex(path, waiting_max=8, collections_max=2, passages_max=PASSAGES_MAX)
    await index.open()
    await filled(index, *(document(str(each), f"whale {each} " * 90) for each in range(200)))
    await index.close()
    data = bytearray(path.read_bytes())
    data[8192:] = b"\xff" * (len(data) - 8192)
    path.write_bytes(bytes(data))
    damaged = SqliteIndex(path, waiting_max=8, collections_max=2, passages_max=PASSAGES_MAX)
    with pytest.raises(DataDamaged):
        await _open_and_search(damaged)
    await damaged.close()


async def _open_and_search(index: SqliteIndex) -> None:
    await index.open()
    await found(index, "whale")


async def test_more_waiting_calls_than_the_bound_are_refused(tmp_path: Path) -> None:
    index = SqliteIndex(
        tmp_path / "index.sqlite3", waiting_max=2, collections_max=2, passages_max=PASSAGES_MAX
    )
    await index.open()
    await index.create(BOOKS, CollectionSpec(), UNNAMED)
    long = document("long", *["some words to index " * 50] * 1_000)
    calls = [index.upsert(BOOKS, [long], UNNAMED), *(index.get(BOOKS) for _ in range(5))]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome).__name__ for outcome in outcomes[2:]] == ["LimitExceeded"] * 4
    assert (await index.get(BOOKS)).passage_count == 1_000
    await index.close()


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with running_postgres() as url:
        yield url


class TestPostgresIndex(PassageIndexContract):
    @pytest.fixture
    async def index(self, database: str) -> AsyncIterator[PassageIndex]:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            await connection.execute("DROP SCHEMA IF EXISTS weft_vectors CASCADE")
        index = PostgresIndex(
            database,
            connections_max=4,
            connect_seconds=30,
            waiting_max=64,
            collections_max=2,
            passages_max=PASSAGES_MAX,
        )
        await index.open()
        yield index
        await index.close()


async def test_a_database_that_comes_later_is_used(database: str) -> None:
    index = PostgresIndex(
        database.replace("/postgres?", "/late?"),
        connections_max=2,
        connect_seconds=1,
        waiting_max=8,
        collections_max=2,
        passages_max=PASSAGES_MAX,
    )
    await index.open()
    with pytest.raises(Unavailable):
        await index.get(BOOKS)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("CREATE DATABASE late")
    for _ in range(20):
        # What makes the tables isn't taken back with the first call.
        try:
            await index.get(BOOKS)
        except NotFound:
            break
        except Unavailable:
            continue
    await filled(index, document("a", "about whales"))
    assert await found(index, "whales") == ["a"]
    await index.close()


async def test_searches_and_deletions_at_once_are_refused_in_our_words(database: str) -> None:
    index = PostgresIndex(
        database,
        connections_max=4,
        connect_seconds=30,
        waiting_max=64,
        collections_max=2,
        passages_max=PASSAGES_MAX,
    )
    await index.open()

    async def search() -> int:
        count = 0
        for _ in range(40):
            try:
                count += len(await index.match(CollectionKey("acme", "short"), "word", 8))
            except (NotFound, Unavailable):
                continue
        return count

    async def make_and_delete() -> None:
        key = CollectionKey("acme", "short")
        for _ in range(10):
            await index.create(key, CollectionSpec(), UNNAMED)
            await index.upsert(key, [document("a", "a word")], UNNAMED)
            await index.delete(key, UNNAMED)

    await asyncio.gather(search(), search(), make_and_delete())
    await index.close()
