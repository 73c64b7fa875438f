"""Budgets in memory, as the log has them: what covers a call is found without reading."""

from collections.abc import Callable, Iterator

from mesh.errors import FailedPrecondition, Unavailable, WeftError
from mesh.events.fold import evolved
from mesh.events.following import Following
from mesh.events.store import EventStore, Selection, StoredCommit, StreamName
from services.models import domain
from weft.models.v1 import budgets_pb2

START_SECONDS_MAX = 30.0
CATCH_UP_SECONDS_MAX = 5.0


class KnownBudgets:
    """All budgets of all tenants. Where the log can't be reached they stay what they were;
    where it can't be read, nobody knows what a call is charged to, and none is let through."""

    def __init__(self, events: EventStore) -> None:
        self._following = Following(events, Selection(domain.BUDGETS), self._apply)
        self._states: dict[str, domain.State] = {}
        self._by_scope: dict[str, tuple[str, ...]] = {}
        self._callbacks: list[Callable[[str], None]] = []

    async def start(self) -> None:
        """Returns once all that is stored by now is known. Raises EventStoreUnavailable, and
        DataDamaged where it can't be read."""
        self._following.start()
        await self.catch_up(START_SECONDS_MAX)

    async def stop(self) -> None:
        """Ends following."""
        await self._following.stop()

    async def catch_up(self, seconds_max: float = CATCH_UP_SECONDS_MAX) -> None:
        """Returns once all that is stored by now is known. EventStoreUnavailable where that
        takes longer, and what ended the following."""
        await self._following.catch_up(seconds_max)

    def on_change(self, callback: Callable[[str], None]) -> None:
        """Calls `callback` with the name of each budget of which something was stored."""
        self._callbacks.append(callback)

    def states(self, parent: str) -> Iterator[domain.State]:
        """The budgets of a tenant, not to be changed."""
        prefix = f"{parent}/budgets/"
        return (state for name, state in self._states.items() if name.startswith(prefix))

    def find(self, name: str) -> budgets_pb2.Budget | None:
        """The budget as it was set; None where there is none."""
        state = self._states.get(name)
        return state.budget if state is not None else None

    def covering(self, parent: str, session: str) -> list[budgets_pb2.Budget]:
        """The budgets that a call is charged to, always in the same order. Raises Unavailable
        where that can't be known."""
        if self._following.failure is not None:
            raise _unknown(self._following.failure)
        if not self._by_scope:
            return []
        names = [
            name
            for scope in domain.covering(parent, session)
            for name in self._by_scope.get(scope, ())
        ]
        return [self._states[name].budget for name in sorted(names)]

    def count(self, scope: str) -> int:
        """How many budgets are of exactly that scope."""
        return len(self._by_scope.get(scope, ()))

    def _apply(self, stored: StoredCommit) -> None:
        stream = StreamName.parse(stored.commit.stream)
        if stored.erased:
            return
        name = domain.budget_name(stream)
        before = self._states.get(name)
        scope = before.budget.scope if before is not None else ""
        state = evolved(domain.BUDGET_FOLD, before or domain.State(), stored)
        # Nothing is decided on it: who decides reads the log.
        state.ClearField("requests")
        if domain.exists(state):
            self._states[name] = state
        else:
            self._states.pop(name, None)
        if scope != state.budget.scope:
            self._index(name, scope, state.budget.scope)
        for callback in self._callbacks:
            callback(name)

    def _index(self, name: str, before: str, scope: str) -> None:
        if before:
            left = tuple(each for each in self._by_scope[before] if each != name)
            self._by_scope[before] = left
            if not left:
                del self._by_scope[before]
        if scope:
            self._by_scope[scope] = (*self._by_scope.get(scope, ()), name)


def _unknown(failure: WeftError) -> Unavailable:
    return Unavailable(f"it isn't known which budgets there are: {failure.message}")


def refuse_unpriced(budgets: list[budgets_pb2.Budget], model: str) -> None:
    """FailedPrecondition where one of the budgets demands a price and the model has none."""
    for budget in budgets:
        if budget.requires_prices:
            raise FailedPrecondition(
                f"{model} has no price, and {budget.name} lets only models with one through",
                metadata={"resource": budget.name},
            )
