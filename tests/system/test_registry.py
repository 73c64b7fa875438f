"""The registry on a real nats-server, between processes that are killed and stopped."""

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mesh.control.leases import LEASE_SECONDS
from mesh.control.nats_leases import ENDED, LEASE_PREFIX, NatsLeases
from mesh.control.nats_registry import NatsRegistry
from mesh.events.jetstream.connection import connect
from mesh.runtime.nats_server import EmbeddedNats, NatsEndpoint
from mesh.runtime.nats_users import BusUser, bus_users
from services.catalog import CATALOGUE
from tests.support.nats import UNBOUND, UNBOUND_USERS, instance_of
from tests.support.processes import line_of, running, until
from weft.control.v1 import instances_pb2
from weft.control.v1.instances_pb2 import Instance, InstanceLoad

FOR_A_LEASE = {"Nats-TTL": "1s"}
HOLDER = "tests.support.lease_holder"
SERVING = instances_pb2.INSTANCE_STATE_SERVING
DRAINING = instances_pb2.INSTANCE_STATE_DRAINING


@pytest.fixture(scope="module")
async def endpoint(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsEndpoint]:
    server = EmbeddedNats(tmp_path_factory.mktemp("registry"), UNBOUND_USERS, port=0)
    yield await server.start()
    await server.stop()


@contextlib.asynccontextmanager
async def seat(
    endpoint: NatsEndpoint, instance: str, *services: str, user: BusUser = UNBOUND
) -> AsyncIterator[tuple[NatsRegistry, NatsLeases]]:
    """The registry and the leases as a process of that id has them; not registered yet. Each
    reading of its load counts one call more."""
    connection = await connect(endpoint.url, name=instance, login=endpoint.login(user))
    leases = NatsLeases(connection, instance)
    await leases.start()
    calls = itertools.count(1)
    own = Instance(name=f"instances/{instance}", services=services or ("state",), zone="here")
    registry = NatsRegistry(connection, leases, own, lambda: InstanceLoad(calls=next(calls)))
    await registry.start()
    try:
        yield registry, leases
    finally:
        await leases.stop()
        await connection.close()


@contextlib.asynccontextmanager
async def member(
    endpoint: NatsEndpoint, instance: str, *services: str, user: BusUser = UNBOUND
) -> AsyncIterator[NatsRegistry]:
    """As `seat`, the registry alone."""
    async with seat(endpoint, instance, *services, user=user) as (registry, _):
        yield registry


def found(registry: NatsRegistry, name: str) -> Instance | None:
    """The instance of that id, as the registry knows it."""
    wanted = f"instances/{name}"
    return next((each for each in registry.instances() if each.name == wanted), None)


def arguments(endpoint: NatsEndpoint, instance: str) -> tuple[str, Path, str]:
    return endpoint.url, endpoint.folder / "host.nkey", instance


async def test_what_one_says_of_itself_all_others_know(endpoint: NatsEndpoint) -> None:
    one_id, two_id = instance_of(), instance_of()
    async with (
        member(endpoint, one_id, "auth", "scheduler") as one,
        member(endpoint, two_id) as two,
    ):
        assert found(two, one_id) is None
        await one.register("127.0.0.1:1")
        await until(lambda: found(two, one_id) is not None)
        seen = found(two, one_id)
        assert seen is not None
        assert (seen.target, seen.zone, seen.state) == ("127.0.0.1:1", "here", SERVING)
        assert seen in two.instances("scheduler")
        assert seen not in two.instances("vectors")
        own = found(one, one_id)
        assert own is not None
        assert own.target == seen.target


async def test_load_is_told_without_being_a_change(endpoint: NatsEndpoint) -> None:
    one_id = instance_of()
    async with member(endpoint, one_id) as one, member(endpoint, instance_of()) as two:
        await one.register("127.0.0.1:1")
        await until(lambda: found(two, one_id) is not None)
        changes: list[int] = []
        two.on_change(lambda: changes.append(1))
        seen = found(two, one_id)
        assert seen is not None
        calls = seen.load.calls
        await until(lambda: seen.load.calls > calls + 1)
        assert changes == []
        await one.drain()
        await until(lambda: bool(changes))
        drained = found(two, one_id)
        assert drained is not None
        assert drained.state == DRAINING


async def test_what_a_service_adds_is_told_with_the_load(endpoint: NatsEndpoint) -> None:
    one_id = instance_of()
    async with member(endpoint, one_id) as one, member(endpoint, instance_of()) as two:
        turns = itertools.count(1)
        one.on_say(lambda load: load.turns.add(agent_revision=7, turns=next(turns)) and None)
        await one.register("127.0.0.1:1")
        await until(lambda: found(two, one_id) is not None)
        seen = found(two, one_id)
        assert seen is not None
        told = seen.load.turns[0].turns
        await until(lambda: seen.load.turns[0].turns > told)
        assert [each.agent_revision for each in seen.load.turns] == [7]


async def test_one_that_ends_in_order_is_gone_from_the_list(endpoint: NatsEndpoint) -> None:
    one_id = instance_of()
    async with member(endpoint, instance_of()) as two:
        async with member(endpoint, one_id) as one:
            await one.register("127.0.0.1:1")
            await until(lambda: found(two, one_id) is not None)
        await until(lambda: found(two, one_id) is None)


async def test_one_that_never_registered_drains_unseen(endpoint: NatsEndpoint) -> None:
    one_id = instance_of()
    async with member(endpoint, one_id) as one:
        await one.drain()
        assert found(one, one_id) is None


async def test_a_killed_instance_goes_and_a_stopped_one_comes_back(endpoint: NatsEndpoint) -> None:
    stopped_id, killed_id = instance_of(), instance_of()
    async with (
        member(endpoint, instance_of()) as watching,
        running(HOLDER, *arguments(endpoint, stopped_id)) as stopped,
        running(HOLDER, *arguments(endpoint, killed_id)) as killed,
    ):
        for holder in (stopped, killed):
            assert await line_of(holder) == "held"
        await until(lambda: len(watching.instances("scheduler")) == 2)
        killed.kill()
        os.kill(stopped.pid, signal.SIGSTOP)
        await until(lambda: watching.instances("scheduler") == ())
        os.kill(stopped.pid, signal.SIGCONT)
        await until(lambda: found(watching, stopped_id) is not None)
        assert found(watching, killed_id) is None


async def test_what_isnt_an_instances_own_word_is_not_believed(endpoint: NatsEndpoint) -> None:
    one_id, liar_id = instance_of(), instance_of()
    connection = await connect(endpoint.url, name="liar", login=endpoint.login(UNBOUND))
    async with member(endpoint, one_id) as one:
        await one.register("127.0.0.1:1")
        claim = Instance(name=f"instances/{one_id}", target="elsewhere:1")
        for subject, data in (
            (liar_id, claim.SerializeToString()),
            (liar_id, b"\xff\xff"),
            # It would be dialled as one of its services.
            (liar_id, Instance(name=f"instances/{liar_id}", target="there:1").SerializeToString()),
            (one_id, claim.SerializeToString()),
        ):
            await connection.publish(f"{LEASE_PREFIX}host.{subject}", data, FOR_A_LEASE)
        said = Instance(name=f"instances/{liar_id}", target="there:2", services=["tools"])
        subject = f"{LEASE_PREFIX}host.{liar_id}"
        await connection.publish(subject, said.SerializeToString(), FOR_A_LEASE)
        await until(lambda: found(one, liar_id) is not None)
        liar, own = found(one, liar_id), found(one, one_id)
        assert liar is not None
        assert own is not None
        assert (liar.target, own.target) == ("there:2", "127.0.0.1:1")
    await connection.close()


async def test_nobody_goes_because_nats_was_killed_and_lost_its_memory(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path, UNBOUND_USERS, port=0)
    endpoint = await server.start()
    two_id = instance_of()
    async with member(endpoint, instance_of()) as one, member(endpoint, two_id) as two:
        for each in (one, two):
            await each.register("127.0.0.1:1")
        await until(lambda: len(one.instances()) == len(two.instances()) == 2)
        changes: list[int] = []
        one.on_change(lambda: changes.append(1))
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        ends = time.monotonic() + 3 * LEASE_SECONDS
        while time.monotonic() < ends:
            assert len(one.instances()) == 2
            await asyncio.sleep(0.01)
        seen = found(one, two_id)
        assert seen is not None
        calls = seen.load.calls
        await until(lambda: seen.load.calls > calls)
        assert changes == []
        await two.drain()
        await until(lambda: bool(changes))
    await server.stop()


async def test_users_of_their_own_know_each_other_and_speak_for_nobody_else(
    tmp_path: Path,
) -> None:
    users = {user.name: user for user in bus_users(CATALOGUE)}
    gateway_id = instance_of(users["gateway"], "gateway")
    liar_id, another_id = instance_of(users["tools"]), instance_of(users["tools"])
    server = EmbeddedNats(tmp_path, tuple(users.values()), port=0)
    endpoint = await server.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)
        parts = {
            name: await stack.enter_async_context(
                member(endpoint, instance_of(users[name], name), name, user=users[name])
            )
            for name in ("gateway", "tools", "host")
        }
        for registry in parts.values():
            await registry.register("127.0.0.1:1")
        for registry in parts.values():
            await until(lambda: len(registry.instances()) == len(parts))  # noqa: B023
        liar = await connect(endpoint.url, name="liar", login=endpoint.login(users["tools"]))
        stack.push_async_callback(liar.close)
        for claim in (
            # A service that its user isn't, and an instance that another user has.
            Instance(name=f"instances/{liar_id}", target="there:1", services=["auth"]),
            Instance(name=f"instances/{gateway_id}", target="there:1", services=["tools"]),
        ):
            instance = claim.name.removeprefix("instances/")
            subject = f"{LEASE_PREFIX}tools.{instance}"
            await liar.publish(subject, claim.SerializeToString(), FOR_A_LEASE)
            await liar.publish(subject, ENDED, FOR_A_LEASE)
        honest = Instance(name=f"instances/{another_id}", target="there:2", services=["tools"])
        subject = f"{LEASE_PREFIX}tools.{another_id}"
        await liar.publish(subject, honest.SerializeToString(), FOR_A_LEASE)
        for registry in (parts["gateway"], parts["host"]):
            await until(lambda: found(registry, another_id) is not None)  # noqa: B023
            assert found(registry, liar_id) is None
            gateway = found(registry, gateway_id)
            assert gateway is not None
            assert (gateway.target, list(gateway.services)) == ("127.0.0.1:1", ["gateway"])


async def test_nobody_hides_an_instance_of_another_user(
    tmp_path: Path, log_lines: list[dict[str, Any]]
) -> None:
    users = {user.name: user for user in bus_users(CATALOGUE)}
    host, models = users["host"], users["models"]
    one_id = instance_of(host)
    subject = f"{LEASE_PREFIX}models.{one_id}"
    claim = Instance(name=f"instances/{one_id}", target="there:1", services=["models"])
    server = EmbeddedNats(tmp_path, tuple(users.values()), port=0)
    endpoint = await server.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)
        enemy = await connect(endpoint.url, name="enemy", login=endpoint.login(models))
        stack.push_async_callback(enemy.close)
        one, _ = await stack.enter_async_context(seat(endpoint, one_id, user=host))
        # What is false is there first, for who listens already and for who starts then.
        for headers in (FOR_A_LEASE, {"Nats-TTL": "never"}, FOR_A_LEASE):
            await enemy.publish(subject, claim.SerializeToString(), headers)
        later, leases = await stack.enter_async_context(
            seat(endpoint, instance_of(users["agents"]), "agents", user=users["agents"])
        )
        await until(lambda: leases.expired(instance_of(name="never")))
        await one.register("127.0.0.1:1")
        await until(lambda: found(later, one_id) is not None)
        for data, headers in itertools.product(
            (claim.SerializeToString(), b"", ENDED), (FOR_A_LEASE, {"Nats-TTL": "never"})
        ):
            await enemy.publish(subject, data, headers)
            heard = found(later, one_id)
            assert heard is not None
            # By the next reading of its load all of that was heard, too.
            calls = heard.load.calls
            await until(lambda: heard.load.calls > calls + 1)  # noqa: B023
            assert not leases.expired(one_id)
            assert found(later, one_id) is heard
            assert (heard.target, list(heard.services)) == ("127.0.0.1:1", ["state"])
    # Once for each that hears it, however often it is said.
    assert [line["event"] for line in log_lines].count("instance_not_its_users") == 1


@pytest.mark.parametrize("ttl", [None, "never", "2s", "never\r\nNats-TTL: 1s"])
async def test_what_nats_would_keep_past_a_lease_is_nobodys_word(
    endpoint: NatsEndpoint, ttl: str | None, log_lines: list[dict[str, Any]]
) -> None:
    connection = await connect(endpoint.url, name="endless", login=endpoint.login(UNBOUND))
    headers = {"Nats-TTL": ttl} if ttl is not None else None
    one_id, *names = (instance_of() for _ in range(4))
    async with (
        seat(endpoint, instance_of()) as (heard, leases),
        contextlib.AsyncExitStack() as stack,
    ):
        for name in names:
            said = Instance(name=f"instances/{name}", target="there:1", services=["tools"])
            subject = f"{LEASE_PREFIX}host.{name}"
            await connection.publish(subject, said.SerializeToString(), headers)
        one = await stack.enter_async_context(member(endpoint, one_id))
        await one.register("127.0.0.1:1")
        # What is heard and what was there before go by the same rule, and so do the leases.
        await until(lambda: found(heard, one_id) is not None)
        assert not [name for name in names if found(one, name) or found(heard, name)]
        await until(lambda: all(map(leases.expired, names)))
        renewed = {"Nats-TTL": "1s"}
        await connection.publish(subject, said.SerializeToString(), renewed)
        await until(lambda: found(heard, names[-1]) is not None)
        await until(lambda: not leases.expired(names[-1]))
    await connection.close()
    told = [line["event"] for line in log_lines].count("instance_without_end")
    assert told == 2, "once for each that hears it"


async def test_more_than_nats_tells_at_once_keeps_nobody_from_starting(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path, UNBOUND_USERS, port=0)
    endpoint = await server.start()
    connection = await connect(endpoint.url, name="endless", login=endpoint.login(UNBOUND))
    before_id = instance_of()
    async with member(endpoint, before_id) as before:
        await before.register("127.0.0.1:1")
        for number in range(1_100):
            name = instance_of(name=f"i{number}")
            said = Instance(name=f"instances/{name}", target="there:1", services=["tools"])
            subject = f"{LEASE_PREFIX}host.{name}"
            await connection.publish(subject, said.SerializeToString(), {"Nats-TTL": "never"})
        async with member(endpoint, instance_of()) as behind:
            await until(lambda: found(behind, before_id) is not None)
            assert len(behind.instances()) == 1
    await connection.close()
    await server.stop()


async def test_no_other_user_keeps_a_dead_instance_in_its_place(tmp_path: Path) -> None:
    users = {user.name: user for user in bus_users(CATALOGUE)}
    server = EmbeddedNats(tmp_path, tuple(users.values()), port=0)
    endpoint = await server.start()
    liar = await connect(endpoint.url, name="liar", login=endpoint.login(users["tools"]))
    dead_id = instance_of(users["agents"])
    said = Instance(name=f"instances/{dead_id}", target="there:1", services=["tools"])

    async def goes_on() -> None:
        while True:
            subject = f"{LEASE_PREFIX}tools.{dead_id}"
            await liar.publish(subject, said.SerializeToString(), FOR_A_LEASE)
            await asyncio.sleep(0.1)

    async with seat(endpoint, instance_of(users["host"]), user=users["host"]) as (_, leases):
        async with seat(endpoint, dead_id, "agents", user=users["agents"]) as (agents, _):
            await agents.register("127.0.0.1:1")
            going_on = asyncio.create_task(goes_on())
            await until(lambda: leases.expired(instance_of(name="nobody")))
            assert not leases.expired(dead_id)
        await until(lambda: leases.expired(dead_id))
        assert not going_on.done()
        going_on.cancel()
    await liar.close()
    await server.stop()
