"""Whose turn it is: bounds of how many invocations run at once, in all, of a tenant, and of a
function, and of how many wait, in all and of a tenant."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from mesh.errors import LimitExceeded
from services.functions.settings import FunctionsSettings

WAIT_SHARE = 0.9
"""What an invocation may wait of the time that its caller has, so that it hears why."""
RETRY_SECONDS = 1.0


class Turns:
    """Lets invocations run in the order in which they came, as far as their bounds allow."""

    def __init__(self, settings: FunctionsSettings) -> None:
        self._settings = settings
        self._running: Counter[str] = Counter()
        self._waiting: dict[asyncio.Future[None], tuple[str, str]] = {}

    @asynccontextmanager
    async def taken(self, name: str, remaining_seconds: float) -> AsyncGenerator[None, None]:
        """While an invocation of the function runs. LimitExceeded where too many wait, or its
        turn doesn't come in time."""
        keys = (name.split("/")[1], name)
        if self._waiting or not self._is_free(keys):
            await self._wait(keys, remaining_seconds * WAIT_SHARE)
        else:
            self._take(keys)
        try:
            yield
        finally:
            for key in ("", *keys):
                self._running[key] -= 1
                if not self._running[key]:
                    del self._running[key]
            self._pass_on()

    async def _wait(self, keys: tuple[str, str], seconds: float) -> None:
        if self._is_full(keys[0]) and not self._is_free(keys):
            raise LimitExceeded(
                "too many invocations wait for their turn", retry_seconds=RETRY_SECONDS
            )
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = keys
        begun = time.monotonic()
        self._pass_on()
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await turn
        except TimeoutError:
            if turn.done() and not turn.cancelled():
                # It came in the same moment.
                return
            raise LimitExceeded(
                f"it wasn't the invocation's turn within {time.monotonic() - begun:.1f} s",
                retry_seconds=RETRY_SECONDS,
            ) from None
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                for key in ("", *keys):
                    self._running[key] -= 1
                self._pass_on()
            raise
        finally:
            self._waiting.pop(turn, None)

    def _pass_on(self) -> None:
        for turn, keys in list(self._waiting.items()):
            if self._running[""] >= self._settings.running_max:
                return
            if not turn.done() and self._is_free(keys):
                self._take(keys)
                turn.set_result(None)
                del self._waiting[turn]

    def _is_full(self, tenant: str) -> bool:
        """Whether nobody of the tenant may wait any more: others are to find room."""
        of_tenant = sum(waiting == tenant for waiting, _ in self._waiting.values())
        return (
            len(self._waiting) >= self._settings.waiting_max
            or of_tenant >= self._settings.tenant_waiting_max
        )

    def _is_free(self, keys: tuple[str, str]) -> bool:
        tenant, function = keys
        return (
            self._running[""] < self._settings.running_max
            and self._running[tenant] < self._settings.tenant_running_max
            and self._running[function] < self._settings.function_running_max
        )

    def _take(self, keys: tuple[str, str]) -> None:
        for key in ("", *keys):
            self._running[key] += 1
