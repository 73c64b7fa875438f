"""The embedded nats-server, for real: started, killed, damaged, taken over."""

import asyncio
import json
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import nats.errors
import psutil
import pytest
from nats.aio.client import Client

from mesh.errors import DataDamaged, EventStoreUnavailable, FailedPrecondition, WeftError
from mesh.events.jetstream.connection import Login, connect
from mesh.runtime.nats_server import EmbeddedNats, NatsEndpoint
from tests.support.nats import UNBOUND_USERS
from tests.support.processes import line_of, running, until


async def ignore(error: Exception) -> None:
    """The error arrives as an exception, too."""


async def login(endpoint: NatsEndpoint) -> Client:
    return await nats.connect(
        endpoint.url,
        nkeys_seed=str(endpoint.folder / "host.nkey"),
        allow_reconnect=False,
        error_cb=ignore,
    )


async def store_a_message(endpoint: NatsEndpoint) -> None:
    client = await login(endpoint)
    await client.jetstream().add_stream(name="KEPT", subjects=["kept"], storage="file")
    await client.jetstream().publish("kept", b"here")
    await client.close()


async def stored_message(endpoint: NatsEndpoint) -> bytes:
    client = await login(endpoint)
    message = await client.jetstream().get_last_msg("KEPT", "kept")
    await client.close()
    assert message.data is not None
    return message.data


def servers_on(folder: Path) -> list[int]:
    """Ids of the processes that run with this folder's configuration."""
    mark = str(folder / "nats" / "nats.conf")
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if mark in (process.info["cmdline"] or ())
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


async def kill(server: EmbeddedNats) -> None:
    """Kills the process, and returns when its owner has seen that."""
    died = server.pid
    assert died is not None
    os.kill(died, signal.SIGKILL)
    await until(lambda: server.pid != died)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedNats]:
    server = EmbeddedNats(tmp_path, UNBOUND_USERS, port=0)
    yield server
    await server.stop()


async def test_keeps_what_it_acknowledged_over_a_restart_of_its_owner(tmp_path: Path) -> None:
    for first in (True, False):
        server = EmbeddedNats(tmp_path, UNBOUND_USERS, port=0)
        endpoint = await server.start()
        if first:
            await store_a_message(endpoint)
        assert await stored_message(endpoint) == b"here"
        await server.stop()
        assert not server.healthy()
    assert servers_on(tmp_path) == []


async def test_lets_in_only_who_has_the_seed(server: EmbeddedNats) -> None:
    endpoint = await server.start()
    with pytest.raises((nats.errors.Error, OSError)):
        await nats.connect(endpoint.url, allow_reconnect=False, error_cb=ignore)
    await (await login(endpoint)).close()


async def test_listens_on_loopback_only(server: EmbeddedNats) -> None:
    await server.start()
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(server.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


async def test_nobody_else_can_read_its_files(server: EmbeddedNats, tmp_path: Path) -> None:
    await server.start()
    folder = tmp_path / "nats"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("admin.nkey", "host.nkey", "nats.conf", "access.conf"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


async def test_a_seed_of_an_earlier_start_lets_nobody_in(tmp_path: Path) -> None:
    earlier = EmbeddedNats(tmp_path, UNBOUND_USERS, port=0)
    copied = tmp_path / "copied.nkey"
    copied.write_text(((await earlier.start()).folder / "host.nkey").read_text())
    await earlier.stop()
    server = EmbeddedNats(tmp_path, UNBOUND_USERS, port=0)
    endpoint = await server.start()
    assert (endpoint.folder / "host.nkey").read_text() != copied.read_text()
    with pytest.raises(EventStoreUnavailable):
        await connect(endpoint.url, name="thief", login=Login(copied), timeout=1)
    await server.stop()


async def test_a_seed_file_that_holds_no_seed_is_replaced(tmp_path: Path) -> None:
    seed_file = tmp_path / "nats" / "host.nkey"
    seed_file.parent.mkdir()
    seed_file.touch(0o600)
    seed_file.write_text("not a seed\n")
    server = EmbeddedNats(tmp_path, UNBOUND_USERS, port=0)
    await server.start()
    assert seed_file.read_text().startswith("SU")
    await server.stop()


async def test_takes_the_next_port_where_its_own_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken: int = other.getsockname()[1]
        server = EmbeddedNats(tmp_path, UNBOUND_USERS, port=taken)
        endpoint = await server.start()
        await server.stop()
    assert endpoint.port_taken == taken
    assert int(endpoint.url.rpartition(":")[2]) > taken


async def test_is_started_again_on_its_port_when_it_dies(server: EmbeddedNats) -> None:
    endpoint = await server.start()
    await store_a_message(endpoint)
    for _ in range(3):
        await kill(server)
        await until(server.healthy)
        assert await stored_message(endpoint) == b"here"


async def test_stays_down_when_its_store_is_damaged_while_it_runs(
    server: EmbeddedNats, tmp_path: Path
) -> None:
    await store_a_message(await server.start())
    damage_stream(tmp_path)
    await kill(server)
    await asyncio.sleep(1)
    assert not server.healthy()
    assert servers_on(tmp_path) == []


async def test_leaves_no_server_behind_when_its_owner_is_killed(tmp_path: Path) -> None:
    async with running("tests.support.nats_owner", tmp_path, 0) as owner:
        assert "pid" in json.loads(await line_of(owner))
        owner.kill()
    await until(lambda: servers_on(tmp_path) == [])


@pytest.mark.parametrize("left", [signal.SIGCONT, signal.SIGSTOP])
async def test_ends_the_server_that_a_killed_owner_left_behind(
    tmp_path: Path, left: signal.Signals
) -> None:
    # Stopped, it doesn't notice the death of its owner: the case of a system without
    # a parent-death signal, and of a server that hangs.
    async with running("tests.support.nats_owner", tmp_path, 0) as owner:
        line = json.loads(await line_of(owner))
        await store_a_message(NatsEndpoint(line["url"], Path(line["folder"])))
        os.kill(line["pid"], left)
        owner.kill()
    server = EmbeddedNats(tmp_path, UNBOUND_USERS, port=int(line["url"].rpartition(":")[2]))
    endpoint = await server.start()
    try:
        assert servers_on(tmp_path) == [server.pid]
        assert endpoint.port_taken is None
        assert await stored_message(endpoint) == b"here"
    finally:
        await server.stop()


async def test_a_folder_in_use_is_refused_with_the_id_of_its_user(tmp_path: Path) -> None:
    async with running("tests.support.nats_owner", tmp_path, 0) as owner:
        assert "pid" in json.loads(await line_of(owner))
        async with running("tests.support.nats_owner", tmp_path, 0) as second:
            refused = json.loads(await line_of(second))
        assert f"in use by process {owner.pid}" in refused["error"]


def damage_stream(data_dir: Path) -> None:
    (metadata,) = (data_dir / "nats").rglob("meta.inf")
    metadata.write_bytes(b"not what was stored")


def replace_store_by_a_file(data_dir: Path) -> None:
    store = data_dir / "nats" / "jetstream" / "jetstream"
    store.rename(data_dir / "moved")
    store.touch()


@pytest.mark.parametrize(
    ("damage", "raised", "said"),
    [
        (damage_stream, DataDamaged, "KEPT.*checksums do not match"),
        (replace_store_by_a_file, FailedPrecondition, "ended at its start: .*[Dd]irectory"),
    ],
)
async def test_refuses_a_damaged_store_and_says_what_the_server_said(
    tmp_path: Path, damage: object, raised: type[WeftError], said: str
) -> None:
    server = EmbeddedNats(tmp_path, UNBOUND_USERS, port=0)
    await store_a_message(await server.start())
    await server.stop()
    assert callable(damage)
    damage(tmp_path)
    with pytest.raises(raised, match=said):
        await EmbeddedNats(tmp_path, UNBOUND_USERS, port=0).start()
    assert servers_on(tmp_path) == []


@pytest.mark.parametrize(
    "program", ["echo 'nats-server: v2.11.9'", "echo 'something else'", "exit 1"]
)
async def test_refuses_a_named_binary_that_is_no_recent_nats_server(
    tmp_path: Path, program: str
) -> None:
    binary = tmp_path / "nats-server"
    binary.write_text(f"#!/bin/sh\n{program}\n")
    binary.chmod(0o755)
    with pytest.raises(FailedPrecondition, match=r"2\.12 or newer"):
        await EmbeddedNats(tmp_path / "data", UNBOUND_USERS, binary=binary, port=0).start()
