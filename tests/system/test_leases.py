"""Leases on a real nats-server, between processes that are killed and stopped."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.clock import Clock
from mesh.control.leases import LEASE_SECONDS
from mesh.control.nats_leases import LEASE_PREFIX, RENEW_SECONDS, NatsLeases
from mesh.events.jetstream.connection import Connection, connect
from mesh.ids import new_id
from mesh.runtime.nats_server import EmbeddedNats, NatsEndpoint
from mesh.runtime.nats_users import bus_users
from services.catalog import CATALOGUE
from tests.support.nats import UNBOUND, UNBOUND_USERS, instance_of
from tests.support.processes import asked, line_of, running, until

HOLDER = "tests.support.lease_holder"
NEVER_THERE = instance_of(name="never")
BEFORE_US = instance_of(name="before")


@pytest.fixture(scope="module")
async def endpoint(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsEndpoint]:
    server = EmbeddedNats(tmp_path_factory.mktemp("leases"), UNBOUND_USERS, port=0)
    yield await server.start()
    await server.stop()


@pytest.fixture
async def connection(endpoint: NatsEndpoint) -> AsyncIterator[Connection]:
    connection = await connect(endpoint.url, name="test", login=endpoint.login(UNBOUND))
    yield connection
    await connection.close()


@contextlib.asynccontextmanager
async def lease(
    connection: Connection, instance: str, predecessor: str | None = None
) -> AsyncIterator[NatsLeases]:
    leases = NatsLeases(connection, instance, predecessor=predecessor)
    await leases.start()
    try:
        yield leases
    finally:
        await leases.stop()


async def certain(leases: NatsLeases) -> None:
    """Returns when `leases` has watched for long enough to call somebody gone."""
    await until(lambda: leases.expired(NEVER_THERE))


def arguments(endpoint: NatsEndpoint, instance: str) -> tuple[str, Path, str]:
    return endpoint.url, endpoint.folder / "host.nkey", instance


async def test_is_renewed_until_it_is_given_back(connection: Connection) -> None:
    async with lease(connection, instance_of()) as leases:
        assert leases.held()
        await asyncio.sleep(1.5 * LEASE_SECONDS)
        await until(leases.held)
        assert not leases.expired(leases.instance)
    assert not leases.held()


async def test_nobody_is_gone_before_a_whole_lease_was_watched(connection: Connection) -> None:
    before = time.monotonic()
    async with lease(connection, instance_of()) as leases:
        await certain(leases)
        assert time.monotonic() - before >= LEASE_SECONDS


async def test_a_predecessor_on_the_same_folder_is_gone_at_once(connection: Connection) -> None:
    async with lease(connection, instance_of(), predecessor=BEFORE_US) as leases:
        assert leases.expired(BEFORE_US)
        assert not leases.expired(NEVER_THERE)


async def test_the_owner_of_a_copied_folder_is_not_gone_while_it_lives(
    connection: Connection,
) -> None:
    original_id = instance_of()
    async with (
        lease(connection, original_id) as original,
        lease(connection, instance_of(), predecessor=original_id) as copy,
    ):
        assert not copy.expired(original_id)
        await original.stop()
        await until(lambda: copy.expired(original_id))


async def test_a_killed_instance_is_gone_when_its_lease_is_over(
    endpoint: NatsEndpoint, connection: Connection
) -> None:
    killed_id = instance_of()
    async with (
        lease(connection, instance_of()) as leases,
        running(HOLDER, *arguments(endpoint, killed_id)) as holder,
    ):
        assert await line_of(holder) == "held"
        await certain(leases)
        assert not leases.expired(killed_id)
        holder.kill()
        await until(lambda: leases.expired(killed_id), 3.0)


async def test_a_stopped_instance_is_gone_until_it_wakes(
    endpoint: NatsEndpoint, connection: Connection
) -> None:
    stopped_id = instance_of()
    async with (
        lease(connection, instance_of()) as leases,
        running(HOLDER, *arguments(endpoint, stopped_id)) as holder,
    ):
        assert await line_of(holder) == "held"
        await certain(leases)
        os.kill(holder.pid, signal.SIGSTOP)
        await until(lambda: leases.expired(stopped_id), 3.0)
        os.kill(holder.pid, signal.SIGCONT)
        await until(lambda: not leases.expired(stopped_id), 3.0)
        assert await asked(holder) == "held"


async def test_an_instance_that_leaves_is_gone_without_waiting(
    endpoint: NatsEndpoint, connection: Connection
) -> None:
    leaving = await connect(endpoint.url, name="leaving", login=endpoint.login(UNBOUND))
    leaving_id = instance_of()
    async with lease(connection, instance_of()) as leases:
        async with lease(leaving, leaving_id):
            await certain(leases)
            assert not leases.expired(leaving_id)
        await until(lambda: leases.expired(leaving_id))
    await leaving.close()


async def test_the_lease_is_over_by_its_own_clock_whoever_stopped_it(
    connection: Connection,
) -> None:
    skipped = 0.0
    clock = Clock(monotonic=lambda: time.monotonic() + skipped)
    leases = NatsLeases(connection, instance_of(), clock=clock)
    await leases.start()
    assert leases.held()
    skipped = LEASE_SECONDS  # as after SIGSTOP: time went on, no renewal did
    assert not leases.held()
    await until(leases.held)
    await leases.stop()


async def test_holds_nothing_and_claims_nothing_while_nats_is_away(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path, UNBOUND_USERS, port=0)
    endpoint = await server.start()
    connection = await connect(endpoint.url, name="test", login=endpoint.login(UNBOUND))
    async with lease(connection, instance_of()) as leases:
        await certain(leases)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            await until(lambda: not leases.held(), 3.0)
            assert not leases.expired(NEVER_THERE)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await until(leases.held)
        await certain(leases)
    await connection.close()
    await server.stop()


async def test_nobody_is_gone_because_nats_lost_its_memory(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path, UNBOUND_USERS, port=0)
    endpoint = await server.start()
    one, two = [
        await connect(endpoint.url, name=name, login=endpoint.login(UNBOUND))
        for name in ("one", "two")
    ]
    two_id = instance_of()
    async with lease(one, instance_of()) as watching, lease(two, two_id) as watched:
        await certain(watching)
        for _ in range(2):
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            ends = time.monotonic() + 2 * LEASE_SECONDS
            while time.monotonic() < ends:
                assert not watching.expired(two_id)
                await asyncio.sleep(0.01)
            await until(watched.held)
            await certain(watching)
    for connection in (one, two):
        await connection.close()
    await server.stop()


@contextlib.asynccontextmanager
async def forging(connection: Connection, subject: str) -> AsyncIterator[None]:
    """Somebody stores what looks like a lease under that subject, again and again; it is there
    when this is entered."""

    async def store() -> None:
        answer = await connection.request(subject, headers={"Nats-TTL": "1s"}, timeout=5)
        assert b"error" not in answer.data

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            await store()

    await store()
    renewing = asyncio.create_task(renew())
    yield
    assert not renewing.done()
    renewing.cancel()


async def test_nobody_keeps_an_instance_of_another_user_alive(tmp_path: Path) -> None:
    users = {user.name: user for user in bus_users(CATALOGUE)}
    server = EmbeddedNats(tmp_path, tuple(users.values()), port=0)
    endpoint = await server.start()
    watcher, enemy = [
        await connect(endpoint.url, name=name, login=endpoint.login(users[name]))
        for name in ("agents", "models")
    ]
    killed_id, own_id, old_id = instance_of(), instance_of(users["models"]), new_id()
    async with (
        lease(watcher, instance_of(users["agents"])) as leases,
        forging(enemy, f"{LEASE_PREFIX}models.{killed_id}"),
        forging(enemy, f"{LEASE_PREFIX}models.{own_id}"),
        forging(enemy, f"{LEASE_PREFIX}models.{old_id}"),
        running(HOLDER, *arguments(endpoint, killed_id)) as holder,
    ):
        assert await line_of(holder) == "held"
        await certain(leases)
        assert not leases.expired(killed_id)
        holder.kill()
        await until(lambda: leases.expired(killed_id), 3.0)
        assert not leases.expired(own_id)
        # Ids of the version before name no user, and theirs may be taken over too late only.
        assert not leases.expired(old_id)
    for connection in (watcher, enemy):
        await connection.close()
    await server.stop()
