"""`weft collection`: documents that agents search."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.documents import DocumentFile, Skipped, batches, find_documents
from mesh.cli.failures import is_not_found, usage_error
from mesh.cli.names import COLLECTION, check_id, resource_name, short_name
from mesh.cli.output import Output, moment, note, one_line, show_data, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch

if TYPE_CHECKING:
    from weft.vectors.v1 import collections_pb2
    from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

collections = typer.Typer(help="Make, fill, search and delete collections.", no_args_is_help=True)

UPSERT_SECONDS = 120.0
NOTES_MAX = 20
"""Most skipped files that are named; the others are counted."""

CollectionArgument = Annotated[
    str, typer.Argument(metavar="COLLECTION", help="The collection: an id or a full name.")
]


@command(collections, "create", example='weft collection create docs --description "Our manuals"')
def create_collection(
    client: Client,
    collection: Annotated[str, typer.Argument(metavar="ID", help="The collection's id.")],
    description: Annotated[str, typer.Option(help="What is in it.")] = "",
) -> None:
    """Makes a collection."""
    name = resource_name(check_id(collection, "ID"), COLLECTION, client)
    _show(client, _create(client, name, description))


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
) -> None:
    """Stores the Markdown and text files of folders; makes the collection if need be.

    A document's uri is its path in the folder that was given; the same uri replaces.
    Hidden folders, node_modules, binary files and files over 1 MiB are skipped.
    """
    name = resource_name(collection, COLLECTION, client)
    files = find_documents(folders)
    if not files:
        raise usage_error(f"no Markdown or text files in {' '.join(map(str, folders))}")
    _make_sure_it_exists(client, name)
    skipped: list[Skipped] = []
    document_count, passage_count = _upsert(client, name, files, skipped)
    for item in skipped[:NOTES_MAX]:
        note(f"skipped {item.path}: {item.reason}")
    if len(skipped) > NOTES_MAX:
        note(f"skipped {len(skipped) - NOTES_MAX} more")
    if client.output is Output.TABLE:
        sys.stdout.write(
            f"{short_name(name)}: {document_count} documents, {passage_count} passages stored, "
            f"{len(skipped)} files skipped\n"
        )
        return
    data = {
        "collection": name,
        "document_count": document_count,
        "passage_count": passage_count,
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
) -> None:
    """Finds the passages that fit a query best."""
    from weft.vectors.v1 import vector_service_pb2 as pb

    name = resource_name(collection, COLLECTION, client)
    request = pb.SearchRequest(name=name, query=query, passages_max=passages_max)
    passages = client.call(_stub(client).Search, request).passages
    columns = {
        "score": lambda p: f"{p.score:.2f}",
        "place": lambda p: f"{p.uri}:{p.line}",
        "headings": lambda p: one_line(" > ".join(p.headings), 60),
        "text": lambda p: one_line(p.text, 160),
    }
    show_list(client.output, passages, columns)


def _stub(client: Client) -> "VectorServiceStub":
    from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

    stub: VectorServiceStub = client.stub(VectorServiceStub)
    return stub


def _create(client: Client, name: str, description: str) -> "collections_pb2.Collection":
    from weft.vectors.v1 import vector_service_pb2 as pb

    parent, collection_id = name.split("/collections/")
    request = pb.CreateCollectionRequest(
        parent=parent, collection_id=collection_id, description=description
    )
    return client.call(_stub(client).CreateCollection, request).collection


def _make_sure_it_exists(client: Client, name: str) -> None:
    import grpc

    from weft.vectors.v1 import vector_service_pb2 as pb

    try:
        client.call(_stub(client).GetCollection, pb.GetCollectionRequest(name=name))
    except grpc.RpcError as error:
        if not is_not_found(error):
            raise
        _create(client, name, "")
        note(f"made collection {short_name(name)}")


def _upsert(
    client: Client, name: str, files: list[DocumentFile], skipped: list[Skipped]
) -> tuple[int, int]:
    """Stores the files' documents; how many documents and passages that were."""
    from rich.console import Console
    from rich.progress import Progress

    from weft.vectors.v1 import vector_service_pb2 as pb

    document_count = passage_count = 0
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Ingesting", total=len(files))
        for batch in batches(files, skipped):
            request = pb.UpsertDocumentsRequest(name=name, documents=batch)
            answer = client.call(_stub(client).UpsertDocuments, request, UPSERT_SECONDS)
            document_count += answer.document_count
            passage_count += answer.passage_count
            progress.update(task, completed=document_count + len(skipped))
    return document_count, passage_count


def _show(client: Client, collection: "collections_pb2.Collection") -> None:
    fields = {
        "collection": short_name(collection.name),
        "description": collection.description,
        "documents": collection.document_count,
        "passages": collection.passage_count,
        "created": moment(collection.create_time),
    }
    show_message(client.output, collection, fields)
