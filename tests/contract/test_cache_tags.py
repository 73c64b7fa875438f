"""The log of invalidations: what both of its kinds keep, and what NATS may do to one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mesh.cache.entries import TAG_BYTES
from mesh.cache.nats_tags import NatsTags
from mesh.cache.tags import TAGS_KEPT, Invalidations, MemoryTags, Tags
from mesh.errors import EventStoreUnavailable
from mesh.events.jetstream.assets import CACHE, ensure_assets
from mesh.events.jetstream.connection import Connection, connect
from tests.support.nats import NatsServer
from tests.support.processes import until

A, B = b"a" * TAG_BYTES, b"b" * TAG_BYTES


@asynccontextmanager
async def following(server: NatsServer, name: str = "tags") -> AsyncIterator[NatsTags]:
    connection = await connect(server.url, name=name)
    tags = NatsTags(connection)
    await tags.start()
    try:
        await until(lambda: tags.in_touch, 30)
        yield tags
    finally:
        await tags.stop()
        await connection.close()


@asynccontextmanager
async def admin(server: NatsServer) -> AsyncIterator[Connection]:
    connection = await connect(server.url, name="admin")
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture(params=["memory", "nats"])
async def tags(request: pytest.FixtureRequest, nats_server: NatsServer) -> AsyncIterator[Tags]:
    if request.param == "memory":
        yield MemoryTags()
        return
    async with admin(nats_server) as connection:
        await ensure_assets(connection)
    async with following(nats_server) as followed:
        yield followed


async def test_what_was_made_before_an_invalidation_is_too_old(tags: Tags) -> None:
    before = tags.known.mark
    assert tags.known.is_fresh(before, [A])
    await tags.invalidate("t", A)
    assert not tags.known.is_fresh(before, [A])
    assert not tags.known.is_fresh(before, [B, A])
    assert tags.known.is_fresh(before, [B])
    assert tags.known.is_fresh(before, [])


async def test_what_is_made_right_after_an_invalidation_is_good(tags: Tags) -> None:
    await tags.invalidate("t", A)
    after = tags.known.mark
    assert tags.known.is_fresh(after, [A])
    await tags.invalidate("t", B)
    assert tags.known.is_fresh(after, [A])


async def test_each_invalidation_is_told_once(tags: Tags) -> None:
    told: list[bytes] = []
    tags.on_invalidated(lambda tag, _: told.append(tag))
    for tag in (A, B, A):
        await tags.invalidate("t", tag)
    assert told == [A, B, A]


@pytest.fixture
async def server(harmed_nats_server: NatsServer) -> NatsServer:
    async with admin(harmed_nats_server) as connection:
        await ensure_assets(connection)
    return harmed_nats_server


async def test_another_process_hears_of_it(server: NatsServer) -> None:
    async with following(server, "one") as one, following(server, "two") as two:
        before = two.known.mark
        await one.invalidate("t", A)
        await until(lambda: not two.known.is_fresh(before, [A]))
        assert two.known.mark == one.known.mark


async def test_who_comes_later_learns_what_was_invalidated(server: NatsServer) -> None:
    async with following(server) as one:
        before = one.known.mark
        for number in range(2_500):
            await one.invalidate("t", number.to_bytes(TAG_BYTES, "big"))
        await one.invalidate("t", A)
    told: list[bytes] = []
    async with admin(server) as connection:
        tags = NatsTags(connection)
        tags.on_invalidated(lambda tag, _: told.append(tag))
        await tags.start()
        await until(lambda: tags.in_touch)
        assert not tags.known.is_fresh(before, [A])
        assert len(set(told)) == 2_501
        assert tags.known.mark.position == 2_501
        await tags.stop()


async def test_who_is_out_of_touch_says_so_and_catches_up(server: NatsServer) -> None:
    async with following(server) as tags:
        before = tags.known.mark
        await server.kill()
        await until(lambda: not tags.in_touch)
        await server.start()
        async with admin(server) as connection:
            # As another process would, before this one is back.
            subject = f"weft.cache.t.{A.hex()}"
            await until_answered(connection, subject)
        await until(lambda: tags.in_touch, 30)
        assert not tags.known.is_fresh(before, [A])


async def until_answered(connection: Connection, subject: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await connection.request(subject, timeout=1)
                return
            except EventStoreUnavailable:
                await asyncio.sleep(0.05)


async def test_what_cannot_be_stored_is_said(server: NatsServer) -> None:
    async with following(server) as tags:
        await server.kill()
        with pytest.raises(EventStoreUnavailable):
            await tags.invalidate("t", A)


async def test_positions_of_another_stream_say_nothing(server: NatsServer) -> None:
    async with following(server) as tags, admin(server) as connection:
        await tags.invalidate("t", A)
        before = tags.known.mark
        await connection.api(f"STREAM.DELETE.{CACHE}", {})
        await ensure_assets(connection)
        await until(lambda: tags.known.mark.epoch != before.epoch, 30)
        assert not tags.known.is_fresh(before, [A])
        assert not tags.known.is_fresh(before, [B])
        assert tags.known.is_fresh(before, [])


async def test_garbage_on_the_bus_is_passed_over(server: NatsServer) -> None:
    async with following(server) as tags, admin(server) as connection:
        before = tags.known.mark
        for subject in ("weft.cache.t.zz", "weft.cache.t.00", "weft.cache.x", "weft.cache.t.a.b"):
            await connection.request(subject, b"x", timeout=2)
        await tags.invalidate("t", A)
        assert not tags.known.is_fresh(before, [A])
        assert tags.known.is_fresh(before, [B])
        assert tags.known.mark.position == 5


def test_what_is_forgotten_counts_as_invalidated() -> None:
    known = Invalidations()
    for position in range(1, TAGS_KEPT + 11):
        known.heard(position.to_bytes(TAG_BYTES, "big"), position)
        known.reached(position)
        if position == 5:
            early = known.mark
        if position == 10:
            late = known.mark
    assert not known.is_fresh(early, [A])
    assert known.is_fresh(late, [A])
