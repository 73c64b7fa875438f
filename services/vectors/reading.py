"""Reading documents that aren't plain: HTML and PDF, in processes of their own.

Who sends a file may mean harm: one that takes too long is ended with its process, one that
takes too much memory ends there, and the service goes on.
"""

import asyncio
import resource
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from mesh.errors import Unavailable
from mesh.worker.processes import Processes, Untold
from services.vectors.chunking import Passage
from services.vectors.html_text import split_html
from services.vectors.pdf_text import Unreadable, split_pdf
from services.vectors.settings import VectorsSettings

MEMORY_BYTES_MAX = 1 << 30
"""Of a process's address space."""
START_SECONDS_MAX = 60
"""For a process to begin, with all that it needs."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be read: HTML, or a PDF file, with bounds."""

    html: str = ""
    pdf: bytes = b""
    pages_max: int = 0
    length_max: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read: the document's own title, and its passages."""

    title: str
    passages: list[Passage]


class Readers:
    """Reads documents, `readings_max` at once."""

    def __init__(self, settings: VectorsSettings) -> None:
        self._settings = settings
        self._places = asyncio.Semaphore(settings.readings_max)
        self._processes = Processes()

    async def html(self, text: str) -> Reading:
        """What an HTML text says. Raises Unreadable where it takes too long."""
        return await self._read(Source(html=text))

    async def pdf(self, content: bytes) -> Reading:
        """What a PDF file says. Raises Unreadable where it can't be read, or not within the
        bounds."""
        pages_max = self._settings.document_pages_max
        length_max = self._settings.document_length_max
        return await self._read(Source(pdf=content, pages_max=pages_max, length_max=length_max))

    async def close(self) -> None:
        """Returns once no process is left."""
        await self._processes.close()

    async def _read(self, source: Source) -> Reading:
        seconds = self._settings.reading_seconds_max
        async with self._places:
            try:
                # What a busy machine needs to start a process isn't the file's fault.
                async with asyncio.timeout(START_SECONDS_MAX):
                    await self._processes.run(bound_memory, None)
            except (TimeoutError, BrokenProcessPool) as error:
                raise Unavailable("no process to read documents in starts") from error
            try:
                async with asyncio.timeout(seconds):
                    read = await self._processes.run(read_source, source)
            except TimeoutError:
                raise Unreadable(f"takes longer than {seconds:g} s to read") from None
            except (BrokenProcessPool, Untold) as error:
                raise Unreadable("can't be read: its reader died of it") from error
        assert isinstance(read, Reading)
        return read


def bound_memory(_: None) -> None:
    """Runs in a process that serves nothing else, before it reads."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))


def read_source(source: Source) -> Reading:
    """Runs there. Raises Unreadable."""
    try:
        if source.pdf:
            return Reading(*split_pdf(source.pdf, source.pages_max, source.length_max))
        return Reading(*split_html(source.html))
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable("takes too much memory to read") from None
    except Exception as error:
        raise Unreadable("is broken") from error
