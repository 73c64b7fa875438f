"""Splits in memory, as the log has them: what each process sends its calls by."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from mesh.control.xds.mesh_view import Portion
from mesh.events.fold import evolved
from mesh.events.following import Following
from mesh.events.store import EventStore, Selection, StoredCommit, StreamName
from services.control import domain
from weft.control.v1 import splits_pb2

ALL_SPLITS = Selection(domain.AREA)
SERVICE_SPLITS = Selection(f"{domain.AREA}.{domain.PLATFORM}")
"""Those of services, which say where calls go."""
START_SECONDS_MAX = 30.0
CATCH_UP_SECONDS_MAX = 5.0


class Splits:
    """All splits of a selection. Where the log can't be reached, or read any more, they stay
    what they were: calls go on as they went."""

    def __init__(self, events: EventStore, selection: Selection = ALL_SPLITS) -> None:
        self._following = Following(events, selection, self._apply)
        self._states: dict[StreamName, domain.State] = {}
        self._callbacks: list[Callable[[Sequence[splits_pb2.Split]], None]] = []
        self._started = False

    async def start(self) -> None:
        """Returns once all that is stored by now is known, and was told. Raises
        EventStoreUnavailable, and DataDamaged where it can't be read."""
        self._following.start()
        await self.catch_up(START_SECONDS_MAX)
        # Not before: no call shall go once more where calls went in the past.
        self._started = True
        self._tell([state.split for state in self._states.values()])

    async def stop(self) -> None:
        """Ends following; what is known stays."""
        await self._following.stop()

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
        await self._following.catch_up(seconds_max)

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
