"""Deletes what has expired, what came from sessions that were erased, and bytes that were
left by a process that died between putting them and making the blob be there."""

import asyncio
from collections import defaultdict

import structlog

from mesh.clock import NANOSECONDS, Clock
from mesh.errors import WeftError
from services.blobs.blobs import Blobs
from services.blobs.domain.names import DATA, HEADERS, DataObject
from services.blobs.objects import Listed, ObjectStore
from services.blobs.settings import BlobsSettings

RETRY_SECONDS = 10.0
"""After a sweep that failed, since whoever erased a session waits for it."""
_log = structlog.get_logger(__name__)


class Sweeper:
    """Sweeps at the start, every `sweep_seconds`, and soon after a session was erased. It lists
    the bytes of all blobs, whose names tell most, and reads only the headers that it must."""

    def __init__(
        self, blobs: Blobs, objects: ObjectStore, settings: BlobsSettings, clock: Clock
    ) -> None:
        self._blobs = blobs
        self._objects = objects
        self._settings = settings
        self._clock = clock
        self._due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Sweeps from here on."""
        self._task = asyncio.create_task(self._run(), name="blob sweeps")

    async def stop(self) -> None:
        """Ends sweeping."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def session_erased(self, stream: str) -> None:
        """A session's key was destroyed."""
        self._due.set()

    async def sweep(self) -> int:
        """Sweeps once; how much was deleted. What can't be reached now is left to the next.
        May raise Unavailable."""
        deleted = 0
        by_header: defaultdict[str, list[Listed]] = defaultdict(list)
        async for page in self._objects.list(DATA):
            for listed in page:
                place = DataObject.parse(listed.key)
                if place is not None and not self._blobs.is_incoming(place):
                    by_header[place.key.header].append(listed)
        # After the bytes, so that there is one for each blob that was there by then.
        headers = {each.key async for page in self._objects.list(HEADERS) for each in page}
        for header, found in by_header.items():
            # The only bytes of a blob are those that its header names.
            sure = len(found) == 1 and header in headers
            for listed in found:
                deleted += await self._sweep(listed, is_named=sure)
        if deleted:
            _log.info("blobs_swept", count=deleted)
        return deleted

    async def _sweep(self, listed: Listed, *, is_named: bool) -> bool:
        place = DataObject.parse(listed.key)
        assert place is not None, "parsed before"
        expired = 0 < place.expire_ns <= self._clock.now_ns()
        if (expired or place.of_session) and await self._blobs.end(place):
            return True
        if is_named or not self._is_old(listed) or await self._blobs.refers_to(place):
            return False
        await self._blobs.discard(listed.key)
        return True

    def _is_old(self, listed: Listed) -> bool:
        """Whether whoever put it must be done with it. Files are this process's alone."""
        if not self._objects.shared:
            return True
        age_ns = self._clock.now_ns() - listed.modified_ns
        return age_ns >= self._settings.orphan_seconds * NANOSECONDS

    async def _run(self) -> None:
        while True:
            self._due.clear()
            seconds = self._settings.sweep_seconds
            try:
                await self.sweep()
            except WeftError as error:
                _log.warning("blob_sweep_failed", error=type(error).__name__)
                seconds = min(seconds, RETRY_SECONDS)
            try:
                async with asyncio.timeout(seconds):
                    await self._due.wait()
            except TimeoutError:
                continue
