"""Tries calls to other processes again, and a second process where the first is slow.

Only methods that say they may run twice. How often is bounded by budgets, so that a mesh
that is overloaded isn't called more for it: calls that are made again are a tenth of the calls
of the last ten seconds, and some more where there are few (the retry budget of Finagle; gRPC
proposal A6 throttles in the same way); those that are made beside slow ones are as many at
most. Ten seconds, since an instance that hangs holds its share of the calls for about one.

Where an instance is lost, known to hang or gone without a word, each call that is under way is
made once more by then, in case it is there: gRPC doesn't tell which it went to.
"""

import asyncio
import random
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mesh.clock import SYSTEM, Clock
from mesh.errors import NotServing, Unavailable

TRIES_MAX = 6
"""Of one call, those included that were begun because another was slow."""
BUDGET_SHARE = 0.1
BUDGET_SECONDS = 10
BUDGET_MIN = 20
"""Retries that may come in that time beside the share, where there are few calls."""
PAUSE_SECONDS = 0.05
"""The longest pause before the first retry; it doubles with each, and is drawn anew (full
jitter)."""
READ_SLOW_SECONDS = (0.25, 0.25, 0.25, 0.5, 1.0)
"""After so long another process is asked beside those that were: one that hangs says nothing
at all. By then two of the pauses and the control plane's checks have told who hangs."""
WRITE_SLOW_SECONDS = (2.0, 2.0)
"""As for reads, of what has effects but may run twice."""
LOST_SECONDS = 0.03
"""After so long gRPC has heard what the control plane knows of a lost instance."""
LOSSES_MAX = 3
"""Losses for which one call is made once more."""

Attempt = Callable[[int], Awaitable[Any]]
"""Makes the call for the nth time, from 0, to whichever process has its turn."""


class RetryBudget:
    """What retries the calls so far allow."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        # One entry for each second in which there were calls: the second, calls, retries.
        self._seconds: deque[list[int]] = deque()
        self._calls = 0
        self._retries = 0

    def earn(self) -> None:
        """A call is made."""
        self._present()[1] += 1
        self._calls += 1

    def take(self) -> bool:
        """Whether one more may be tried again."""
        present = self._present()
        if self._retries + 1 > BUDGET_MIN + BUDGET_SHARE * self._calls:
            return False
        present[2] += 1
        self._retries += 1
        return True

    def _present(self) -> list[int]:
        second = int(self._clock.monotonic())
        seconds = self._seconds
        if not seconds or seconds[-1][0] != second:
            while seconds and seconds[0][0] <= second - BUDGET_SECONDS:
                _, calls, retries = seconds.popleft()
                self._calls -= calls
                self._retries -= retries
            seconds.append([second, 0, 0])
        return seconds[-1]


class Losses:
    """Wakes calls under way when an instance is lost. Made and told in the event loop."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()
        self._streams: defaultdict[str, set[Callable[[], None]]] = defaultdict(set)

    @contextmanager
    def under_way(self, instance: str, cut: Callable[[], None]) -> Iterator[None]:
        """A stream of that instance is, which `cut` ends once it is lost."""
        streams = self._streams[instance]
        streams.add(cut)
        try:
            yield
        finally:
            streams.discard(cut)
            if not streams:
                self._streams.pop(instance, None)

    def streams(self, instance: str) -> int:
        """How many of that instance are under way."""
        return len(self._streams.get(instance, ()))

    def cut(self, instance: str) -> None:
        """That instance stays lost: its streams end."""
        for cut in list(self._streams.get(instance, ())):
            cut()

    def tell(self) -> None:
        """An instance is lost."""
        asyncio.get_running_loop().call_later(LOST_SECONDS, self._wake)

    def wait(self) -> "asyncio.Future[None]":
        """Done with the next loss; `forget` it where the call is over before."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        return waiting

    def forget(self, waiting: "asyncio.Future[None]") -> None:
        """The call isn't under way any more."""
        self._waiting.discard(waiting)

    def _wake(self) -> None:
        woken, self._waiting = self._waiting, set()
        for waiting in woken:
            waiting.set_result(None)


@dataclass(frozen=True, slots=True)
class Retries:
    """What the calls of one caller have together: a budget for those that are made again, one
    for those beside slow ones, and the losses that they hear of."""

    losses: Losses
    again: RetryBudget = field(default_factory=RetryBudget)
    beside: RetryBudget = field(default_factory=RetryBudget)


async def call_again(attempt: Attempt, retries: Retries, slow_seconds: Sequence[float]) -> Any:
    """The answer of the first attempt that has one. An attempt that fails as Unavailable is
    made again, and another is made beside those that take longer than `slow_seconds`, one
    after the other (hedging, gRPC proposal A6), or when an instance is lost. Raises what the
    last attempt raises."""
    retries.again.earn()
    retries.beside.earn()
    under_way: set[asyncio.Future[Any]] = {asyncio.ensure_future(attempt(0))}
    tries, losses, pause_seconds, waits = 1, 0, PAUSE_SECONDS, iter(slow_seconds)
    lost = retries.losses.wait()
    try:
        while True:
            wait_seconds = next(waits, None) if tries < TRIES_MAX else None
            done, _ = await asyncio.wait(
                {*under_way, lost}, timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            under_way -= done
            if lost in done:
                done.discard(lost)
                lost = retries.losses.wait()
                losses += 1
                if not done and losses <= LOSSES_MAX:
                    under_way.add(asyncio.ensure_future(attempt(tries)))
                    tries += 1
            elif not done and retries.beside.take():
                under_way.add(asyncio.ensure_future(attempt(tries)))
                tries += 1
            if not done:
                continue
            answered = [each for each in done if not is_unreached(each)]
            if answered:
                return answered[0].result()
            if under_way:
                continue
            if tries >= TRIES_MAX or not retries.again.take():
                return done.pop().result()
            await asyncio.sleep(random.uniform(0, pause_seconds))
            pause_seconds *= 2
            under_way = {asyncio.ensure_future(attempt(tries))}
            tries += 1
    finally:
        retries.losses.forget(lost)
        for each in under_way:
            each.cancel()


def is_unreached(attempt: "asyncio.Future[Any]") -> bool:
    """Whether it failed for the process that was asked, so that another may answer."""
    # Of Unavailable's kinds, those that aren't about that process were tried there already, for
    # as long as they should be: another one has the same event store, models and tools.
    return not attempt.cancelled() and type(attempt.exception()) in (Unavailable, NotServing)
