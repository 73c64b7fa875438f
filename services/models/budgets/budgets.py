"""Puts together what budgets are made of."""

from collections.abc import Callable
from pathlib import Path

from mesh.clock import Clock
from mesh.events.aggregate import Repository
from mesh.events.store import EventStore
from services.models import domain
from services.models.budgets.charging import Charge, Charging
from services.models.budgets.known import KnownBudgets
from services.models.budgets.read_model import UsageReadModel
from services.models.budgets.rpcs import BudgetRpcs
from services.models.budgets.usage import Caller, UsageRecorder
from services.models.domain import Price

FILE_NAME = "usage.sqlite3"


class Budgets:
    """Charges calls to budgets, records what they used, and answers the RPCs of both. The
    folder holds the read model of usage."""

    def __init__(
        self,
        events: EventStore,
        repository: Repository[domain.State],
        usage_repository: Repository[domain.UsageState],
        folder: Path,
        price_of: Callable[[str], Price | None],
        *,
        instance: str,
        clock: Clock,
        wait_seconds: float,
    ) -> None:
        self._known = KnownBudgets(events)
        self._recorder = UsageRecorder(usage_repository, instance, clock)
        self._usage = UsageReadModel(events, folder / FILE_NAME)
        self._charging = Charging(
            self._known,
            repository,
            self._recorder,
            price_of,
            instance=instance,
            clock=clock,
            wait_seconds=wait_seconds,
        )
        self.rpcs = BudgetRpcs(self._known, repository, self._recorder, self._usage, clock)

    async def start(self) -> None:
        """Returns once the budgets and the usage are known. Raises EventStoreUnavailable,
        DataDamaged."""
        await self._charging.start()
        await self._usage.start()
        self._recorder.start()

    async def stop(self) -> None:
        """Says what was spent and used; what was set aside and isn't used is given back."""
        await self._charging.stop()
        await self._recorder.stop()
        await self._usage.stop()

    def covers(self, parent: str, session: str) -> bool:
        """Whether a budget covers calls of that tenant, for that session where it isn't
        empty. Raises Unavailable where nobody knows."""
        return self._charging.covers(parent, session)

    async def charge(
        self, caller: Caller, input_tokens: int, output_tokens: int, seconds_max: float
    ) -> Charge:
        """Sets aside what a call may take; raises as `Charging.charge` does."""
        return await self._charging.charge(caller, input_tokens, output_tokens, seconds_max)
