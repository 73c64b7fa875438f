"""Sandboxes that are kept ready: a bare confined interpreter each, which hasn't seen any
source, and takes one invocation. So nothing is left of one tenant's for another, or of
one invocation for the next."""

import asyncio
import contextlib
from collections import deque

import structlog

from mesh.errors import WeftError
from services.functions.sandbox.launcher import Keeper, Sandbox

_log = structlog.get_logger(__name__)


class Pool:
    """Keeps `ready_max` sandboxes ready from the first use on."""

    def __init__(self, keeper: Keeper, ready_max: int) -> None:
        self._keeper = keeper
        self._ready_max = ready_max
        self._ready: deque[Sandbox] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._stopped = False

    async def take(self) -> tuple[Sandbox, bool]:
        """A sandbox, and whether it was ready. Raises what `Keeper.sandbox` raises."""
        while self._ready:
            sandbox = self._ready.popleft()
            if sandbox.alive:
                self._fill()
                return sandbox, True
            await sandbox.close()
        sandbox = await self._keeper.sandbox()
        self._fill()
        return sandbox, False

    async def stop(self) -> None:
        """Ends those that are ready, and the keeper."""
        self._stopped = True
        if self._filling is not None:
            self._filling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._filling
        while self._ready:
            await self._ready.popleft().close()
        await self._keeper.stop()

    def _fill(self) -> None:
        if not self._stopped and (self._filling is None or self._filling.done()):
            self._filling = asyncio.create_task(self._filled(), name="sandboxes")

    async def _filled(self) -> None:
        while len(self._ready) < self._ready_max:
            try:
                self._ready.append(await self._keeper.sandbox())
            except WeftError as error:
                # The next call tries again, and is told.
                _log.warning("sandbox_not_kept_ready", reason=error.message)
                return
