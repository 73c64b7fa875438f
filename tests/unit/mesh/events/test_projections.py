"""A read model follows the log, whatever becomes of its process and its file."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing, nullcontext
from pathlib import Path

import pytest

from mesh.errors import DataDamaged, EventStoreUnavailable, Internal
from mesh.events import projection as projection_module
from mesh.events.jetstream.store import connect_store
from mesh.events.memory import LogEntry, MemoryEventStore, MemoryLog
from mesh.events.projection import BATCH_COMMITS_MAX, REBUILDS_MAX, Projection
from mesh.events.store import START, EventStore, Selection, StoredCommit, StreamName
from tests.support.events import appended, text_of
from tests.support.nats import NatsServer
from tests.support.processes import ROOT

TABLES = "CREATE TABLE said (revision INTEGER NOT NULL, text TEXT NOT NULL);"
CATCH_UP_SECONDS = 20.0
CRASHED = 70


def note(connection: sqlite3.Connection, stored: StoredCommit) -> None:
    for revision, event in enumerate(stored.commit.events, stored.commit.revision):
        row = (revision, text_of(event.payload.value))
        connection.execute("INSERT INTO said VALUES (?, ?)", row)


def said(connection: sqlite3.Connection) -> list[str]:
    return [text for (text,) in connection.execute("SELECT text FROM said ORDER BY rowid")]


@pytest.fixture(params=["memory", "jetstream"])
async def store(
    request: pytest.FixtureRequest, nats_server: NatsServer
) -> AsyncIterator[EventStore]:
    if request.param == "memory":
        yield MemoryEventStore()
        return
    store = await connect_store(nats_server.url, name="projections")
    yield store
    await store.close()


@pytest.fixture
def stream(tenant: str) -> StreamName:
    return StreamName("state", tenant, ("bot", "s1"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "said.sqlite"


@asynccontextmanager
async def following(
    store: EventStore,
    file: Path,
    stream: StreamName,
    *,
    tables: str = TABLES,
    apply: Callable[[sqlite3.Connection, StoredCommit], None] = note,
    observe: Callable[[Sequence[StoredCommit]], None] | None = None,
) -> AsyncIterator[Projection]:
    selections = (Selection(f"state.{stream.tenant}"),)
    projection = Projection(
        store, file, tables=tables, selections=selections, apply=apply, observe=observe
    )
    await projection.start()
    try:
        yield projection
    finally:
        await projection.stop()


class TestFollowing:
    async def test_it_begins_with_all_that_was_said_before(
        self, store: EventStore, file: Path, stream: StreamName
    ) -> None:
        await appended(store, stream, "a", "b")
        async with following(store, file, stream) as projection:
            assert said(projection.connection) == ["a", "b"]

    async def test_whoever_wrote_reads_it_after_catching_up(
        self, store: EventStore, file: Path, stream: StreamName
    ) -> None:
        async with following(store, file, stream) as projection:
            head = (await appended(store, stream, "a"))[-1]
            await projection.catch_up(CATCH_UP_SECONDS)
            assert said(projection.connection) == ["a"]
            await appended(store, stream, "b", head=head)
            await projection.catch_up(CATCH_UP_SECONDS)
            assert said(projection.connection) == ["a", "b"]

    async def test_what_was_not_selected_only_moves_the_checkpoint(
        self, store: EventStore, file: Path, stream: StreamName
    ) -> None:
        other = StreamName("agents", stream.tenant, ("bot",))
        async with following(store, file, stream) as projection:
            head = (await appended(store, other, "not for us"))[-1]
            await projection.catch_up(CATCH_UP_SECONDS)
            assert said(projection.connection) == []
            assert projection.position >= head.position

    async def test_the_checkpoint_of_what_was_not_selected_is_stored_seldom(
        self,
        store: EventStore,
        file: Path,
        stream: StreamName,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(projection_module, "CHECKPOINT_POSITIONS", 3)
        other = StreamName("agents", stream.tenant, ("bot",))
        async with following(store, file, stream) as projection:
            await appended(store, stream, "ours")
            await projection.catch_up(CATCH_UP_SECONDS)
            stored, head = checkpoint_of(file), START
            assert stored == projection.position
            for _ in range(2):
                (head,) = await appended(store, other, "not for us", head=head)
                await projection.catch_up(CATCH_UP_SECONDS)
            assert checkpoint_of(file) == stored
            await appended(store, other, "not for us", head=head)
            await projection.catch_up(CATCH_UP_SECONDS)
            assert checkpoint_of(file) == projection.position
            assert said(projection.connection) == ["ours"]

    async def test_more_commits_than_one_batch_holds_arrive_in_order(
        self, file: Path, stream: StreamName
    ) -> None:
        store = MemoryEventStore()
        texts = [str(number) for number in range(2 * BATCH_COMMITS_MAX + 1)]
        await appended(store, stream, *texts)
        observed: list[int] = []
        async with following(
            store, file, stream, observe=lambda batch: observed.append(len(batch))
        ) as projection:
            assert said(projection.connection) == texts
        assert sum(observed) == len(texts)
        assert max(observed) <= BATCH_COMMITS_MAX

    async def test_observers_are_told_of_what_is_stored_already(
        self, file: Path, stream: StreamName
    ) -> None:
        store = MemoryEventStore()
        seen: list[list[str]] = []

        def observe(batch: Sequence[StoredCommit]) -> None:
            with closing(sqlite3.connect(file)) as reader:
                seen.append(said(reader))

        await appended(store, stream, "a", "b")
        async with following(store, file, stream, observe=observe):
            pass
        assert seen[-1] == ["a", "b"]


class TestRestarts:
    async def test_it_goes_on_where_it_stopped(
        self, store: EventStore, file: Path, stream: StreamName
    ) -> None:
        head = (await appended(store, stream, "a"))[-1]
        async with following(store, file, stream):
            pass
        await appended(store, stream, "b", head=head)
        applied: list[str] = []

        def apply(connection: sqlite3.Connection, stored: StoredCommit) -> None:
            applied.extend(text_of(event.payload.value) for event in stored.commit.events)
            note(connection, stored)

        async with following(store, file, stream, apply=apply) as projection:
            assert applied == ["b"]
            assert said(projection.connection) == ["a", "b"]

    async def test_a_process_that_dies_within_a_batch_leaves_none_of_it(
        self, nats_server: NatsServer, file: Path, stream: StreamName
    ) -> None:
        """Another process follows the log, and dies after it wrote half of a commit."""
        store = await connect_store(nats_server.url, name="projections")
        await appended(store, stream, "a", "b", "die here", "c")
        died = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, __file__, nats_server.url, str(file), str(stream)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "generated")))},
            timeout=60,
            check=False,
        )
        assert died.returncode == CRASHED
        with closing(sqlite3.connect(file)) as reader:
            (position,) = reader.execute("SELECT position FROM checkpoint").fetchone()
            left = said(reader)
        expected = [text async for text in texts_until(store, stream, position)]
        assert left == expected
        assert "die here" not in left

        async with following(store, file, stream) as projection:
            assert said(projection.connection) == ["a", "b", "die here", "c"]
        await store.close()

    @pytest.mark.parametrize("damage", [b"not a database", b"SQLite format 3\x00" + b"x" * 8192])
    async def test_a_damaged_file_is_built_anew(
        self, file: Path, stream: StreamName, damage: bytes
    ) -> None:
        store = MemoryEventStore()
        await appended(store, stream, "a")
        await asyncio.to_thread(file.write_bytes, damage)
        async with following(store, file, stream) as projection:
            assert said(projection.connection) == ["a"]

    async def test_other_tables_are_built_anew(self, file: Path, stream: StreamName) -> None:
        store = MemoryEventStore()
        await appended(store, stream, "a")
        async with following(store, file, stream):
            pass
        newer = TABLES.replace("said (", "said (extra TEXT, ")

        def note_more(connection: sqlite3.Connection, stored: StoredCommit) -> None:
            connection.execute("INSERT INTO said VALUES ('more', 1, 'a')")

        async with following(store, file, stream, tables=newer, apply=note_more) as projection:
            rows = projection.connection.execute("SELECT extra, text FROM said").fetchall()
            assert rows == [("more", "a")]

    @pytest.mark.parametrize("texts", [(), ("x",), ("x", "y", "z")])
    async def test_what_was_read_from_another_log_is_forgotten(
        self, file: Path, stream: StreamName, texts: Sequence[str]
    ) -> None:
        before = MemoryEventStore()
        await appended(before, stream, "a", "b")
        async with following(before, file, stream):
            pass
        after = MemoryEventStore()
        await appended(after, stream, *texts)
        async with following(after, file, stream) as projection:
            assert said(projection.connection) == list(texts)


class TestFaults:
    async def test_rows_that_cannot_be_read_are_built_anew(
        self, file: Path, stream: StreamName
    ) -> None:
        def whole(connection: sqlite3.Connection) -> list[str]:
            if "broken" in said(connection):
                raise DataDamaged("a row is damaged")
            return said(connection)

        def note_if_whole(connection: sqlite3.Connection, stored: StoredCommit) -> None:
            whole(connection)
            note(connection, stored)

        store = MemoryEventStore()
        head = (await appended(store, stream, "a", "b"))[-1]
        async with following(store, file, stream, apply=note_if_whole) as projection:
            projection.connection.execute("UPDATE said SET text = 'broken'")
            projection.connection.commit()
            readers = (projection.read(whole) for _ in range(5))
            assert await asyncio.gather(*readers) == [["a", "b"]] * 5
            projection.connection.execute("UPDATE said SET text = 'broken'")
            projection.connection.commit()
            await appended(store, stream, "c", head=head)
            await projection.catch_up(CATCH_UP_SECONDS)
            assert said(projection.connection) == ["a", "b", "c"]

    async def test_rows_that_are_never_readable_are_said_to_be_damaged(
        self, file: Path, stream: StreamName
    ) -> None:
        def unreadable(connection: sqlite3.Connection) -> None:
            raise DataDamaged("a row is damaged")

        store = MemoryEventStore()
        await appended(store, stream, "a")
        async with following(store, file, stream) as projection:
            for _ in range(REBUILDS_MAX + 2):
                with pytest.raises(DataDamaged):
                    await projection.read(unreadable)
            assert said(projection.connection) == ["a"]

    @pytest.mark.parametrize(("key", "kept"), [("k1", "changed"), ("k2", "a")])
    async def test_rows_of_another_key_are_built_anew(
        self, file: Path, stream: StreamName, key: str, kept: str
    ) -> None:
        store = MemoryEventStore()
        await appended(store, stream, "a")
        for sealed_with, expected in (("k1", "a"), (key, kept)):
            selections = [Selection(str(stream))]
            projection = Projection(store, file, tables=TABLES, selections=selections, apply=note)
            await projection.start(sealed_with)
            assert said(projection.connection) == [expected]
            projection.connection.execute("UPDATE said SET text = 'changed'")
            projection.connection.commit()
            await projection.stop()

    async def test_a_log_that_is_damaged_further_on_is_said_to_who_needs_it(
        self, file: Path, stream: StreamName
    ) -> None:
        log = MemoryLog()
        store = MemoryEventStore(log)
        await appended(store, stream, "a")
        async with following(store, file, stream) as projection:
            log.entries.append(LogEntry(str(stream), 1, b"\xff\xff"))
            await appended(store, StreamName("state", stream.tenant, ("bot", "s2")), "b")
            with pytest.raises(DataDamaged):
                await projection.catch_up(CATCH_UP_SECONDS)
            assert said(projection.connection) == ["a"]

    @pytest.mark.parametrize(
        ("times", "error", "raised"),
        [
            (1, sqlite3.DatabaseError("malformed"), None),
            (100, sqlite3.DatabaseError("malformed"), DataDamaged),
            (1, KeyError("unforeseen"), Internal),
        ],
    )
    async def test_whatever_befalls_it_is_mended_or_said_to_who_waits(
        self,
        file: Path,
        stream: StreamName,
        times: int,
        error: Exception,
        raised: type[Exception] | None,
    ) -> None:
        failing = iter([error] * times)

        def note_or_fail(connection: sqlite3.Connection, stored: StoredCommit) -> None:
            if fault := next(failing, None):
                raise fault
            note(connection, stored)

        store = MemoryEventStore()
        await appended(store, stream, "a")
        async with asyncio.timeout(CATCH_UP_SECONDS):
            with pytest.raises(raised) if raised else nullcontext():
                async with following(store, file, stream, apply=note_or_fail) as projection:
                    assert said(projection.connection) == ["a"]

    async def test_a_file_that_is_damaged_while_it_is_read_is_built_anew(
        self, file: Path, stream: StreamName
    ) -> None:
        store = MemoryEventStore()
        await appended(store, stream, *("x" * 4_000 for _ in range(20)))
        async with following(store, file, stream) as projection:
            projection.scrub()
            overwrite_pages(file)
            projection.connection.execute("PRAGMA shrink_memory")
            with pytest.raises(sqlite3.DatabaseError):
                said(projection.connection)
            assert len(await projection.read(said)) == 20

    async def test_a_store_that_is_away_is_followed_again_when_it_is_back(
        self, harmed_nats_server: NatsServer, file: Path, stream: StreamName
    ) -> None:
        store = await connect_store(harmed_nats_server.url, name="projections")
        head = (await appended(store, stream, "a"))[-1]
        async with following(store, file, stream) as projection:
            await harmed_nats_server.kill()
            with pytest.raises(EventStoreUnavailable):
                await projection.catch_up(0.5)
            await harmed_nats_server.start()
            await appended(store, stream, "b", head=head)
            await projection.catch_up(CATCH_UP_SECONDS)
            assert said(projection.connection) == ["a", "b"]
        await store.close()


def overwrite_pages(file: Path) -> None:
    """All but the first, which the connection has read."""
    data = file.read_bytes()
    file.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))


def checkpoint_of(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        position: int = connection.execute("SELECT position FROM checkpoint").fetchone()[0]
    return position


async def texts_until(store: EventStore, stream: StreamName, position: int) -> AsyncIterator[str]:
    """What the log says up to a position."""
    async for page in store.read(stream):
        for stored in page:
            if stored.position <= position:
                for event in stored.commit.events:
                    yield text_of(event.payload.value)


def note_or_die(connection: sqlite3.Connection, stored: StoredCommit) -> None:
    note(connection, stored)
    if any(text_of(event.payload.value) == "die here" for event in stored.commit.events):
        os._exit(CRASHED)


async def follow_until_death(url: str, file: Path, stream: StreamName) -> None:
    store = await connect_store(url, name="doomed")
    async with following(store, file, stream, apply=note_or_die):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(follow_until_death(sys.argv[1], Path(sys.argv[2]), StreamName.parse(sys.argv[3])))
