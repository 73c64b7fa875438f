"""What rows of either back end say, as messages."""

from collections.abc import Sequence
from typing import Any

from mesh.errors import FailedPrecondition
from services.vectors.domain.vectors import Metric, Vector
from services.vectors.index import CollectionKey
from weft.vectors.v1 import collections_pb2

METRICS = {
    Metric.COSINE: collections_pb2.METRIC_COSINE,
    Metric.DOT: collections_pb2.METRIC_DOT,
    Metric.L2: collections_pb2.METRIC_L2,
}

_BY_NUMBER = {number: metric for metric, number in METRICS.items()}


def metric_of(collection: collections_pb2.Collection) -> Metric:
    """The metric of a collection that has vectors."""
    return _BY_NUMBER[collection.metric]


def collection_of(tenant: str, row: Sequence[Any]) -> collections_pb2.Collection:
    """The collection of a row: name, description, time of its making in nanoseconds, counts
    of documents and passages, dimension, metric, model."""
    name, description, create_time_ns, documents, passages, dimension, metric, model = row
    collection = collections_pb2.Collection(
        name=str(CollectionKey(tenant, name)),
        description=description,
        document_count=documents,
        passage_count=passages,
        dimension=dimension,
        metric=METRICS[Metric(metric)] if dimension else collections_pb2.METRIC_UNSPECIFIED,
        model=model,
    )
    collection.create_time.FromNanoseconds(create_time_ns)
    return collection


def passage_of(row: Sequence[Any], score: float = 0.0) -> collections_pb2.Passage:
    """The passage of a row: title, headings in lines, text, line, page, uri, metadata."""
    title, headings, text, line, page, uri, metadata = row
    passage = collections_pb2.Passage(
        uri=uri,
        title=title,
        headings=headings.split("\n") if headings else (),
        line=line,
        text=text,
        page=page,
        score=score,
    )
    if metadata:
        passage.metadata.ParseFromString(metadata)
    return passage


def refuse_other_dimension(vector: Vector, dimension: int) -> None:
    """FailedPrecondition where the vector isn't of the dimension."""
    if len(vector) != dimension:
        raise FailedPrecondition(
            f"the collection's vectors have {dimension} numbers, not {len(vector)}"
            if dimension
            else "the collection has no vectors"
        )
