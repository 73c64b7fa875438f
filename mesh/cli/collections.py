"""`weft collection`: documents that agents search."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.documents import DocumentFile, Skipped, batches, find_documents
from mesh.cli.failures import is_not_found, usage_error, violations_of
from mesh.cli.names import COLLECTION, check_id, resource_name, short_name
from mesh.cli.output import Output, moment, note, one_line, show_data, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch

if TYPE_CHECKING:
    from google.protobuf.struct_pb2 import Struct

    from weft.vectors.v1 import collections_pb2
    from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

collections = typer.Typer(help="Make, fill, search and delete collections.", no_args_is_help=True)

UPSERT_SECONDS = 120.0
NOTES_MAX = 20
"""Most skipped files that are named; the others are counted."""

_DOCUMENT = re.compile(r"documents\[(\d+)\]")


class Metric(StrEnum):
    """How near vectors are."""

    COSINE = "cosine"
    DOT = "dot"
    L2 = "l2"


class Mode(StrEnum):
    """By what passages are found."""

    TEXT = "text"
    DENSE = "dense"
    HYBRID = "hybrid"


CollectionArgument = Annotated[
    str, typer.Argument(metavar="COLLECTION", help="The collection: an id or a full name.")
]

ModelOption = Annotated[
    str, typer.Option(help="Model that makes the vectors, as provider/model.", metavar="MODEL")
]
FilterOption = Annotated[
    str, typer.Option("--filter", help="""Such as 'author = "Ann" AND year >= 2020'.""")
]


@command(collections, "create", example='weft collection create docs --description "Our manuals"')
def create_collection(
    client: Client,
    collection: Annotated[str, typer.Argument(metavar="ID", help="The collection's id.")],
    description: Annotated[str, typer.Option(help="What is in it.")] = "",
    model: ModelOption = "",
    dimension: Annotated[
        int, typer.Option(help="Numbers of a vector; the model's own where it isn't said.", min=0)
    ] = 0,
    metric: Annotated[Metric, typer.Option(help="How near vectors are.")] = Metric.COSINE,
) -> None:
    """Makes a collection: one that is searched by words, with --model by meaning as well."""
    name = resource_name(check_id(collection, "ID"), COLLECTION, client)
    _show(client, _create(client, name, description, model, dimension, metric))


@command(collections, "list", example="weft collection list")
def list_collections(client: Client, limit: Limit = LIMIT) -> None:
    """Lists collections by id."""
    from weft.vectors.v1 import vector_service_pb2 as pb

    request = pb.ListCollectionsRequest(parent=client.parent)
    method = _stub(client).ListCollections
    found = fetch(client, method, request, lambda page: page.collections, limit)
    columns = {
        "collection": lambda c: short_name(c.name),
        "documents": lambda c: c.document_count,
        "passages": lambda c: c.passage_count,
        "model": lambda c: c.model,
        "created": lambda c: moment(c.create_time),
        "description": lambda c: one_line(c.description),
    }
    show_list(client.output, found, columns)


@command(collections, "show", example="weft collection show docs")
def show_collection(client: Client, collection: CollectionArgument) -> None:
    """Shows a collection and how much it holds."""
    from weft.vectors.v1 import vector_service_pb2 as pb

    request = pb.GetCollectionRequest(name=resource_name(collection, COLLECTION, client))
    _show(client, client.call(_stub(client).GetCollection, request).collection)


@command(collections, "delete", example="weft collection delete docs")
def delete_collection(client: Client, collection: CollectionArgument) -> None:
    """Deletes a collection with all that is in it."""
    from weft.vectors.v1 import vector_service_pb2 as pb

    name = resource_name(collection, COLLECTION, client)
    client.call(_stub(client).DeleteCollection, pb.DeleteCollectionRequest(name=name))
    note(f"deleted collection {short_name(name)}")


@command(collections, "ingest", example="weft collection ingest docs ./manuals")
def ingest_folders(
    client: Client,
    collection: CollectionArgument,
    folders: Annotated[list[Path], typer.Argument(help="Folders, or single files.")],
    model: ModelOption = "",
    metadata: Annotated[
        list[str] | None,
        typer.Option(help="What is known of each document, for filters.", metavar="KEY=VALUE"),
    ] = None,
) -> None:
    """Stores the Markdown, text, HTML and PDF files of folders; makes the collection if need be.

    A document's uri is its path in the folder that was given; the same uri replaces, and what
    is there just so stays: a command that was cut off may be given again. Hidden folders,
    node_modules, binary files, texts over 1 MiB and PDF files over 4 MB are skipped.
    """
    name = resource_name(collection, COLLECTION, client)
    known = _metadata(metadata or [])
    files = find_documents(folders)
    if not files:
        raise usage_error(f"no Markdown, text, HTML or PDF files in {' '.join(map(str, folders))}")
    _make_sure_it_exists(client, name, model)
    ingest = _Ingest(client, name, known)
    ingest.all(files)
    skipped = ingest.skipped
    for item in skipped[:NOTES_MAX]:
        note(f"skipped {item.path}: {item.reason}")
    if len(skipped) > NOTES_MAX:
        note(f"skipped {len(skipped) - NOTES_MAX} more")
    if client.output is Output.TABLE:
        unchanged = f" ({ingest.unchanged_count} unchanged)" if ingest.unchanged_count else ""
        sys.stdout.write(
            f"{short_name(name)}: {ingest.document_count} documents{unchanged}, "
            f"{ingest.passage_count} passages stored, {len(skipped)} files skipped\n"
        )
        return
    data = {
        "collection": name,
        "document_count": ingest.document_count,
        "passage_count": ingest.passage_count,
        "unchanged_count": ingest.unchanged_count,
        "skipped": [{"path": str(item.path), "reason": item.reason} for item in skipped],
    }
    show_data(client.output, data)


@command(collections, "search", example='weft collection search docs "how are events stored"')
def search_collection(
    client: Client,
    collection: CollectionArgument,
    query: Annotated[str, typer.Argument(help="What to find, in everyday words.")],
    passages_max: Annotated[
        int, typer.Option("-n", "--passages-max", help="Most passages.", min=1, max=100)
    ] = 8,
    only: FilterOption = "",
    mode: Annotated[
        Mode | None, typer.Option(help="By what; by words, and by vectors where there are.")
    ] = None,
) -> None:
    """Finds the passages that fit a query best."""
    from weft.vectors.v1 import vector_service_pb2 as pb

    name = resource_name(collection, COLLECTION, client)
    request = pb.SearchRequest(name=name, query=query, passages_max=passages_max, filter=only)
    if mode is not None:
        request.mode = pb.SearchMode.Value(f"SEARCH_MODE_{mode.name}")
    passages = client.call(_stub(client).Search, request).passages
    columns = {
        "score": lambda p: f"{p.score:.3g}",
        "place": lambda p: f"{p.uri}:{f'p{p.page}:' if p.page else ''}{p.line}",
        "headings": lambda p: one_line(" > ".join(p.headings), 60),
        "text": lambda p: one_line(p.text, 160),
    }
    show_list(client.output, passages, columns)


@command(collections, "remove", example="weft collection remove docs --filter 'year < 2020'")
def remove_documents(
    client: Client,
    collection: CollectionArgument,
    uris: Annotated[list[str] | None, typer.Argument(help="The documents' uris.")] = None,
    only: FilterOption = "",
) -> None:
    """Takes documents out of a collection, by uri or by a filter."""
    from weft.vectors.v1 import vector_service_pb2 as pb

    name = resource_name(collection, COLLECTION, client)
    request = pb.DeleteDocumentsRequest(name=name, uris=uris or [], filter=only)
    count = client.call(_stub(client).DeleteDocuments, request, UPSERT_SECONDS).document_count
    note(f"took {count} documents out of {short_name(name)}")


def _stub(client: Client) -> "VectorServiceStub":
    from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

    stub: VectorServiceStub = client.stub(VectorServiceStub)
    return stub


def _create(
    client: Client,
    name: str,
    description: str = "",
    model: str = "",
    dimension: int = 0,
    metric: Metric = Metric.COSINE,
) -> "collections_pb2.Collection":
    from weft.vectors.v1 import collections_pb2
    from weft.vectors.v1 import vector_service_pb2 as pb

    parent, collection_id = name.split("/collections/")
    request = pb.CreateCollectionRequest(
        parent=parent,
        collection_id=collection_id,
        description=description,
        model=model,
        dimension=dimension,
    )
    if model or dimension:
        request.metric = collections_pb2.Metric.Value(f"METRIC_{metric.name}")
    return client.call(_stub(client).CreateCollection, request).collection


def _make_sure_it_exists(client: Client, name: str, model: str) -> None:
    import grpc

    from weft.vectors.v1 import vector_service_pb2 as pb

    request = pb.GetCollectionRequest(name=name)
    try:
        there = client.call(_stub(client).GetCollection, request).collection
    except grpc.RpcError as error:
        if not is_not_found(error):
            raise
        _create(client, name, model=model)
        note(f"made collection {short_name(name)}")
        return
    if model and there.model != model:
        raise usage_error(f"{short_name(name)} is there, with the model {there.model or 'none'}")


def _metadata(pairs: Sequence[str]) -> "Struct":
    """What `KEY=VALUE` pairs say; a value is JSON where it is some, else text."""
    from google.protobuf.struct_pb2 import Struct

    known = Struct()
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise usage_error(f"--metadata takes KEY=VALUE, not {pair}")
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = text
        known.update({key: value})
    return known


@dataclass
class _Ingest:
    """Stores files' documents, and counts what became of them."""

    client: Client
    name: str
    metadata: "Struct"
    skipped: list[Skipped] = field(default_factory=list)
    document_count: int = 0
    passage_count: int = 0
    unchanged_count: int = 0

    def all(self, files: Sequence[DocumentFile]) -> None:
        """Stores all of them, in batches."""
        from rich.console import Console
        from rich.progress import Progress

        paths = {file.uri: file.path for file in files}
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as shown:
            task = shown.add_task("Ingesting", total=len(files))
            for batch in batches(files, self.skipped):
                for document in batch:
                    document.metadata.CopyFrom(self.metadata)
                self._store(batch, paths)
                shown.update(task, completed=self.document_count + len(self.skipped))

    def _store(self, batch: "list[collections_pb2.Document]", paths: dict[str, Path]) -> None:
        """Stores a batch without those that the server can't read, which are skipped."""
        import grpc

        from weft.vectors.v1 import vector_service_pb2 as pb

        while batch:
            request = pb.UpsertDocumentsRequest(name=self.name, documents=batch)
            try:
                answer = self.client.call(
                    _stub(self.client).UpsertDocuments, request, UPSERT_SECONDS
                )
            except grpc.RpcError as error:
                refused = _refused(error)
                if not refused:
                    raise
                for number, reason in refused.items():
                    self.skipped.append(Skipped(paths[batch[number].uri], reason))
                batch = [each for number, each in enumerate(batch) if number not in refused]
                continue
            self.document_count += answer.document_count
            self.passage_count += answer.passage_count
            self.unchanged_count += answer.unchanged_count
            return


def _refused(error: Any) -> dict[int, str]:
    """Which documents of a request the server refused, and why; none for another error."""
    refused = {}
    for place, reason in violations_of(error).items():
        # What is wrong with all alike, as their metadata, is no reason to go on.
        match = _DOCUMENT.match(place)
        if match and place.endswith((".text", ".content")):
            refused[int(match[1])] = reason
    return refused


def _show(client: Client, collection: "collections_pb2.Collection") -> None:
    fields = {
        "collection": short_name(collection.name),
        "description": collection.description,
        "documents": collection.document_count,
        "passages": collection.passage_count,
        "model": collection.model,
        "dimension": collection.dimension or "",
        "created": moment(collection.create_time),
    }
    show_message(client.output, collection, fields)
