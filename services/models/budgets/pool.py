"""What this process holds of one budget, and takes for its calls without asking anybody."""

import asyncio
from dataclasses import dataclass

from mesh.clock import NANOSECONDS, Clock
from mesh.errors import BudgetSpent, EventStoreUnavailable, NotFound
from mesh.events.aggregate import Repository
from mesh.ids import new_id
from mesh.principal import SYSTEM_NAME
from services.models import domain
from services.models.domain import NOTHING, Amount
from weft.models.v1 import budgets_pb2

LEASE_SECONDS = domain.LEASE_NS / NANOSECONDS
RENEWED_SECONDS = LEASE_SECONDS / 2


Term = tuple[int, int, int]
"""What a lease is good for: a budget that was made at some time, a kind of window, and the
window that ends at some time. What was granted for another one isn't there any more."""


def term_of(budget: budgets_pb2.Budget, now_ns: int) -> Term:
    """The present one, for a budget as it was set."""
    window = domain.window_at(budget.window, now_ns)
    return budget.create_time.ToNanoseconds(), budget.window, window.end_ns


class Lease:
    """A part of a budget's limit, granted to this process until `until`, on the monotonic
    clock."""

    def __init__(self, term: Term) -> None:
        self.id = new_id()
        self.term = term
        self.granted = NOTHING
        self.used = NOTHING
        self.reserved = NOTHING
        self.until = 0.0
        self.touched = False
        self.told = (NOTHING, NOTHING)
        """What the log knows to be used and granted."""

    @property
    def free(self) -> Amount:
        """What calls may take."""
        return self.granted - self.used - self.reserved


@dataclass(frozen=True, slots=True)
class Reservation:
    """What was set aside for a call."""

    lease: Lease
    amount: Amount


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What was refused, and after how many changes: while nothing changes the same is
    refused without a look at the log."""

    changes: int
    estimate: Amount
    term: Term
    error: BudgetSpent


class Pool:
    """This process's part of one budget.

    A call's estimate is set aside in memory. Where what was granted doesn't do, more is
    drawn, by a commit to the budget. Ticks give back what nobody takes, and say twice a minute
    what was used. What a killed process held is counted as spent.
    """

    def __init__(
        self,
        name: str,
        repository: Repository[domain.State],
        instance: str,
        clock: Clock,
        wait_seconds: float,
    ) -> None:
        self.name = name
        self._repository = repository
        self._instance = instance
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._leases: list[Lease] = []
        self._users = 0
        self._drawing = asyncio.Lock()
        self._changes = 0
        self._changed = asyncio.Event()
        self._refusal: _Refusal | None = None

    @property
    def idle(self) -> bool:
        """Whether it holds nothing, and nobody waits for what it may."""
        return not self._leases and not self._users

    def changed(self) -> None:
        """Something was stored of the budget, or a call of ours ended: what was refused may
        be granted now."""
        self._changes += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def reserve(self, term: Term, estimate: Amount, seconds_max: float) -> Reservation:
        """Sets `estimate` aside. Where calls that are under way hold what it needs it waits
        for them, for a moment. Raises BudgetSpent, EventStoreUnavailable."""
        self._users += 1
        try:
            until = self._clock.monotonic() + min(seconds_max, self._wait_seconds)
            return await self._reserved_until(until, term, estimate)
        finally:
            self._users -= 1

    async def _reserved_until(self, until: float, term: Term, estimate: Amount) -> Reservation:
        while True:
            changed = self._changed
            try:
                return await self._reserved(term, estimate)
            except BudgetSpent as error:
                left = until - self._clock.monotonic()
                if error.metadata.get("held") != "true" or left <= 0:
                    raise
                try:
                    await asyncio.wait_for(changed.wait(), left)
                except TimeoutError:
                    raise error from None

    def settle(self, reservation: Reservation, used: Amount) -> None:
        """The call used that, and needs no more."""
        lease = reservation.lease
        lease.reserved -= reservation.amount
        lease.used += used
        self.changed()

    async def tick(self, *, closes: bool = False) -> None:
        """Says what was used, and gives back what isn't needed. With `closes` calls that are
        under way count as if they used what was set aside. Raises EventStoreUnavailable."""
        async with self._drawing:
            for lease in list(self._leases):
                if closes:
                    lease.used, lease.reserved = lease.used + lease.reserved, NOTHING
                await self._report(lease, is_last=closes)

    async def _reserved(self, term: Term, estimate: Amount) -> Reservation:
        while True:
            taken = self._take(term, estimate)
            if taken is None:
                async with self._drawing:
                    # Who drew before may have drawn enough for both.
                    taken = self._take(term, estimate)
                    if taken is None:
                        await self._draw(term, estimate)
                        taken = self._take(term, estimate)
            if taken is not None:
                return taken

    def _take(self, term: Term, estimate: Amount) -> Reservation | None:
        lease = self._current(term)
        if lease is None or not estimate.fits(lease.free):
            return None
        lease.reserved += estimate
        lease.touched = True
        return Reservation(lease, estimate)

    def _current(self, term: Term) -> Lease | None:
        lease = self._leases[-1] if self._leases else None
        if lease is None or lease.term != term:
            return None
        return lease if self._clock.monotonic() < lease.until else None

    async def _draw(self, term: Term, estimate: Amount) -> None:
        self._refuse_again(term, estimate)
        lease = self._current(term) or self._new_lease(term)
        command = domain.Draw(
            lease=lease.id,
            instance=self._instance,
            used=lease.used,
            reserved=lease.reserved,
            estimate=estimate,
            now_ns=self._clock.now_ns(),
        )
        changes, drawn = self._changes, self._clock.monotonic()
        aggregate = self._repository.open(domain.budget_stream(self.name))
        try:
            await aggregate.execute(lambda state: domain.decide(state, command), actor=SYSTEM_NAME)
        except BudgetSpent as error:
            self._refusal = _Refusal(changes, estimate, term, error)
            raise
        granted = next((each for each in aggregate.state.leases if each.id == lease.id), None)
        if granted is None:
            # Deleted, or set anew, in between.
            raise NotFound.of("budget", self.name)
        lease.granted = domain.amount_of(granted.granted)
        lease.told = (command.used, lease.granted)
        lease.until = drawn + LEASE_SECONDS

    def _new_lease(self, term: Term) -> Lease:
        """Kept before anything is granted: whoever draws may be cancelled meanwhile, and what
        the log grants then is told of as well."""
        lease = Lease(term)
        lease.until = self._clock.monotonic() + LEASE_SECONDS
        self._leases.append(lease)
        return lease

    def _refuse_again(self, term: Term, estimate: Amount) -> None:
        refusal = self._refusal
        if refusal is None or refusal.changes != self._changes:
            return
        if refusal.term == term and refusal.estimate.fits(estimate):
            error = refusal.error
            raise BudgetSpent(
                error.message, metadata=error.metadata, retry_seconds=error.retry_seconds
            )

    async def _report(self, lease: Lease, *, is_last: bool) -> None:
        touched, lease.touched = lease.touched, False
        closes = is_last or (not touched and lease.reserved == NOTHING)
        if not touched:
            # Before it is said, so that no call takes of it meanwhile.
            lease.granted = lease.used + lease.reserved
        now = self._clock.monotonic()
        telling = (lease.used, lease.granted)
        is_young = now < lease.until - RENEWED_SECONDS
        if not closes and is_young and (touched or lease.told == telling):
            # One that is used is told of seldom, and not with each tick.
            return
        command = domain.Report(lease.id, *telling, closes, self._clock.now_ns())
        try:
            await self._repository.open(domain.budget_stream(self.name)).execute(
                lambda state: domain.decide(state, command), actor=SYSTEM_NAME
            )
        except EventStoreUnavailable:
            if closes and now >= lease.until:
                # Others count it as spent, or will.
                self._leases.remove(lease)
            raise
        lease.told = telling
        if closes:
            self._leases.remove(lease)
        elif now < lease.until:
            lease.until = now + LEASE_SECONDS
