"""What both back ends have in common: obstore's calls, bounded, and its errors in our terms."""

import asyncio
import errno
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from mesh.errors import LimitExceeded, Unavailable
from services.blobs.objects import Listed, VersionConflict
from services.blobs.settings import PART_BYTES

CALL_SECONDS = 30.0
"""How long one call of the store may take, uploads apart."""
PARTS_AT_ONCE = 2
"""Parts of an upload under way: so many times 8 MiB of memory, and one that is being filled."""
LISTED_AT_ONCE = 1_000

_FULL = (errno.ENOSPC, errno.EDQUOT)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_HTTP_STATUS = re.compile(r"Server returned non-2xx status code: (\d{3})")
_log = structlog.get_logger(__name__)


class ObstoreObjects:
    """Calls a store of obstore; `root` is one of its store objects."""

    def __init__(self, root: Any) -> None:
        self._root = root

    async def upload(self, key: str, pieces: AsyncIterator[bytes]) -> None:
        """See ObjectStore."""
        with translated():
            await obstore.put_async(
                self._root, key, pieces, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            )

    async def read(self, key: str, start: int, length: int) -> memoryview | None:
        """See ObjectStore."""
        try:
            async with called():
                found = await obstore.get_range_async(self._root, key, start=start, length=length)
        except FileNotFoundError:
            return None
        except Unavailable:
            # Behind the object's end it is an error like any other.
            size = await self._size(key)
            if size is None or size > start:
                raise
            return memoryview(b"")
        return memoryview(found)

    async def list(self, folder: str) -> AsyncIterator[Sequence[Listed]]:
        """See ObjectStore."""
        stream = obstore.list(self._root, folder, chunk_size=LISTED_AT_ONCE)
        while True:
            try:
                async with called():
                    found = await anext(stream, None)
            except FileNotFoundError:
                # Deleted while it was listed: who looks for what is left looks again.
                raise Unavailable("the objects change while they are listed") from None
            if found is None:
                return
            yield [
                Listed(each["path"], each["size"], int(each["last_modified"].timestamp() * 1e9))
                for each in found
            ]

    async def _size(self, key: str) -> int | None:
        async with called():
            size: int = (await obstore.head_async(self._root, key))["size"]
            return size


@asynccontextmanager
async def called() -> AsyncIterator[None]:
    """As `translated`, around one call of the store; ends one that takes too long as
    Unavailable."""
    try:
        async with asyncio.timeout(CALL_SECONDS):
            with translated():
                yield
    except TimeoutError:
        raise Unavailable("the object store of the blobs doesn't answer") from None


@contextmanager
def translated() -> Iterator[None]:
    """Raises obstore's errors as ours, without their text, which may hold what isn't for
    callers. FileNotFoundError passes, as do errors that aren't obstore's."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (AlreadyExistsError, PreconditionError):
        raise VersionConflict("the object has changed") from None
    except (BaseError, OSError, NotImplementedError) as error:
        raise _ours(error) from None


def _ours(error: Exception) -> LimitExceeded | Unavailable:
    text = str(error)
    found = _OS_ERROR.search(text)
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else 0
    if number in _FULL:
        return LimitExceeded("the disk that the blobs lie on has no room left")
    status = _HTTP_STATUS.search(text)
    _log.warning(
        "object_store_failed",
        error=type(error).__name__,
        os_error=number or None,
        http_status=status[1] if status else None,
    )
    return Unavailable("the object store of the blobs can't be reached, or refuses")
