"""Asks every instance by `grpc.health.v1` whether it serves.

gRPC's xDS clients take health from the control plane alone, and ask nobody themselves.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from weft.control.v1.instances_pb2 import Instance

CHECK_SECONDS = 0.2
"""Between two checks of an instance; more where there are many."""
DOUBT_SECONDS = 0.03
"""Between two checks where the last one said something new."""
TIMEOUT_SECONDS = 0.25
CHECKS_PER_SECOND_MAX = 200
"""Of one control plane, which shall not be busy with nothing else."""
CONCURRENT_MAX = 64
FAILURES_MIN = 2
"""Failed checks in a row after which an instance is unhealthy. Its own word, NOT_SERVING,
counts at once."""
SUCCESSES_MIN = 2
"""Checks in a row that it has to pass to be healthy again."""
TARGETS_MAX = 4_096
ANSWER_SECONDS = 1.0
"""For a last word of an instance that is lost, before its streams end: some are only busy."""

_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Connections that calls share would tell of the calls' health, too.
    ("grpc.use_local_subchannel_pool", 1),
)
_SERVING = health_pb2.HealthCheckResponse.SERVING


class Dialling(Protocol):
    """How processes reach each other; see `mesh.rpc.transport.Transport`."""

    def held(self) -> object:
        """The certificate as it is now, the same object until it changes."""
        ...

    def channel(
        self, target: str, service: str, options: Sequence[tuple[str, Any]]
    ) -> grpc.aio.Channel:
        """A channel to a process in which `service` runs."""
        ...


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
    """Checks the instances that `set` named last, as `dialling` reaches them, and calls
    `changed` with the names of the unhealthy ones whenever those became others. Made, called
    and closed in one event loop.
    """

    def __init__(
        self,
        changed: Callable[[frozenset[str]], None],
        dialling: Dialling,
        *,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        self._changed = changed
        self._check_seconds = check_seconds
        self._dialling = dialling
        self._free = asyncio.Semaphore(CONCURRENT_MAX)
        self._tasks: dict[tuple[str, str, str], asyncio.Task[None]] = {}
        self._unhealthy: frozenset[str] = frozenset()

    @property
    def unhealthy(self) -> frozenset[str]:
        """Names of the instances that are known not to serve."""
        return self._unhealthy

    def set(self, instances: Iterable[Instance]) -> None:
        """Names the instances to check; what is known of those that stay is kept. Past
        TARGETS_MAX the last by name aren't checked."""
        known = sorted((each.name, each.target, each.services[0]) for each in instances)
        wanted = set(known[:TARGETS_MAX])
        for gone in self._tasks.keys() - wanted:
            self._tasks.pop(gone).cancel()
        for key in sorted(wanted - self._tasks.keys()):
            self._tasks[key] = asyncio.create_task(self._check(*key), name=f"health of {key[0]}")
        self._tell(self._unhealthy & {name for name, _, _ in wanted})

    async def stop(self) -> None:
        """Ends all checks."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _check(self, name: str, target: str, service: str) -> None:
        """Until it is cancelled."""
        health = _Health()
        if name in self._unhealthy:
            # It came to another address.
            self._tell(self._unhealthy - {name})
        while True:
            held = self._dialling.held()
            async with self._dialling.channel(target, service, _OPTIONS) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                # A new certificate takes a new connection.
                while held is self._dialling.held():
                    async with self._free:
                        passed, certain = await _asked(stub)
                    if health.take(passed, certain=certain):
                        named = frozenset({name})
                        self._tell(self._unhealthy - named if passed else self._unhealthy | named)
                    await asyncio.sleep(DOUBT_SECONDS if health.in_row else self._pause_seconds())

    def _pause_seconds(self) -> float:
        return max(self._check_seconds, len(self._tasks) / CHECKS_PER_SECOND_MAX)

    def _tell(self, unhealthy: frozenset[str]) -> None:
        if unhealthy != self._unhealthy:
            self._unhealthy = unhealthy
            self._changed(unhealthy)


async def answers(dialling: Dialling, instance: Instance) -> bool:
    """Whether the instance says a word within ANSWER_SECONDS, be it that it doesn't serve."""
    async with dialling.channel(instance.target, instance.services[0], _OPTIONS) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return True


async def _asked(stub: Any) -> tuple[bool, bool]:
    """Whether it passes, and whether it said so itself."""
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError:
        return False, False
    serving = answer.status == _SERVING
    return serving, not serving
