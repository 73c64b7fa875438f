"""Reading documents in processes of their own: HTML and PDF, and long texts.

Who sends a file may mean harm: one that takes too long is ended with its process, one that
takes too much memory ends there, and the service goes on. One tenant's take half of the
places at most, so that they don't hold up all others'.
"""

import asyncio
import resource
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from weakref import WeakValueDictionary

from mesh.errors import Unavailable
from mesh.worker.processes import Processes, Untold
from services.vectors.chunking import (
    Passage,
    front_matter_title,
    split_markdown,
    split_plain,
)
from services.vectors.html_text import split_html
from services.vectors.pdf_text import Unreadable, split_pdf
from services.vectors.settings import VectorsSettings
from weft.vectors.v1 import collections_pb2

HTML, PDF = collections_pb2.MEDIA_TYPE_HTML, collections_pb2.MEDIA_TYPE_PDF
LENGTH_HERE_MAX = 65_536
"""Longer texts are read in a process of their own: millions of short lines take seconds."""
MEMORY_BYTES_MAX = 1 << 30
"""Of a process's address space."""
START_SECONDS_MAX = 60
"""For a process to begin, with all that it needs."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be read: a text, or the content of a PDF file."""

    media_type: "collections_pb2.MediaType.ValueType"
    text: str = ""
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of what is read: pages and code points of a PDF file, passages of any document."""

    pages_max: int
    length_max: int
    passages_max: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read: the document's own title, and its passages."""

    title: str
    passages: list[Passage]


class Readers:
    """Reads documents, `readings_max` at once."""

    def __init__(self, settings: VectorsSettings) -> None:
        self._settings = settings
        self._bounds = Bounds(
            settings.document_pages_max,
            settings.document_length_max,
            settings.document_passages_max,
        )
        self._places = asyncio.Semaphore(settings.readings_max)
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._processes = Processes()

    async def read(self, tenant: str, source: Source) -> Reading:
        """What a document says. Raises Unreadable where it can't be read, or not within the
        settings' bounds."""
        is_plain = source.media_type not in (HTML, PDF)
        if is_plain and len(source.text) <= LENGTH_HERE_MAX:
            return await asyncio.to_thread(read_source, (source, self._bounds))
        shares = max(1, self._settings.readings_max // 2)
        share = self._shares.setdefault(tenant, asyncio.Semaphore(shares))
        async with share, self._places:
            return await self._read(source)

    async def close(self) -> None:
        """Returns once no process is left."""
        await self._processes.close()

    async def _read(self, source: Source) -> Reading:
        seconds = self._settings.reading_seconds_max
        try:
            # What a busy machine needs to start a process isn't the file's fault.
            async with asyncio.timeout(START_SECONDS_MAX):
                await self._processes.run(bound_memory, None)
        except (TimeoutError, BrokenProcessPool) as error:
            raise Unavailable("no process to read documents in starts") from error
        try:
            async with asyncio.timeout(seconds):
                read = await self._processes.run(read_source, (source, self._bounds))
        except TimeoutError:
            raise Unreadable(f"takes longer than {seconds:g} s to read") from None
        except (BrokenProcessPool, Untold) as error:
            raise Unreadable("can't be read: its reader died of it") from error
        assert isinstance(read, Reading)
        return read


def bound_memory(_: None) -> None:
    """Runs in a process that serves nothing else, before it reads."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))


def read_source(given: tuple[Source, Bounds]) -> Reading:
    """Reads in whatever process it is called. Raises Unreadable."""
    source, bounds = given
    try:
        reading = _read(source, bounds)
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable("takes too much memory to read") from None
    except Exception as error:
        raise Unreadable("is broken") from error
    count, most = len(reading.passages), bounds.passages_max
    if count > most:
        raise Unreadable(f"splits into {count} passages; at most {most} are accepted")
    return reading


def _read(source: Source, bounds: Bounds) -> Reading:
    match source.media_type:
        case collections_pb2.MEDIA_TYPE_PDF:
            return Reading(*split_pdf(source.content, bounds.pages_max, bounds.length_max))
        case collections_pb2.MEDIA_TYPE_HTML:
            return Reading(*split_html(source.text))
        case collections_pb2.MEDIA_TYPE_MARKDOWN:
            return Reading(front_matter_title(source.text), split_markdown(source.text))
        case _:
            return Reading("", split_plain(source.text))
