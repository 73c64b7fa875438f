"""A stream of which nothing came is begun anew where an instance is lost."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from mesh.errors import Unavailable
from mesh.rpc import streams
from mesh.rpc.retries import LOSSES_MAX, Losses
from mesh.rpc.streams import AGAIN_SECONDS, begin_again
from tests.support.eventually import eventually


class Streams:
    """Of those begun, the nth says "here" and ends; those before say nothing."""

    def __init__(self, answers: int) -> None:
        self.begun = self.ended = 0
        self._answers = answers

    async def begin(self) -> AsyncGenerator[str, None]:
        self.begun += 1
        number = self.begun
        try:
            if number < self._answers:
                await asyncio.Event().wait()
            yield "here"
        finally:
            self.ended += 1


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "AGAIN_SECONDS", tuple(each / 50 for each in AGAIN_SECONDS))


async def told(made: Streams, losses: Losses) -> list[str]:
    return [message async for message in begin_again(made.begin, losses)]


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


async def test_what_it_raises_is_raised() -> None:
    async def begin() -> AsyncGenerator[str, None]:
        raise Unavailable("gone")
        yield ""

    with pytest.raises(Unavailable):
        await anext(begin_again(begin, Losses()))
