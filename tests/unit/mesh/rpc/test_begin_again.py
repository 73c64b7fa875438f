"""A stream of which nothing came is begun anew where an instance is lost, or its connection."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from mesh.errors import EventStoreUnavailable, NotFound, NotServing, Unavailable, WeftError
from mesh.rpc import streams
from mesh.rpc.retries import BUDGET_MIN, LOSSES_MAX, TRIES_MAX, Losses, Retries
from mesh.rpc.streams import AGAIN_SECONDS, begin_again
from tests.support.eventually import eventually


class Streams:
    """Of those begun, the nth says "here" and ends; those before say nothing, or fail so."""

    def __init__(self, answers: int, error: WeftError | None = None) -> None:
        self.begun = self.ended = 0
        self.spread: list[bool] = []
        self._answers = answers
        self._error = error

    async def begin(self, spread: bool) -> AsyncGenerator[str, None]:
        self.begun += 1
        self.spread.append(spread)
        number = self.begun
        try:
            if number < self._answers:
                if self._error is not None:
                    raise self._error
                await asyncio.Event().wait()
            yield "here"
        finally:
            self.ended += 1


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "AGAIN_SECONDS", tuple(each / 50 for each in AGAIN_SECONDS))


async def told(made: Streams, losses: Losses) -> list[str]:
    return [message async for message in begin_again(made.begin, Retries(losses))]


async def test_one_that_answers_is_begun_once() -> None:
    made = Streams(1)
    assert await told(made, Losses()) == ["here"]
    assert (made.begun, made.ended) == (1, 1)


@pytest.mark.parametrize("answers", [2, 3, 4])
async def test_one_that_hears_nothing_after_a_loss_is_begun_again_and_again(answers: int) -> None:
    # The second may go to where the first went: gRPC hears of a loss when it does.
    made, losses = Streams(answers), Losses()
    telling = asyncio.create_task(told(made, losses))
    await eventually(lambda: made.begun == 1)
    losses.tell()
    assert await asyncio.wait_for(telling, 5) == ["here"]
    assert made.begun == made.ended == answers


async def test_one_that_goes_on_hearing_nothing_is_begun_a_bounded_number_of_times() -> None:
    made, losses = Streams(100), Losses()
    telling = asyncio.create_task(told(made, losses))
    for _ in range(LOSSES_MAX + 3):
        losses.tell()
        await asyncio.sleep(0.2)
    most = 1 + LOSSES_MAX * (1 + len(AGAIN_SECONDS))
    assert 1 + LOSSES_MAX <= made.begun <= most
    telling.cancel()
    await asyncio.wait({telling})
    assert made.ended == made.begun


@pytest.mark.parametrize("error", [Unavailable("reset"), NotServing("drains")])
async def test_one_that_was_not_reached_is_begun_at_another(error: WeftError) -> None:
    made = Streams(3, error)
    assert await told(made, Losses()) == ["here"]
    assert made.spread == [False, True, True]
    assert made.ended == 3


@pytest.mark.parametrize("error", [EventStoreUnavailable("tried there"), NotFound("none")])
async def test_what_another_would_say_too_is_raised_at_once(error: WeftError) -> None:
    made = Streams(2, error)
    with pytest.raises(type(error)):
        await told(made, Losses())
    assert made.begun == made.ended == 1


async def test_what_the_last_one_raises_is_raised_after_a_bounded_number_of_tries() -> None:
    made = Streams(100, Unavailable("gone"))
    with pytest.raises(Unavailable, match="gone"):
        await told(made, Losses())
    assert made.begun == made.ended == TRIES_MAX


async def test_streams_of_which_all_fail_are_not_begun_beyond_the_budget() -> None:
    made, retries = Streams(100_000, Unavailable("gone")), Retries(Losses())

    async def one() -> None:
        with pytest.raises(Unavailable):
            await anext(begin_again(made.begin, retries))

    await asyncio.gather(*(one() for _ in range(100)))
    assert 100 < made.begun <= 100 + BUDGET_MIN + 10


async def test_one_that_breaks_behind_its_first_message_is_not_begun_again() -> None:
    begun = 0

    async def begin(spread: bool) -> AsyncGenerator[str, None]:
        nonlocal begun
        begun += 1
        yield "here"
        raise Unavailable("reset")

    messages = begin_again(begin, Retries(Losses()))
    assert await anext(messages) == "here"
    with pytest.raises(Unavailable):
        await anext(messages)
    assert begun == 1
