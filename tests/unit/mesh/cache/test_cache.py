"""What the cache gives, makes once, keeps and forgets."""

import asyncio
import contextlib
import gc
import sqlite3
import time
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.cache.cache import Cache, Namespace
from mesh.cache.disk_level import FILE_NAME
from mesh.cache.entries import session_tag
from mesh.cache.metrics import HIT, LOAD, MEMORY, MISS, STALE
from mesh.call import Call, current_call
from mesh.errors import DataErased, DeadlineExceeded, NotFound, Unavailable
from tests.support.cached import TENANT, Hand, Text, full_cache, memory_cache, settled

SESSION = "tenants/acme/agents/bot/sessions/s1"


class Maker:
    """Makes values, and counts them. It waits for `gate`; it raises `error` where there is
    one."""

    def __init__(self) -> None:
        self.count = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def __call__(self) -> str:
        self.count += 1
        made = f"value {self.count}"
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return made


def texts(cache: Cache, absent_seconds: float = 0) -> Namespace[str]:
    return cache.of("texts", Text(), absent_seconds=absent_seconds)


async def started(cache: Cache) -> Cache:
    await cache.start()
    await settled([cache])
    return cache


def read(folder: Path) -> bytes:
    """What all files of the folder hold."""
    return b"".join(path.read_bytes() for path in folder.iterdir())


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in folder.iterdir()}


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Cache]:
    cache = await started(full_cache(tmp_path))
    yield cache
    await cache.stop()


async def get(
    cache: Cache, make: Maker, key: bytes = b"k", tags: tuple[str, ...] = (), tenant: str = TENANT
) -> str:
    return await texts(cache).get(tenant, key, make, ttl_seconds=60, tags=tags)


async def test_a_thousand_who_miss_at_once_have_one_load(cache: Cache) -> None:
    make = Maker()
    make.gate.clear()
    waiting = [asyncio.create_task(get(cache, make)) for _ in range(1_000)]
    await asyncio.sleep(0)
    make.gate.set()
    assert set(await asyncio.gather(*waiting)) == {"value 1"}
    assert make.count == 1
    assert cache.metrics.joined == 999
    assert cache.flights == {}


async def test_an_error_reaches_all_who_wait_and_is_not_kept(cache: Cache) -> None:
    make = Maker()
    make.gate.clear()
    make.error = Unavailable("away")
    waiting = [asyncio.create_task(get(cache, make)) for _ in range(10)]
    await asyncio.sleep(0)
    make.gate.set()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(error) for error in errors] == ["away"] * 10
    make.error = None
    assert await get(cache, make) == "value 2"


async def test_who_gives_up_takes_nobody_along(cache: Cache) -> None:
    make = Maker()
    make.gate.clear()
    first, second = (asyncio.create_task(get(cache, make)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait({first})
    make.gate.set()
    assert await second == "value 1"
    assert first.cancelled()


async def test_a_load_that_nobody_waits_for_ends_and_is_not_joined(cache: Cache) -> None:
    make = Maker()
    make.gate.clear()
    first = asyncio.create_task(get(cache, make))
    while not make.count:  # noqa: ASYNC110 - it runs in this loop
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    # The flight is being cancelled now.
    second = asyncio.create_task(get(cache, make))
    make.gate.set()
    assert await second == "value 2"


async def test_whose_deadline_is_further_tries_once_more(cache: Cache) -> None:
    hasty, patient = Maker(), Maker()
    hasty.gate.clear()
    hasty.error = DeadlineExceeded("too late")
    first = asyncio.create_task(get(cache, hasty))
    await asyncio.sleep(0)
    others = [asyncio.create_task(get(cache, patient)) for _ in range(5)]
    await asyncio.sleep(0)
    hasty.gate.set()
    with pytest.raises(DeadlineExceeded):
        await first
    assert await asyncio.gather(*others) == ["value 1"] * 5
    assert patient.count == 1


async def test_who_has_more_time_than_whoever_began_tries_once_more(cache: Cache) -> None:
    hasty, patient = Maker(), Maker()
    hasty.gate.clear()
    # What a server that took too long is to a tool.
    hasty.error = Unavailable("took too long")
    token = current_call.set(Call("/a.B/C", time.monotonic() + 0.05, "t"))
    first = asyncio.create_task(get(cache, hasty))
    current_call.reset(token)
    await asyncio.sleep(0)
    second = asyncio.create_task(get(cache, patient))
    await asyncio.sleep(0.05)
    hasty.gate.set()
    assert await second == "value 1"
    with pytest.raises(Unavailable):
        await first


async def test_an_error_leaves_no_cycle_behind(cache: Cache) -> None:
    class Mine(Exception):
        def __init__(self) -> None:
            seen.append(weakref.ref(self))

    async def load() -> str:
        raise Mine

    seen: list[weakref.ref[Mine]] = []
    gc.disable()
    try:
        for _ in range(3):
            with contextlib.suppress(Mine):
                await texts(cache).get(TENANT, b"k", load, ttl_seconds=60)
            await asyncio.sleep(0)
        # Of the last one the running frames may still know.
        assert [reference() for reference in seen[:2]] == [None, None]
    finally:
        gc.enable()


async def test_there_being_none_is_kept_where_the_namespace_says_so() -> None:
    hand, make = Hand(), Maker()
    cache = memory_cache(hand.clock)
    make.error = NotFound.of("thing", "things/1")
    for absent_seconds, loads in ((0, 2), (5, 3)):
        for _ in range(2):
            with pytest.raises(NotFound, match="no thing things/1") as caught:
                await texts(cache, absent_seconds).get(TENANT, b"k", make, ttl_seconds=60)
            assert caught.value.metadata == {"resource": "things/1"}
        assert make.count == loads
    hand.seconds += 5
    make.error = None
    assert await texts(cache, 5).get(TENANT, b"k", make, ttl_seconds=60) == "value 4"


async def test_that_it_was_erased_is_not_kept() -> None:
    cache, make = memory_cache(), Maker()
    make.error = DataErased("gone")
    for _ in range(2):
        with pytest.raises(DataErased):
            await texts(cache, 5).get(TENANT, b"k", make, ttl_seconds=60)
    assert make.count == 2


async def test_names_tell_values_apart(cache: Cache) -> None:
    make = Maker()
    found = [
        await get(cache, make, b"k", tenant="a"),
        await get(cache, make, b"k", tenant="b"),
        await get(cache, make, b"kk", tenant="a"),
        await cache.of("textsk", Text()).get("a", b"", make, ttl_seconds=60),
    ]
    assert found == [f"value {number}" for number in range(1, 5)]


async def test_an_invalidation_during_a_load_leaves_no_old_value(cache: Cache) -> None:
    make = Maker()
    make.gate.clear()
    old = asyncio.create_task(get(cache, make, tags=("t",)))
    while not make.count:  # noqa: ASYNC110 - it runs in this loop
        await asyncio.sleep(0)
    await cache.invalidate(TENANT, ["t"])
    # Whoever asks from now on doesn't wait for the old one.
    new = asyncio.create_task(get(cache, make, tags=("t",)))
    await asyncio.sleep(0)
    make.gate.set()
    assert await old == "value 1"
    assert await new == "value 2"
    assert await get(cache, make, tags=("t",)) == "value 2"
    assert make.count == 2


async def test_a_tag_is_one_tenants(cache: Cache) -> None:
    make = Maker()
    await get(cache, make, tags=("t",))
    await cache.invalidate("other", ["t"])
    assert await get(cache, make, tags=("t",)) == "value 1"
    await cache.invalidate(TENANT, ["other", "t"])
    assert await get(cache, make, tags=("t",)) == "value 2"


async def test_a_restart_finds_what_is_on_disk_with_the_rest_of_its_time(tmp_path: Path) -> None:
    hand, make = Hand(), Maker()
    for expected in ("value 1", "value 1"):
        cache = await started(full_cache(tmp_path, clock=hand.clock))
        assert await get(cache, make) == expected
        await cache.stop()
        hand.seconds += 40
    cache = await started(full_cache(tmp_path, clock=hand.clock))
    # Promoted at 40 s, it isn't kept for another 60 s.
    assert await get(cache, make) == "value 2"
    await cache.stop()


async def test_neither_names_nor_values_can_be_read_on_disk(tmp_path: Path) -> None:
    cache = await started(full_cache(tmp_path))

    async def load() -> str:
        return "a secret value"

    await texts(cache).get("acme-tenant", b"a secret key", load, ttl_seconds=60, tags=("secret-t",))
    await settled([cache])
    assert cache.levels[0].size_bytes > 0
    kept = read(tmp_path)
    await cache.stop()
    kept += read(tmp_path)
    for text in (b"secret", b"acme-tenant", b"texts"):
        assert text not in kept
    assert modes(tmp_path) == {0o600}


async def test_a_sealed_value_that_was_moved_or_changed_is_made_anew(tmp_path: Path) -> None:
    cache = await started(full_cache(tmp_path))
    make = Maker()
    for key in (b"a", b"b"):
        await get(cache, make, key)
    await cache.stop()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        rows = connection.execute("SELECT number, sealed FROM entries").fetchall()
        swapped = [(rows[1][1], rows[0][0]), (rows[0][1][:-1] + b"x", rows[1][0])]
        connection.executemany("UPDATE entries SET sealed = ? WHERE number = ?", swapped)
    connection.close()
    cache = await started(full_cache(tmp_path))
    assert [await get(cache, make, key) for key in (b"a", b"b")] == ["value 3", "value 4"]
    await cache.stop()


async def test_what_came_from_an_erased_session_is_gone_from_the_disk(tmp_path: Path) -> None:
    cache = await started(full_cache(tmp_path))
    make = Maker()
    for key, tags in ((b"a", (session_tag(SESSION), "t")), (b"b", ("t",))):
        await get(cache, make, key, tags)
    await settled([cache])
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        sealed = [row[0] for row in connection.execute("SELECT sealed FROM entries ORDER BY 1")]
    connection.close()
    await cache.invalidate(TENANT, [session_tag(SESSION)])
    await settled([cache])
    files = read(tmp_path)
    assert sum(each in files for each in sealed) == 1
    assert await get(cache, make, b"b", ("t",)) == "value 2"
    await cache.stop()


async def test_a_value_that_is_too_large_is_given_and_not_kept(tmp_path: Path) -> None:
    cache = await started(full_cache(tmp_path))
    loads = 0

    async def load() -> str:
        nonlocal loads
        loads += 1
        return "x" * 300_000

    for _ in range(2):
        assert len(await texts(cache).get(TENANT, b"k", load, ttl_seconds=60)) == 300_000
    assert loads == 2
    assert cache.memory.size_bytes == 0
    await cache.stop()


async def test_what_another_version_wrote_is_made_anew(tmp_path: Path) -> None:
    class Newer(Text):
        def decode(self, data: bytes) -> str:
            if not data.startswith(b"newer"):
                raise ValueError("not mine")
            return data.decode()

    async def load() -> str:
        return "newer value"

    cache = await started(full_cache(tmp_path))
    await get(cache, Maker())
    await cache.stop()
    cache = await started(full_cache(tmp_path))
    values = cache.of("texts", Newer())
    assert await values.get(TENANT, b"k", load, ttl_seconds=60) == "newer value"
    await cache.stop()


async def test_looks_are_counted_by_level(tmp_path: Path) -> None:
    hand, make = Hand(), Maker()
    cache = await started(full_cache(tmp_path, clock=hand.clock))
    for _ in range(3):
        await get(cache, make)
    hand.seconds += 61
    await get(cache, make)
    await settled([cache])
    counts = {level: cache.metrics.looks("texts", level).counts for level in (MEMORY, "disk", LOAD)}
    assert counts[MEMORY] == {MISS: 1, HIT: 2, STALE: 1}
    assert counts[LOAD] == {"made": 2}
    assert sum(counts["disk"].values()) == 2
    names = {sample.name for metric in cache.metrics.collect() for sample in metric.samples}
    assert {"weft_cache_looks_total", "weft_cache_look_seconds_bucket", "weft_cache_bytes"} <= names
    await cache.stop()


@pytest.mark.parametrize("seconds", [0, -1, 604_801])
async def test_a_time_that_is_no_time_is_refused(cache: Cache, seconds: float) -> None:
    with pytest.raises(ValueError, match="week"):
        await texts(cache).get(TENANT, b"k", Maker(), ttl_seconds=seconds)


async def test_what_was_put_is_found_on_each_level_within_its_time_and_tenant(
    tmp_path: Path,
) -> None:
    hand = Hand()
    cache = await started(full_cache(tmp_path, clock=hand.clock))
    assert await texts(cache).find(TENANT, b"k") is None
    texts(cache).put(TENANT, b"k", "put", ttl_seconds=60)
    assert await texts(cache).find(TENANT, b"k") == "put"
    assert await texts(cache).find("other", b"k") is None
    make = Maker()
    assert await get(cache, make) == "put"
    assert make.count == 0
    await settled([cache])
    await cache.stop()
    later = await started(full_cache(tmp_path, clock=hand.clock))
    assert await texts(later).find(TENANT, b"k") == "put"
    hand.seconds += 61
    assert await texts(later).find(TENANT, b"k") is None
    with pytest.raises(ValueError, match="a week"):
        texts(later).put(TENANT, b"k", "put", ttl_seconds=0)
    await later.stop()
