"""What is tried again, how often, and when a second one is asked beside the first."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from mesh.errors import EventStoreUnavailable, NotFound, Unavailable, WeftError
from mesh.rpc import retries
from mesh.rpc.retries import (
    BUDGET_MIN,
    BUDGET_SECONDS,
    LOSSES_MAX,
    LOST_SECONDS,
    TRIES_MAX,
    Losses,
    Retries,
    RetryBudget,
    call_again,
)
from tests.support.access import MovedClock

NEVER: Sequence[float] = ()
SOON = (0.01,) * 9


class Served:
    """Gives the outcomes in their order: raises an error, awaits an event, returns the rest."""

    def __init__(self, *outcomes: Any) -> None:
        self._outcomes: Iterator[Any] = iter(outcomes)
        self.begun = 0
        self.cancelled = 0

    async def __call__(self, number: int) -> Any:
        assert number == self.begun
        self.begun += 1
        outcome = next(self._outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, asyncio.Event):
            try:
                await outcome.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return outcome


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSE_SECONDS", 0.0)


async def test_what_can_not_be_reached_is_tried_again() -> None:
    served = Served(Unavailable("gone"), Unavailable("gone"), "answer")
    assert await call_again(served, Retries(Losses()), NEVER) == "answer"
    assert served.begun == 3


async def test_it_is_given_up_after_a_bound() -> None:
    served = Served(*[Unavailable(f"{n}") for n in range(9)])
    with pytest.raises(Unavailable, match=str(TRIES_MAX - 1)):
        await call_again(served, Retries(Losses()), NEVER)
    assert served.begun == TRIES_MAX


@pytest.mark.parametrize("error", [NotFound("nothing"), EventStoreUnavailable("no room")])
async def test_an_answer_that_says_no_is_an_answer(error: WeftError) -> None:
    served = Served(error, "another")
    with pytest.raises(type(error)):
        await call_again(served, Retries(Losses()), SOON)
    assert served.begun == 1


async def test_retries_are_a_tenth_of_the_calls_once_the_reserve_is_used_up() -> None:
    moved = MovedClock()
    budget = Retries(Losses(), RetryBudget(moved.clock))
    allowed = range(99 + BUDGET_MIN, 101 + BUDGET_MIN)
    for _ in range(2):
        retried = 0
        for _ in range(1_000):
            served = Served(Unavailable("gone"), "answer")
            try:
                await call_again(served, budget, NEVER)
                retried += 1
            except Unavailable:
                assert served.begun == 1
        assert retried in allowed
        # What was long ago counts no more, neither the calls nor their retries.
        moved.seconds += BUDGET_SECONDS + 1


async def test_a_second_is_asked_beside_one_that_is_slow_and_the_first_answer_counts() -> None:
    served = Served(asyncio.Event(), "answer")
    assert await call_again(served, Retries(Losses()), SOON) == "answer"
    await asyncio.sleep(0)
    assert (served.begun, served.cancelled) == (2, 1)


async def test_a_slow_one_that_may_have_effects_is_waited_for() -> None:
    slow = asyncio.Event()
    served = Served(slow, "answer")
    asyncio.get_running_loop().call_later(0.05, slow.set)
    assert await call_again(served, Retries(Losses()), NEVER) is slow
    assert served.begun == 1


async def test_an_empty_budget_asks_nobody_beside() -> None:
    budget = Retries(Losses())
    while budget.beside.take():
        pass
    slow = asyncio.Event()
    served = Served(slow, "answer")
    asyncio.get_running_loop().call_later(0.05, slow.set)
    assert await call_again(served, budget, SOON) is slow
    assert served.begun == 1


async def test_who_leaves_takes_all_attempts_along() -> None:
    served = Served(*(asyncio.Event() for _ in range(TRIES_MAX)))
    call = asyncio.create_task(call_again(served, Retries(Losses()), SOON))
    await asyncio.wait({call}, timeout=0.1)
    assert served.begun > 1
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0)
    assert served.cancelled == served.begun


async def test_a_call_is_made_once_more_when_an_instance_is_lost_whatever_the_budget() -> None:
    calls = Retries(Losses())
    while calls.beside.take():
        pass
    served = Served(asyncio.Event(), "answer")
    call = asyncio.create_task(call_again(served, calls, NEVER))
    await asyncio.wait({call}, timeout=0.05)
    assert served.begun == 1
    calls.losses.tell()
    assert await call == "answer"
    await asyncio.sleep(0)
    assert (served.begun, served.cancelled) == (2, 1)


async def test_losses_without_end_are_not_called_for_without_end() -> None:
    calls = Retries(Losses())
    served = Served(*(asyncio.Event() for _ in range(2 * LOSSES_MAX)))
    call = asyncio.create_task(call_again(served, calls, NEVER))
    for _ in range(2 * LOSSES_MAX):
        calls.losses.tell()
        await asyncio.wait({call}, timeout=2 * LOST_SECONDS)
    assert served.begun == 1 + LOSSES_MAX
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
