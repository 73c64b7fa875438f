"""The key hierarchy: who gets which key, rotation, and what is gone for good."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.clock import Clock
from mesh.errors import DataDamaged, DataErased, FailedPrecondition
from mesh.security.key_entries import CACHED_SECONDS
from mesh.security.key_store import MemoryKeyStore, OnPut, StoredKey
from mesh.security.keyring import SEALED_MAX, Keyring
from mesh.security.master_key import EnvironmentMasterKey, FileMasterKey
from tests.support.keys import memory_keyring, memory_master, new_master_text
from weft.security.v1 import keys_pb2

SESSION = "state.acme.bot.s1"
OTHER = "state.acme.bot.s2"


@dataclass
class SteppedClock:
    """Stands still until it is told."""

    seconds: float = 100.0

    def clock(self) -> Clock:
        return Clock(lambda: int(self.seconds * 1e9), lambda: self.seconds)


class DeafKeyStore(MemoryKeyStore):
    """Its watchers hear nothing, as when a message gets lost."""

    async def watch(self, callback: OnPut) -> None:
        return


class DyingKeyStore(MemoryKeyStore):
    """Its process dies before the put of that number."""

    def __init__(self, puts: int) -> None:
        super().__init__()
        self.puts = puts

    async def put(self, name: str, value: bytes, revision: int) -> int:
        self.puts -= 1
        if self.puts == 0:
            raise ConnectionAbortedError
        return await super().put(name, value, revision)


class SlowKeyStore(MemoryKeyStore):
    """Lets everybody else run before each step."""

    async def get(self, name: str) -> StoredKey | None:
        await asyncio.sleep(0)
        return await super().get(name)

    async def put(self, name: str, value: bytes, revision: int) -> int:
        await asyncio.sleep(0)
        return await super().put(name, value, revision)


async def key_ids(keyring: Keyring, *streams: str) -> list[str]:
    return [(await keyring.data_key_to_seal(stream)).id for stream in streams]


def generations(folder: Path) -> int:
    """How many master keys the folder has."""
    return len(list(folder.glob("master.*.key")))


async def wrapped_by(store: MemoryKeyStore, prefix: str) -> set[str]:
    """Ids of the keys that wrap the entries below the prefix."""
    return {
        version.wrapping_key_id
        async for _, stored in store.list(prefix)
        for version in keys_pb2.KeyEntry.FromString(stored.value).versions
    }


async def test_each_session_and_each_area_of_a_tenant_has_its_key() -> None:
    keyring = memory_keyring()
    streams = (SESSION, OTHER, "state.other.bot.s1", "agents.acme.bot", "tools.acme.search")
    ids = await key_ids(keyring, *streams)
    assert len(set(ids)) == len(ids)
    assert await key_ids(keyring, *streams, "agents.acme.other") == [*ids, ids[3]]


async def test_racing_processes_agree_on_keys_and_secrets() -> None:
    store, master = SlowKeyStore(), memory_master()
    keyrings = [memory_keyring(store, master) for _ in range(8)]
    await asyncio.gather(*(keyring.start() for keyring in keyrings))
    keys = await asyncio.gather(*(keyring.data_key_to_seal(SESSION) for keyring in keyrings))
    assert len({(key.id, key.secret) for key in keys}) == 1
    pepper = await asyncio.gather(*(keyring.secret("pepper") for keyring in keyrings))
    assert len(set(pepper)) == 1
    assert len(pepper[0]) == 32


async def test_a_destroyed_secret_is_another_one_afterwards() -> None:
    keyring = memory_keyring()
    first = await keyring.secret("signing.k1")
    await keyring.destroy("signing.k1")
    await keyring.destroy("signing.k2")
    assert await keyring.secret("signing.k1") != first


async def test_nothing_in_the_key_store_is_a_key() -> None:
    store = MemoryKeyStore()
    keyring = memory_keyring(store)
    await keyring.start()
    secrets = [(await keyring.data_key_to_seal(SESSION)).secret, await keyring.secret("pepper")]
    for prefix in ("data", "tenant", "secret"):
        async for _, stored in store.list(prefix):
            assert not any(secret in stored.value for secret in secrets)


async def test_an_entry_that_was_moved_or_changed_opens_nothing() -> None:
    store, master = MemoryKeyStore(), memory_master()
    keyring = memory_keyring(store, master)
    await key_ids(keyring, SESSION)
    stored = await store.get("data.acme.state.bot.s1")
    assert stored is not None
    await store.put("data.acme.state.bot.s2", stored.value, 0)
    await store.put("data.other.state.bot.s1", stored.value, 0)
    flipped = keys_pb2.KeyEntry.FromString(stored.value)
    wrapped = flipped.versions[0].wrapped
    flipped.versions[0].wrapped = wrapped[:-20] + bytes([wrapped[-20] ^ 1]) + wrapped[-19:]
    await store.put("data.acme.state.bot.s3", flipped.SerializeToString(), 0)
    fresh = memory_keyring(store, master)
    for stream in (OTHER, "state.acme.bot.s3"):
        with pytest.raises(DataDamaged):
            await fresh.data_key_to_seal(stream)
    (moved,) = await key_ids(fresh, "state.other.bot.s1")
    assert [moved] != await key_ids(fresh, SESSION)


async def test_a_key_store_of_another_master_key_is_refused(tmp_path: Path) -> None:
    store = MemoryKeyStore()
    await memory_keyring(store, FileMasterKey(tmp_path / "ours")).start()
    await memory_keyring(store, FileMasterKey(tmp_path / "ours")).start()
    for other in (FileMasterKey(tmp_path / "theirs"), memory_master()):
        with pytest.raises(FailedPrecondition, match="WEFT_SECURITY_SECRETS_DIR"):
            await memory_keyring(store, other).start()
    assert not (tmp_path / "theirs").exists()


class TestErasure:
    async def test_what_is_erased_stays_erased_for_all(self) -> None:
        store, master = MemoryKeyStore(), memory_master()
        here, there = memory_keyring(store, master), memory_keyring(store, master)
        heard: list[str] = []
        for keyring in (here, there):
            await keyring.start()
            keyring.on_erased(heard.append)
        (key_id,) = await key_ids(here, SESSION)
        assert await key_ids(there, SESSION) == [key_id]
        await here.erase(SESSION)
        await here.erase(SESSION)
        assert set(heard) == {SESSION}
        for keyring in (here, there, memory_keyring(store, master)):
            assert keyring.data_key_at_hand(SESSION, key_id) is None
            with pytest.raises(DataErased):
                await keyring.data_key_to_seal(SESSION)
            with pytest.raises(DataErased):
                await keyring.data_key_to_open(SESSION, key_id)
            with pytest.raises(DataErased):
                await keyring.rotate_data_key(SESSION)
        assert await key_ids(there, OTHER) == await key_ids(here, OTHER)

    async def test_a_session_that_stored_nothing_never_gets_a_key(self) -> None:
        keyring = memory_keyring()
        await keyring.erase(SESSION)
        with pytest.raises(DataErased):
            await keyring.data_key_to_seal(SESSION)

    async def test_a_stream_that_shares_its_key_is_not_erased(self) -> None:
        with pytest.raises(ValueError, match="its own"):
            await memory_keyring().erase("agents.acme.bot")

    async def test_an_erasure_that_nobody_told_is_noticed_within_seconds(self) -> None:
        store, master, time = DeafKeyStore(), memory_master(), SteppedClock()
        keyring = memory_keyring(store, master, time.clock())
        await keyring.start()
        (key_id,) = await key_ids(keyring, SESSION)
        await memory_keyring(store, master).erase(SESSION)
        assert keyring.data_key_at_hand(SESSION, key_id) is not None
        time.seconds += CACHED_SECONDS + 0.1
        assert keyring.data_key_at_hand(SESSION, key_id) is None
        with pytest.raises(DataErased):
            await keyring.data_key_to_open(SESSION, key_id)


class TestRotation:
    async def test_a_tenants_new_key_wraps_what_the_old_one_did(self) -> None:
        store, master = MemoryKeyStore(), memory_master()
        here, there = memory_keyring(store, master), memory_keyring(store, master)
        streams = (SESSION, OTHER, "agents.acme.bot", "state.other.bot.s1")
        before = await key_ids(here, *streams)
        assert await key_ids(there, SESSION) == before[:1]
        key_id, count = await here.rotate_tenant_key("acme")
        assert count == 3
        assert await wrapped_by(store, "data.acme") == {key_id}
        for keyring in (here, there, memory_keyring(store, master)):
            assert await key_ids(keyring, *streams) == before
        stored = await store.get("tenant.acme")
        assert stored is not None
        assert len(keys_pb2.KeyEntry.FromString(stored.value).versions) == 1

    @pytest.mark.parametrize("puts", range(1, 5))
    async def test_a_rotation_that_died_is_completed_by_the_next(self, puts: int) -> None:
        store, master = DyingKeyStore(puts=1_000), memory_master()
        before = await key_ids(memory_keyring(store, master), SESSION, OTHER)
        store.puts = puts
        with pytest.raises(ConnectionAbortedError):
            await memory_keyring(store, master).rotate_tenant_key("acme")
        assert await key_ids(memory_keyring(store, master), SESSION, OTHER) == before
        key_id, _ = await memory_keyring(store, master).rotate_tenant_key("acme")
        assert await wrapped_by(store, "data.acme") == {key_id}
        assert await key_ids(memory_keyring(store, master), SESSION, OTHER) == before

    async def test_tries_that_are_cut_off_add_no_key_each(self, tmp_path: Path) -> None:
        store = DyingKeyStore(puts=1_000)
        keyring = memory_keyring(store, FileMasterKey(tmp_path))
        await keyring.start()
        before = await key_ids(keyring, SESSION, OTHER, "agents.other.bot")
        rotations: list[Callable[[], Awaitable[tuple[str, int]]]] = [
            lambda: keyring.rotate_tenant_key("acme"),
            keyring.rotate_master_key,
        ]
        for rotate in rotations:
            cut_off = 0
            for _ in range(10):
                # Each try gets on by one entry.
                store.puts = 2
                try:
                    await rotate()
                except ConnectionAbortedError:
                    cut_off += 1
                    continue
                break
            store.puts = 1_000
            assert 2 <= cut_off < 10
        entry = await store.get("tenant.acme")
        assert entry is not None
        assert len(keys_pb2.KeyEntry.FromString(entry.value).versions) == 1
        assert generations(tmp_path) == 2
        fresh = memory_keyring(store, FileMasterKey(tmp_path))
        assert await key_ids(fresh, SESSION, OTHER, "agents.other.bot") == before

    async def test_keys_that_are_made_meanwhile_are_wrapped_by_a_key_that_stays(self) -> None:
        store, master = SlowKeyStore(), memory_master()
        await key_ids(memory_keyring(store, master), SESSION)
        streams = [f"state.acme.bot.m{number}" for number in range(60)]
        makers = [memory_keyring(store, master) for _ in range(3)]
        rotators = [memory_keyring(store, master) for _ in range(2)]
        made = [key_ids(maker, *streams[index::3]) for index, maker in enumerate(makers)]
        rotated = [rotator.rotate_tenant_key("acme") for rotator in rotators for _ in range(2)]
        ids, *_ = await asyncio.gather(asyncio.gather(*made), *rotated)
        fresh = memory_keyring(store, master)
        for index, known in enumerate(ids):
            assert await key_ids(fresh, *streams[index::3]) == known

    async def test_a_new_data_key_seals_and_the_old_one_opens(self) -> None:
        keyring = memory_keyring()
        (old,) = await key_ids(keyring, SESSION)
        new = await keyring.rotate_data_key(SESSION)
        assert await key_ids(keyring, SESSION) == [new]
        for key_id in (old, new):
            assert (await keyring.data_key_to_open(SESSION, key_id)).id == key_id
        with pytest.raises(DataDamaged):
            await keyring.data_key_to_open(SESSION, "0" * 16)

    async def test_a_key_that_sealed_too_much_is_followed_by_another(self) -> None:
        keyring = memory_keyring()
        key = await keyring.data_key_to_seal(SESSION)
        key.sealed = SEALED_MAX
        assert (await keyring.data_key_to_seal(SESSION)).id != key.id

    async def test_the_master_keys_next_generation_wraps_all(self, tmp_path: Path) -> None:
        store, there = MemoryKeyStore(), FileMasterKey(tmp_path)
        keyring = memory_keyring(store, FileMasterKey(tmp_path))
        await keyring.start()
        before = await key_ids(keyring, SESSION, "agents.other.bot")
        pepper = await keyring.secret("pepper")
        first_id = there.key_id or FileMasterKey(tmp_path).key_id
        key_id, count = await keyring.rotate_master_key()
        assert count == 3
        assert await wrapped_by(store, "tenant") | await wrapped_by(store, "secret") == {key_id}
        # One process read the folder before, one comes when the old generation is gone.
        old = tmp_path / f"master.{first_id}.key"
        for master in (there, FileMasterKey(tmp_path)):
            fresh = memory_keyring(store, master)
            await fresh.start()
            assert await key_ids(fresh, SESSION, "agents.other.bot") == before
            assert await fresh.secret("pepper") == pepper
            old.unlink(missing_ok=True)

    async def test_a_master_key_in_a_variable_is_rotated_by_its_next_value(self) -> None:
        store, old, new = MemoryKeyStore(), new_master_text(), new_master_text()
        keyring = memory_keyring(store, EnvironmentMasterKey(old))
        await keyring.start()
        before = await key_ids(keyring, SESSION)
        with pytest.raises(FailedPrecondition, match="new key"):
            await keyring.rotate_master_key()
        await memory_keyring(store, EnvironmentMasterKey(f"{new},{old}")).rotate_master_key()
        fresh = memory_keyring(store, EnvironmentMasterKey(new))
        await fresh.start()
        assert await key_ids(fresh, SESSION) == before
