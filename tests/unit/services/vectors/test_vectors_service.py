"""The vectors service, called as the pipeline calls it."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mesh.call import Call
from mesh.errors import (
    AlreadyExists,
    DataDamaged,
    InvalidArgument,
    NotFound,
    NotServing,
    RequestIdReused,
)
from services.vectors.service import FILE_NAME, VectorsService
from services.vectors.settings import VectorsSettings
from tests.support.embedding import LocalModels
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb

PARENT = "tenants/default"
NOTES = f"{PARENT}/collections/notes"
GUIDE = "# Backups\n\nA backup is kept for thirty days.\n\n# Whales\n\nThey sing.\n"


def call() -> Call:
    return Call(
        method="/weft.vectors.v1.VectorService/Any", deadline=time.monotonic() + 5, request_id="t"
    )


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[VectorsService]:
    service = VectorsService(VectorsSettings(document_passages_max=50), tmp_path, LocalModels())
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
