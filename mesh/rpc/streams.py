"""Streams from other processes, where one of those is lost.

A stream of which nothing came yet is begun anew: who should answer may be the lost one, or, where
gRPC drew a version that nobody has any more, no one; and where its connection breaks, as a call
is made again. One that is under way says first whose it is, and ends where that one stays lost:
gRPC would wait until its pings aren't answered, ten seconds and more.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from mesh.rpc.propagation import INSTANCE_KEY
from mesh.rpc.retries import LOSSES_MAX, PAUSE_SECONDS, TRIES_MAX, Retries, is_unreached

AGAIN_SECONDS = (0.5, 2.0)
"""How long a stream that was begun anew is waited for before it is once more: gRPC on a busy
machine may hear of a loss later than its control plane, and a call that it gave to a version
which has nobody any more stays with that."""
NOBODY = "-"
"""Whose stream it is that doesn't say."""
_END = object()


async def begin_again(
    begin: Callable[[bool], AsyncGenerator[Any, None]], retries: Retries
) -> AsyncGenerator[Any, None]:
    """The messages of a stream, which is begun anew before the first came: where an instance is
    lost, and again some moments later, since who should answer may be that one, or nobody any
    more; and where it fails as Unavailable, as far as the budget allows, then with `begin(True)`,
    which is for any instance. Raises what the last one does."""
    retries.again.earn()
    losses_left, tries, spread, pause_seconds = LOSSES_MAX, 1, False, PAUSE_SECONDS
    moments: Iterator[float] = iter(())
    while True:
        messages = begin(spread)
        lost = retries.losses.wait()
        first = asyncio.ensure_future(anext(messages, _END))
        try:
            heard: set[asyncio.Future[Any]] = {first, lost} if losses_left else {first}
            await asyncio.wait(
                heard, timeout=next(moments, None), return_when=asyncio.FIRST_COMPLETED
            )
            if not first.done():
                if lost.done():
                    losses_left, moments = losses_left - 1, iter(AGAIN_SECONDS)
                continue
            if is_unreached(first) and tries < TRIES_MAX and retries.again.take():
                tries, spread = tries + 1, True
                await asyncio.sleep(random.uniform(0, pause_seconds))
                pause_seconds *= 2
                continue
            message = first.result()
            while message is not _END:
                yield message
                message = await anext(messages, _END)
            return
        finally:
            retries.losses.forget(lost)
            first.cancel()
            await asyncio.wait((first,))
            await messages.aclose()


class Cut:
    """Ends a stream from outside, once."""

    def __init__(self, stream: Any) -> None:
        self.instance = ""
        """Whose it is, once that is known."""
        self.is_done = False
        self._stream = stream

    def now(self) -> None:
        """Ends it: whoever reads it is cancelled."""
        self.is_done = True
        self._stream.cancel()


async def instance_of(stream: Any) -> str:
    """The instance that answers, as it says before its first message."""
    for key, value in await stream.initial_metadata() or ():
        if key == INSTANCE_KEY:
            return str(value)
    return NOBODY
