"""The circuit breaker, and the limits of calls."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import ModelRateLimited, ModelUnavailable
from services.models.provider_settings import ProviderSettings
from services.models.providers.http.breaker import PAUSE_FACTOR_MAX, Breaker
from services.models.providers.http.limits import Limits

FAILURES_MAX = 3
PAUSE = 10.0


class Hand:
    """A clock that the test moves."""

    seconds = 100.0

    def now(self) -> float:
        return self.seconds


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def breaker(hand: Hand) -> Breaker:
    return Breaker("p", FAILURES_MAX, PAUSE, hand.now)


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.failed(breaker.enter())


def test_it_opens_after_failures_in_a_row_only(breaker: Breaker) -> None:
    fail(breaker, FAILURES_MAX - 1)
    breaker.succeeded(breaker.enter())
    fail(breaker, FAILURES_MAX - 1)
    assert not breaker.is_open
    fail(breaker)
    assert breaker.is_open


def test_while_open_calls_are_refused_with_the_time_left(breaker: Breaker, hand: Hand) -> None:
    fail(breaker, FAILURES_MAX)
    hand.seconds += 4
    with pytest.raises(ModelUnavailable) as caught:
        breaker.enter()
    assert caught.value.retry_seconds == PAUSE - 4


def test_one_trial_is_let_through_and_its_success_closes(breaker: Breaker, hand: Hand) -> None:
    fail(breaker, FAILURES_MAX)
    hand.seconds += PAUSE
    trial = breaker.enter()
    for _ in range(3):
        with pytest.raises(ModelUnavailable):
            breaker.enter()
    breaker.succeeded(trial)
    assert not breaker.is_open
    fail(breaker, FAILURES_MAX - 1)
    assert not breaker.is_open


def test_each_trial_that_fails_doubles_the_pause_up_to_a_bound(
    breaker: Breaker, hand: Hand
) -> None:
    fail(breaker, FAILURES_MAX)
    pauses = []
    for _ in range(7):
        with pytest.raises(ModelUnavailable) as caught:
            breaker.check()
        pauses.append(caught.value.retry_seconds)
        hand.seconds += pauses[-1] or 0
        fail(breaker)
    assert pauses[:5] == [PAUSE * 2**power for power in range(5)]
    assert pauses[-1] == PAUSE * PAUSE_FACTOR_MAX


def test_a_trial_that_its_caller_gave_up_leaves_room_for_another(
    breaker: Breaker, hand: Hand
) -> None:
    fail(breaker, FAILURES_MAX)
    hand.seconds += PAUSE
    breaker.left(breaker.enter())
    breaker.succeeded(breaker.enter())
    assert not breaker.is_open


def test_calls_from_before_it_opened_say_nothing(breaker: Breaker, hand: Hand) -> None:
    early = [breaker.enter() for _ in range(FAILURES_MAX + 2)]
    for epoch in early[:FAILURES_MAX]:
        breaker.failed(epoch)
    breaker.succeeded(early[-1])
    assert breaker.is_open
    hand.seconds += PAUSE
    trial = breaker.enter()
    breaker.failed(early[-2])
    breaker.left(early[-2])
    with pytest.raises(ModelUnavailable):
        breaker.check()
    breaker.succeeded(trial)
    assert not breaker.is_open


@given(
    st.lists(st.sampled_from(["enter", "succeeded", "failed", "left", "pass"]), max_size=60),
    st.randoms(use_true_random=False),
)
@settings(max_examples=200)
def test_half_open_never_more_than_one_call_is_a_trial(steps: list[str], choose: object) -> None:
    hand = Hand()
    breaker = Breaker("p", FAILURES_MAX, PAUSE, hand.now)
    under_way: list[tuple[int, bool]] = []
    for step in steps:
        if step == "pass":
            hand.seconds += PAUSE * PAUSE_FACTOR_MAX
        elif step == "enter":
            was_open = breaker.is_open
            try:
                under_way.append((breaker.enter(), was_open))
            except ModelUnavailable:
                assert was_open
        elif under_way:
            epoch, _ = under_way.pop(choose.randrange(len(under_way)))  # type: ignore[attr-defined]
            getattr(breaker, step)(epoch)
        trials = [epoch for epoch, was_trial in under_way if was_trial]
        assert len(trials) == len(set(trials))


def limits(**fields: int | float) -> Limits:
    return Limits(ProviderSettings.model_validate({"name": "p", **fields}))


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_no_more_calls_than_allowed_are_under_way_and_the_first_comes_first() -> None:
    bounds = limits(concurrency_max=2)
    order: list[int] = []
    under_way: set[int] = set()

    async def one(number: int) -> None:
        async with bounds.slot(soon()):
            order.append(number)
            under_way.add(number)
            assert len(under_way) <= 2
            await asyncio.sleep(0.001)
            under_way.remove(number)

    await asyncio.gather(*(one(number) for number in range(20)))
    assert order == list(range(20))


@pytest.mark.parametrize("fields", [{"wait_seconds_max": 0.02}, {"waiting_max": 0}])
async def test_who_waits_too_long_or_with_too_many_is_refused(fields: dict[str, float]) -> None:
    bounds = limits(concurrency_max=1, **fields)
    async with bounds.slot(soon()):
        with pytest.raises(ModelRateLimited) as caught:
            async with bounds.slot(soon()):
                pass
        assert caught.value.retry_seconds
    async with bounds.slot(soon()):
        pass


async def test_nobody_waits_past_its_deadline() -> None:
    bounds = limits(concurrency_max=1)
    async with bounds.slot(soon()):
        with pytest.raises(ModelRateLimited):
            async with bounds.slot(soon(0.02)):
                pass


async def test_calls_a_minute_are_paced_behind_a_burst() -> None:
    bounds = limits(requests_per_minute=6_000, requests_burst=3)
    loop = asyncio.get_running_loop()
    begun: list[float] = []
    for _ in range(8):
        async with bounds.slot(soon()):
            begun.append(loop.time())
    # Five beyond the burst, 10 ms apart: never earlier, whatever the machine does.
    assert begun[-1] - begun[0] >= 5 * 0.01 - 0.002


async def test_who_would_be_due_too_late_is_refused_at_once_and_takes_no_turn() -> None:
    bounds = limits(requests_per_minute=60, requests_burst=1, wait_seconds_max=0.1)
    async with bounds.slot(soon()):
        pass
    for _ in range(3):
        with pytest.raises(ModelRateLimited) as caught:
            async with bounds.slot(soon()):
                pass
        assert 0.1 < (caught.value.retry_seconds or 0) <= 1.0


async def test_one_that_is_cancelled_while_it_waits_leaves_its_place() -> None:
    bounds = limits(concurrency_max=1)

    async def wait() -> None:
        async with bounds.slot(soon()):
            pass

    async with bounds.slot(soon()):
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await wait()
