"""What each level below memory keeps, on a real Valkey and a real disk."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mesh.cache.cache import Cache
from mesh.cache.disk_level import FILE_NAME, DiskLevel
from mesh.cache.entries import TAG_BYTES
from mesh.cache.level import Level, Sealed
from mesh.cache.memory import Memory
from mesh.cache.redis_level import SESSION_ENTRIES_MAX, RedisLevel
from mesh.clock import NANOSECONDS, SYSTEM
from mesh.runtime.redis_client import client_of_socket
from mesh.runtime.valkey_server import EmbeddedValkey
from tests.support.cached import SECRET, settled

SESSION = b"s" * TAG_BYTES


@pytest.fixture(params=["redis", "disk"])
async def level(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Level]:
    if request.param == "disk":
        made: Level = DiskLevel(tmp_path / FILE_NAME, 10_000_000, 5.0, SYSTEM)
        await made.start()
        yield made
        await made.stop()
        return
    server = EmbeddedValkey(tmp_path)
    await server.start()
    client: Any = client_of_socket(server._socket, "weft", lambda: server._password)
    made = RedisLevel(lambda: client, 5.0, SYSTEM)
    await made.start()
    yield made
    await made.stop()
    await client.aclose()
    await server.stop()


def sealed(
    number: int, *tags: bytes, stored: bytes = b"sealed", seconds: float = 60, position: int = 0
) -> Sealed:
    expire_ns = SYSTEM.now_ns() + int(seconds * NANOSECONDS)
    return Sealed(number.to_bytes(32, "big"), b"t", stored, expire_ns, position, tags)


async def done(level: Level) -> None:
    """Returns once it did what it was told to."""
    await settled([Cache(SECRET, Memory(0), [level])])


async def found(level: Level, *numbers: int) -> list[bytes | None]:
    await done(level)
    return [await level.get(number.to_bytes(32, "big")) for number in numbers]


async def test_what_was_put_is_found_and_nothing_else(level: Level) -> None:
    level.put(sealed(1))
    level.put(sealed(2, stored=os.urandom(100_000)))
    one, two, three = await found(level, 1, 2, 3)
    assert (one, three) == (b"sealed", None)
    assert two is not None
    assert len(two) == 100_000


async def test_what_is_put_last_counts(level: Level) -> None:
    level.put(sealed(1, SESSION, stored=b"old"))
    await done(level)
    level.put(sealed(1, stored=b"new"))
    assert await found(level, 1) == [b"new"]


async def test_what_is_dropped_is_gone(level: Level) -> None:
    for number in (1, 2):
        level.put(sealed(number))
    await done(level)
    level.drop(sealed(1).entry_id)
    assert await found(level, 1, 2) == [None, b"sealed"]


async def test_what_came_from_an_erased_session_is_gone(level: Level) -> None:
    for number, tags in ((1, (SESSION,)), (2, (b"s" + b"x" * 15, SESSION)), (3, (b"o" * 16,))):
        level.put(sealed(number, *tags))
    await done(level)
    level.drop_tagged(SESSION, 1)
    assert await found(level, 1, 2, 3) == [None, None, b"sealed"]


async def test_what_is_on_its_way_is_dropped_too(level: Level) -> None:
    level.put(sealed(1, SESSION))
    level.drop_tagged(SESSION, 1)
    assert await found(level, 1) == [None]


async def test_of_one_session_so_much_is_kept_that_it_can_be_listed(level: Level) -> None:
    for number in range(SESSION_ENTRIES_MAX + 10):
        level.put(sealed(number, SESSION))
        if number % 50 == 0:
            await done(level)
    await done(level)
    level.drop_tagged(SESSION, 1)
    assert set(await found(level, *range(SESSION_ENTRIES_MAX + 10))) == {None}
