"""Searches: by words, by vectors, or by both with their ranks merged."""

from collections.abc import Sequence

from mesh.call import Call
from mesh.errors import FailedPrecondition, InvalidArgument, Unavailable
from services.vectors.backends.rows import metric_of
from services.vectors.domain.filters import Filter, parse_filter
from services.vectors.domain.fusion import fused
from services.vectors.domain.vectors import Vector, read_vector
from services.vectors.embedding import Embedder
from services.vectors.index import CollectionKey, Hit, PassageIndex
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb

PASSAGES_FOUND = 8
FUSED_MIN = 32
"""Passages of each ranking that are merged, at least."""


class Search:
    """See the module."""

    def __init__(self, index: PassageIndex, embedder: Embedder) -> None:
        self._index = index
        self._embedder = embedder

    async def answer(
        self, key: CollectionKey, request: pb.SearchRequest, call: Call
    ) -> pb.SearchResponse:
        """The passages that fit best, none where none does.

        Where the request doesn't say by what, and the model can't be reached, by words
        alone, as the answer tells. Raises InvalidArgument, FailedPrecondition where the
        collection has no vectors, and what Embed and the index raise.
        """
        only = parse_filter(request.filter)
        count = request.passages_max or PASSAGES_FOUND
        collection = await self._index.get(key)
        mode, vector = await self._mode(key, collection, request, call)
        hits: Sequence[Hit]
        if mode == pb.SEARCH_MODE_TEXT:
            hits = await self._index.match(key, request.query, count, only)
        elif mode == pb.SEARCH_MODE_DENSE:
            hits = await self._nearest(key, vector, count, only)
        else:
            hits = await self._hybrid(key, request.query, vector, count, only)
        return pb.SearchResponse(passages=[hit.passage for hit in hits], mode=mode)

    async def _mode(
        self,
        key: CollectionKey,
        collection: collections_pb2.Collection,
        request: pb.SearchRequest,
        call: Call,
    ) -> tuple["pb.SearchMode.ValueType", Vector | None]:
        """By what to find, and the query's vector where it takes one."""
        mode = request.mode
        by_words = mode in (pb.SEARCH_MODE_TEXT, pb.SEARCH_MODE_HYBRID)
        if not request.query and (by_words or not request.vector):
            raise InvalidArgument.of("query", "is required")
        if mode == pb.SEARCH_MODE_TEXT:
            return mode, None
        can_embed = bool(collection.model and request.query)
        if not mode and not request.vector and not can_embed:
            return pb.SEARCH_MODE_TEXT, None
        if not collection.dimension:
            raise FailedPrecondition("the collection has no vectors")
        wanted = mode or (pb.SEARCH_MODE_HYBRID if request.query else pb.SEARCH_MODE_DENSE)
        if request.vector:
            metric = metric_of(collection)
            return wanted, read_vector(request.vector, collection.dimension, metric, "vector")
        if not can_embed:
            raise InvalidArgument.of("vector", "is required: the collection has no model")
        try:
            return wanted, await self._embedder.query(
                key.tenant, collection.model, collection.dimension, request.query, call
            )
        except Unavailable:
            if mode:
                raise
            return pb.SEARCH_MODE_TEXT, None

    async def _nearest(
        self, key: CollectionKey, vector: Vector | None, count: int, only: Filter | None
    ) -> Sequence[Hit]:
        return [] if vector is None else await self._index.nearest(key, vector, count, only)

    async def _hybrid(
        self, key: CollectionKey, query: str, vector: Vector | None, count: int, only: Filter | None
    ) -> Sequence[Hit]:
        each = max(FUSED_MIN, 2 * count)
        by_words = await self._index.match(key, query, each, only)
        by_vectors = await self._nearest(key, vector, each, only)
        hits = {hit.id: hit for hit in (*by_words, *by_vectors)}
        merged = fused([[hit.id for hit in ranking] for ranking in (by_words, by_vectors)])
        for number, score in merged[:count]:
            hits[number].passage.score = score
        return [hits[number] for number, _ in merged[:count]]
