"""What every object store does, run on each back end: on files, and on a real S3 server."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.errors import InvalidArgument
from services.blobs.backends.files import FileObjects
from services.blobs.backends.s3 import S3Objects
from services.blobs.objects import ABSENT, ObjectStore, VersionConflict
from services.blobs.settings import PART_BYTES
from tests.support.blobs import S3Server, running_s3

MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
async def s3(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[S3Server]:
    async with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["files", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "files":
        return FileObjects(tmp_path / "objects", free_bytes_min=0)
    server: S3Server = request.getfixturevalue("s3")
    return S3Objects(server.settings(s3_prefix=f"p/{uuid.uuid4().hex}"))


async def pieces(*each: bytes) -> AsyncIterator[bytes]:
    for piece in each:
        yield piece


async def read(store: ObjectStore, start: int, length: int) -> bytes | None:
    found = await store.read("d/a/x", start, length)
    return None if found is None else bytes(found)


async def listed(store: ObjectStore, folder: str) -> dict[str, int]:
    return {each.key: each.size_bytes async for page in store.list(folder) for each in page}


class TestObjectStore:
    async def test_an_object_is_what_was_put_last(self, store: ObjectStore) -> None:
        assert await store.get("h/a/x") is None
        await store.put("h/a/x", b"one", ABSENT)
        found = await store.get("h/a/x")
        assert found is not None
        await store.put("h/a/x", b"two", found[1])
        again = await store.get("h/a/x")
        assert again is not None
        assert again[0] == b"two"
        assert again[1] != found[1]

    async def test_a_put_on_another_version_changes_nothing(self, store: ObjectStore) -> None:
        await store.put("h/a/x", b"one", ABSENT)
        first = await store.get("h/a/x")
        assert first is not None
        await store.put("h/a/x", b"two", first[1])
        for stale in (ABSENT, first[1]):
            with pytest.raises(VersionConflict):
                await store.put("h/a/x", b"three", stale)
        found = await store.get("h/a/x")
        assert found is not None
        assert found[0] == b"two"

    async def test_what_was_deleted_is_gone(self, store: ObjectStore) -> None:
        await store.put("h/a/x", b"one", ABSENT)
        await store.delete("h/a/x")
        await store.delete("h/a/x")
        await store.destroy("h/a/x")
        assert await store.get("h/a/x") is None
        assert await store.read("h/a/x", 0, 1) is None
        await store.put("h/a/x", b"two", ABSENT)
        await store.destroy("h/a/x")
        assert await store.get("h/a/x") is None

    @pytest.mark.parametrize("size", [1, PART_BYTES, 2 * PART_BYTES + 1])
    async def test_a_range_of_what_was_uploaded_is_read(
        self, store: ObjectStore, size: int
    ) -> None:
        data = os.urandom(size)
        await store.upload("d/a/x", pieces(data[: size // 3], data[size // 3 :]))
        for start, length in ((0, size), (size - 1, 1), (size // 2, 100), (0, 1)):
            assert await read(store, start, length) == data[start : start + length]

    async def test_a_range_behind_the_end_is_less(self, store: ObjectStore) -> None:
        await store.upload("d/a/x", pieces(b"0123456789"))
        for start, expected in ((8, b"89"), (10, b""), (11, b"")):
            assert await read(store, start, 5) == expected

    @pytest.mark.parametrize("count", [0, 1, 30])
    async def test_an_upload_that_fails_leaves_nothing(
        self, store: ObjectStore, count: int
    ) -> None:
        async def failing() -> AsyncIterator[bytes]:
            for _ in range(count):
                yield bytes(MEBIBYTE)
            raise InvalidArgument("no more")

        with pytest.raises(InvalidArgument, match="no more"):
            await store.upload("d/a/x", failing())
        assert await store.read("d/a/x", 0, 1) is None
        assert await listed(store, "d") == {}

    async def test_nothing_is_there_before_all_is(self, store: ObjectStore) -> None:
        seen = []

        async def watched() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield bytes(MEBIBYTE)
            seen.append((await read(store, 0, 1), await listed(store, "d")))

        await store.upload("d/a/x", watched())
        assert seen == [(None, {})]
        assert await listed(store, "d") == {"d/a/x": 20 * MEBIBYTE}

    async def test_a_list_has_all_below_its_folder(self, store: ObjectStore) -> None:
        assert await listed(store, "h") == {}
        for key in ("h/a/x", "h/a/y", "h/b/x", "ha/x", "d/a/x"):
            await store.put(key, key.encode(), ABSENT)
        assert set(await listed(store, "h")) == {"h/a/x", "h/a/y", "h/b/x"}
        assert set(await listed(store, "h/a")) == {"h/a/x", "h/a/y"}

    async def test_pages_are_in_order_without_gap(self, store: ObjectStore) -> None:
        names = ["a", "b", "b-1", "b-2", "b0", "ba", "c9", "zz"]
        for name in reversed(names):
            await store.put(f"h/a/{name}", b"x", ABSENT)
        await store.put("h/b/a", b"x", ABSENT)
        assert await store.page("h/none", "", "", 10) == []
        for prefix in ("", "b", "b-", "zz", "zzz", "a"):
            wanted = [name for name in names if name.startswith(prefix)]
            seen: list[str] = []
            while page := await store.page("h/a", prefix, seen[-1] if seen else "", 3):
                seen += page
            assert seen == wanted, prefix

    async def test_of_racing_puts_one_wins_each(self, store: ObjectStore) -> None:
        if not store.shared:
            pytest.skip("files are one process's, which lets one go at a time")
        ends = await asyncio.gather(
            *(store.put("h/a/x", str(number).encode(), ABSENT) for number in range(10)),
            return_exceptions=True,
        )
        assert [end is None for end in ends].count(True) == 1
        assert all(isinstance(end, VersionConflict) for end in ends if end is not None)


class TestFiles:
    async def test_what_a_killed_process_left_is_cleared_away(self, tmp_path: Path) -> None:
        store = FileObjects(tmp_path / "objects", free_bytes_min=0)
        await store.put("d/a/x", b"x", ABSENT)
        left = tmp_path / "objects" / "d" / "a" / "y#1"
        left.write_bytes(b"half")
        assert await listed(store, "d") == {"d/a/x": 1}
        await store.open()
        assert not left.exists()
        assert await listed(store, "d") == {"d/a/x": 1}

    async def test_only_its_owner_may_look(self, tmp_path: Path) -> None:
        FileObjects(tmp_path / "objects", free_bytes_min=0)
        assert (tmp_path / "objects").stat().st_mode & 0o777 == 0o700

    async def test_what_was_put_in_is_overwritten(self, tmp_path: Path) -> None:
        store = FileObjects(tmp_path / "objects", free_bytes_min=0)
        await store.put("h/a/x", b"one", ABSENT)
        path = tmp_path / "objects" / "h" / "a" / "x"
        other_name = tmp_path / "linked"
        os.link(path, other_name)
        found = await store.get("h/a/x")
        assert found is not None
        await store.put("h/a/x", b"two", found[1])
        assert other_name.read_bytes() == bytes(3)
        other_name.unlink()
        os.link(path, other_name)
        await store.destroy("h/a/x")
        assert other_name.read_bytes() == bytes(3)

    async def test_nobody_reads_what_is_being_overwritten(self, tmp_path: Path) -> None:
        store = FileObjects(tmp_path / "objects", free_bytes_min=0)
        seen: set[bytes | None] = set()

        async def reading() -> None:
            while True:
                found = await store.get("h/a/x")
                seen.add(None if found is None else found[0])

        readers = [asyncio.create_task(reading()) for _ in range(8)]
        for _ in range(100):
            await store.put("h/a/x", b"one", ABSENT)
            found = await store.get("h/a/x")
            assert found is not None
            await store.put("h/a/x", b"two", found[1])
            await store.destroy("h/a/x")
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
        assert all(reader.cancelled() for reader in readers)
        assert seen == {b"one", b"two", None}

    async def test_what_a_crash_kept_from_being_destroyed_is_so_at_the_start(
        self, tmp_path: Path
    ) -> None:
        store = FileObjects(tmp_path / "objects", free_bytes_min=0)
        await store.put("h/a/x", b"x", ABSENT)
        left, other_name = tmp_path / "objects" / "h" / "a" / "x#0", tmp_path / "linked"
        (tmp_path / "objects" / "h" / "a" / "x").rename(left)
        os.link(left, other_name)
        assert await listed(store, "h") == {}
        assert await store.page("h/a", "", "", 10) == []
        await store.open()
        assert not left.exists()
        assert other_name.read_bytes() == bytes(1)
