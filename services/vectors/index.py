"""The port of the passage index, and the values that cross it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.struct_pb2 import Struct

from services.vectors.chunking import Passage
from services.vectors.domain.filters import Filter
from services.vectors.domain.vectors import Metric, Vector
from weft.vectors.v1 import collections_pb2


@dataclass(frozen=True, slots=True)
class CollectionKey:
    """Names a collection within its tenant."""

    tenant: str
    collection: str

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/collections/{self.collection}"


@dataclass(frozen=True, slots=True)
class CollectionSpec:
    """What a collection is made with; `dimension` is 0 where it has no vectors."""

    description: str = ""
    dimension: int = 0
    metric: Metric = Metric.COSINE
    model: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """Names a change, so that its repetition is recognised.

    The same `id` within a tenant with the same `digest` changes nothing and gets the
    first one's answer, for as long as the index remembers it; with another digest it
    is refused. An empty `id` is never remembered.
    """

    id: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class SplitDocument:
    """A document, split into passages.

    `vectors` are those of the passages, None for one without, or there are none. `metadata`
    has been checked. `digest` stands for all that the document was made of.
    """

    uri: str
    title: str
    passages: Sequence[Passage]
    vectors: Sequence[Vector | None] = ()
    metadata: Struct = field(default_factory=Struct)
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Stored:
    """How many documents a change stored or took out, and their passages; `unchanged` of
    the documents were there just so."""

    documents: int
    passages: int
    unchanged: int = 0


NOTHING = Stored(0, 0)


@dataclass(frozen=True, slots=True)
class Present:
    """A document that is there: what it was made of, and how many passages it has."""

    digest: bytes
    passages: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found, with its score; `id` tells it from others of the collection."""

    id: int
    passage: collections_pb2.Passage


class PassageIndex(Protocol):
    """Keeps collections and finds passages. Every back end passes
    `tests/contract/test_passage_index.py`.

    A change is stored whole or not at all, and stays stored once its method returned.
    Methods that name a collection raise NotFound where there is none; changes raise
    RequestIdReused; all raise DataDamaged where what is stored can't be read,
    LimitExceeded where a bound is reached, and Unavailable where the index is busy or can't
    be reached.
    """

    async def open(self) -> None:
        """Makes it ready. FailedPrecondition where a newer Weft wrote it."""
        ...

    async def close(self) -> None:
        """Ends its work once what runs has ended."""
        ...

    async def create(
        self, key: CollectionKey, spec: CollectionSpec, request: Request
    ) -> collections_pb2.Collection:
        """Makes a collection; AlreadyExists where one of that name is there."""
        ...

    async def get(self, key: CollectionKey) -> collections_pb2.Collection:
        """The collection with its counts."""
        ...

    async def page(
        self, tenant: str, after: str, count: int
    ) -> Sequence[collections_pb2.Collection]:
        """At most `count` collections of the tenant whose id sorts behind `after`, by id."""
        ...

    async def delete(self, key: CollectionKey, request: Request) -> None:
        """Takes the collection away with all that is in it."""
        ...

    async def present(self, key: CollectionKey, uris: Sequence[str]) -> Mapping[str, Present]:
        """Those of the uris that are there."""
        ...

    async def upsert(
        self,
        key: CollectionKey,
        documents: Sequence[SplitDocument],
        request: Request,
        unchanged: Stored = NOTHING,
    ) -> Stored:
        """Stores documents, each in place of the one of its uri. The answer counts those of
        the request, too, that were `unchanged`. FailedPrecondition where a vector isn't of
        the collection's dimension."""
        ...

    async def remove(self, key: CollectionKey, uris: Sequence[str], request: Request) -> Stored:
        """Takes documents out; uris that aren't there are passed over."""
        ...

    async def remove_matching(self, key: CollectionKey, only: Filter, request: Request) -> Stored:
        """Takes out all documents that the filter holds for."""
        ...

    async def match(
        self, key: CollectionKey, query: str, count: int, only: Filter | None = None
    ) -> Sequence[Hit]:
        """At most `count` passages that have a word of the query, best first; with `only`, of
        those documents that the filter holds for."""
        ...

    async def nearest(
        self, key: CollectionKey, vector: Vector, count: int, only: Filter | None = None
    ) -> Sequence[Hit]:
        """At most `count` passages whose vectors are nearest, best first; with `only`, of
        those documents that the filter holds for. FailedPrecondition where the vector isn't
        of the collection's dimension."""
        ...
