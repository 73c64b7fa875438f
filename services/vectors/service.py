"""The servicer of `weft.vectors.v1.VectorService`."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from mesh.call import Call
from mesh.clock import SYSTEM, Clock
from mesh.errors import FieldViolation, InvalidArgument
from mesh.rpc.pages import read_page_token, write_page_token
from services.vectors.backends.fts import FtsIndex
from services.vectors.chunking import (
    Passage,
    first_heading,
    front_matter_title,
    split_markdown,
    split_plain,
)
from services.vectors.index import CollectionKey, PassageIndex, Request, SplitDocument
from services.vectors.settings import VectorsSettings
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb

FILE_NAME = "vectors.sqlite3"
PAGE_SIZE = 100
PASSAGES_FOUND = 8
TITLE_LENGTH_MAX = 1_024

Change = TypeVar(
    "Change",
    pb.CreateCollectionRequest,
    pb.DeleteCollectionRequest,
    pb.UpsertDocumentsRequest,
    pb.DeleteDocumentsRequest,
)


class VectorsService:
    """Keeps the collections of an instance in its data folder."""

    def __init__(self, settings: VectorsSettings, data_dir: Path, clock: Clock = SYSTEM) -> None:
        self._settings = settings
        self._index: PassageIndex = FtsIndex(
            (settings.folder or data_dir) / FILE_NAME,
            waiting_max=settings.waiting_calls_max,
            collections_max=settings.collections_max,
            now_ns=clock.now_ns,
        )

    @property
    def handlers(self) -> Mapping[str, object]:
        return {"weft.vectors.v1.VectorService": self}

    async def start(self) -> None:
        """Opens the index; DataDamaged where its file isn't one."""
        await self._index.open()

    async def stop(self) -> None:
        await self._index.close()

    async def create_collection(
        self, request: pb.CreateCollectionRequest, call: Call
    ) -> pb.CreateCollectionResponse:
        """AlreadyExists where a collection of that name is there."""
        key = CollectionKey(_tenant(request.parent), request.collection_id)
        collection = await self._index.create(key, request.description, _named(request))
        return pb.CreateCollectionResponse(collection=collection)

    async def get_collection(
        self, request: pb.GetCollectionRequest, call: Call
    ) -> pb.GetCollectionResponse:
        """NotFound where there is none."""
        return pb.GetCollectionResponse(collection=await self._index.get(_key(request.name)))

    async def list_collections(
        self, request: pb.ListCollectionsRequest, call: Call
    ) -> pb.ListCollectionsResponse:
        """The tenant's collections, by id."""
        after = read_page_token(request.page_token, request.parent)
        size = request.page_size or PAGE_SIZE
        found = await self._index.page(_tenant(request.parent), after, size + 1)
        response = pb.ListCollectionsResponse(collections=found[:size])
        if len(found) > size:
            last = _key(found[size - 1].name).collection
            response.next_page_token = write_page_token(last, request.parent)
        return response

    async def delete_collection(
        self, request: pb.DeleteCollectionRequest, call: Call
    ) -> pb.DeleteCollectionResponse:
        """NotFound where there is none."""
        await self._index.delete(_key(request.name), _named(request))
        return pb.DeleteCollectionResponse()

    async def upsert_documents(
        self, request: pb.UpsertDocumentsRequest, call: Call
    ) -> pb.UpsertDocumentsResponse:
        """Splits the documents and stores them; InvalidArgument where two have one uri."""
        _refuse_repeated_uris(request.documents)
        documents = await asyncio.to_thread(self._split_all, request.documents)
        stored = await self._index.upsert(_key(request.name), documents, _named(request))
        return pb.UpsertDocumentsResponse(
            document_count=stored.documents, passage_count=stored.passages
        )

    async def delete_documents(
        self, request: pb.DeleteDocumentsRequest, call: Call
    ) -> pb.DeleteDocumentsResponse:
        """Takes out those that are there."""
        removed = await self._index.remove(_key(request.name), request.uris, _named(request))
        return pb.DeleteDocumentsResponse(document_count=removed.documents)

    async def search(self, request: pb.SearchRequest, call: Call) -> pb.SearchResponse:
        """The passages that fit best; none where no word of the query is in any."""
        count = request.passages_max or PASSAGES_FOUND
        passages = await self._index.search(_key(request.name), request.query, count)
        return pb.SearchResponse(passages=passages)

    def _split_all(self, documents: Sequence[collections_pb2.Document]) -> list[SplitDocument]:
        return [self._split(number, document) for number, document in enumerate(documents)]

    def _split(self, number: int, document: collections_pb2.Document) -> SplitDocument:
        markdown = document.media_type == collections_pb2.MEDIA_TYPE_MARKDOWN
        passages = split_markdown(document.text) if markdown else split_plain(document.text)
        most = self._settings.document_passages_max
        if len(passages) > most:
            raise InvalidArgument.of(
                f"documents[{number}].text",
                f"splits into {len(passages)} passages; at most {most} are accepted",
            )
        return SplitDocument(document.uri, _title(document, passages), passages)


def _title(document: collections_pb2.Document, passages: Sequence[Passage]) -> str:
    is_markdown = document.media_type == collections_pb2.MEDIA_TYPE_MARKDOWN
    matter = front_matter_title(document.text) if is_markdown else ""
    title = document.title or matter or first_heading(passages) or document.uri
    return title[:TITLE_LENGTH_MAX]


def _tenant(parent: str) -> str:
    return parent.split("/")[1]


def _key(name: str) -> CollectionKey:
    _, tenant, _, collection = name.split("/")
    return CollectionKey(tenant, collection)


def _named(request: Change) -> Request:
    """The request's id, and what its body hashes to.

    The type's name is hashed too: an id that created a collection can't delete one.
    """
    body = type(request)()
    body.MergeFrom(request)
    body.ClearField("request_id")
    digest = hashlib.sha256(request.DESCRIPTOR.full_name.encode())
    digest.update(body.SerializeToString(deterministic=True))
    return Request(request.request_id, digest.digest())


def _refuse_repeated_uris(documents: Sequence[collections_pb2.Document]) -> None:
    seen: set[str] = set()
    violations = []
    for number, document in enumerate(documents):
        if document.uri in seen:
            field = f"documents[{number}].uri"
            violations.append(FieldViolation(field, "is there twice in this request"))
        seen.add(document.uri)
    if violations:
        text = "; ".join(f"{item.field}: {item.description}" for item in violations)
        raise InvalidArgument(text, violations=violations)
