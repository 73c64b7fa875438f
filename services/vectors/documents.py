"""What becomes of documents that are sent: they are checked, split, embedded and stored.

A document that is in the collection just so already is left as it is: what it is made of
has a digest. So whoever was cut off sends all of it again, and pays for what is new.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakValueDictionary

from mesh.call import Call
from mesh.errors import FailedPrecondition, FieldViolation, InvalidArgument
from services.vectors.backends.rows import metric_of
from services.vectors.chunking import Passage, first_heading
from services.vectors.domain.metadata import read_metadata
from services.vectors.domain.vectors import Vector, read_vector
from services.vectors.embedding import Embedder
from services.vectors.index import (
    CollectionKey,
    PassageIndex,
    Request,
    SplitDocument,
    Stored,
)
from services.vectors.pdf_text import Unreadable
from services.vectors.reading import PDF, Readers, Source
from services.vectors.settings import VectorsSettings
from weft.vectors.v1 import collections_pb2

TITLE_LENGTH_MAX = 1_024
PASSAGE_TEXT_LENGTH_MAX = 16_384
EMBEDDED_LENGTH_MAX = 16_384
SPLIT_VERSION = b"1"
"""Changes with what documents are split into, so that they are split anew."""


class Documents:
    """See the module."""

    def __init__(self, index: PassageIndex, embedder: Embedder, settings: VectorsSettings) -> None:
        self._index = index
        self._embedder = embedder
        self._settings = settings
        self._readers = Readers(settings)
        self._under_way: WeakValueDictionary[tuple[CollectionKey, bytes], asyncio.Lock] = (
            WeakValueDictionary()
        )

    async def close(self) -> None:
        """Ends the processes in which documents are read."""
        await self._readers.close()

    async def upsert(
        self,
        key: CollectionKey,
        documents: Sequence[collections_pb2.Document],
        request: Request,
        call: Call,
    ) -> Stored:
        """Stores all of them or none. Raises InvalidArgument with all documents that are
        wrong or can't be read, FailedPrecondition for a vector where the collection has
        none, and what Embed and the index raise."""
        _refuse(_repeated(documents))
        # A call that takes long is made once more beside itself: that one waits for what the
        # first has stored, in place of having all of it embedded, too.
        lock = self._under_way.setdefault((key, request.digest), asyncio.Lock())
        async with lock:
            return await self._upsert(key, documents, request, call)

    async def _upsert(
        self,
        key: CollectionKey,
        documents: Sequence[collections_pb2.Document],
        request: Request,
        call: Call,
    ) -> Stored:
        collection = await self._index.get(key)
        present = await self._index.present(key, [document.uri for document in documents])
        changed: list[tuple[int, collections_pb2.Document, bytes]] = []
        unchanged = Stored(0, 0)
        for number, document in enumerate(documents):
            digest = _digest(document)
            known = present.get(document.uri)
            if known is not None and known.digest == digest:
                unchanged = Stored(unchanged.documents + 1, unchanged.passages + known.passages)
            else:
                changed.append((number, document, digest))
        outcomes = await asyncio.gather(
            *(
                self._split(key.tenant, number, each, digest, collection)
                for number, each, digest in changed
            )
        )
        _refuse([outcome for outcome in outcomes if isinstance(outcome, FieldViolation)])
        split = [outcome for outcome in outcomes if isinstance(outcome, SplitDocument)]
        if collection.model:
            split = await self._with_vectors(key, split, collection, call)
        return await self._index.upsert(key, split, request, unchanged)

    async def _split(
        self,
        tenant: str,
        number: int,
        document: collections_pb2.Document,
        digest: bytes,
        collection: collections_pb2.Collection,
    ) -> SplitDocument | FieldViolation:
        """The document in passages, or what is wrong with it."""
        try:
            read_metadata(document.metadata, f"documents[{number}].metadata")
            vectors = _given(document, number, collection)
            title, passages = await self._passages(tenant, number, document)
        except InvalidArgument as error:
            return error.violations[0]
        title = document.title or title or first_heading(passages) or document.uri
        return SplitDocument(
            document.uri,
            title[:TITLE_LENGTH_MAX],
            passages,
            vectors,
            document.metadata,
            digest,
        )

    async def _passages(
        self, tenant: str, number: int, document: collections_pb2.Document
    ) -> tuple[str, Sequence[Passage]]:
        """The document's own title, and its passages."""
        place = f"documents[{number}]"
        is_pdf = document.media_type == PDF
        if bool(document.content) != is_pdf or (is_pdf and document.text):
            raise InvalidArgument.of(f"{place}.content", "is for PDF files, which have no text")
        if document.vector:
            if is_pdf or len(document.text) > PASSAGE_TEXT_LENGTH_MAX:
                raise InvalidArgument.of(
                    f"{place}.vector",
                    "is for a text of one passage: of "
                    f"{PASSAGE_TEXT_LENGTH_MAX} characters at most",
                )
            return "", [Passage((), 1, document.text)]
        source = Source(document.media_type, document.text, document.content)
        try:
            reading = await self._readers.read(tenant, source)
        except Unreadable as error:
            raise InvalidArgument.of(
                f"{place}.{'content' if is_pdf else 'text'}", str(error)
            ) from None
        return reading.title, reading.passages

    async def _with_vectors(
        self,
        key: CollectionKey,
        documents: Sequence[SplitDocument],
        collection: collections_pb2.Collection,
        call: Call,
    ) -> list[SplitDocument]:
        """The documents, those without vectors with the model's."""
        texts = [
            _embedded_text(document, passage)
            for document in documents
            if not document.vectors
            for passage in document.passages
        ]
        made = await self._embedder.passages(
            key.tenant, collection.model, collection.dimension, texts, call
        )
        following = iter(made)
        return [
            document
            if document.vectors
            else replace(document, vectors=[next(following) for _ in document.passages])
            for document in documents
        ]


def _given(
    document: collections_pb2.Document, number: int, collection: collections_pb2.Collection
) -> Sequence[Vector]:
    """The vector that the document brings, if it does."""
    if not document.vector:
        return ()
    if not collection.dimension:
        raise FailedPrecondition("the collection has no vectors: it was made without a dimension")
    field = f"documents[{number}].vector"
    return [read_vector(document.vector, collection.dimension, metric_of(collection), field)]


def _embedded_text(document: SplitDocument, passage: Passage) -> str:
    """What a passage means is also what it stands under."""
    return "\n".join((document.title, *passage.headings, passage.text))[:EMBEDDED_LENGTH_MAX]


def _digest(document: collections_pb2.Document) -> bytes:
    digest = hashlib.sha256(SPLIT_VERSION)
    digest.update(document.SerializeToString(deterministic=True))
    return digest.digest()


def _repeated(documents: Sequence[collections_pb2.Document]) -> list[FieldViolation]:
    seen: set[str] = set()
    violations = []
    for number, document in enumerate(documents):
        if document.uri in seen:
            field = f"documents[{number}].uri"
            violations.append(FieldViolation(field, "is there twice in this request"))
        seen.add(document.uri)
    return violations


def _refuse(violations: Sequence[FieldViolation]) -> None:
    if violations:
        text = "; ".join(f"{item.field}: {item.description}" for item in violations)
        raise InvalidArgument(text, violations=violations)
