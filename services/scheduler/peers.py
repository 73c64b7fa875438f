"""The other instances of the scheduler, as this one calls them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import structlog
from google.protobuf.message import Message

from mesh.errors import Cancelled, CredentialInvalid, NotServing, Unavailable, WeftError
from mesh.rpc.channel import RemoteChannel

AVOIDED_SECONDS = 1.0
"""How long an instance isn't tried again that couldn't be reached: about as long as it takes
the registry to tell that it is gone."""
WATCHES_MAX = 512
"""Watches under way with an instance: with more, the connection would have no room for calls."""


_log = structlog.get_logger(__name__)


class Unreached(Exception):
    """The instance didn't take the call, or it isn't known whether it did."""


class Peer:
    """One other instance. What it answers is returned or raised as its handler did; where
    it can't be reached, both calls raise Unreached."""

    def __init__(self, name: str, channel: RemoteChannel, monotonic: Callable[[], float]) -> None:
        self.name = name
        self._channel = channel
        self._monotonic = monotonic
        self._callables: dict[str, Callable[..., Any]] = {}
        self._under_way: set[asyncio.Task[Any]] = set()
        self._watches = 0
        self._gone = False
        self._avoided_until = float("-inf")

    @property
    def avoided(self) -> bool:
        """Whether it couldn't be reached a moment ago."""
        return self._monotonic() < self._avoided_until

    async def unary(self, path: str, request: Message) -> Any:
        """Calls a method with the principal, deadline and trace of the present call."""
        if self._gone:
            raise Unreached
        # A task, so that the call ends when the registry says that nobody is there any more:
        # of a process that stands still, gRPC learns only much later.
        task = asyncio.ensure_future(self._callable(path)(request))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            return await task
        except asyncio.CancelledError:
            present = asyncio.current_task()
            if self._gone and (present is None or not present.cancelling()):
                raise Unreached from None
            raise
        except WeftError as error:
            raise self._judged(error) from None

    async def watch(self, path: str, request: Message) -> AsyncGenerator[Any, None]:
        """Calls a method that answers with a stream, as `unary`. Unreached where too many are
        under way."""
        if self._gone or self._watches >= WATCHES_MAX:
            raise Unreached
        self._watches += 1
        try:
            async with aclosing(self._callable(path)(request)) as messages:
                async for message in messages:
                    yield message
        except asyncio.CancelledError:
            present = asyncio.current_task()
            if self._gone and (present is None or not present.cancelling()):
                raise Unreached from None
            raise
        except WeftError as error:
            raise self._judged(error) from None
        finally:
            self._watches -= 1

    async def stream(
        self, path: str, requests: AsyncIterator[Message]
    ) -> AsyncGenerator[Any, None]:
        """Calls a method with a stream each way, as `unary`. What ends the requests with an
        error ends the call with that error."""
        if self._gone:
            raise Unreached
        failed: list[WeftError] = []

        async def passed() -> AsyncIterator[Message]:
            try:
                async for request in requests:
                    yield request
            except WeftError as error:
                # gRPC would take it for a fault of ours, and cancel.
                failed.append(error)

        try:
            async with aclosing(self._callable(path)(passed())) as messages:
                async for message in messages:
                    yield message
        except WeftError as error:
            raise self._judged(error) from None
        if failed:
            raise failed[0]

    async def close(self) -> None:
        """The instance is gone: ends the calls under way, and the connection."""
        self._gone = True
        for task in self._under_way:
            task.cancel()
        await self._channel.close()

    def _callable(self, path: str) -> Callable[..., Any]:
        found = self._callables.get(path)
        if found is None:
            found = self._callables[path] = self._channel.callable_of(path)
        return found

    def _judged(self, error: WeftError) -> Exception:
        """What to make of an error: its own answer, or none, since it can't be reached, ends,
        or doesn't know who we are."""
        if type(error) not in (Unavailable, NotServing, CredentialInvalid, Cancelled):
            return error
        # What it says itself, as that it lets a worker go, is no reason to avoid it.
        if type(error) is CredentialInvalid or "grpc_code" in error.metadata:
            _log.warning("instance_unreached", instance=self.name, reason=error.message)
            self._avoided_until = self._monotonic() + AVOIDED_SECONDS
        return Unreached()
