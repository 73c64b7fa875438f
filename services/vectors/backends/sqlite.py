"""A passage index on SQLite's FTS5 and sqlite-vec, in one file.

SQLite is blocking: one worker thread does all of it, one call after the other.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import apsw

from mesh.errors import DataDamaged, LimitExceeded, NotServing, Unavailable
from services.vectors.backends.tables import Tables
from services.vectors.domain.filters import Filter
from services.vectors.domain.vectors import Vector
from services.vectors.index import (
    NOTHING,
    CollectionKey,
    CollectionSpec,
    Hit,
    Present,
    Request,
    SplitDocument,
    Stored,
)
from weft.vectors.v1 import collections_pb2

T = TypeVar("T")


class SqliteIndex:
    """The passage index in the file `path`.

    `waiting_max` bounds the calls that run or wait for the worker thread; further ones
    get LimitExceeded. `collections_max` bounds the collections of one tenant, `passages_max`
    the passages of a collection.
    """

    def __init__(
        self,
        path: Path,
        *,
        waiting_max: int,
        collections_max: int,
        passages_max: int,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._path = path
        self._places = threading.BoundedSemaphore(waiting_max)
        self._tables = Tables(
            path, collections_max=collections_max, passages_max=passages_max, now_ns=now_ns
        )
        self._worker: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vectors")
        try:
            await self._run(self._tables.open)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._worker is None:
            return
        worker, self._worker = self._worker, None
        await asyncio.wrap_future(worker.submit(self._tables.close))
        worker.shutdown()

    async def create(
        self, key: CollectionKey, spec: CollectionSpec, request: Request
    ) -> collections_pb2.Collection:
        return await self._run(lambda: self._tables.create(key, spec, request))

    async def get(self, key: CollectionKey) -> collections_pb2.Collection:
        return await self._run(lambda: self._tables.get(key))

    async def page(
        self, tenant: str, after: str, count: int
    ) -> Sequence[collections_pb2.Collection]:
        return await self._run(lambda: self._tables.page(tenant, after, count))

    async def delete(self, key: CollectionKey, request: Request) -> None:
        await self._run(lambda: self._tables.delete(key, request))

    async def present(self, key: CollectionKey, uris: Sequence[str]) -> Mapping[str, Present]:
        return await self._run(lambda: self._tables.present(key, uris))

    async def upsert(
        self,
        key: CollectionKey,
        documents: Sequence[SplitDocument],
        request: Request,
        unchanged: Stored = NOTHING,
    ) -> Stored:
        return await self._run(lambda: self._tables.upsert(key, documents, request, unchanged))

    async def remove(self, key: CollectionKey, uris: Sequence[str], request: Request) -> Stored:
        return await self._run(lambda: self._tables.remove(key, uris, request))

    async def remove_matching(self, key: CollectionKey, only: Filter, request: Request) -> Stored:
        return await self._run(lambda: self._tables.remove_matching(key, only, request))

    async def match(
        self, key: CollectionKey, query: str, count: int, only: Filter | None = None
    ) -> Sequence[Hit]:
        return await self._run(lambda: self._tables.match(key, query, count, only))

    async def nearest(
        self, key: CollectionKey, vector: Vector, count: int, only: Filter | None = None
    ) -> Sequence[Hit]:
        return await self._run(lambda: self._tables.nearest(key, vector, count, only))

    async def _run(self, work: Callable[[], T]) -> T:
        if self._worker is None:
            raise NotServing("the index of collections is closed")
        if not self._places.acquire(blocking=False):
            raise LimitExceeded("too many calls wait for the index of collections")
        future = self._worker.submit(self._guarded, work)
        # Given back when the work ended, not when its caller stopped waiting.
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)

    def _guarded(self, work: Callable[[], T]) -> T:
        with _faults(self._path.name):
            return work()


@contextmanager
def _faults(file: str) -> Iterator[None]:
    """Says SQLite's faults in terms of the one tree of errors."""
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError, apsw.FormatError) as error:
        raise DataDamaged(
            f"the collections can't be read: {file} in the data folder is damaged; "
            "move it away and ingest the documents again"
        ) from error
    except apsw.FullError as error:
        raise LimitExceeded(f"no space is left for {file} in the data folder") from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise Unavailable(f"another process holds {file} in the data folder") from error
    except (apsw.CantOpenError, apsw.IOError, apsw.ReadOnlyError, apsw.PermissionsError) as error:
        raise Unavailable(f"{file} in the data folder can't be opened or written") from error
