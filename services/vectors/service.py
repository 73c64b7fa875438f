"""The servicer of `weft.vectors.v1.VectorService`."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from mesh.call import Call
from mesh.clock import SYSTEM, Clock
from mesh.errors import FailedPrecondition, InvalidArgument
from mesh.rpc.pages import read_page_token, write_page_token
from services.vectors.backends.sqlite import SqliteIndex
from services.vectors.documents import Documents
from services.vectors.domain.filters import parse_filter
from services.vectors.domain.vectors import Metric
from services.vectors.embedding import Embedder, ModelStub
from services.vectors.index import CollectionKey, CollectionSpec, PassageIndex, Request
from services.vectors.searching import Search
from services.vectors.settings import VectorsSettings
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb

FILE_NAME = "vectors.sqlite3"
PAGE_SIZE = 100
_METRICS = {
    collections_pb2.METRIC_UNSPECIFIED: Metric.COSINE,
    collections_pb2.METRIC_COSINE: Metric.COSINE,
    collections_pb2.METRIC_DOT: Metric.DOT,
    collections_pb2.METRIC_L2: Metric.L2,
}

Change = TypeVar(
    "Change",
    pb.CreateCollectionRequest,
    pb.DeleteCollectionRequest,
    pb.UpsertDocumentsRequest,
    pb.DeleteDocumentsRequest,
)


class VectorsService:
    """Keeps collections where the settings say. `models` makes the vectors of those that have
    a model."""

    def __init__(
        self,
        settings: VectorsSettings,
        data_dir: Path,
        models: ModelStub,
        clock: Clock = SYSTEM,
    ) -> None:
        self._index: PassageIndex = _index(settings, data_dir, clock)
        self._embedder = Embedder(models)
        self._documents = Documents(self._index, self._embedder, settings)
        self._search = Search(self._index, self._embedder)

    @property
    def handlers(self) -> Mapping[str, object]:
        return {"weft.vectors.v1.VectorService": self}

    async def start(self) -> None:
        """Opens the index; DataDamaged where its file isn't one."""
        await self._index.open()

    async def stop(self) -> None:
        await self._documents.close()
        await self._index.close()

    async def create_collection(
        self, request: pb.CreateCollectionRequest, call: Call
    ) -> pb.CreateCollectionResponse:
        """AlreadyExists where a collection of that name is there; of a model's dimension what
        Embed raises."""
        key = CollectionKey(_tenant(request.parent), request.collection_id)
        dimension = request.dimension
        if request.metric and not (dimension or request.model):
            raise InvalidArgument.of("dimension", "is required with a metric")
        if request.model and not dimension:
            dimension = await self._embedder.dimension(key.tenant, request.model, call)
        spec = CollectionSpec(
            request.description, dimension, _METRICS[request.metric], request.model
        )
        collection = await self._index.create(key, spec, _named(request))
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
        """See Documents.upsert."""
        stored = await self._documents.upsert(
            _key(request.name), request.documents, _named(request), call
        )
        return pb.UpsertDocumentsResponse(
            document_count=stored.documents,
            passage_count=stored.passages,
            unchanged_count=stored.unchanged,
        )

    async def delete_documents(
        self, request: pb.DeleteDocumentsRequest, call: Call
    ) -> pb.DeleteDocumentsResponse:
        """Takes out those that are there."""
        if bool(request.uris) == bool(request.filter):
            raise InvalidArgument.of("uris", "either uris or a filter is required, not both")
        key = _key(request.name)
        only = parse_filter(request.filter)
        if only is not None:
            removed = await self._index.remove_matching(key, only, _named(request))
        elif request.filter:
            raise InvalidArgument.of("filter", "is blank")
        else:
            removed = await self._index.remove(key, request.uris, _named(request))
        return pb.DeleteDocumentsResponse(document_count=removed.documents)

    async def search(self, request: pb.SearchRequest, call: Call) -> pb.SearchResponse:
        """See Search.answer."""
        return await self._search.answer(_key(request.name), request, call)


def _index(settings: VectorsSettings, data_dir: Path, clock: Clock) -> PassageIndex:
    if settings.postgres_url:
        try:
            from services.vectors.backends.postgres import PostgresIndex
        except ImportError as error:
            raise FailedPrecondition(
                "collections in PostgreSQL need psycopg: pip install 'weft[postgres]'"
            ) from error
        return PostgresIndex(
            settings.postgres_url,
            settings.postgres_password(),
            connections_max=settings.postgres_connections_max,
            connect_seconds=settings.postgres_connect_seconds,
            waiting_max=settings.waiting_calls_max,
            collections_max=settings.collections_max,
            passages_max=settings.collection_passages_max,
            now_ns=clock.now_ns,
        )
    return SqliteIndex(
        (settings.folder or data_dir) / FILE_NAME,
        waiting_max=settings.waiting_calls_max,
        collections_max=settings.collections_max,
        passages_max=settings.collection_passages_max,
        now_ns=clock.now_ns,
    )


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
