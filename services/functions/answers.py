"""Answers that are given again to calls with the same idempotency key."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mesh.clock import Clock
from mesh.errors import RequestIdReused, Unavailable
from weft.functions.v1 import function_service_pb2 as pb

KEPT_SECONDS = 600.0


@dataclass(slots=True)
class _Kept:
    digest: bytes
    until: float
    answer: "asyncio.Future[pb.InvokeFunctionResponse]"
    bytes: int = 0


class Answers:
    """Has a call with a key run once, and remembers its answer for ten minutes, as far as there
    is room. Who comes while it runs waits for the same answer. A call that raised is forgotten:
    whether the function ran is unknown then, as when this process dies."""

    def __init__(self, clock: Clock, *, answers_max: int, bytes_max: int) -> None:
        self._clock = clock
        self._answers_max = answers_max
        self._bytes_max = bytes_max
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._bytes = 0

    async def get(
        self,
        request: pb.InvokeFunctionRequest,
        run: Callable[[], Awaitable[pb.InvokeFunctionResponse]],
    ) -> pb.InvokeFunctionResponse:
        """The answer that was given before, or that of `run`. RequestIdReused where the key came
        with another body."""
        if not request.idempotency_key:
            return await run()
        key = (request.name, request.idempotency_key)
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        self._drop_old()
        kept = self._kept.get(key)
        if kept is not None:
            if kept.digest != digest:
                raise RequestIdReused.of("idempotency_key", "was used before with another body")
            return await _same(kept.answer)
        answer = asyncio.ensure_future(run())
        kept = _Kept(digest, self._clock.monotonic() + KEPT_SECONDS, answer)
        self._kept[key] = kept
        try:
            response = await answer
        except BaseException:
            # Those who wait for it get the same error.
            self._forget(key)
            raise
        if self._kept.get(key) is kept:
            kept.bytes = response.ByteSize()
            self._bytes += kept.bytes
            self._drop_old()
        return response

    def forget_session(self, stream: str) -> None:
        """Forgets what was answered to a session's turns, whose key was destroyed."""
        tokens = stream.split(".")
        if len(tokens) == 4 and tokens[0] == "state":
            _, tenant, agent, session = tokens
            prefix = f"tenants/{tenant}/agents/{agent}/sessions/{session}/"
            for key in [each for each in self._kept if each[1].startswith(prefix)]:
                self._forget(key)

    def _drop_old(self) -> None:
        now = self._clock.monotonic()
        while self._kept:
            key, oldest = next(iter(self._kept.items()))
            too_many = len(self._kept) > self._answers_max or self._bytes > self._bytes_max
            if oldest.until > now and not too_many:
                return
            self._forget(key)

    def _forget(self, key: tuple[str, str]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= kept.bytes


async def _same(answer: "asyncio.Future[pb.InvokeFunctionResponse]") -> pb.InvokeFunctionResponse:
    try:
        return await asyncio.shield(answer)
    except asyncio.CancelledError:
        if answer.cancelled():
            raise Unavailable("the call with this idempotency key was given up") from None
        raise
