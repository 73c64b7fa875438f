"""The levels of the cache: their bounds, and what they do when they can't."""

import asyncio
import contextlib
import gc
import os
import shutil
import signal
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from mesh.cache.breaker import PAUSE_SECONDS_MAX, Breaker
from mesh.cache.cache import Cache
from mesh.cache.disk_level import FILE_NAME, DiskLevel
from mesh.cache.disk_tables import OVERHEAD_BYTES, DiskTables
from mesh.cache.entries import NEVER, TAG_BYTES, TAGS_MAX, Entry, Seals, session_tag
from mesh.cache.level import Sealed
from mesh.cache.memory import Memory
from mesh.cache.metrics import FAULT, HIT, LOAD, OFF
from mesh.cache.redis_level import RedisLevel
from mesh.clock import SYSTEM
from mesh.runtime.valkey_server import EmbeddedValkey
from tests.support.cached import SECRET, TENANT, Hand, Text, full_cache, settled
from tests.support.processes import until
from tests.support.small_disk import mounted_disk

if TYPE_CHECKING:
    from redis.asyncio import Redis

SESSION = session_tag("tenants/acme/agents/bot/sessions/s1")


async def get(cache: Cache, key: str, tags: tuple[str, ...] = (), size: int = 1) -> str:
    """A value of that size, which tells its key."""

    async def load() -> str:
        return f"{key} ".ljust(size, "x")

    texts = cache.of("texts", Text())
    return await texts.get(TENANT, key.encode(), load, ttl_seconds=60, tags=tags)


def looks(cache: Cache, level: str) -> dict[str, int]:
    return cache.metrics.looks("texts", level).counts


def sealed(number: int, tenant: bytes = b"a", size: int = 100, expire_ns: int = 1_000) -> Sealed:
    return Sealed(number.to_bytes(32, "big"), tenant, bytes(size), expire_ns)


def kept(tables: DiskTables, numbers: range) -> list[int]:
    return [number for number in numbers if tables.get(number.to_bytes(32, "big")) is not None]


def test_memory_gives_up_what_was_used_longest_ago() -> None:
    memory = Memory(3_000)
    entry = Entry(bytes(600), 1)
    for name in (b"1", b"2", b"3", b"4"):
        memory.put(b"a", name, entry)
        memory.get(b"a", b"1")
    assert [name for name in (b"1", b"2", b"3", b"4") if memory.get(b"a", name)] == [
        b"1",
        b"3",
        b"4",
    ]
    assert memory.size_bytes == 3_000
    assert memory.evicted == 1


def test_in_memory_nobody_is_pushed_out_below_an_equal_share() -> None:
    memory = Memory(10_000)
    for number in range(4):
        memory.put(b"quiet", bytes([number]), Entry(bytes(600), 1))
    for number in range(100):
        memory.put(b"loud", bytes([number]), Entry(bytes(600), 1))
    assert all(memory.get(b"quiet", bytes([number])) for number in range(4))
    assert len(memory) == 10


def test_memory_refuses_what_is_larger_than_itself() -> None:
    memory = Memory(1_000)
    memory.put(b"a", b"1", Entry(b"x", 1))
    memory.put(b"a", b"2", Entry(bytes(1_000), 1))
    assert memory.get(b"a", b"1")
    assert memory.get(b"a", b"2") is None


@pytest.mark.parametrize("count", [0, 2, TAGS_MAX])
def test_memory_counts_what_tags_take(count: int) -> None:
    memory = Memory(1_000_000)
    tracemalloc.start()
    for number in range(5_000):
        tags = tuple(os.urandom(TAG_BYTES) for _ in range(count))
        memory.put(b"a", os.urandom(32), Entry(b"x", number << 40, NEVER, tags))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert memory.evicted
    assert taken < 1.5 * memory.size_bytes


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[DiskTables]:
    tables = DiskTables(tmp_path / FILE_NAME, 10 * (100 + OVERHEAD_BYTES))
    tables.open(0)
    yield tables
    tables.close()


def test_the_disk_gives_up_what_was_used_longest_ago(tables: DiskTables) -> None:
    for number in range(10):
        tables.change([sealed(number)], [], [], [], number)
    tables.change([], [], [], [sealed(0).entry_id], 10)
    tables.change([sealed(10)], [], [], [], 11)
    assert kept(tables, range(11)) == [0, *range(2, 11)]
    assert tables.evicted == 1


def test_on_disk_nobody_is_pushed_out_below_an_equal_share(tables: DiskTables) -> None:
    for number in range(4):
        tables.change([sealed(number, b"quiet")], [], [], [], 0)
    for number in range(100, 200):
        tables.change([sealed(number, b"loud")], [], [], [], number)
    assert kept(tables, range(4)) == [0, 1, 2, 3]
    assert kept(tables, range(100, 200)) == list(range(194, 200))


def test_the_disk_counts_right_after_a_change_that_failed(tables: DiskTables) -> None:
    tables.change([sealed(1)], [], [], [], 0)
    before = tables.size_bytes
    with pytest.raises(TypeError):
        tables.change([sealed(2), sealed(3, expire_ns=object())], [], [], [], 0)  # type: ignore[arg-type]
    assert kept(tables, range(1, 4)) == [1]
    assert tables.size_bytes == before


def test_the_disk_counts_what_it_finds_and_drops_what_expired(tables: DiskTables) -> None:
    tables.change([sealed(1), sealed(2, expire_ns=10)], [], [], [], 0)
    tables.close()
    tables.open(10)
    assert kept(tables, range(1, 3)) == [1]
    assert tables.size_bytes == 100 + OVERHEAD_BYTES


def test_a_seal_opens_nowhere_else() -> None:
    seals = Seals(SECRET)
    tenants = [seals.tenant(name) for name in ("a", "b")]
    ids = [seals.id("n", "a", key) for key in (b"1", b"2")]
    stored = seals.seal(tenants[0], ids[0], Entry(b"v", 10, tags=(seals.tag("a", "t"),)))
    assert seals.open(tenants[0], ids[0], stored).value == b"v"
    longer = stored[:8] + b"\xff" + stored[9:]
    for tenant, entry_id, bytes_ in (
        (tenants[1], ids[0], stored),
        (tenants[0], ids[1], stored),
        (tenants[0], ids[0], longer),
        (tenants[0], ids[0], stored[:20]),
        (tenants[0], ids[0], b""),
    ):
        with pytest.raises(Exception, match=r"sealed text|cached value"):
            seals.open(tenant, entry_id, bytes_)


def test_what_fails_is_left_alone_for_longer_and_longer() -> None:
    hand = Hand()
    breaker = Breaker("test", hand.clock.monotonic)
    for reason in ("x", "x", "", "x", "x", "x"):
        assert not breaker.open
        breaker.failed(reason) if reason else breaker.succeeded()
    # What was asked before says nothing now.
    breaker.succeeded()
    pauses = []
    for _ in range(7):
        assert breaker.open
        began = hand.seconds
        while not breaker.is_due():
            hand.seconds += 0.5
        # One tries.
        assert not breaker.is_due()
        pauses.append(hand.seconds - began)
        breaker.failed("x")
        breaker.tried(works=False)
    assert pauses == [1, 2, 4, 8, 16, 30, PAUSE_SECONDS_MAX]
    breaker.tried(works=True)
    assert not breaker.open


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


async def test_another_process_finds_it_in_redis_and_keeps_it_itself(
    tmp_path: Path, redis: "Redis"
) -> None:
    one, other = (full_cache(tmp_path / name, lambda: redis) for name in "ab")
    for cache in (one, other):
        await cache.start()
    assert await get(one, "k", (SESSION, "t")) == "k "
    await settled([one])
    assert await get(other, "k", (SESSION, "t")) == "k "
    assert looks(other, "redis") == {HIT: 1}
    assert looks(other, LOAD) == {}
    assert await get(other, "k") == "k "
    assert looks(other, "redis") == {HIT: 1}
    for cache in (one, other):
        await cache.stop()


async def test_redis_holds_nothing_that_can_be_read_and_nothing_of_an_erased_session(
    tmp_path: Path, redis: "Redis"
) -> None:
    cache = full_cache(tmp_path / "a", lambda: redis)
    await cache.start()
    await get(cache, "a secret", (SESSION,))
    await get(cache, "b secret", ("t",))
    await settled([cache])
    ids = [cache.seals.id("texts", TENANT, key) for key in (b"a secret", b"b secret")]
    stored = [await redis.get(f"weft:cache:{entry_id.hex()}") for entry_id in ids]
    assert all(each and b"secret" not in each for each in stored)
    assert 0 < await redis.pttl(f"weft:cache:{ids[0].hex()}") <= 60_000
    await cache.invalidate(TENANT, [SESSION, "t"])
    await settled([cache])
    # The other isn't used any more, and expires.
    assert [bool(await redis.exists(f"weft:cache:{each.hex()}")) for each in ids] == [False, True]
    await cache.stop()


async def test_no_call_fails_when_redis_is_killed_under_load(
    tmp_path: Path, server: EmbeddedValkey, redis: "Redis"
) -> None:
    # No memory and no disk worth the name: each look goes to Redis.
    cache = full_cache(
        tmp_path / "a", lambda: redis, memory_bytes=0, disk_bytes=1_000, timeout_seconds=0.5
    )
    await cache.start()
    ended = asyncio.Event()
    calls = 0

    async def client(number: int) -> None:
        nonlocal calls
        while not ended.is_set():
            key = f"key {number} {calls % 50}"
            assert await get(cache, key) == f"{key} "
            calls += 1

    clients = [asyncio.create_task(client(number)) for number in range(8)]
    await until(lambda: looks(cache, "redis").get(HIT, 0) > 100)
    died = server.pid
    assert died is not None
    os.kill(died, signal.SIGKILL)
    await until(lambda: looks(cache, "redis").get(FAULT, 0) > 0)
    await until(lambda: server.pid not in (None, died))
    hits = looks(cache, "redis")[HIT]
    await until(lambda: looks(cache, "redis")[HIT] > hits + 100, 60.0)
    ended.set()
    # An exception of one would be raised here.
    await asyncio.gather(*clients)
    await cache.stop()


async def test_a_redis_that_hangs_is_left_alone(
    tmp_path: Path, server: EmbeddedValkey, redis: "Redis"
) -> None:
    cache = full_cache(tmp_path / "a", lambda: redis, timeout_seconds=0.02)
    await cache.start()
    await redis.ping()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for number in range(50):
            assert await get(cache, f"k{number}")
    finally:
        os.kill(server.pid, signal.SIGCONT)
    counts = looks(cache, "redis")
    # Three found out; then nobody asked but once in a pause.
    assert counts[FAULT] >= 3
    assert counts[OFF] > counts[FAULT]
    await cache.stop()


@pytest.mark.parametrize(
    "answer", [b":5", b"*1\r\n:5", b"+OK", b"$3\r\nabc", b"-ERR no", b"_", b"%1\r\n+a\r\n:1"]
)
async def test_whatever_a_redis_answers_costs_no_call(answer: bytes, tmp_path: Path) -> None:
    from redis.asyncio import Redis

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            while await reader.read(65_536):
                writer.write(answer + b"\r\n")

    server = await asyncio.start_server(lie, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Redis(host="127.0.0.1", port=port, protocol=2) as liar:
        cache = full_cache(tmp_path / "a", lambda: liar)
        await cache.start()
        for number in range(8):
            assert await get(cache, f"k{number}", (SESSION,)) == f"k{number} "
        await cache.invalidate(TENANT, [SESSION])
        await cache.stop()


@pytest.mark.parametrize("lie", [b":5", b"+OK", b"*2\r\n:5\r\n:5", b"*2\r\n$1\r\n\xff\r\n$1\r\na"])
async def test_a_redis_that_lies_ends_nothing_that_is_done_beside(
    lie: bytes, tmp_path: Path
) -> None:
    from redis.asyncio import Redis

    asked: set[bytes] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            while data := await reader.read(65_536):
                asked.update(name for name in (b"HLEN", b"HGETALL") if name in data)
                # Nothing is kept; only what lists a session is lied about.
                for _ in range(max(1, data.count(b"HLEN"))):
                    lied = b"HLEN" in data or b"HGETALL" in data
                    writer.write((lie if lied else b"$-1") + b"\r\n")

    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Redis(host="127.0.0.1", port=port, protocol=2) as liar:
        cache = full_cache(tmp_path / "a", lambda: liar)
        await cache.start()
        assert await get(cache, "k", (SESSION,)) == "k "
        await until(lambda: b"HLEN" in asked)
        await cache.invalidate(TENANT, [SESSION])
        await until(lambda: b"HGETALL" in asked)
        level = cache.levels[0]
        assert isinstance(level, RedisLevel)
        await level._chores.settled()
        # It is tried again, as a Redis that is away.
        assert level._scrubbing is not None
        await cache.stop()
    gc.collect()
    assert not unhandled


async def test_without_a_redis_nothing_is_missing(tmp_path: Path) -> None:
    cache = full_cache(tmp_path / "a", lambda: None)
    await cache.start()
    assert await get(cache, "k") == "k "
    assert looks(cache, "redis") == {OFF: 1}
    await cache.stop()


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "folder"])
async def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    cache = full_cache(tmp_path / "a")
    await cache.start()
    for number in range(50):
        await get(cache, f"k{number}", size=2_000)
    await cache.stop()
    file = tmp_path / "a" / FILE_NAME
    if damage == "garbage":
        file.write_bytes(b"SQLite format 3\0" + os.urandom(file.stat().st_size))
    elif damage == "cut":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "empty":
        os.truncate(file, 0)
    else:
        file.unlink()
        file.mkdir()
    cache = full_cache(tmp_path / "a")
    await cache.start()
    for _ in range(2):
        for number in range(50):
            key = f"k{number}"
            assert (await get(cache, key, size=2_000)).startswith(f"{key} ")
            cache.memory.drop(
                cache.seals.tenant(TENANT), cache.seals.id("texts", TENANT, key.encode())
            )
        await settled([cache])
    if damage != "folder":
        assert looks(cache, "disk")[HIT] > 0
    await cache.stop()


@pytest.mark.parametrize("value", ["5", "'text'", "x''", "2.5"])
async def test_a_value_of_another_type_on_disk_costs_no_call(value: str, tmp_path: Path) -> None:
    cache = full_cache(tmp_path / "a")
    await cache.start()
    await get(cache, "k")
    await cache.stop()
    with contextlib.closing(apsw.Connection(str(tmp_path / "a" / FILE_NAME))) as connection:
        connection.execute(f"UPDATE entries SET sealed = {value}")
    cache = full_cache(tmp_path / "a")
    await cache.start()
    assert await get(cache, "k") == "k "
    assert looks(cache, "disk") == {FAULT: 1}
    await cache.stop()


async def test_a_file_that_is_damaged_while_it_is_open_is_made_anew(tmp_path: Path) -> None:
    cache = full_cache(tmp_path / "a")
    await cache.start()
    for number in range(200):
        await get(cache, f"k{number}", size=5_000)
    await settled([cache])
    (level,) = cache.levels
    assert isinstance(level, DiskLevel)
    await level._run(level._tables.forget_log)
    with (tmp_path / "a" / FILE_NAME).open("r+b") as file:
        file.seek(4_096)
        file.write(os.urandom(900_000))
    cache.memory = Memory(1_000_000)
    for _ in range(3):
        for number in range(200):
            assert (await get(cache, f"k{number}", size=5_000)).startswith(f"k{number} ")
        await settled([cache])
        cache.memory = Memory(1_000_000)
    assert looks(cache, "disk")[HIT] > 0
    await cache.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path / "disk", 2 << 20) as folder:
        yield folder


async def test_a_full_disk_costs_no_call_and_is_used_again_once_it_has_room(
    small_disk: Path,
) -> None:
    cache = full_cache(small_disk, memory_bytes=0)
    await cache.start()
    assert await get(cache, "before")
    await settled([cache])
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4_096)):
            continue
    assert shutil.disk_usage(small_disk).free == 0
    for number in range(300):
        assert (await get(cache, f"k{number}", size=20_000)).startswith(f"k{number} ")
    # It can still be read.
    await get(cache, "before")
    assert looks(cache, "disk")[HIT] == 1
    filler.unlink()

    async def kept_again() -> bool:
        hits = looks(cache, "disk")[HIT]
        await get(cache, "after")
        return looks(cache, "disk")[HIT] > hits

    async with asyncio.timeout(60):
        while not await kept_again():  # noqa: ASYNC110 - the pause of a breaker
            await asyncio.sleep(0.05)
    await cache.stop()


async def test_a_disk_that_may_not_be_written_costs_no_call(tmp_path: Path) -> None:
    cache = full_cache(tmp_path / "a", clock=SYSTEM)
    (level,) = cache.levels
    assert isinstance(level, DiskLevel)
    level._tables._path = tmp_path / "nowhere" / FILE_NAME
    await cache.start()
    for number in range(20):
        assert await get(cache, f"k{number}")
    assert set(looks(cache, "disk")) == {FAULT, OFF}
    await cache.stop()
