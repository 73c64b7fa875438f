"""The port of the levels below memory, and what keeps one that fails from costing anything."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mesh.cache.breaker import Breaker

T = TypeVar("T")
TRY_SECONDS_MAX = 1.0
"""How long it is tried whether a level that didn't work does again."""


class LevelFailed(Exception):
    """The level didn't answer, in time or at all."""


class LevelOff(LevelFailed):
    """It wasn't asked: it failed before, or too many ask it."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """An entry as it is kept outside memory. `expire_ns` is Unix time."""

    entry_id: bytes
    tenant: bytes
    stored: bytes
    expire_ns: int
    position: int = 0
    tags: tuple[bytes, ...] = ()


class Level(Protocol):
    """Keeps sealed entries. But for `get` no method waits for anything, or raises."""

    @property
    def name(self) -> str:
        """What metrics and the log call it."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes of sealed entries that it holds, as far as this process knows."""
        ...

    @property
    def evicted(self) -> int:
        """Entries that went for want of room, as far as this process knows."""
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def get(self, entry_id: bytes) -> bytes | None:
        """What was put under that id; LevelFailed where the level doesn't answer."""
        ...

    def put(self, sealed: Sealed) -> None:
        """Keeps it, soon; what can't be kept is dropped."""
        ...

    def drop(self, entry_id: bytes) -> None:
        """Forgets it, soon."""
        ...

    def drop_tagged(self, tag: bytes, position: int) -> None:
        """Forgets, soon, what has that tag and was made before `position` was known."""
        ...


class Chores:
    """What is done soon, for nobody who waits: so much at once, the rest isn't done."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._running: set[asyncio.Task[None]] = set()

    def begin(self, work: Callable[[], Awaitable[object]]) -> None:
        """Does `work`, whose LevelFailed is passed over."""
        if len(self._running) < self._count_max:
            task = asyncio.create_task(_tried(work), name="cache chore")
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def settled(self) -> None:
        """Returns once all that was begun by now has ended."""
        if self._running:
            await asyncio.wait(self._running)

    async def end(self) -> None:
        """Cancels what is under way."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)


async def _tried(work: Callable[[], Awaitable[object]]) -> None:
    try:
        await work()
    except LevelFailed:
        return


class Guard:
    """Bounds the time of what is asked of a level, and how much at once; leaves it alone
    while it doesn't work, and tries then beside those who ask."""

    def __init__(
        self,
        name: str,
        seconds: float,
        now: Callable[[], float],
        under_way_max: int,
    ) -> None:
        self._seconds = seconds
        self._breaker = Breaker(name, now)
        self._under_way_max = under_way_max
        self._under_way = 0
        self._trying = Chores(1)

    async def ask(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` returns; LevelFailed instead of what it raises."""
        if self._breaker.open:
            if self._breaker.is_due():
                # Nobody has to wait for what most likely fails.
                self._trying.begin(lambda: self._try(work))
            raise LevelOff
        if self._under_way >= self._under_way_max:
            raise LevelOff
        self._under_way += 1
        try:
            async with asyncio.timeout(self._seconds):
                result = await work()
        except Exception as error:  # noqa: BLE001 - whatever a level raises must fail no call
            self._breaker.failed(type(error).__name__)
            raise LevelFailed from None
        finally:
            self._under_way -= 1
        self._breaker.succeeded()
        return result

    async def stop(self) -> None:
        """Ends what it tries."""
        await self._trying.end()

    async def _try(self, work: Callable[[], Awaitable[object]]) -> None:
        works = False
        try:
            async with asyncio.timeout(TRY_SECONDS_MAX):
                await work()
            works = True
        except Exception:  # noqa: BLE001 - as above
            return
        finally:
            self._breaker.tried(works=works)
