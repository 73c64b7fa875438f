"""The port of the passage index, and the values that cross it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.vectors.chunking import Passage
from weft.vectors.v1 import collections_pb2


@dataclass(frozen=True, slots=True)
class CollectionKey:
    """Names a collection within its tenant."""

    tenant: str
    collection: str

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/collections/{self.collection}"


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
    """A document, split into passages."""

    uri: str
    title: str
    passages: Sequence[Passage]


@dataclass(frozen=True, slots=True)
class Stored:
    """How many documents a change stored or took out, and their passages."""

    documents: int
    passages: int


class PassageIndex(Protocol):
    """Keeps collections and finds passages. Every back end passes
    `tests/contract/test_passage_index.py`.

    A change is stored whole or not at all, and stays stored once its method returned.
    Methods that name a collection raise NotFound where there is none; changes raise
    RequestIdReused; all raise DataDamaged where what is stored can't be read,
    LimitExceeded where a bound is reached, and Unavailable where the index is busy.
    """

    async def open(self) -> None:
        """Makes it ready. FailedPrecondition where a newer Weft wrote it."""
        ...

    async def close(self) -> None:
        """Ends its work once what runs has ended."""
        ...

    async def create(
        self, key: CollectionKey, description: str, request: Request
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

    async def upsert(
        self, key: CollectionKey, documents: Sequence[SplitDocument], request: Request
    ) -> Stored:
        """Stores documents, each in place of the one of its uri."""
        ...

    async def remove(self, key: CollectionKey, uris: Sequence[str], request: Request) -> Stored:
        """Takes documents out; uris that aren't there are passed over."""
        ...

    async def search(
        self, key: CollectionKey, query: str, count: int
    ) -> Sequence[collections_pb2.Passage]:
        """At most `count` passages that have a word of the query, best first."""
        ...
