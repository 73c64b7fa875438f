"""What every passage index keeps to; a back end joins with a class and a fixture."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.errors import AlreadyExists, DataDamaged, LimitExceeded, NotFound, RequestIdReused
from services.vectors.backends.sqlite import SqliteIndex
from services.vectors.chunking import Passage
from services.vectors.index import (
    CollectionKey,
    CollectionSpec,
    PassageIndex,
    Request,
    SplitDocument,
    Stored,
)

BOOKS = CollectionKey("acme", "books")
UNNAMED = Request("", b"")
PASSAGES_MAX = 2_000


def document(uri: str, *texts: str, title: str = "Untitled", heading: str = "") -> SplitDocument:
    headings = (heading,) if heading else ()
    passages = [Passage(headings, number, text) for number, text in enumerate(texts, 1)]
    return SplitDocument(uri, title, passages)


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
