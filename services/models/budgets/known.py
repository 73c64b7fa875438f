"""Budgets in memory, as the log has them: what covers a call is found without reading."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mesh.errors import FailedPrecondition, Unavailable, WeftError
from mesh.events.store import EventStore
from mesh.security.secrets import Secrets
from services.models import domain
from services.models.budgets.read_model import ModelsReadModel
from weft.models.v1 import budgets_pb2


class Unpriced(FailedPrecondition):
    """A budget lets only models with a price through, and this one has none."""


class KnownBudgets:
    """All budgets of all tenants. Where the log can't be reached they stay what they were;
    where it can't be read, nobody knows what a call is charged to, and none is let through."""

    def __init__(self, events: EventStore, path: Path, secrets: Secrets) -> None:
        self.read_model = ModelsReadModel(events, path, secrets, self._observe)
        self._started = False
        self._states: dict[str, domain.State] = {}
        self._by_scope: dict[str, tuple[str, ...]] = {}
        self._callbacks: list[Callable[[str], None]] = []

    async def start(self) -> None:
        """Returns once all that is stored by now is known. Raises EventStoreUnavailable, and
        DataDamaged where it can't be read."""
        await self.read_model.start()
        for name, state in (await self.read_model.budgets()).items():
            self._take(name, state)
        self._started = True

    async def stop(self) -> None:
        """Ends following."""
        await self.read_model.stop()

    async def catch_up(self) -> None:
        """Returns once all that is stored by now is known. EventStoreUnavailable where that
        takes longer, and what ended the following."""
        await self.read_model.catch_up()

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
        if self.read_model.failure is not None:
            raise _unknown(self.read_model.failure)
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

    def _observe(self, names: Iterable[str]) -> None:
        if self._started:
            for name in names:
                self._take(name, self.read_model.budget(name))
                for callback in self._callbacks:
                    callback(name)

    def _take(self, name: str, state: domain.State | None) -> None:
        before = self._states.pop(name, None)
        old = before.budget.scope if before is not None else ""
        new = state.budget.scope if state is not None else ""
        if state is not None:
            self._states[name] = state
        if old != new:
            self._index(name, old, new)

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
    """Raises Unpriced, for a model without a price, where one of the budgets demands one."""
    for budget in budgets:
        if budget.requires_prices:
            raise Unpriced(
                f"{model} has no price, and {budget.name} lets only models with one through",
                metadata={"resource": budget.name},
            )
