"""Checks of real servers: those that say no, are gone, hang, come back, move."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from mesh.control.health_checks import FAILURES_MIN, HealthChecks
from mesh.rpc.transport import PLAIN
from tests.support.eventually import eventually
from tests.support.health_server import NOT_SERVING, SERVING, Server, instances, server

__all__ = ["server"]

CHECK_SECONDS = 0.02


@pytest.fixture
async def told() -> list[frozenset[str]]:
    return []


@pytest.fixture
async def checks(told: list[frozenset[str]]) -> AsyncIterator[HealthChecks]:
    made = HealthChecks(told.append, PLAIN, check_seconds=CHECK_SECONDS)
    yield made
    await made.stop()


async def test_what_a_server_says_counts(
    server: Server, checks: HealthChecks, told: list[frozenset[str]]
) -> None:
    checks.set(instances(a=server.target))
    await asyncio.sleep(5 * CHECK_SECONDS)
    assert told == []
    await server.said.set("", NOT_SERVING)
    await eventually(lambda: told == [{"a"}])
    await server.said.set("", SERVING)
    await eventually(lambda: told == [{"a"}, frozenset()])


async def test_a_server_that_is_gone_is_unhealthy_until_it_is_back(
    server: Server, checks: HealthChecks
) -> None:
    checks.set(instances(a=server.target))
    await server.stop()
    await eventually(lambda: checks.unhealthy == {"a"})
    await server.start()
    await eventually(lambda: not checks.unhealthy)


async def test_a_server_that_hangs_is_unhealthy(server: Server, checks: HealthChecks) -> None:
    # It takes connections, as the kernel does for a stopped process, and says nothing.
    with socket.create_server(("127.0.0.1", 0)) as hung:
        checks.set(instances(a=server.target, b=f"127.0.0.1:{hung.getsockname()[1]}"))
        await eventually(lambda: checks.unhealthy == {"b"})


async def test_who_is_no_more_checked_is_not_unhealthy(
    server: Server, checks: HealthChecks, told: list[frozenset[str]]
) -> None:
    await server.said.set("", NOT_SERVING)
    checks.set(instances(a=server.target, b=server.target))
    await eventually(lambda: checks.unhealthy == {"a", "b"})
    checks.set(instances(b=server.target))
    assert told[-1] == {"b"}
    checks.set(instances())
    assert told[-1] == frozenset()


async def test_who_moved_is_checked_anew(server: Server, checks: HealthChecks) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hung:
        checks.set(instances(a=f"127.0.0.1:{hung.getsockname()[1]}"))
        await eventually(lambda: checks.unhealthy == {"a"})
        checks.set(instances(a=server.target))
        await eventually(lambda: not checks.unhealthy)


async def test_one_lost_check_is_not_enough(
    server: Server, checks: HealthChecks, told: list[frozenset[str]]
) -> None:
    server.said.failing = FAILURES_MIN - 1
    checks.set(instances(a=server.target))
    await eventually(lambda: server.said.checked > FAILURES_MIN)
    assert told == []
    server.said.failing = FAILURES_MIN
    await eventually(lambda: told == [{"a"}, frozenset()])
