"""What may be done to a budget, and what of it may be spent."""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from mesh.errors import (
    BudgetSpent,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    LimitExceeded,
    NotFound,
)
from mesh.events.requests import came_before
from services.models.domain.amounts import Amount, amount_of, limit_of, total
from services.models.domain.evolve import State, UsageState, taken
from services.models.domain.names import parent_of
from services.models.domain.prices import MILLION
from services.models.domain.windows import SECOND_NS, Window, window_at
from weft.models.v1 import budgets_pb2
from weft.models.v1 import events_pb2 as facts

LEASES_MAX = 1_024
"""Instances that may spend of one budget at once."""
LEASE_NS = 60 * SECOND_NS
"""How long an instance spends what it was given without saying so."""
GRACE_NS = 60 * SECOND_NS
"""How much later others hold that it is gone: clocks differ."""
SHARES = 16
"""An instance is given a share of what is left at most, beside what it needs."""
CALLS_AHEAD = 32
"""And no more than so many calls like the one that it needs it for may take."""
HELD_RETRY_SECONDS = 5.0
"""When to try again where what is left is held for calls that are under way."""


@dataclass(frozen=True, slots=True)
class Request:
    """The request that a command answers: of which budget, and who asks. `etag` is the one
    that the budget is expected to have; empty for any."""

    name: str
    id: str
    hash: bytes
    actor: str
    etag: str


@dataclass(frozen=True, slots=True)
class SetBudget:
    """Makes or changes it."""

    request: Request
    scope: str
    limit: budgets_pb2.Amount
    window: "budgets_pb2.BudgetWindow.ValueType"
    requires_prices: bool


@dataclass(frozen=True, slots=True)
class DeleteBudget:
    """Deletes it."""

    request: Request


@dataclass(frozen=True, slots=True)
class Draw:
    """An instance wants more for a call that may take `estimate`: under its lease it used
    `used` so far, and has set `reserved` aside for calls that are under way."""

    lease: str
    instance: str
    used: Amount
    reserved: Amount
    estimate: Amount
    now_ns: int


@dataclass(frozen=True, slots=True)
class Report:
    """An instance says what it used, and keeps of what it was given what makes `granted`,
    or closes the lease."""

    lease: str
    used: Amount
    granted: Amount
    closes: bool
    now_ns: int


Change = SetBudget | DeleteBudget
"""What somebody asks for."""
Command = Change | Draw | Report


def decide(state: State, command: Command) -> Sequence[Message]:
    """The facts that `command` leads to; none where the same request came before, or there
    is nothing to do.

    Raises NotFound, InvalidArgument, Conflict for a stale etag, RequestIdReused,
    FailedPrecondition for another scope, BudgetSpent where what is wanted isn't left,
    LimitExceeded where too many instances spend.
    """
    if isinstance(command, Draw):
        return [_draw(state, command)]
    if isinstance(command, Report):
        return _report(state, command)
    request = command.request
    if came_before(state.requests, request.id, request.hash):
        return []
    etag = state.budget.etag
    if request.etag and request.etag != etag:
        raise Conflict(
            f"{request.name} changed: its etag is {etag or 'none'}, not {request.etag}",
            metadata={"resource": request.name, "etag": etag},
        )
    if isinstance(command, SetBudget):
        return [_set(state, command)]
    refuse_absent(state, request.name)
    return [facts.BudgetDeleted(actor=request.actor, request=_answered(request))]


def exists(state: State) -> bool:
    """Whether it was set, and not deleted since."""
    return bool(state.budget.name)


def refuse_absent(state: State, name: str) -> None:
    """Raises NotFound unless it is there."""
    if not exists(state):
        raise NotFound.of("budget", name)


def view(state: State, now_ns: int) -> budgets_pb2.Budget:
    """The budget with what is spent and held at that time."""
    budget = budgets_pb2.Budget()
    budget.CopyFrom(state.budget)
    window, fresh = _window(state, now_ns)
    leases = [] if fresh else state.leases
    spent = Amount() if fresh else amount_of(state.spent)
    gone = total(taken(each) for each in leases if _is_over(each, now_ns))
    alive = [each for each in leases if not _is_over(each, now_ns)]
    used = total(amount_of(each.used) for each in alive)
    budget.spent.CopyFrom((spent + gone + used).message())
    budget.held.CopyFrom((total(map(taken, alive)) - used).message())
    if window.end_ns:
        budget.window_start_time.FromNanoseconds(window.start_ns)
        budget.window_end_time.FromNanoseconds(window.end_ns)
    return budget


def decide_usage(state: UsageState, record: facts.UsageRecorded) -> Sequence[Message]:
    """Stores a record once."""
    for writer in state.writers:
        if writer.instance == record.instance and writer.number >= record.number:
            return []
    return [record]


def _set(state: State, command: SetBudget) -> Message:
    request, before = command.request, state.budget
    scope = command.scope or before.scope or parent_of(request.name)
    limit = command.limit
    if parent_of(scope) != parent_of(request.name):
        raise InvalidArgument.of("scope", f"must be in {parent_of(request.name)}")
    if exists(state) and scope != before.scope:
        raise FailedPrecondition(
            f"{request.name} is of {before.scope}: delete it first, or make another one",
            metadata={"resource": request.name},
        )
    if not limit.HasField("micro_usd") and not limit.HasField("tokens"):
        raise InvalidArgument.of("limit", "must limit micro_usd, tokens or both")
    return facts.BudgetSet(
        budget=request.name,
        scope=scope,
        limit=limit,
        window=command.window,
        requires_prices=command.requires_prices,
        actor=request.actor,
        request=_answered(request),
    )


def _draw(state: State, command: Draw) -> Message:
    refuse_absent(state, "of the lease")
    window, fresh = _window(state, command.now_ns)
    leases = [] if fresh else list(state.leases)
    spent = Amount() if fresh else amount_of(state.spent)
    others = [each for each in leases if each.id != command.lease]
    own = next((each for each in leases if each.id == command.lease), None)
    most = limit_of(state.budget.limit) - spent - total(map(taken, others))
    needs = command.used + command.reserved + command.estimate
    if not needs.fits(most):
        raise _spent(state, command, window, most - command.used - command.reserved, others)
    expired = [each.id for each in others if _is_over(each, command.now_ns)]
    if own is None and len(others) - len(expired) >= LEASES_MAX:
        raise LimitExceeded(f"{LEASES_MAX} instances spend of {state.budget.name} already")
    ahead = ((most - needs) // SHARES).at_most(command.estimate * CALLS_AHEAD)
    granted = needs + ahead
    if own is not None:
        # Calls may be taking of it meanwhile.
        granted = granted.at_least(amount_of(own.granted))
    fact = facts.BudgetLeased(window_start_ns=window.start_ns, expired=expired)
    fact.lease.id, fact.lease.instance = command.lease, command.instance
    _fill(fact.lease, command.used, granted, command.now_ns)
    return fact


def _report(state: State, command: Report) -> Sequence[Message]:
    own = next((each for each in state.leases if each.id == command.lease), None)
    _, fresh = _window(state, command.now_ns)
    if own is None or fresh:
        return []
    fact = facts.BudgetLeased(window_start_ns=state.window_start_ns, closed=command.closes)
    fact.lease.id, fact.lease.instance = own.id, own.instance
    granted = command.granted.at_most(amount_of(own.granted)).at_least(command.used)
    _fill(fact.lease, command.used, granted, command.now_ns)
    return [fact]


def _fill(lease: budgets_pb2.BudgetLease, used: Amount, granted: Amount, now_ns: int) -> None:
    lease.used.CopyFrom(used.message())
    lease.granted.CopyFrom(granted.message())
    lease.expire_time.FromNanoseconds(now_ns + LEASE_NS)


def _window(state: State, now_ns: int) -> tuple[Window, bool]:
    """The window, and whether nothing of it was spent yet. It never goes back, as the
    clocks of two instances may."""
    window = window_at(state.budget.window, now_ns)
    if window.start_ns < state.window_start_ns:
        return window_at(state.budget.window, state.window_start_ns), False
    return window, window.start_ns > state.window_start_ns


def _is_over(lease: budgets_pb2.BudgetLease, now_ns: int) -> bool:
    return now_ns >= lease.expire_time.ToNanoseconds() + GRACE_NS


def _spent(
    state: State,
    command: Draw,
    window: Window,
    left: Amount,
    others: Sequence[budgets_pb2.BudgetLease],
) -> BudgetSpent:
    """Says what is short, and when there may be more."""
    budget, wanted = state.budget, command.estimate
    alive = [each for each in others if not _is_over(each, command.now_ns)]
    held = total(taken(each) - amount_of(each.used) for each in alive) + command.reserved
    is_held = wanted.fits(left + held)
    if wanted.tokens > left.tokens:
        kind, said = "tokens", f"{max(0, left.tokens)} tokens"
        may_take = f"{wanted.tokens} tokens"
    else:
        kind, said = "micro_usd", _usd(max(0, left.micro_usd))
        may_take = _usd(wanted.micro_usd)
    why = "; calls that are under way hold the rest" if is_held else ""
    retry_seconds = None
    if is_held:
        retry_seconds = HELD_RETRY_SECONDS
    elif window.end_ns:
        retry_seconds = max(1.0, (window.end_ns - command.now_ns) / SECOND_NS)
    return BudgetSpent(
        f"of {budget.name} {said} are left, and this call may take {may_take}{why}",
        metadata={"resource": budget.name, "limit": kind, "held": str(is_held).lower()},
        retry_seconds=retry_seconds,
    )


def _answered(request: Request) -> budgets_pb2.BudgetRequest:
    return budgets_pb2.BudgetRequest(request_id=request.id, request_hash=request.hash)


def _usd(micro_usd: int) -> str:
    return f"${micro_usd / MILLION:.6f}".rstrip("0").removesuffix(".")
