"""Documents in folders: which files are read, and in what portions they are sent."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.cli.failures import CommandFailed, usage_error

if TYPE_CHECKING:
    from weft.vectors.v1 import collections_pb2

MARKDOWN_SUFFIXES = frozenset({".md", ".markdown", ".mdown", ".mkd"})
PLAIN_SUFFIXES = frozenset({".txt", ".text", ".rst", ".adoc", ".asciidoc", ".org"})
HTML_SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
PDF_SUFFIX = ".pdf"
SUFFIXES = MARKDOWN_SUFFIXES | PLAIN_SUFFIXES | HTML_SUFFIXES | {PDF_SUFFIX}
SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__"})

FILE_BYTES_MAX = 1024 * 1024
PDF_BYTES_MAX = 4_000_000
"""A call's message has 4 MiB at most."""
FILES_MAX = 100_000
BATCH_BYTES_MAX = 2 * 1024 * 1024
BATCH_DOCUMENTS_MAX = 128


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """A file to be ingested; `uri` is its path relative to the folder that was given."""

    path: Path
    uri: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that isn't ingested, and why."""

    path: Path
    reason: str


def find_documents(places: Sequence[Path]) -> list[DocumentFile]:
    """The Markdown, text, HTML and PDF files of folders, by path; a file that is given is taken by
    its name.

    Hidden files and folders and SKIPPED_FOLDERS are passed over, links to folders aren't
    followed. CommandFailed where a place isn't there, where two files would have one uri,
    or where there are more than FILES_MAX.
    """
    found: dict[str, DocumentFile] = {}
    for place in places:
        if not place.exists():
            raise CommandFailed(f"there is no {place}")
        files = _walk(place) if place.is_dir() else iter([DocumentFile(place, place.name)])
        for file in files:
            other = found.get(file.uri)
            if other is not None and other.path != file.path:
                raise usage_error(
                    f"{other.path} and {file.path} would both be {file.uri}",
                    "Give the folder that holds both, or use two collections.",
                )
            found[file.uri] = file
            if len(found) > FILES_MAX:
                raise usage_error(f"more than {FILES_MAX} files; ingest parts of the folder")
    return list(found.values())


def _walk(folder: Path) -> Iterator[DocumentFile]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in SKIPPED_FOLDERS
        )
        for name in sorted(names):
            path = Path(parent, name)
            suffix = path.suffix.lower()
            if not name.startswith(".") and suffix in SUFFIXES:
                yield DocumentFile(path, path.relative_to(folder).as_posix())


def read_document(file: DocumentFile) -> "collections_pb2.Document | Skipped":
    """The document of a file, or why it is none: too large, not UTF-8, binary, empty, a pipe."""
    from weft.vectors.v1 import collections_pb2

    try:
        file.uri.encode()
    except UnicodeEncodeError:
        return Skipped(file.path, "its name isn't UTF-8")
    suffix = file.path.suffix.lower()
    is_pdf = suffix == PDF_SUFFIX
    most, shown = (PDF_BYTES_MAX, "4 MB") if is_pdf else (FILE_BYTES_MAX, "1 MiB")
    try:
        # To open a pipe would wait for whoever writes to it, for good.
        if not stat.S_ISREG(file.path.stat().st_mode):
            return Skipped(file.path, "not a regular file")
        with file.path.open("rb") as opened:
            data = opened.read(most + 1)
    except OSError as error:
        return Skipped(file.path, f"can't be read: {error.strerror}")
    if len(data) > most:
        return Skipped(file.path, f"larger than {shown}")
    if is_pdf and data:
        pdf = collections_pb2.MEDIA_TYPE_PDF
        return collections_pb2.Document(uri=file.uri, content=data, media_type=pdf)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return Skipped(file.path, "not UTF-8 text")
    if not text.strip():
        return Skipped(file.path, "empty")
    media_type = collections_pb2.MEDIA_TYPE_PLAIN
    if suffix in MARKDOWN_SUFFIXES:
        media_type = collections_pb2.MEDIA_TYPE_MARKDOWN
    elif suffix in HTML_SUFFIXES:
        media_type = collections_pb2.MEDIA_TYPE_HTML
    return collections_pb2.Document(uri=file.uri, text=text, media_type=media_type)


def batches(
    files: Sequence[DocumentFile], skipped: list[Skipped]
) -> "Iterator[list[collections_pb2.Document]]":
    """The documents in portions that fit in one call; what is no document goes to `skipped`."""
    batch: list[collections_pb2.Document] = []
    batch_bytes = 0
    for file in files:
        document = read_document(file)
        if isinstance(document, Skipped):
            skipped.append(document)
            continue
        size_bytes = document.ByteSize()
        if batch and (
            batch_bytes + size_bytes > BATCH_BYTES_MAX or len(batch) == BATCH_DOCUMENTS_MAX
        ):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(document)
        batch_bytes += size_bytes
    if batch:
        yield batch
