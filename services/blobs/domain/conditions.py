"""What has to be so for a blob to be put, read or deleted."""

from mesh.errors import AlreadyExists, Conflict, InvalidArgument, RequestIdReused
from weft.blobs.v1 import blob_service_pb2 as pb
from weft.blobs.v1 import blobs_pb2, stored_pb2

ANY = "*"
"""In place of an etag: whichever blob is there."""


def refuse_put(header: pb.PutBlobHeader, name: str, present: blobs_pb2.Blob | None) -> None:
    """AlreadyExists or Conflict where the header's condition doesn't hold."""
    if header.if_absent and present is not None:
        raise AlreadyExists(f"blob {name} is there", metadata={"resource": name})
    if header.if_match:
        refuse_other(header.if_match, name, present)


def refuse_other(etag: str, name: str, present: blobs_pb2.Blob | None) -> None:
    """Conflict where there is another blob of that name than that of the etag, or none."""
    if etag and (present is None or etag not in (ANY, present.etag)):
        raise Conflict(f"blob {name} has changed", metadata={"resource": name})


def is_named(field: str, etag: str, *, weakly: bool = False) -> bool:
    """Whether an If-Match, or `weakly` an If-None-Match, names the blob of that etag, which is
    empty where there is none (RFC 9110, 13.1)."""
    if not etag or field == ANY:
        return bool(etag)
    tags = (each.strip() for each in field.split(","))
    return f'"{etag}"' in (tag.removeprefix("W/") if weakly else tag for tag in tags)


def is_repeated(header: stored_pb2.BlobHeader, present: stored_pb2.BlobHeader | None) -> bool:
    """Whether what is to be put is there already, by the same request. RequestIdReused where
    that one had another body."""
    if present is None or not header.request_id or present.request_id != header.request_id:
        return False
    body = (header.request_digest, header.blob.sha256)
    if (present.request_digest, present.blob.sha256) != body:
        raise RequestIdReused("the request_id came before with another body")
    return True


def read_range(blob: blobs_pb2.Blob, offset: int, length: int | None) -> tuple[int, int]:
    """First byte and count of a range, cut to the blob. InvalidArgument where it begins
    behind the blob's end."""
    if offset > blob.size_bytes:
        raise InvalidArgument.of("offset", f"the blob ends at {blob.size_bytes}")
    rest = blob.size_bytes - offset
    return offset, rest if length is None else min(length, rest)
