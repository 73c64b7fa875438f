"""What the order of tasks guarantees."""

import heapq

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.domain.priority import (
    COST_SECONDS_MIN,
    LEVEL_SECONDS,
    PRIORITY_MAX,
    WEIGHT_DEFAULT,
    Share,
    Wants,
    charged,
    due,
    rank,
    returned,
)

priorities = st.integers(0, PRIORITY_MAX)
times = st.floats(0, 1e9, allow_nan=False).map(lambda seconds: round(seconds, 3))
costs = st.floats(0, 100, allow_nan=False)
weights = st.integers(1, 1_000)
ALONE = Share(0.0)


def wants(priority: int, ready: float, order: int = 0, **more: float) -> Wants:
    return Wants(priority, ready, order, **more)


@given(priorities, times, times)
def test_of_equals_the_one_that_came_first_goes_first(
    priority: int, one: float, other: float
) -> None:
    first, second = sorted((one, other))
    assert rank(wants(priority, first, 1), ALONE) < rank(wants(priority, second, 2), ALONE)


@given(priorities, priorities, times)
def test_what_is_more_urgent_goes_first(one: int, other: int, ready: float) -> None:
    low, high = sorted((one, other))
    if low < high:
        assert rank(wants(high, ready, 2), ALONE) < rank(wants(low, ready, 1), ALONE)


@given(priorities, priorities, times, costs)
def test_nothing_is_passed_for_longer_than_the_levels_are_worth(
    mine: int, other: int, ready: float, cost: float
) -> None:
    """So nothing starves, however much that is more urgent keeps coming."""
    later = ready + PRIORITY_MAX * LEVEL_SECONDS + 0.001
    waiting = rank(wants(mine, ready, 1), ALONE)
    assert waiting < rank(wants(other, later, 2, cost_seconds=cost), ALONE)


@given(priorities, times, costs, costs)
def test_an_own_deadline_only_ever_brings_a_task_forward(
    priority: int, ready: float, cost: float, ahead: float
) -> None:
    plain = wants(priority, ready, cost_seconds=cost)
    hurried = wants(priority, ready, cost_seconds=cost, deadline=ready + ahead)
    assert due(hurried) <= due(plain)
    assert due(hurried) <= ready + ahead - cost


@given(st.lists(st.tuples(priorities, costs), min_size=1, max_size=30))
def test_tasks_with_deadlines_that_can_all_be_kept_are_all_in_time(
    tasks: list[tuple[int, float]],
) -> None:
    """Earliest deadline first finds an order wherever there is one: deadlines made from an
    order that works."""
    end, made = 0.0, []
    for order, (priority, cost) in enumerate(tasks):
        end += cost
        made.append(wants(priority, 1e12, order, cost_seconds=0, deadline=end))
    costs_of = {each.order: cost for each, (_, cost) in zip(made, tasks, strict=True)}
    now = 0.0
    for each in sorted(made, key=lambda each: rank(each, ALONE)):
        now += costs_of[each.order]
        assert each.deadline is not None
        assert now <= each.deadline + 1e-6


@given(
    st.lists(st.tuples(weights, st.lists(costs, min_size=1, max_size=40)), min_size=2, max_size=5)
)
def test_tenants_get_work_by_their_weights(tenants: list[tuple[int, list[float]]]) -> None:
    """While all have tasks, no tenant is ahead of another by more than one task of each."""
    shares = [Share(0.0, weight) for weight, _ in tenants]
    left = [list(tasks) for _, tasks in tenants]
    queue = [(share.virtual, number) for number, share in enumerate(shares)]
    heapq.heapify(queue)
    given_costs = [0.0] * len(tenants)
    while all(left):
        _, number = heapq.heappop(queue)
        cost = left[number].pop()
        given_costs[number] += max(cost, COST_SECONDS_MIN)
        shares[number] = charged(shares[number], cost)
        heapq.heappush(queue, (shares[number].virtual, number))
    largest = [max(map(float, tasks)) + COST_SECONDS_MIN for _, tasks in tenants]
    for one in range(len(tenants)):
        for other in range(len(tenants)):
            ahead = (
                given_costs[one] / shares[one].weight - given_costs[other] / shares[other].weight
            )
            bound = largest[one] / shares[one].weight + largest[other] / shares[other].weight
            assert ahead <= bound + 1e-6


@given(st.floats(0, 1e6), st.floats(0, 1e6), weights)
def test_nobody_saves_up_by_being_idle(virtual: float, now: float, weight: int) -> None:
    back = returned(Share(virtual, weight), now)
    assert back.virtual >= now
    assert back.virtual >= virtual
    assert back.weight == weight


def test_half_the_weight_costs_twice_as_much() -> None:
    assert charged(Share(0.0, WEIGHT_DEFAULT), 3.0).virtual == 3.0
    assert charged(Share(0.0, WEIGHT_DEFAULT // 2), 3.0).virtual == 6.0
