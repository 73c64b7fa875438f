"""Tries calls to other processes again, and a second process where the first is slow.

Only methods that say they may run twice. How often is bounded by a budget, so that a mesh
that is overloaded isn't called more for it: retries are a tenth of the calls at most (the
retry budget of Finagle; gRPC proposal A6 throttles in the same way).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from mesh.errors import Unavailable

TRIES_MAX = 4
"""Of one call, those included that were begun because another was slow."""
BUDGET_SHARE = 0.1
BUDGET_MAX = 20.0
"""Retries that may come at once, after calls that needed none."""
PAUSE_SECONDS = 0.05
"""The longest pause before the first retry; it doubles with each, and is drawn anew (full
jitter)."""
SLOW_SECONDS = 0.3
"""After so long another process is asked, too: one that hangs says nothing at all."""

Attempt = Callable[[], Awaitable[Any]]
"""Makes the call once, to whichever process has its turn."""


class RetryBudget:
    """What retries the calls so far allow."""

    def __init__(self) -> None:
        self._left = BUDGET_MAX

    def earn(self) -> None:
        """A call is made."""
        self._left = min(BUDGET_MAX, self._left + BUDGET_SHARE)

    def take(self) -> bool:
        """Whether one more may be tried again."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


async def call_again(attempt: Attempt, budget: RetryBudget, *, hedged: bool) -> Any:
    """The answer of the first attempt that has one. An attempt that fails as Unavailable is
    made again; with `hedged`, for methods without side effects, another is made beside one
    that takes long (gRPC proposal A6). Raises what the last attempt raises."""
    budget.earn()
    under_way: set[asyncio.Future[Any]] = {asyncio.ensure_future(attempt())}
    tries, pause_seconds = 1, PAUSE_SECONDS
    try:
        while True:
            wait_seconds = SLOW_SECONDS if hedged and tries < TRIES_MAX else None
            done, under_way = await asyncio.wait(
                under_way, timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                if budget.take():
                    tries += 1
                    under_way.add(asyncio.ensure_future(attempt()))
                else:
                    hedged = False
                continue
            answered = [each for each in done if not _is_unreached(each)]
            if answered:
                return answered[0].result()
            if under_way:
                continue
            if tries >= TRIES_MAX or not budget.take():
                return done.pop().result()
            tries += 1
            await asyncio.sleep(random.uniform(0, pause_seconds))
            pause_seconds *= 2
            under_way = {asyncio.ensure_future(attempt())}
    finally:
        for each in under_way:
            each.cancel()


def _is_unreached(attempt: "asyncio.Future[Any]") -> bool:
    return not attempt.cancelled() and isinstance(attempt.exception(), Unavailable)
