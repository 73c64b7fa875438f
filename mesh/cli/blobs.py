"""`weft blob`: bytes under names."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from mesh.cli.blob_files import chunks_of, measured, opened, written
from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import CommandFailed, usage_error
from mesh.cli.names import BLOB, SESSION, check_id, resource_name, short_name
from mesh.cli.output import Output, as_data, moment, note, show_data, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch

if TYPE_CHECKING:
    from weft.blobs.v1 import blob_service_pb2 as pb
    from weft.blobs.v1 import blobs_pb2
    from weft.blobs.v1.blob_service_pb2_grpc import BlobServiceStub

blobs = typer.Typer(help="Put, get, list and delete blobs.", no_args_is_help=True)

TRANSFER_SECONDS = 3_600.0
"""Deadline of a put or get where no --timeout is given."""

BlobArgument = Annotated[
    str, typer.Argument(metavar="BLOB", help="The blob: an id or a full name.")
]


@command(blobs, "put", example="weft blob put report ./report.pdf --content-type application/pdf")
def put_blob(
    client: Client,
    blob: BlobArgument,
    file: Annotated[str, typer.Argument(help="What to put; - is stdin.")] = "-",
    content_type: Annotated[
        str, typer.Option(help="Media type; guessed from the file's name otherwise.")
    ] = "",
    ttl: Annotated[
        int, typer.Option(metavar="SECONDS", help="How long it is to stay; 0 is for ever.", min=0)
    ] = 0,
    source: Annotated[
        str, typer.Option(metavar="SESSION", help="The session it is of, and is erased with.")
    ] = "",
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Only if there is none.")] = False,
    if_match: Annotated[
        str, typer.Option(metavar="ETAG", help="Only if the one that is there has this etag.")
    ] = "",
) -> None:
    """Puts a file in the place of the blob of that name.

    It is there once all of it has come, and has the SHA-256 of the file.
    """
    from weft.blobs.v1 import blob_service_pb2 as pb

    if if_absent and if_match:
        raise usage_error("--if-absent and --if-match exclude each other")
    name = resource_name(blob, BLOB, client)
    header = pb.PutBlobHeader(content_type=content_type or _guessed(file))
    if file != "-":
        header.file_name = Path(file).name
    if ttl:
        header.ttl.FromSeconds(ttl)
    if source:
        header.source = resource_name(source, SESSION, client)
    if if_absent:
        header.if_absent = True
    if if_match:
        header.if_match = if_match
    with opened(file) as bytes_in:
        known = measured(bytes_in)
        if known is not None:
            header.size_bytes, header.sha256 = known
        timeout = client.remaining_seconds(TRANSFER_SECONDS)
        answer = _stub(client).PutBlob(_parts(name, header, bytes_in), timeout=timeout)
    _show(client, answer.blob)


@command(blobs, "get", example="weft blob get report --to report.pdf")
def get_blob(
    client: Client,
    blob: BlobArgument,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write it to a file.")
    ] = None,
    offset: Annotated[int, typer.Option(help="First byte that is wanted.", min=0)] = 0,
    length: Annotated[
        int | None, typer.Option(help="How many bytes are wanted at most.", min=0)
    ] = None,
) -> None:
    """Writes a blob's bytes to stdout, or to a file, which is there once all have come."""
    from weft.blobs.v1 import blob_service_pb2 as pb

    name = resource_name(blob, BLOB, client)
    request = pb.GetBlobRequest(name=name, offset=offset, length_bytes=length)
    answers = _stub(client).GetBlob(request, timeout=client.remaining_seconds(TRANSFER_SECONDS))
    first = next(iter(answers))
    whole = first.length_bytes == first.blob.size_bytes
    with written(to, first.blob.sha256 if whole else b"") as write:
        count = 0
        for answer in answers:
            count += len(answer.data)
            write(answer.data)
        if count != first.length_bytes:
            raise CommandFailed(f"{count} of {first.length_bytes} bytes came")
    if to is not None:
        note(f"wrote {count} bytes of blob {short_name(name)} to {to}")


@command(blobs, "ls", example="weft blob ls --prefix report-")
def list_blobs(
    client: Client,
    prefix: Annotated[str, typer.Option(help="What their ids begin with.")] = "",
    limit: Limit = LIMIT,
) -> None:
    """Lists blobs by id."""
    from weft.blobs.v1 import blob_service_pb2 as pb

    if prefix:
        check_id(prefix, "--prefix")
    request = pb.ListBlobsRequest(parent=client.parent, prefix=prefix)
    found = fetch(client, _stub(client).ListBlobs, request, lambda page: page.blobs, limit)
    columns = {
        "blob": lambda b: short_name(b.name),
        "size": lambda b: "damaged" if b.damaged else b.size_bytes,
        "type": lambda b: b.content_type,
        "created": lambda b: moment(b.create_time),
        "expires": lambda b: moment(b.expire_time),
        "file": lambda b: b.file_name,
    }
    show_list(client.output, found, columns)


@command(blobs, "stat", example="weft blob stat report")
def stat_blob(client: Client, blob: BlobArgument) -> None:
    """Shows what is known of a blob."""
    from weft.blobs.v1 import blob_service_pb2 as pb

    request = pb.StatBlobRequest(name=resource_name(blob, BLOB, client))
    _show(client, client.call(_stub(client).StatBlob, request).blob)


@command(blobs, "rm", example="weft blob rm report")
def delete_blob(
    client: Client,
    blob: BlobArgument,
    if_match: Annotated[
        str, typer.Option(metavar="ETAG", help="Only if the one that is there has this etag.")
    ] = "",
) -> None:
    """Deletes a blob: the key of its bytes is destroyed."""
    from weft.blobs.v1 import blob_service_pb2 as pb

    name = resource_name(blob, BLOB, client)
    request = pb.DeleteBlobRequest(name=name, if_match=if_match)
    client.call(_stub(client).DeleteBlob, request)
    note(f"deleted blob {short_name(name)}")


@command(blobs, "sign", example="weft blob sign report --for 3600")
def sign_blob_url(
    client: Client,
    blob: BlobArgument,
    put: Annotated[bool, typer.Option("--put", help="For putting it, instead of getting.")] = False,
    seconds: Annotated[
        int, typer.Option("--for", metavar="SECONDS", help="How long it holds.", min=1, max=604_800)
    ] = 900,
    content_type: Annotated[str, typer.Option(help="Media type that --put stores.")] = "",
) -> None:
    """Makes a URL by which whoever has it gets the blob over HTTP, or puts it.

    It allows no more than your key does, and ends with it.
    """
    from weft.blobs.v1 import blob_service_pb2 as pb

    request = pb.SignBlobUrlRequest(
        name=resource_name(blob, BLOB, client),
        method=pb.URL_METHOD_PUT if put else pb.URL_METHOD_GET,
        content_type=content_type,
    )
    request.ttl.FromSeconds(seconds)
    answer = client.call(_stub(client).SignBlobUrl, request)
    if client.output is not Output.TABLE:
        show_data(client.output, as_data(answer))
        return
    sys.stdout.write(answer.url + "\n")
    note(f"holds until {moment(answer.expire_time)}")


def _parts(
    name: str, header: "pb.PutBlobHeader", bytes_in: BinaryIO
) -> "Iterator[pb.PutBlobRequest]":
    from weft.blobs.v1 import blob_service_pb2 as pb

    yield pb.PutBlobRequest(name=name, header=header)
    for chunk in chunks_of(bytes_in):
        yield pb.PutBlobRequest(name=name, data=chunk)
    yield pb.PutBlobRequest(name=name, last=True)


def _guessed(file: str) -> str:
    import mimetypes

    return mimetypes.guess_type(file)[0] or ""


def _stub(client: Client) -> "BlobServiceStub":
    from weft.blobs.v1.blob_service_pb2_grpc import BlobServiceStub

    stub: BlobServiceStub = client.stub(BlobServiceStub)
    return stub


def _show(client: Client, blob: "blobs_pb2.Blob") -> None:
    fields = {
        "blob": short_name(blob.name),
        "size": blob.size_bytes,
        "type": blob.content_type,
        "file": blob.file_name,
        "sha256": blob.sha256.hex(),
        "etag": blob.etag,
        "session": short_name(blob.source),
        "created": moment(blob.create_time),
        "expires": moment(blob.expire_time),
    }
    show_message(client.output, blob, fields)
