"""How many transfers may be under way, and how long one may stand still."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from mesh.errors import DeadlineExceeded, RateLimited, WeftError
from services.blobs.settings import BlobsSettings

RETRY_SECONDS = 1.0
T = TypeVar("T")


class Transfers:
    """Bounds transfers, of all tenants together and of each."""

    def __init__(self, settings: BlobsSettings) -> None:
        self._count_max = settings.transfers_max
        self._tenant_max = settings.tenant_transfers_max
        self._idle_seconds = settings.idle_seconds
        self._by_tenant: Counter[str] = Counter()

    @contextmanager
    def begun(self, tenant: str) -> Iterator[None]:
        """Counts one for as long as the block takes. RateLimited where there are too many."""
        full = self._by_tenant.total() >= self._count_max
        if full or self._by_tenant[tenant] >= self._tenant_max:
            raise RateLimited("too many blobs are put and got at once", retry_seconds=RETRY_SECONDS)
        self._by_tenant[tenant] += 1
        try:
            yield
        finally:
            self._by_tenant[tenant] -= 1
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]

    async def coming(self, messages: AsyncIterator[T]) -> AsyncIterator[T]:
        """The messages of a client. DeadlineExceeded where none comes for too long."""
        while True:
            try:
                async with asyncio.timeout(self._idle_seconds):
                    message = await anext(messages, None)
            except TimeoutError:
                raise self._idle("sent") from None
            if message is None:
                return
            yield message

    @contextmanager
    def taken(self, end: Callable[[WeftError], None] | None) -> Iterator[None]:
        """Around handing a message to a client: `end` is told DeadlineExceeded where it
        doesn't take it for too long."""
        if end is None:
            yield
            return
        timer = asyncio.get_running_loop().call_later(self._idle_seconds, end, self._idle("taken"))
        try:
            yield
        finally:
            timer.cancel()

    def _idle(self, what: str) -> DeadlineExceeded:
        return DeadlineExceeded(f"nothing was {what} for {self._idle_seconds:g} s")
