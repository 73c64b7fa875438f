"""The embedded Valkey: what it refuses, how it fails, and that nothing waits for it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil
import pytest
from redis.exceptions import RedisError, ResponseError

from mesh.errors import FailedPrecondition
from mesh.runtime.host import Host
from mesh.runtime.redis_client import client_of_socket, client_of_url
from mesh.runtime.settings import RuntimeSettings
from mesh.runtime.valkey_server import EmbeddedValkey
from tests.support.edge import open_access
from tests.support.processes import until

if TYPE_CHECKING:
    from redis.asyncio import Redis

REFUSED = [
    *(["CONFIG", "GET", "*"], ["CONFIG", "SET", "dir", "/tmp"], ["CONFIG", "REWRITE"]),
    *(["EVAL", "return 1", "0"], ["EVALSHA", "x", "0"], ["SCRIPT", "LOAD", "return 1"]),
    *(["FUNCTION", "LIST"], ["FCALL", "x", "0"], ["MODULE", "LIST"], ["DEBUG", "JMAP"]),
    *(["KEYS", "*"], ["SCAN", "0"], ["RANDOMKEY"], ["FLUSHALL"], ["FLUSHDB"], ["SWAPDB", "0", "0"]),
    *(["INFO"], ["MONITOR"], ["SLOWLOG", "GET"], ["LATENCY", "LATEST"], ["MEMORY", "STATS"]),
    *(["ACL", "LIST"], ["ACL", "SETUSER", "x"], ["CLIENT", "LIST"], ["CLIENT", "KILL", "x"]),
    *(["SAVE"], ["BGSAVE"], ["BGREWRITEAOF"], ["SHUTDOWN"], ["REPLICAOF", "NO", "ONE"], ["ROLE"]),
    *(["SYNC"], ["PSYNC", "?", "-1"], ["CLUSTER", "INFO"], ["FAILOVER"], ["COMMAND"], ["DBSIZE"]),
    *(["BLPOP", "weft:x", "0"], ["WAIT", "1", "0"], ["MIGRATE", "h", "1", "weft:x", "0", "1"]),
    *(["SORT", "weft:x"], ["DUMP", "weft:x"], ["RESTORE", "weft:x", "0", "x"], ["PSUBSCRIBE", "*"]),
    *(["GET", "other"], ["SET", "other", "1"], ["DEL", "other"], ["MGET", "weft:x", "other"]),
    *(["PUBLISH", "other", "x"], ["SUBSCRIBE", "other"], ["OBJECT", "FREQ", "weft:x"]),
]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedValkey]:
    server = EmbeddedValkey(tmp_path)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def redis(server: EmbeddedValkey) -> "AsyncIterator[Redis]":
    client = server.client()
    yield client
    await client.aclose()


async def test_whatever_is_not_listed_is_refused(redis: "Redis") -> None:
    for command in REFUSED:
        with pytest.raises(ResponseError, match=r"(?i)permission|not allowed"):
            await redis.execute_command(*command)  # type: ignore[no-untyped-call]
    assert await redis.ping()


async def test_a_limiter_finds_what_it_needs(redis: "Redis") -> None:
    async with redis.pipeline(transaction=True) as together:
        together.incrby("weft:limit:a", 5)
        together.pexpire("weft:limit:a", 60_000, nx=True)
        assert await together.execute() == [5, True]
    assert await redis.set("weft:b", "1", px=60_000, nx=True)
    assert not await redis.set("weft:b", "2", nx=True)
    assert await redis.hincrby("weft:h", "field", 2) == 2
    async with redis.pubsub() as channel:
        await channel.subscribe("weft:news")
        await channel.get_message(timeout=1)
        await redis.publish("weft:news", "hello")
        message = await channel.get_message(ignore_subscribe_messages=True, timeout=1)
        assert message is not None
        assert message["data"] == b"hello"


async def test_nobody_comes_in_without_the_password(server: EmbeddedValkey) -> None:
    for user, password in (("weft", "wrong"), ("default", ""), ("default", "wrong")):
        client = client_of_socket(server._socket, user, lambda password=password: password)  # type: ignore[misc]
        with pytest.raises(RedisError, match="invalid username-password"):
            await client.ping()
        await client.aclose()
    reader, writer = await asyncio.open_unix_connection(server._socket)
    writer.write(b"GET weft:x\r\n")
    assert (await reader.readline()).startswith(b"-NOAUTH")
    writer.close()


async def test_it_has_no_port_no_files_of_data_and_no_secret_in_its_arguments(
    server: EmbeddedValkey, redis: "Redis", tmp_path: Path
) -> None:
    await redis.set("weft:a", "1")
    process = psutil.Process(server.pid)
    assert process.net_connections("inet") == []
    assert len(server._password) >= 32
    assert server._password not in " ".join([*process.cmdline(), *process.environ().values()])
    for path in (tmp_path / "valkey").iterdir():
        assert path.is_socket() or server._password not in path.read_text()
    kept = {path.name for path in (tmp_path / "valkey").iterdir()}
    assert kept == {"output.log", "server.lock", "users.acl", "valkey.conf", "valkey.sock"}


async def test_it_comes_back_with_another_password_and_clients_follow(
    server: EmbeddedValkey, redis: "Redis"
) -> None:
    assert await redis.ping()
    died, password = server.pid, server._password
    assert died is not None
    os.kill(died, signal.SIGKILL)
    await until(lambda: server.pid not in (None, died))
    with pytest.raises(RedisError):
        await client_of_socket(server._socket, "weft", lambda: password).ping()
    async with asyncio.timeout(2):
        while not await pings(redis):  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(0.01)


async def pings(redis: "Redis") -> bool:
    try:
        return bool(await redis.ping())
    except RedisError:
        return False


async def test_a_server_that_hangs_holds_nobody_up(server: EmbeddedValkey, redis: "Redis") -> None:
    assert await redis.ping()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        # Else it would wait for as long as the server hangs.
        assert 0 < redis.connection_pool.connection_kwargs["socket_timeout"] < 1.0
        with pytest.raises(RedisError):
            await redis.get("weft:a")
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def test_a_folder_too_deep_for_a_socket_has_it_elsewhere(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path / ("d" * 100) / "data")
    await server.start()
    socket, client = server._socket, server.client()
    assert await client.ping()
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    await client.aclose()
    await server.stop()
    assert not socket.parent.exists()


async def test_weft_starts_without_it_and_says_so(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    with pytest.raises(FailedPrecondition):
        await EmbeddedValkey(tmp_path, binary=nothing).start()
    settings = RuntimeSettings(
        data_dir=tmp_path / "data", grpc_port=0, http_port=0, nats_port=0, valkey_binary=nothing
    )
    async with Host([], settings, open_access) as host:
        assert host.redis is None
        assert any("no valkey-server" in note for note in host.notes)


async def test_a_host_has_a_client_and_ends_the_server(tmp_path: Path) -> None:
    settings = RuntimeSettings(data_dir=tmp_path, grpc_port=0, http_port=0, nats_port=0)
    async with Host([], settings, open_access) as host:
        await until(lambda: host.redis is not None)
        redis = host.redis
        assert redis is not None
        assert await cast(Any, redis).ping()
        assert host._valkey is not None
        pid = host._valkey.pid
        assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_a_server_of_ones_own_gets_the_password_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("from the file\n")
    client = client_of_url("redis://weft:other@127.0.0.1:1/0", tmp_path / "password")
    kept = client.connection_pool.connection_kwargs
    assert kept["credential_provider"].get_credentials() == ("weft", "from the file")
    assert "password" not in kept
    with pytest.raises(RedisError):
        await client.ping()
    await client.aclose()
