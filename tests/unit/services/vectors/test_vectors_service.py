"""The vectors service, called as the pipeline calls it."""

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value

from mesh.call import Call
from mesh.errors import (
    AlreadyExists,
    DataDamaged,
    FailedPrecondition,
    InvalidArgument,
    ModelUnavailable,
    NotFound,
    NotServing,
    RequestIdReused,
    Unavailable,
    WeftError,
)
from services.vectors.backends.schema import PASSAGES_MAX, VERSION_1, passages_table
from services.vectors.service import FILE_NAME, VectorsService
from services.vectors.settings import VectorsSettings
from tests.support.embedding import MODEL, LocalModels
from tests.support.pdf import pdf_of
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb

PARENT = "tenants/default"
NOTES = f"{PARENT}/collections/notes"
GUIDE = "# Backups\n\nA backup is kept for thirty days.\n\n# Whales\n\nThey sing.\n"

NOTHING_KNOWN = Struct(fields={"a": Value(null_value=NULL_VALUE)})


def call() -> Call:
    return Call(
        method="/weft.vectors.v1.VectorService/Any", deadline=time.monotonic() + 5, request_id="t"
    )


@pytest.fixture
def models() -> LocalModels:
    return LocalModels()


@pytest.fixture
async def service(tmp_path: Path, models: LocalModels) -> AsyncIterator[VectorsService]:
    service = VectorsService(VectorsSettings(document_passages_max=50), tmp_path, models)
    await service.start()
    yield service
    await service.stop()


async def make(service: VectorsService, collection_id: str = "notes", **fields: Any) -> None:
    request = pb.CreateCollectionRequest(parent=PARENT, collection_id=collection_id, **fields)
    await service.create_collection(request, call())


async def upsert(
    service: VectorsService, *documents: collections_pb2.Document, request_id: str = ""
) -> pb.UpsertDocumentsResponse:
    request = pb.UpsertDocumentsRequest(name=NOTES, documents=documents, request_id=request_id)
    return await service.upsert_documents(request, call())


def markdown(uri: str, text: str = GUIDE, title: str = "") -> collections_pb2.Document:
    return collections_pb2.Document(
        uri=uri, text=text, title=title, media_type=collections_pb2.MEDIA_TYPE_MARKDOWN
    )


async def ask(service: VectorsService, query: str, **fields: Any) -> pb.SearchResponse:
    return await service.search(pb.SearchRequest(name=NOTES, query=query, **fields), call())


async def search(service: VectorsService, query: str) -> list[collections_pb2.Passage]:
    response = await service.search(pb.SearchRequest(name=NOTES, query=query), call())
    return list(response.passages)


async def test_the_title_in_the_front_matter_is_the_documents(service: VectorsService) -> None:
    await make(service)
    await upsert(service, markdown("a.md", f'---\ntitle: "All of it"\nkind: x\n---\n\n{GUIDE}'))
    assert {passage.title for passage in await search(service, "whales sing")} == {"All of it"}


async def test_a_document_is_found_with_its_place(service: VectorsService) -> None:
    await make(service)
    response = await upsert(service, markdown("guide.md"))
    assert (response.document_count, response.passage_count) == (1, 2)
    passage = (await search(service, "How long are backups kept?"))[0]
    assert passage.uri == "guide.md"
    assert passage.title == "Backups"
    assert list(passage.headings) == ["Backups"]
    assert passage.line == 3
    assert passage.text == "A backup is kept for thirty days."


@pytest.mark.parametrize(
    ("document", "title"),
    [
        (markdown("u", title="Given"), "Given"),
        (markdown("u"), "Backups"),
        (collections_pb2.Document(uri="u", text=GUIDE), "u"),
    ],
)
async def test_a_title_is_given_or_the_first_heading_or_the_uri(
    service: VectorsService, document: collections_pb2.Document, title: str
) -> None:
    await make(service)
    await upsert(service, document)
    assert (await search(service, "backup"))[0].title == title


async def test_a_collection_is_listed_read_and_deleted(service: VectorsService) -> None:
    await make(service, description="ours")
    got = await service.get_collection(pb.GetCollectionRequest(name=NOTES), call())
    assert got.collection.description == "ours"
    await service.delete_collection(pb.DeleteCollectionRequest(name=NOTES), call())
    with pytest.raises(NotFound):
        await service.get_collection(pb.GetCollectionRequest(name=NOTES), call())
    with pytest.raises(NotFound):
        await service.delete_collection(pb.DeleteCollectionRequest(name=NOTES), call())


async def test_pages_follow_each_other_without_gap(service: VectorsService) -> None:
    names = [f"c{number}" for number in range(5)]
    for name in reversed(names):
        await make(service, name)
    seen: list[str] = []
    request = pb.ListCollectionsRequest(parent=PARENT, page_size=2)
    for _ in range(3):
        response = await service.list_collections(request, call())
        seen.extend(each.name.rpartition("/")[2] for each in response.collections)
        request.page_token = response.next_page_token
    assert seen == names
    assert not request.page_token


@pytest.mark.parametrize("token", ["x", "!!", "////", "dGVuYW50cy9vdGhlcgpj", "\u00e9"])
async def test_a_token_of_no_page_of_the_list_is_refused(
    service: VectorsService, token: str
) -> None:
    request = pb.ListCollectionsRequest(parent=PARENT, page_token=token)
    with pytest.raises(InvalidArgument) as caught:
        await service.list_collections(request, call())
    assert [each.field for each in caught.value.violations] == ["page_token"]


async def test_a_collection_that_is_there_is_not_made_again(service: VectorsService) -> None:
    await make(service, request_id="r1")
    with pytest.raises(AlreadyExists):
        await make(service)
    await make(service, request_id="r1")


async def test_a_request_id_with_another_body_is_refused(service: VectorsService) -> None:
    await make(service, request_id="r1")
    with pytest.raises(RequestIdReused):
        await make(service, "other", request_id="r1")
    with pytest.raises(RequestIdReused):
        await upsert(service, markdown("a"), request_id="r1")


async def test_one_bad_document_keeps_all_of_the_call_out(service: VectorsService) -> None:
    await make(service)
    too_many = "".join(f"# H{number}\n\ntext\n\n" for number in range(51))
    with pytest.raises(InvalidArgument) as caught:
        await upsert(service, markdown("fine"), markdown("long", too_many))
    assert [each.field for each in caught.value.violations] == ["documents[1].text"]
    assert await search(service, "backup text") == []


async def test_a_uri_that_is_there_twice_is_refused(service: VectorsService) -> None:
    await make(service)
    with pytest.raises(InvalidArgument) as caught:
        await upsert(service, markdown("a"), markdown("b"), markdown("a"))
    assert [each.field for each in caught.value.violations] == ["documents[2].uri"]


async def test_documents_are_taken_out_by_uri(service: VectorsService) -> None:
    await make(service)
    await upsert(service, markdown("a"), markdown("b"))
    request = pb.DeleteDocumentsRequest(name=NOTES, uris=["a", "never"])
    assert (await service.delete_documents(request, call())).document_count == 1
    assert {passage.uri for passage in await search(service, "backup")} == {"b"}


async def test_the_count_of_passages_is_bounded(service: VectorsService) -> None:
    await make(service)
    await upsert(service, *(markdown(str(number)) for number in range(12)))
    assert len(await search(service, "backup")) == 8
    request = pb.SearchRequest(name=NOTES, query="backup", passages_max=3)
    assert len((await service.search(request, call())).passages) == 3


async def test_a_collections_model_makes_the_vectors_of_passages_and_queries(
    service: VectorsService, models: LocalModels
) -> None:
    await make(service, model=MODEL)
    await upsert(service, markdown("a"))
    response = await ask(service, "a backup")
    assert response.mode == pb.SEARCH_MODE_HYBRID
    assert [each.headings[0] for each in response.passages] == ["Backups", "Whales"]
    assert [list(request.texts) for request in models.requests] == [
        ["dimension"],
        [
            "Backups\nBackups\nA backup is kept for thirty days.",
            "Backups\nWhales\nThey sing.",
        ],
        ["a backup"],
    ]
    got = await service.get_collection(pb.GetCollectionRequest(name=NOTES), call())
    assert (got.collection.dimension, got.collection.model) == (384, MODEL)
    assert got.collection.metric == collections_pb2.METRIC_COSINE


async def test_what_is_there_just_so_is_not_embedded_again(
    service: VectorsService, models: LocalModels
) -> None:
    await make(service, model=MODEL)
    await upsert(service, markdown("a"), markdown("b"))
    count = len(models.requests)
    again = await upsert(service, markdown("a"), markdown("b"), markdown("c"))
    assert (again.document_count, again.passage_count, again.unchanged_count) == (3, 6, 2)
    (request,) = models.requests[count:]
    assert len(request.texts) == 2
    changed = await upsert(service, markdown("a", GUIDE + "\nNow."))
    assert changed.unchanged_count == 0
    known = markdown("b")
    known.metadata.update({"year": 2020})
    assert (await upsert(service, known)).unchanged_count == 0
    assert (await upsert(service, known)).unchanged_count == 1


async def test_a_call_that_is_made_twice_at_once_is_embedded_once(
    service: VectorsService, models: LocalModels
) -> None:
    await make(service, model=MODEL)
    count = len(models.requests)
    answers = await asyncio.gather(*(upsert(service, markdown("a")) for _ in range(3)))
    assert sorted(answer.unchanged_count for answer in answers) == [0, 1, 1]
    assert len(models.requests) == count + 1


@pytest.mark.parametrize("error", [ModelUnavailable("gone"), NotServing("draining")])
async def test_without_the_model_words_are_searched_unless_vectors_are_asked_for(
    service: VectorsService, models: LocalModels, error: WeftError
) -> None:
    await make(service, model=MODEL)
    await upsert(service, markdown("a"))
    models.error = error
    response = await ask(service, "sing")
    assert response.mode == pb.SEARCH_MODE_TEXT
    assert [each.headings[0] for each in response.passages] == ["Whales"]
    for mode in (pb.SEARCH_MODE_HYBRID, pb.SEARCH_MODE_DENSE):
        with pytest.raises(type(error)):
            await ask(service, "backup", mode=mode)
    with pytest.raises(type(error)):
        await upsert(service, markdown("b"))
    assert (await upsert(service, markdown("a"))).unchanged_count == 1


async def test_documents_may_bring_their_own_vectors(service: VectorsService) -> None:
    await make(service, dimension=2, metric=collections_pb2.METRIC_DOT)
    one = collections_pb2.Document(uri="one", text="whales", vector=[2, 0])
    two = collections_pb2.Document(uri="two", vector=[0, 1])
    await upsert(service, one, two)
    response = await ask(service, "", vector=[1, 0.5])
    assert response.mode == pb.SEARCH_MODE_DENSE
    assert [each.uri for each in response.passages] == ["one", "two"]
    assert [each.score for each in response.passages] == pytest.approx([2, 0.5], abs=1e-6)
    both = await ask(service, "whales", vector=[0, 1])
    assert both.mode == pb.SEARCH_MODE_HYBRID
    assert [each.uri for each in both.passages] == ["one", "two"]
    assert (await ask(service, "whales")).mode == pb.SEARCH_MODE_TEXT


async def test_a_filter_narrows_every_search_and_a_deletion(service: VectorsService) -> None:
    await make(service, model=MODEL)
    documents = [markdown(str(year)) for year in range(2018, 2023)]
    for document in documents:
        document.metadata.update({"year": int(document.uri)})
    await upsert(service, *documents)
    for mode in (pb.SEARCH_MODE_TEXT, pb.SEARCH_MODE_DENSE, pb.SEARCH_MODE_HYBRID):
        response = await ask(service, "backup", filter="year >= 2021", mode=mode)
        assert {each.uri for each in response.passages} == {"2021", "2022"}
        assert response.passages[0].metadata["year"] in (2021, 2022)
    request = pb.DeleteDocumentsRequest(name=NOTES, filter="year < 2020")
    assert (await service.delete_documents(request, call())).document_count == 2
    assert {each.uri for each in await search(service, "backup")} == {"2020", "2021", "2022"}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"query": ""}, "query"),
        ({"query": "", "vector": [1, 0], "mode": pb.SEARCH_MODE_HYBRID}, "query"),
        ({"query": "x", "mode": pb.SEARCH_MODE_DENSE}, "vector"),
        ({"query": "x", "vector": [1]}, "vector"),
        ({"query": "x", "vector": [1, math.nan]}, "vector"),
        ({"query": "x", "vector": [1, math.inf]}, "vector"),
        ({"query": "x", "vector": [0, 0]}, "vector"),
        ({"query": "x", "vector": [1, 1e30]}, "vector"),
        ({"query": "x", "filter": "year >"}, "filter"),
    ],
)
async def test_a_search_that_makes_no_sense_is_refused(
    service: VectorsService, fields: dict[str, Any], field: str
) -> None:
    await make(service, dimension=2)
    with pytest.raises(InvalidArgument) as caught:
        await ask(service, **fields)
    assert [each.field for each in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (collections_pb2.Document(text="x", vector=[1, 2, 3]), "vector"),
        (collections_pb2.Document(text="x", vector=[math.nan, 1]), "vector"),
        (collections_pb2.Document(text="x" * 16_385, vector=[1, 2]), "vector"),
        (collections_pb2.Document(content=b"x"), "content"),
        (collections_pb2.Document(media_type=collections_pb2.MEDIA_TYPE_PDF), "content"),
        (
            collections_pb2.Document(content=b"x", media_type=collections_pb2.MEDIA_TYPE_PDF),
            "content",
        ),
        (
            collections_pb2.Document(text="<![<![", media_type=collections_pb2.MEDIA_TYPE_HTML),
            "text",
        ),
        (collections_pb2.Document(text="x", metadata=NOTHING_KNOWN), "metadata.a"),
    ],
)
async def test_a_document_that_makes_no_sense_is_refused_with_its_number(
    service: VectorsService, document: collections_pb2.Document, field: str
) -> None:
    await make(service, dimension=2)
    document.uri = "u"
    with pytest.raises(InvalidArgument) as caught:
        await upsert(service, markdown("fine"), document)
    assert [each.field for each in caught.value.violations] == [f"documents[1].{field}"]
    assert not await search(service, "backup")


async def test_html_and_pdf_are_found_with_their_places(service: VectorsService) -> None:
    await make(service)
    html = "<title>Guide</title><h1>Whales</h1>\n<p>They sing."
    pdf = pdf_of([["Bees dance."], ["Ants dig."]], title="Insects", outline=["Bees", "Ants"])
    await upsert(
        service,
        collections_pb2.Document(
            uri="a.html", text=html, media_type=collections_pb2.MEDIA_TYPE_HTML
        ),
        collections_pb2.Document(
            uri="b.pdf", content=pdf, media_type=collections_pb2.MEDIA_TYPE_PDF
        ),
    )
    (sung,) = await search(service, "sing")
    assert (sung.uri, sung.title, list(sung.headings)) == ("a.html", "Guide", ["Whales"])
    assert (sung.line, sung.page) == (2, 0)
    (dug,) = await search(service, "dig")
    assert (dug.uri, dug.title, list(dug.headings)) == ("b.pdf", "Insects", ["Ants"])
    assert (dug.line, dug.page) == (1, 2)


@pytest.mark.parametrize("fields", [{}, {"uris": ["a"], "filter": "a = 1"}, {"filter": " "}])
async def test_what_to_delete_is_said_one_way(
    service: VectorsService, fields: dict[str, Any]
) -> None:
    await make(service)
    with pytest.raises(InvalidArgument):
        await service.delete_documents(pb.DeleteDocumentsRequest(name=NOTES, **fields), call())


async def test_a_model_that_is_not_there_makes_no_collection(service: VectorsService) -> None:
    with pytest.raises(NotFound):
        await make(service, model="nobody/none")
    with pytest.raises(InvalidArgument, match="dimension"):
        await make(service, metric=collections_pb2.METRIC_L2)
    await make(service)
    with pytest.raises(FailedPrecondition, match="no vectors"):
        await ask(service, "x", mode=pb.SEARCH_MODE_HYBRID)
    with pytest.raises(FailedPrecondition, match="no vectors"):
        await upsert(service, collections_pb2.Document(uri="a", vector=[1]))


async def test_a_file_of_the_version_before_is_taken_over(
    tmp_path: Path, models: LocalModels
) -> None:
    old = apsw.Connection(str(tmp_path / FILE_NAME))
    old.execute(VERSION_1)
    old.execute("INSERT INTO collections VALUES (1, 'default', 'notes', 'old', 5)")
    old.execute("INSERT INTO documents VALUES (1, 1, 'a.md', 'Old', 1)")
    old.execute(passages_table(1))
    old.execute(
        "INSERT INTO passages_1 (rowid, title, headings, text, line) VALUES (?, ?, ?, ?, ?)",
        (PASSAGES_MAX, "Old", "", "whales sing", 3),
    )
    old.close()
    service = VectorsService(VectorsSettings(), tmp_path, models)
    await service.start()
    (passage,) = await search(service, "whales")
    assert (passage.uri, passage.line, passage.page) == ("a.md", 3, 0)
    got = await service.get_collection(pb.GetCollectionRequest(name=NOTES), call())
    assert (got.collection.document_count, got.collection.passage_count) == (1, 1)
    await upsert(service, markdown("a.md"))
    assert (await search(service, "backup"))[0].uri == "a.md"
    await service.stop()


@pytest.mark.parametrize(
    "url",
    ["postgresql://weft:secret@db/weft", "postgresql://db/weft?password=secret", "mysql://db"],
)
def test_an_address_with_a_password_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        VectorsSettings(postgres_url=url)
    assert "secret" not in str(caught.value)


async def test_a_database_out_of_reach_is_told_and_does_not_keep_weft_from_starting(
    tmp_path: Path, models: LocalModels
) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"postgresql://weft@127.0.0.1:{unheard.getsockname()[1]}/weft"
        settings = VectorsSettings(postgres_url=url, postgres_connect_seconds=0.5)
        service = VectorsService(settings, tmp_path, models)
        await service.start()
        with pytest.raises(Unavailable, match="can't be reached"):
            await make(service)
        await service.stop()


async def test_a_damaged_file_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"\x00garbage" * 1_000)
    with pytest.raises(DataDamaged):
        await VectorsService(VectorsSettings(), tmp_path, LocalModels()).start()


async def test_a_stopped_service_serves_nothing(tmp_path: Path) -> None:
    service = VectorsService(VectorsSettings(), tmp_path, LocalModels())
    await service.start()
    await service.stop()
    with pytest.raises(NotServing):
        await make(service)
