"""Splits in memory, as the log has them: what each process sends its calls by."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog

from mesh.control.xds.mesh_view import Portion
from mesh.errors import EventStoreUnavailable, Internal, WeftError
from mesh.events.fold import evolved
from mesh.events.store import EventStore, Selection, StoredCommit, StreamName
from services.control import domain
from weft.control.v1 import splits_pb2

ALL_SPLITS = Selection(domain.AREA)
SERVICE_SPLITS = Selection(f"{domain.AREA}.{domain.PLATFORM}")
"""Those of services, which say where calls go."""
RETRY_SECONDS = 0.5
START_SECONDS_MAX = 30.0
CATCH_UP_SECONDS_MAX = 5.0

_log = structlog.get_logger(__name__)


class Splits:
    """All splits of a selection. Where the log can't be reached, or read any more, they stay
    what they were: calls go on as they went."""

    def __init__(self, events: EventStore, selection: Selection = ALL_SPLITS) -> None:
        self._events = events
        self._selection = selection
        self._states: dict[StreamName, domain.State] = {}
        self._callbacks: list[Callable[[Sequence[splits_pb2.Split]], None]] = []
        self._started = False
        self._position = 0
        self._failure: WeftError | None = None
        self._moved = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once all that is stored by now is known, and was told. Raises
        EventStoreUnavailable, and DataDamaged where it can't be read."""
        self._task = asyncio.create_task(self._follow(), name="splits")
        await self.catch_up(START_SECONDS_MAX)
        # Not before: no call shall go once more where calls went in the past.
        self._started = True
        self._tell([state.split for state in self._states.values()])

    async def stop(self) -> None:
        """Ends following; what is known stays."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def on_change(self, callback: Callable[[Sequence[splits_pb2.Split]], None]) -> None:
        """Calls `callback` with all splits once they are known, then with those that changed."""
        self._callbacks.append(callback)

    def __iter__(self) -> Iterator[domain.State]:
        """The states of all, not to be changed."""
        return iter(self._states.values())

    def portions(self) -> Mapping[str, tuple[Portion, ...]]:
        """The portions of each service that is split, as a control plane takes them."""
        return {
            domain.service_of(state.split.name): tuple(
                Portion(each.version, each.weight, max(1, each.since_revision))
                for each in state.split.portions
            )
            for state in self._states.values()
            if domain.service_of(state.split.name) and state.split.portions
        }

    async def catch_up(self, seconds_max: float = CATCH_UP_SECONDS_MAX) -> None:
        """Returns once all that is stored by now is known. EventStoreUnavailable where that
        takes longer, and what ended the following."""
        target = await self._events.last_position(self._selection)
        try:
            async with asyncio.timeout(seconds_max), self._moved:
                await self._moved.wait_for(lambda: self._position >= target or self._failure)
        except TimeoutError as error:
            raise EventStoreUnavailable("what is known of splits lags behind the log") from error
        if self._failure is not None:
            raise self._failure

    async def _follow(self) -> None:
        try:
            while True:
                await self._follow_log()
                await asyncio.sleep(RETRY_SECONDS)
        except WeftError as error:
            _log.error("splits_unreadable", error=error.message)
            self._failure = error
        except Exception:  # noqa: BLE001 - nobody awaits this task: who waits for it is told
            _log.exception("splits_not_followed")
            self._failure = Internal("splits aren't followed any more")
        async with self._moved:
            self._moved.notify_all()

    async def _follow_log(self) -> None:
        """Returns where following may go on."""
        with contextlib.suppress(EventStoreUnavailable):
            watch = self._events.watch(self._selection, self._position)
            async with contextlib.aclosing(watch) as commits:
                async for stored in commits:
                    self._apply(stored)
                    self._position = stored.position
                    async with self._moved:
                        self._moved.notify_all()

    def _apply(self, stored: StoredCommit) -> None:
        stream = StreamName.parse(stored.commit.stream)
        if stored.erased or not domain.is_split_stream(stream):
            return
        before = self._states.get(stream) or domain.State()
        state = evolved(domain.SPLIT_FOLD, before, stored)
        # Nothing is decided on it: who decides reads the log.
        del state.split.changes[1:]
        state.ClearField("past")
        state.ClearField("requests")
        self._states[stream] = state
        if self._started:
            self._tell([state.split])

    def _tell(self, splits: Sequence[splits_pb2.Split]) -> None:
        for callback in self._callbacks:
            callback(splits)
