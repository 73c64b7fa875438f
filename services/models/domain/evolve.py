"""What the facts of a budget, and of usage, fold into."""

from google.protobuf.message import Message

from mesh.events.fold import Fold, Place
from services.models.domain.amounts import Amount, amount_of
from weft.models.v1 import budgets_pb2
from weft.models.v1 import events_pb2 as facts

REQUESTS_MAX = 64
WRITERS_MAX = 256

State = budgets_pb2.BudgetState
UsageState = budgets_pb2.UsageState


def evolve(state: State, event: Message, place: Place) -> State:
    """The state after `event`. Takes `state` over."""
    state.revision = place.revision
    if isinstance(event, facts.BudgetSet):
        _set(state, event, place)
    elif isinstance(event, facts.BudgetDeleted):
        requests = list(state.requests)
        state.Clear()
        state.revision, state.deleted = place.revision, True
        state.requests.extend(requests)
        _answered(state, event.request)
    elif isinstance(event, facts.BudgetLeased):
        _leased(state, event)
    return state


def taken(lease: budgets_pb2.BudgetLease) -> Amount:
    """What is gone for others: what was granted, or more where more was used."""
    return amount_of(lease.granted).at_least(amount_of(lease.used))


def _set(state: State, event: facts.BudgetSet, place: Place) -> None:
    budget = state.budget
    if event.window != budget.window:
        _begin(state, 0)
    if not budget.name:
        budget.create_time.CopyFrom(place.time)
    state.deleted = False
    budget.name, budget.scope = event.budget, event.scope
    budget.limit.CopyFrom(event.limit)
    budget.window, budget.requires_prices = event.window, event.requires_prices
    budget.update_time.CopyFrom(place.time)
    budget.etag = f"r{place.revision}"
    _answered(state, event.request)


def _leased(state: State, event: facts.BudgetLeased) -> None:
    if event.window_start_ns != state.window_start_ns:
        _begin(state, event.window_start_ns)
    over = set(event.expired)
    for lease in state.leases:
        if lease.id in over:
            _spend(state, taken(lease))
    if event.closed:
        _spend(state, amount_of(event.lease.used))
    stay = [each for each in state.leases if each.id not in over and each.id != event.lease.id]
    state.ClearField("leases")
    state.leases.extend(stay)
    if not event.closed:
        state.leases.append(event.lease)


def _begin(state: State, window_start_ns: int) -> None:
    state.window_start_ns = window_start_ns
    state.ClearField("spent")
    state.ClearField("leases")


def _spend(state: State, amount: Amount) -> None:
    state.spent.CopyFrom((amount_of(state.spent) + amount).message())


def _answered(state: State, request: budgets_pb2.BudgetRequest) -> None:
    if len(state.requests) >= REQUESTS_MAX:
        del state.requests[0]
    state.requests.append(request)


def evolve_usage(state: UsageState, event: Message, place: Place) -> UsageState:
    """Who wrote how far, after `event`. Takes `state` over."""
    if isinstance(event, facts.UsageRecorded):
        stay = [each for each in state.writers if each.instance != event.instance]
        state.ClearField("writers")
        state.writers.extend(stay[-(WRITERS_MAX - 1) :])
        state.writers.add(instance=event.instance, number=event.number)
    return state


BUDGET_FOLD: Fold[State] = Fold(
    version=1,
    events=(facts.BudgetSet, facts.BudgetDeleted, facts.BudgetLeased),
    initial=State,
    evolve=evolve,
    encode=lambda state: state.SerializeToString(deterministic=True),
    decode=State.FromString,
)
USAGE_FOLD: Fold[UsageState] = Fold(
    version=1,
    events=(facts.UsageRecorded,),
    initial=UsageState,
    evolve=evolve_usage,
    encode=lambda state: state.SerializeToString(deterministic=True),
    decode=UsageState.FromString,
)
