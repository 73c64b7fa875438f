"""One step around each call of a provider: what it may cost is set aside before, what it did
is charged after, whatever became of it."""

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType

import structlog

from mesh.clock import Clock
from mesh.errors import (
    InvalidArgument,
    ModelRateLimited,
    ModelRefused,
    ModelUnavailable,
    NotFound,
    WeftError,
)
from mesh.events.aggregate import Repository
from services.models import domain
from services.models.budgets.known import KnownBudgets, refuse_unpriced
from services.models.budgets.pool import Pool, Reservation, term_of
from services.models.budgets.usage import Caller, UsageRecorder
from services.models.domain import Amount, Price
from weft.models.v1 import budgets_pb2, models_pb2

BYTES_PER_TOKEN = 4
TICK_SECONDS = 5.0
"""How often the log is told what was spent, and unused parts are given back."""

_log = structlog.get_logger(__name__)
_UNCHARGED = (ModelRefused, ModelRateLimited, NotFound, InvalidArgument)
"""Ends of calls that a provider doesn't bill."""


class Charge:
    """A call that is charged; leaving it settles. What isn't said is estimated, but for calls
    that the provider refused, or that never reached it: those cost nothing."""

    def __init__(
        self,
        caller: Caller,
        price: Price | None,
        input_tokens: int,
        reservations: list[tuple[Pool, Reservation]],
        recorder: UsageRecorder,
    ) -> None:
        self._caller = caller
        self._price = price
        self._input_tokens = input_tokens
        self._reservations = reservations
        self._recorder = recorder
        self._usage: models_pb2.Usage | None = None
        self._written_bytes = 0
        self._is_sent = True

    def sent(self, is_sent: bool) -> None:
        """Whether the provider has the call; it does unless that is said."""
        self._is_sent = is_sent

    def wrote(self, text: str) -> None:
        """The model wrote that so far."""
        self._written_bytes += len(text.encode())

    def finish(self, usage: models_pb2.Usage) -> None:
        """The provider told what it used; its cost is filled in."""
        if self._price is not None:
            usage.cost_micro_usd = self._price.cost_micro_usd(usage)
        self._usage = usage

    def __enter__(self) -> "Charge":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        usage = self._usage
        if usage is None:
            unanswered = isinstance(error, ModelUnavailable) or not self._is_sent
            unreached = unanswered and not self._written_bytes
            if unreached or isinstance(error, _UNCHARGED):
                self._settle(domain.NOTHING)
                return
            usage = models_pb2.Usage(
                input_tokens=self._input_tokens,
                output_tokens=-(-self._written_bytes // BYTES_PER_TOKEN),
                estimated=True,
            )
            self.finish(usage)
        self._settle(Amount(usage.cost_micro_usd, usage.input_tokens + usage.output_tokens))
        self._recorder.add(self._caller, usage)

    def _settle(self, used: Amount) -> None:
        for pool, reservation in self._reservations:
            pool.settle(reservation, used)


class Charging:
    """Sets aside and charges what calls of this process take of budgets."""

    def __init__(
        self,
        known: KnownBudgets,
        repository: Repository[domain.State],
        recorder: UsageRecorder,
        price_of: Callable[[str], Price | None],
        *,
        instance: str,
        clock: Clock,
        wait_seconds: float,
    ) -> None:
        self._known = known
        self._repository = repository
        self._recorder = recorder
        self._price_of = price_of
        self._instance = instance
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._pools: dict[str, Pool] = {}
        self._ticking: asyncio.Task[None] | None = None
        known.on_change(self._tell)

    def covers(self, parent: str, session: str) -> bool:
        """Whether a budget covers such calls. Raises Unavailable where nobody knows."""
        return bool(self._known.covering(parent, session))

    async def start(self) -> None:
        """Returns once the budgets are known. Raises EventStoreUnavailable, DataDamaged."""
        await self._known.start()
        self._ticking = asyncio.create_task(self._tick_always(), name="budgets")

    async def stop(self) -> None:
        """Says what was spent, and gives all else back."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        await self._tick(closes=True)
        await self._known.stop()

    async def charge(
        self,
        caller: Caller,
        input_tokens: int,
        output_tokens: int,
        seconds_max: float,
    ) -> Charge:
        """Sets aside what a call may take of each budget that covers it: so many tokens read
        and written at most. Raises BudgetSpent, Unpriced, EventStoreUnavailable, Unavailable."""
        price = self._price_of(caller.model)
        budgets = self._known.covering(caller.parent, caller.session)
        reservations: list[tuple[Pool, Reservation]] = []
        if budgets:
            if price is None:
                refuse_unpriced(budgets, caller.model)
            most_micro_usd = price.most_micro_usd(input_tokens, output_tokens) if price else 0
            estimate = Amount(most_micro_usd, input_tokens + output_tokens)
            await self._reserve(budgets, estimate, seconds_max, reservations)
        return Charge(caller, price, input_tokens, reservations, self._recorder)

    async def _reserve(
        self,
        budgets: list[budgets_pb2.Budget],
        estimate: Amount,
        seconds_max: float,
        reservations: list[tuple[Pool, Reservation]],
    ) -> None:
        now_ns = self._clock.now_ns()
        try:
            for budget in budgets:
                pool = self._pool(budget.name)
                # Deleted in between, it charges nothing.
                with contextlib.suppress(NotFound):
                    term = term_of(budget, now_ns)
                    reserved = await pool.reserve(term, estimate, seconds_max)
                    reservations.append((pool, reserved))
        except BaseException:
            for pool, reservation in reservations:
                pool.settle(reservation, domain.NOTHING)
            raise

    def _pool(self, name: str) -> Pool:
        pool = self._pools.get(name)
        if pool is None:
            pool = self._pools[name] = Pool(
                name, self._repository, self._instance, self._clock, self._wait_seconds
            )
        return pool

    def _tell(self, name: str) -> None:
        pool = self._pools.get(name)
        if pool is not None:
            pool.changed()

    async def _tick_always(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self._tick()

    async def _tick(self, *, closes: bool = False) -> None:
        for name, pool in list(self._pools.items()):
            try:
                await pool.tick(closes=closes)
            except WeftError as error:
                # It is said with the next tick; else what was granted counts as spent.
                _log.warning("budget not told of", budget=name, error=error.message)
            if pool.idle:
                del self._pools[name]
