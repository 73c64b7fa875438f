"""How many calls of a provider may be under way, and follow one another."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from mesh.errors import ModelRateLimited
from services.models.provider_settings import ProviderSettings

_RETRY_SECONDS = 1.0


class Limits:
    """The bounds of one provider in this process: calls at once, first come, first served, and
    calls a minute. The latter is the generic cell rate algorithm (ITU-T I.371): each call moves
    the time at which the next is due by the same interval, and up to a burst of them may come
    before theirs."""

    def __init__(self, settings: ProviderSettings) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.concurrency_max)
        self._waiting = 0
        per_minute = settings.requests_per_minute
        self._interval_seconds = 60.0 / per_minute if per_minute else 0.0
        self._tolerance_seconds = self._interval_seconds * (settings.requests_burst - 1)
        self._due = 0.0

    @asynccontextmanager
    async def slot(self, deadline: float) -> AsyncGenerator[None, None]:
        """A call under way, once it may be; `deadline` is on the event loop's clock. Raises
        ModelRateLimited where that takes until then or longer than the settings allow, at
        once where that is known."""
        await self._wait(deadline)
        try:
            yield
        finally:
            self._slots.release()

    async def _wait(self, deadline: float) -> None:
        if self._slots.locked() or self._interval_seconds:
            if self._waiting >= self._settings.waiting_max:
                raise _refused("too many calls wait for the model's endpoint")
            self._waiting += 1
            try:
                await self._wait_in_turn(deadline)
            finally:
                self._waiting -= 1
        else:
            await self._slots.acquire()

    async def _wait_in_turn(self, deadline: float) -> None:
        limit = min(deadline, asyncio.get_running_loop().time() + self._settings.wait_seconds_max)
        try:
            async with asyncio.timeout_at(limit):
                await self._slots.acquire()
        except TimeoutError as error:
            raise _refused("too many calls of the model's endpoint are under way") from error
        try:
            await self._wait_for_rate(limit)
        except BaseException:
            self._slots.release()
            raise

    async def _wait_for_rate(self, limit: float) -> None:
        now = asyncio.get_running_loop().time()
        wait = max(0.0, self._due - self._tolerance_seconds - now)
        if now + wait > limit:
            raise _refused("the limit of calls a minute of the model's endpoint is reached", wait)
        self._due = max(self._due, now) + self._interval_seconds
        if wait:
            await asyncio.sleep(wait)


def _refused(message: str, retry_seconds: float = _RETRY_SECONDS) -> ModelRateLimited:
    return ModelRateLimited(message, retry_seconds=max(retry_seconds, 0.001))
