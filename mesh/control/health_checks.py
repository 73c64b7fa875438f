"""Asks every instance by `grpc.health.v1` whether it serves.

gRPC's xDS clients take health from the control plane alone, and ask nobody themselves.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

CHECK_SECONDS = 0.5
"""Between two checks of an instance; more where there are many."""
DOUBT_SECONDS = 0.1
"""Between two checks where the last one said something new."""
TIMEOUT_SECONDS = 0.5
CHECKS_PER_SECOND_MAX = 200
"""Of one control plane, which shall not be busy with nothing else."""
CONCURRENT_MAX = 64
FAILURES_MIN = 2
"""Failed checks in a row after which an instance is unhealthy. Its own word, NOT_SERVING,
counts at once."""
SUCCESSES_MIN = 2
"""Checks in a row that it has to pass to be healthy again."""
TARGETS_MAX = 4_096

_SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclass(slots=True)
class _Health:
    """What the checks of one instance came to; it is healthy until they say otherwise."""

    healthy: bool = True
    in_row: int = 0
    """Checks in a row that said the opposite."""

    def take(self, passed: bool, *, certain: bool) -> bool:
        """Notes a check; returns whether the instance changed by it."""
        if passed == self.healthy:
            self.in_row = 0
            return False
        self.in_row += 1
        if self.in_row < (SUCCESSES_MIN if passed else FAILURES_MIN) and not certain:
            return False
        self.healthy, self.in_row = passed, 0
        return True


class HealthChecks:
    """Checks the instances that `set` named last, and calls `changed` with the names of the
    unhealthy ones whenever those became others.

    Plain text, without `credentials`. Made, called and closed in one event loop.
    """

    def __init__(
        self,
        changed: Callable[[frozenset[str]], None],
        *,
        check_seconds: float = CHECK_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._changed = changed
        self._check_seconds = check_seconds
        self._credentials = credentials
        self._free = asyncio.Semaphore(CONCURRENT_MAX)
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._unhealthy: frozenset[str] = frozenset()

    @property
    def unhealthy(self) -> frozenset[str]:
        """Names of the instances that are known not to serve."""
        return self._unhealthy

    def set(self, targets: Mapping[str, str]) -> None:
        """Names the instances to check, with what gRPC dials; what is known of those that
        stay is kept. Past TARGETS_MAX the last by name aren't checked."""
        wanted = set(sorted(targets.items())[:TARGETS_MAX])
        for gone in self._tasks.keys() - wanted:
            self._tasks.pop(gone).cancel()
        for name, target in sorted(wanted - self._tasks.keys()):
            task = asyncio.create_task(self._check(name, target), name=f"health of {name}")
            self._tasks[name, target] = task
        self._tell(self._unhealthy & {name for name, _ in wanted})

    async def stop(self) -> None:
        """Ends all checks."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _check(self, name: str, target: str) -> None:
        """Until it is cancelled."""
        health = _Health()
        if name in self._unhealthy:
            # It came to another address.
            self._tell(self._unhealthy - {name})
        async with self._channel(target) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            while True:
                async with self._free:
                    passed, certain = await _asked(stub)
                if health.take(passed, certain=certain):
                    named = frozenset({name})
                    self._tell(self._unhealthy - named if passed else self._unhealthy | named)
                await asyncio.sleep(DOUBT_SECONDS if health.in_row else self._pause_seconds())

    def _channel(self, target: str) -> grpc.aio.Channel:
        options = [
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
            # Connections that calls share would tell of the calls' health, too.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self._credentials is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, self._credentials, options=options)

    def _pause_seconds(self) -> float:
        return max(self._check_seconds, len(self._tasks) / CHECKS_PER_SECOND_MAX)

    def _tell(self, unhealthy: frozenset[str]) -> None:
        if unhealthy != self._unhealthy:
            self._unhealthy = unhealthy
            self._changed(unhealthy)


async def _asked(stub: Any) -> tuple[bool, bool]:
    """Whether it passes, and whether it said so itself."""
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError:
        return False, False
    serving = answer.status == _SERVING
    return serving, not serving
