"""Puts together what budgets are made of."""

from collections.abc import Callable
from pathlib import Path

from mesh.clock import Clock
from mesh.events.aggregate import Repository
from mesh.events.store import EventStore
from mesh.security.secrets import Secrets
from services.models import domain
from services.models.budgets.charging import Charge, Charging
from services.models.budgets.known import KnownBudgets
from services.models.budgets.rpcs import BudgetRpcs
from services.models.budgets.usage import Caller, UsageRecorder
from services.models.domain import Price

FILE_NAME = "models.sqlite3"


class Budgets:
    """Charges calls to budgets, records what they used, and answers the RPCs of both. The
    folder holds the read model of both."""

    def __init__(
        self,
        events: EventStore,
        repository: Repository[domain.State],
        usage_repository: Repository[domain.UsageState],
        folder: Path,
        secrets: Secrets,
        price_of: Callable[[str], Price | None],
        *,
        instance: str,
        clock: Clock,
        wait_seconds: float,
    ) -> None:
        known = KnownBudgets(events, folder / FILE_NAME, secrets)
        self._recorder = UsageRecorder(usage_repository, instance, clock)
        self._charging = Charging(
            known,
            repository,
            self._recorder,
            price_of,
            instance=instance,
            clock=clock,
            wait_seconds=wait_seconds,
        )
        self.rpcs = BudgetRpcs(known, repository, self._recorder, clock)

    async def start(self) -> None:
        """Returns once the budgets and the usage are known. Raises EventStoreUnavailable,
        DataDamaged."""
        await self._charging.start()
        self._recorder.start()

    async def stop(self) -> None:
        """Says what was spent and used; what was set aside and isn't used is given back."""
        await self._recorder.stop()
        await self._charging.stop()

    def covers(self, parent: str, session: str) -> bool:
        """Whether a budget covers calls of that tenant, for that session where it isn't
        empty. Raises Unavailable where nobody knows."""
        return self._charging.covers(parent, session)

    async def charge(
        self, caller: Caller, input_tokens: int, output_tokens: int, seconds_max: float
    ) -> Charge:
        """Sets aside what a call may take; raises as `Charging.charge` does."""
        return await self._charging.charge(caller, input_tokens, output_tokens, seconds_max)
