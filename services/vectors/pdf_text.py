"""Splits PDF files into passages, page by page; the headings are those of its outline.

Files come from anybody: this runs in a process of its own (`reading.py`), whose time and
memory are bounded.
"""

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pypdf
from pypdf.errors import PyPdfError

from services.vectors.chunking import HEADING_LENGTH_MAX, Passage, split_plain

OUTLINE_ENTRIES_MAX = 5_000
OUTLINE_DEPTH_MAX = 6


class Unreadable(Exception):
    """What is wrong with a document, in words for who sent it."""


def split_pdf(content: bytes, pages_max: int, length_max: int) -> tuple[str, list[Passage]]:
    """The file's title, empty without one, and its passages.

    Raises Unreadable where it isn't a PDF, is encrypted, has more than `pages_max` pages or
    more than `length_max` code points of text, or none at all.
    """
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        return _split(content, pages_max, length_max)
    except PyPdfError as error:
        raise Unreadable("isn't a PDF file that can be read") from error


def _split(content: bytes, pages_max: int, length_max: int) -> tuple[str, list[Passage]]:
    reader = pypdf.PdfReader(io.BytesIO(content), strict=False)
    if reader.is_encrypted and not reader.decrypt(""):
        raise Unreadable("is encrypted")
    count = len(reader.pages)
    if count > pages_max:
        raise Unreadable(f"has {count} pages; at most {pages_max} are accepted")
    outline = _outline(reader)
    passages: list[Passage] = []
    headings: tuple[str, ...] = ()
    length = 0
    for number, page in enumerate(reader.pages, 1):
        text = _readable(page.extract_text())
        length += len(text)
        if length > length_max:
            raise Unreadable(f"has more than {length_max} characters")
        begun = outline.get(number, ())
        headings = begun[0] if begun else headings
        passages += (replace(each, headings=headings, page=number) for each in split_plain(text))
        headings = begun[-1] if begun else headings
    if not passages:
        raise Unreadable("holds no text; pictures of pages aren't read")
    title = reader.metadata.title if reader.metadata else ""
    return _readable(str(title or "")).strip(), passages


def _readable(text: str) -> str:
    """The text without what can't be stored: a file's fonts may stand for any code point."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _outline(reader: pypdf.PdfReader) -> dict[int, list[tuple[str, ...]]]:
    """The paths of the outline's entries by the page, from 1, on which they begin."""
    found: dict[int, list[tuple[str, ...]]] = {}
    try:
        for number, (path, entry) in enumerate(_entries(reader.outline, ())):
            if number == OUTLINE_ENTRIES_MAX:
                break
            page = reader.get_destination_page_number(entry)
            if page is not None and page >= 0:
                found.setdefault(page + 1, []).append(path)
    except (PyPdfError, TypeError, ValueError, KeyError, AttributeError, IndexError):
        # Text without headings is better than none.
        return {}
    return found


def _entries(
    outline: Sequence[Any], above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    path = above
    for entry in outline:
        if isinstance(entry, list):
            if len(path) < OUTLINE_DEPTH_MAX:
                yield from _entries(entry, path)
            continue
        title = " ".join(_readable(str(entry.title or "")).split())[:HEADING_LENGTH_MAX]
        path = (*above, title) if title else above
        yield path, entry
