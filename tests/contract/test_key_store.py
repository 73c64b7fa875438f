"""What every key store does, run on each back end."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.events.jetstream.assets import KEYS, KEYS_PREFIX, ensure_assets
from mesh.events.jetstream.connection import connect
from mesh.events.jetstream.erase import erase_message
from mesh.events.jetstream.key_store import JetStreamKeyStore
from mesh.security.key_store import KeyConflict, KeyStore, MemoryKeyStore
from tests.support.nats import NatsServer, running_nats


@pytest.fixture(params=["memory", "jetstream"])
async def store(request: pytest.FixtureRequest, nats_server: NatsServer) -> AsyncIterator[KeyStore]:
    if request.param == "memory":
        yield MemoryKeyStore()
        return
    connection = await connect(nats_server.url, name="keys")
    await ensure_assets(connection)
    yield JetStreamKeyStore(connection)
    await connection.close()


@pytest.fixture
def name() -> str:
    """A name that no other test has."""
    return f"tenant.t{uuid.uuid4().hex[:16]}"


class TestKeyStore:
    async def test_an_entry_is_what_was_put_last(self, store: KeyStore, name: str) -> None:
        assert await store.get(name) is None
        first = await store.put(name, b"one", 0)
        assert await store.get(name) == (b"one", first)
        second = await store.put(name, b"two", first)
        assert await store.get(name) == (b"two", second)

    async def test_a_stale_put_changes_nothing(self, store: KeyStore, name: str) -> None:
        first = await store.put(name, b"one", 0)
        for stale in (0, first - 1, first + 1):
            with pytest.raises(KeyConflict):
                await store.put(name, b"two", stale)
        assert await store.get(name) == (b"one", first)

    async def test_of_racing_puts_one_wins(self, store: KeyStore, name: str) -> None:
        puts = [store.put(name, bytes([number]), 0) for number in range(20)]
        done = await asyncio.gather(*puts, return_exceptions=True)
        (winner,) = [number for number, result in enumerate(done) if isinstance(result, int)]
        assert sum(isinstance(result, KeyConflict) for result in done) == 19
        entry = await store.get(name)
        assert entry is not None
        assert entry.value == bytes([winner])

    async def test_what_is_destroyed_is_gone_and_may_come_anew(
        self, store: KeyStore, name: str
    ) -> None:
        await store.destroy(name)
        revision = await store.put(name, b"one", 0)
        await store.put(name, b"two", revision)
        await store.destroy(name)
        assert await store.get(name) is None
        assert await store.put(name, b"three", 0) > revision

    async def test_a_list_has_the_names_below_the_prefix(self, store: KeyStore, name: str) -> None:
        names = [f"{name}.{number:04}" for number in range(1_100)]
        revisions = {each: await store.put(each, each.encode(), 0) for each in names}
        revisions[names[0]] = await store.put(names[0], names[0].encode(), revisions[names[0]])
        await store.put(f"{name}x.other", b"", 0)
        await store.put(name, b"", 0)
        listed = {found: entry async for found, entry in store.list(name)}
        assert listed == {each: (each.encode(), revisions[each]) for each in names}

    async def test_those_who_watch_hear_of_each_put(self, store: KeyStore, name: str) -> None:
        heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        await store.watch(lambda found, value: heard.put_nowait((found, value)))
        await store.put(name, b"one", 0)
        async with asyncio.timeout(5):
            assert await heard.get() == (name, b"one")

    @pytest.mark.parametrize("bad", ["", "a..b", "a.*", ">", "a b", "a." * 8 + "b"])
    async def test_what_is_no_name_is_refused(self, store: KeyStore, bad: str) -> None:
        with pytest.raises(ValueError, match="name"):
            await store.get(bad)


async def test_two_processes_erase_the_same_entries(nats_server: NatsServer, name: str) -> None:
    connection = await connect(nats_server.url, name="keys")
    await ensure_assets(connection)
    store = JetStreamKeyStore(connection)
    entries = [f"{name}.{number}" for number in range(20)]
    for each in entries:
        revision = await store.put(each, b"one", 0)
        await asyncio.gather(
            store.destroy(each), store.destroy(each), erase_message(connection, KEYS, revision)
        )
        assert await store.get(each) is None
    await connection.close()


def files_with(folder: Path, text: bytes) -> list[Path]:
    """Files that hold the text somewhere."""
    return [path for path in folder.rglob("*") if path.is_file() and text in path.read_bytes()]


async def test_nothing_replaced_or_destroyed_stays_on_the_disk(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server:
        connection = await connect(server.url, name="keys")
        await ensure_assets(connection)
        store = JetStreamKeyStore(connection)
        await store.put("data.others", b"MARK-OTHER" * 10, 0)
        revision = await store.put("data.one", b"MARK-FIRST" * 10, 0)
        assert files_with(tmp_path, b"MARK-FIRST")
        await store.put("data.one", b"MARK-SECOND" * 10, revision)
        assert files_with(tmp_path, b"MARK-FIRST") == []
        assert files_with(tmp_path, b"MARK-SECOND")
        await store.destroy("data.one")
        # A process that dies between a put and its erasure leaves both.
        for text in (b"MARK-THIRD", b"MARK-FOURTH"):
            await connection.request(f"{KEYS_PREFIX}.data.two", text * 10, timeout=5)
        await store.scrub()
        await connection.close()
        await server.kill()
    for gone in (b"MARK-FIRST", b"MARK-SECOND", b"MARK-THIRD"):
        assert files_with(tmp_path, gone) == []
    for kept in (b"MARK-OTHER", b"MARK-FOURTH"):
        assert files_with(tmp_path, kept)
