"""Collections in whole processes: killed in the middle of an ingest, and by the command line."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.support.pdf import pdf_of
from tests.support.platform import Platform
from tests.support.processes import ROOT
from tests.support.weft_up import WeftUp, weft_up
from weft.tools.v1 import tool_service_pb2
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb
from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

MODEL = "builtin/hashing"
PARENT = "tenants/default"
NAME = f"{PARENT}/collections/docs"
BATCHES, DOCUMENTS = 40, 5

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    running = Platform(tmp_path / "data", configured_models=True)
    try:
        await running.start()
        yield running
    finally:
        if running.process is not None:
            await running.kill()


def stub(of: Platform) -> Any:
    return VectorServiceStub(of.open_channel)


async def make(of: Platform) -> None:
    request = pb.CreateCollectionRequest(parent=PARENT, collection_id="docs", model=MODEL)
    await stub(of).CreateCollection(request, timeout=30)


def batch(number: int) -> pb.UpsertDocumentsRequest:
    documents = [
        collections_pb2.Document(uri=f"{number}/{each}", text=f"report{number} part{each} of all")
        for each in range(DOCUMENTS)
    ]
    return pb.UpsertDocumentsRequest(name=NAME, documents=documents)


async def test_a_kill_loses_nothing_that_was_acknowledged_and_a_repeat_completes(
    platform: Platform,
) -> None:
    await make(platform)
    acknowledged: list[int] = []

    async def ingest() -> None:
        for number in range(BATCHES):
            await stub(platform).UpsertDocuments(batch(number), timeout=60)
            acknowledged.append(number)
            if len(acknowledged) == BATCHES // 3:
                under_way.set()

    under_way = asyncio.Event()
    ingesting = asyncio.create_task(ingest())
    await asyncio.wait_for(under_way.wait(), 60)
    await platform.kill()
    with pytest.raises(grpc.aio.AioRpcError):
        await ingesting
    assert BATCHES // 3 <= len(acknowledged) < BATCHES

    await platform.start()
    request = pb.GetCollectionRequest(name=NAME)
    there = (await stub(platform).GetCollection(request, timeout=30)).collection
    # The one under way is there whole or not at all.
    assert there.document_count in [(len(acknowledged) + more) * DOCUMENTS for more in (0, 1)]
    for mode in (pb.SEARCH_MODE_TEXT, pb.SEARCH_MODE_DENSE):
        for number in acknowledged:
            search = pb.SearchRequest(name=NAME, query=f"report{number}", mode=mode)
            found = (await stub(platform).Search(search, timeout=30)).passages
            assert {passage.uri for passage in found} >= {f"{number}/0", f"{number}/4"}

    unchanged = 0
    for number in range(BATCHES):
        answer = await stub(platform).UpsertDocuments(batch(number), timeout=60)
        assert answer.document_count == DOCUMENTS
        unchanged += answer.unchanged_count
    assert unchanged == there.document_count
    there = (await stub(platform).GetCollection(request, timeout=30)).collection
    assert (there.document_count, there.passage_count) == (BATCHES * DOCUMENTS,) * 2


async def test_the_search_tool_of_agents_finds_by_meaning_where_there_is_a_model(
    platform: Platform,
) -> None:
    await make(platform)
    documents = [
        collections_pb2.Document(uri="a", text="The warranties last two years."),
        collections_pb2.Document(
            uri="b",
            content=pdf_of([["An index."], ["Whales sing."]]),
            media_type=collections_pb2.MEDIA_TYPE_PDF,
        ),
    ]
    await stub(platform).UpsertDocuments(
        pb.UpsertDocumentsRequest(name=NAME, documents=documents), timeout=30
    )
    # No word of it is in the text; parts of one are.
    for query, uri, locator in (("warrantied", "a", "line 1"), ("whale", "b", "page 2")):
        request = tool_service_pb2.InvokeToolRequest(
            name=f"{PARENT}/tools/search",
            arguments_json=json.dumps({"query": query, "collection": "docs"}),
        )
        answer = await platform.tools.InvokeTool(request, timeout=30)
        assert json.loads(answer.content)["passages"][0]["uri"] == uri
        assert (answer.sources[0].uri, answer.sources[0].locator) == (uri, locator)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeftUp]:
    folder = tmp_path_factory.mktemp("up")
    with weft_up(folder / "log", "--data-dir", folder / "data", "--port", "0") as running:
        yield running


def test_real_documents_are_ingested_and_found(up: WeftUp, tmp_path: Path) -> None:
    for name in ("README.md", "ARCHITECTURE.md"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "bees.html").write_text(
        "<title>Bees</title><h1>Dances</h1><p>A waggle dance tells where the flowers are."
    )
    pages = [["An index."], ["The guarantee of the appliance lasts thirty months."]]
    (tmp_path / "manual.pdf").write_bytes(pdf_of(pages, title="Manual", outline=["A", "Terms"]))
    (tmp_path / "garbage.pdf").write_bytes(b"\xff\x00garbage" * 1_000)
    (tmp_path / "broken.html").write_text("<![<![<![")

    ingest = ("collection", "ingest", "docs", str(tmp_path), "--model", MODEL)
    ran = up.weft(*ingest, "--metadata", "year=2026", "-o", "json")
    assert ran.code == 0, ran.err
    assert ran.data["document_count"] == 4
    skipped = {Path(each["path"]).name: each["reason"] for each in ran.data["skipped"]}
    assert set(skipped) == {"garbage.pdf", "broken.html"}
    assert "PDF" in skipped["garbage.pdf"]
    again = up.weft(*ingest, "--metadata", "year=2026", "-o", "json")
    assert again.data["unchanged_count"] == 4

    def first(query: str, *options: str) -> Any:
        found = up.weft("collection", "search", "docs", query, *options, "-o", "json")
        assert found.code == 0, found.err
        return found.data[0] if found.data else None

    page = first("for how many months the appliance has a guarantee")
    assert (page["uri"], page["page"], page["headings"]) == ("manual.pdf", 2, ["Terms"])
    assert first("waggle dances", "--mode", "dense")["uri"] == "bees.html"
    decision = first("why are heads kept beside the log", "--filter", "year >= 2026")
    assert decision["uri"] == "ARCHITECTURE.md"
    assert up.weft("collection", "search", "docs", "x", "--filter", "year <").code == 2
    shown = up.weft("collection", "search", "docs", "guarantee of the appliance").out
    assert "manual.pdf:p2:1" in shown
    removed = up.weft("collection", "remove", "docs", "--filter", "year = 2026")
    assert "took 4 documents out of docs" in removed.err
    assert first("guarantee") is None
