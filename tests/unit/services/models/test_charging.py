"""Charging calls to budgets, with the real parts on a log in memory."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.call import Call
from mesh.clock import NANOSECONDS, Clock
from mesh.errors import (
    BudgetSpent,
    FailedPrecondition,
    InvalidArgument,
    LimitExceeded,
    ModelRateLimited,
    ModelUnavailable,
    NotFound,
)
from mesh.events.memory import MemoryEventStore
from services.models import domain
from services.models.budgets import rpcs
from services.models.budgets.budgets import Budgets
from services.models.budgets.charging import Charge
from services.models.budgets.usage import Caller
from services.models.domain import Price
from tests.support.budgets import PARENT, limit, memory_budgets, set_budget
from weft.models.v1 import budget_service_pb2 as pb
from weft.models.v1 import budgets_pb2, models_pb2

BUDGET = f"{PARENT}/budgets/b"
AGENT = f"{PARENT}/agents/bot"
SESSION = f"{AGENT}/sessions/s1"
MODEL = "openai/tiny"
PRICES = {MODEL: Price(1_000_000, 2_000_000, 500_000)}
CALLER = Caller(PARENT, "", MODEL)
IN_SESSION = Caller(PARENT, SESSION, MODEL)


def call() -> Call:
    return Call(method="test", deadline=time.monotonic() + 10, request_id="r1")


@asynccontextmanager
async def started(*budgets: Budgets) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for each in budgets:
            await each.start()
            stack.push_async_callback(each.stop)
        yield


@pytest.fixture
async def budgets() -> AsyncIterator[Budgets]:
    made = memory_budgets(prices=PRICES)
    async with started(made):
        yield made


async def use(
    budgets: Budgets, read: int, written: int, most: int | None = None, caller: Caller = CALLER
) -> None:
    """A call that uses so many tokens, of the most that it says it may write."""
    with await budgets.charge(caller, read, written if most is None else most, 5.0) as charge:
        charge.finish(models_pb2.Usage(input_tokens=read, output_tokens=written))


def fail(charge: Charge, wrote: str, error: BaseException) -> None:
    with charge:
        charge.wrote(wrote)
        raise error


async def shown(budgets: Budgets, name: str = BUDGET) -> budgets_pb2.Budget:
    return (await budgets.rpcs.get_budget(pb.GetBudgetRequest(name=name), call())).budget


async def usage(budgets: Budgets, **fields: Any) -> list[budgets_pb2.UsageEntry]:
    request = pb.GetUsageRequest(parent=PARENT, **fields)
    return list((await budgets.rpcs.get_usage(request, call())).rows)


async def test_a_call_costs_what_it_used_and_what_was_set_aside_goes_back(
    budgets: Budgets,
) -> None:
    await set_budget(budgets, limit(micro_usd=1_000, tokens=10_000), call())
    await use(budgets, 100, 50, most=300)
    await budgets.stop()
    await budgets.start()
    budget = await shown(budgets)
    assert (budget.spent.tokens, budget.spent.micro_usd) == (150, 200)
    assert (budget.held.tokens, budget.held.micro_usd) == (0, 0)


async def test_many_calls_take_few_commits(budgets: Budgets) -> None:
    store = MemoryEventStore()
    made = memory_budgets(store, PRICES)
    async with started(made):
        await set_budget(made, limit(tokens=1_000_000), call())
        before = await store.last_position()
        for _ in range(200):
            await use(made, 50, 10, most=50)
        assert await store.last_position() - before <= 10


async def test_a_spent_budget_refuses_and_a_raised_one_does_not(budgets: Budgets) -> None:
    await set_budget(budgets, limit(tokens=100), call())
    await use(budgets, 60, 40)
    with pytest.raises(BudgetSpent, match="0 tokens are left"):
        await use(budgets, 1, 1)
    await set_budget(budgets, limit(tokens=150), call())
    await use(budgets, 10, 10)


async def test_a_call_is_charged_to_all_budgets_that_cover_it(budgets: Budgets) -> None:
    await set_budget(budgets, limit(tokens=1_000), call())
    await set_budget(budgets, limit(tokens=1_000), call(), budget="bot", scope=AGENT)
    await set_budget(budgets, limit(tokens=100), call(), budget="talk", scope=SESSION)
    await use(budgets, 10, 10, caller=IN_SESSION)
    await use(budgets, 5, 5)
    other = Caller(PARENT, f"{AGENT}/sessions/s2", MODEL)
    await use(budgets, 1, 1, caller=other)
    with pytest.raises(BudgetSpent, match="budgets/talk"):
        await use(budgets, 50, 50, caller=IN_SESSION)
    await budgets.stop()
    await budgets.start()
    spent = [
        (await shown(budgets, f"{PARENT}/budgets/{each}")).spent.tokens
        for each in ("b", "bot", "talk")
    ]
    # What the last call had set aside of the others was given back.
    assert spent == [32, 22, 20]


@pytest.mark.parametrize(
    ("error", "wrote", "spent"),
    [
        (ModelRateLimited("later"), "", 0),
        (NotFound("no such model"), "", 0),
        (ModelUnavailable("refused the connection"), "", 0),
        (ModelUnavailable("cut in the middle"), "x" * 40, 110),
        (asyncio.CancelledError(), "x" * 40, 110),
        (asyncio.CancelledError(), "", 100),
        (GeneratorExit(), "x" * 4, 101),
    ],
)
async def test_a_call_that_fails_costs_what_it_used(
    budgets: Budgets, error: BaseException, wrote: str, spent: int
) -> None:
    await set_budget(budgets, limit(tokens=1_000), call())
    charge = await budgets.charge(CALLER, 100, 300, 5.0)
    with pytest.raises(type(error)):
        fail(charge, wrote, error)
    await budgets.stop()
    await budgets.start()
    assert (await shown(budgets)).spent.tokens == spent
    assert [each.estimated_calls for each in await usage(budgets)] == ([1] if spent else [])


async def test_a_model_without_a_price_costs_nothing_and_says_so(budgets: Budgets) -> None:
    await set_budget(budgets, limit(micro_usd=0), call())
    unpriced = Caller(PARENT, "", "openai/other")
    used = models_pb2.Usage(input_tokens=5)
    with await budgets.charge(unpriced, 5, 5, 5.0) as charge:
        charge.finish(used)
    assert not used.HasField("cost_micro_usd")
    with pytest.raises(BudgetSpent):
        await use(budgets, 5, 5)
    [row] = await usage(budgets, model="openai/other")
    assert (row.calls, row.unpriced_calls, row.cost_micro_usd) == (1, 1, 0)
    await set_budget(budgets, limit(micro_usd=1_000), call(), requires_prices=True)
    with pytest.raises(FailedPrecondition, match="has no price"):
        await budgets.charge(unpriced, 5, 5, 5.0)


async def test_a_call_waits_for_those_that_hold_what_it_needs() -> None:
    budgets = memory_budgets(wait_seconds=5.0)
    async with started(budgets):
        await set_budget(budgets, limit(tokens=100), call())
        first = await budgets.charge(CALLER, 10, 80, 5.0)
        second = asyncio.create_task(use(budgets, 10, 60, caller=CALLER))
        await asyncio.sleep(0.05)
        assert not second.done()
        with first:
            first.finish(models_pb2.Usage(input_tokens=10, output_tokens=10))
        await second
        with pytest.raises(BudgetSpent):
            await use(budgets, 10, 10)


async def test_a_deleted_budget_charges_nothing(budgets: Budgets) -> None:
    await set_budget(budgets, limit(tokens=0), call())
    with pytest.raises(BudgetSpent):
        await use(budgets, 1, 1)
    await budgets.rpcs.delete_budget(pb.DeleteBudgetRequest(name=BUDGET), call())
    await use(budgets, 1, 1)
    with pytest.raises(NotFound):
        await shown(budgets)
    # Made again it counts from nothing, also where this process held something before.
    await set_budget(budgets, limit(tokens=20), call())
    await use(budgets, 10, 10)
    with pytest.raises(BudgetSpent):
        await use(budgets, 1, 1)


async def test_windows_roll_while_it_runs() -> None:
    at = [1_800_000_000.0]
    clock = Clock(lambda: int(at[0] * NANOSECONDS), lambda: at[0])
    budgets = memory_budgets(clock=clock)
    async with started(budgets):
        day = budgets_pb2.BUDGET_WINDOW_DAY
        await set_budget(budgets, limit(tokens=100), call(), window=day)
        await use(budgets, 50, 50)
        with pytest.raises(BudgetSpent) as caught:
            await use(budgets, 1, 1)
        at[0] += caught.value.retry_seconds or 0.0
        await use(budgets, 50, 40)
        with pytest.raises(BudgetSpent):
            await use(budgets, 10, 10)


async def test_budgets_are_listed_in_pages_and_bounded(
    budgets: Budgets, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("c", "a", "b"):
        await set_budget(budgets, limit(tokens=1), call(), budget=name, scope=f"{AGENT}{name}")
    request = pb.ListBudgetsRequest(parent=PARENT, page_size=2)
    page = await budgets.rpcs.list_budgets(request, call())
    request.page_token = page.next_page_token
    rest = await budgets.rpcs.list_budgets(request, call())
    names = [each.name.rpartition("/")[2] for each in (*page.budgets, *rest.budgets)]
    assert (names, rest.next_page_token) == (["a", "b", "c"], "")
    monkeypatch.setattr(rpcs, "BUDGETS_MAX", 3)
    with pytest.raises(LimitExceeded, match="3 budgets of tenants/acme"):
        await set_budget(budgets, limit(tokens=1), call(), budget="d")
    monkeypatch.setattr(rpcs, "BUDGETS_MAX", 4)
    monkeypatch.setattr(rpcs, "OF_ONE_SCOPE_MAX", 1)
    with pytest.raises(LimitExceeded, match="1 budgets of"):
        await set_budget(budgets, limit(tokens=1), call(), budget="d", scope=f"{AGENT}a")


async def test_usage_is_told_apart_by_what_is_asked_for(budgets: Budgets) -> None:
    await use(budgets, 10, 1)
    await use(budgets, 20, 2, caller=IN_SESSION)
    await use(budgets, 30, 3, caller=Caller(PARENT, f"{AGENT}/sessions/s2", "openai/other"))
    await use(budgets, 1_000, 1_000, caller=Caller("tenants/globex", "", MODEL))
    [row] = await usage(budgets)
    assert (row.calls, row.input_tokens, row.output_tokens) == (3, 60, 6)
    assert (row.cost_micro_usd, row.unpriced_calls) == (10 + 2 + 20 + 4, 1)
    by_session = await usage(budgets, group_by=pb.USAGE_GROUPING_SESSION)
    assert [(each.session, each.input_tokens) for each in by_session] == [
        ("", 10),
        (SESSION, 20),
        (f"{AGENT}/sessions/s2", 30),
    ]
    by_agent = await usage(budgets, group_by=pb.USAGE_GROUPING_AGENT, scope=AGENT)
    assert [(each.agent, each.input_tokens) for each in by_agent] == [(AGENT, 50)]
    by_model = await usage(budgets, group_by=pb.USAGE_GROUPING_MODEL)
    assert [each.model for each in by_model] == ["openai/other", MODEL]
    [day] = await usage(budgets, group_by=pb.USAGE_GROUPING_DAY)
    [hour] = await usage(budgets, group_by=pb.USAGE_GROUPING_HOUR)
    assert day.start_time.ToNanoseconds() % domain.DAY_NS == 0
    assert hour.start_time.ToNanoseconds() % domain.HOUR_NS == 0
    assert await usage(budgets, start_time=hour.start_time)
    assert not await usage(budgets, end_time=hour.start_time)
    with pytest.raises(InvalidArgument, match="must be in tenants/acme"):
        await usage(budgets, scope="tenants/globex")


async def test_usage_past_what_can_be_summed_up_stops_nothing(budgets: Budgets) -> None:
    for model in ("openai/one", "openai/other"):
        for _ in range(2):
            caller = Caller(PARENT, "", model)
            with await budgets.charge(caller, 0, 0, 5.0) as charge:
                charge.finish(models_pb2.Usage(input_tokens=2**64 - 1))
            [row] = await usage(budgets, model=model)
    assert row.calls == 2
    assert (await usage(budgets))[0].input_tokens > 2**53


async def test_usage_may_be_asked_for_of_any_time(budgets: Budgets) -> None:
    await use(budgets, 1, 1)
    first, last = Timestamp(seconds=-62_135_596_800), Timestamp(seconds=253_402_300_799)
    assert await usage(budgets, start_time=first, end_time=last)
    assert not await usage(budgets, start_time=last)


async def test_usage_has_pages(budgets: Budgets) -> None:
    for number in range(5):
        await use(budgets, 1, 1, caller=Caller(PARENT, "", f"openai/{number}"))
    request = pb.GetUsageRequest(parent=PARENT, group_by=pb.USAGE_GROUPING_MODEL, page_size=2)
    seen = []
    while True:
        page = await budgets.rpcs.get_usage(request, call())
        seen += [row.model for row in page.rows]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == [f"openai/{number}" for number in range(5)]


async def test_usage_survives_a_restart() -> None:
    store = MemoryEventStore()
    first, second = memory_budgets(store, PRICES), memory_budgets(store, PRICES)
    async with started(first):
        await use(first, 10, 1)
    async with started(second):
        await use(second, 10, 1)
        assert [each.calls for each in await usage(second)] == [2]


Calls = list[tuple[int, int, int, int, bool]]


@settings(max_examples=60)
@given(
    st.integers(1, 400),
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.integers(1, 60),
            st.integers(0, 60),
            st.integers(0, 6),
            st.booleans(),
        ),
        min_size=1,
        max_size=40,
    ),
)
async def test_no_interleaving_of_two_instances_overspends(most: int, calls: Calls) -> None:
    store = MemoryEventStore()
    instances = [memory_budgets(store) for _ in range(2)]
    spent = refused = 0

    async def one(instance: int, estimate: int, used: int, passes: int, fails: bool) -> None:
        nonlocal spent, refused
        used = min(used, estimate)
        try:
            charge = await instances[instance].charge(CALLER, 0, estimate, 5.0)
        except BudgetSpent:
            refused += 1
            return
        with charge:
            for _ in range(passes):
                await asyncio.sleep(0)
            spent += used
            assert spent <= most
            charge.finish(models_pb2.Usage(output_tokens=used))
            if fails:
                await instances[instance]._charging._tick()

    async with started(*instances):
        await set_budget(instances[0], limit(tokens=most), call())
        await instances[1]._charging._known.catch_up()
        await asyncio.gather(*(one(*each) for each in calls))
    reader = memory_budgets(store)
    async with started(reader):
        budget = await shown(reader)
    # To the token, whoever spent it; and nobody was refused for nothing.
    assert (budget.spent.tokens, budget.held.tokens) == (spent, 0)
    # The other instance may have been given a share ahead, which it may still need.
    assert not refused or sum(each[1] for each in calls) > most - most // domain.SHARES


async def test_what_a_killed_process_held_is_not_spent_again() -> None:
    at = [1_800_000_000.0]
    clock = Clock(lambda: int(at[0] * NANOSECONDS), lambda: at[0])
    store = MemoryEventStore()
    killed, living = memory_budgets(store, clock=clock), memory_budgets(store, clock=clock)
    await killed._charging._known.start()
    async with started(living):
        await set_budget(living, limit(tokens=100), call())
        await killed._charging._known.catch_up()
        # It never ends, and its process says nothing more.
        await killed.charge(CALLER, 0, 60, 5.0)
        held = (await shown(living)).held.tokens
        at[0] += (domain.LEASE_NS + domain.GRACE_NS) / NANOSECONDS
        with pytest.raises(BudgetSpent):
            await use(living, 0, 100 - held + 1)
        await use(living, 0, 100 - held)
        assert (await shown(living)).spent.tokens >= held
    await killed._charging._known.stop()


async def test_a_call_under_way_keeps_its_lease(budgets: Budgets) -> None:
    at = [1_800_000_000.0]
    clock = Clock(lambda: int(at[0] * NANOSECONDS), lambda: at[0])
    store = MemoryEventStore()
    slow, other = memory_budgets(store, clock=clock), memory_budgets(store, clock=clock)
    async with started(slow, other):
        await set_budget(slow, limit(tokens=100), call())
        with await slow.charge(CALLER, 0, 90, 5.0) as charge:
            for _ in range(40):
                at[0] += 10.0
                await slow._charging._tick()
            with pytest.raises(BudgetSpent):
                await use(other, 0, 11)
            charge.finish(models_pb2.Usage(output_tokens=20))
        await slow._charging._tick()
        await slow._charging._tick()
        assert ((await shown(other)).spent.tokens, (await shown(other)).held.tokens) == (20, 0)
        await other._charging._known.catch_up()
        await use(other, 0, 80)
