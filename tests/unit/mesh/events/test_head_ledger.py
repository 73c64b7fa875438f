"""Where streams end, as it is remembered outside the log."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mesh.errors import DataDamaged, Internal
from mesh.events.head_ledger import HeadLedger
from mesh.events.memory import MemoryEventStore, MemoryLog
from mesh.events.store import START, Head, StreamName
from tests.support.events import appended

ONE, TWO = StreamName("state", "acme", ("bot", "s1")), StreamName("state", "acme", ("bot", "s2"))
OTHER = StreamName("state", "other", ("bot", "s1"))


async def remembered(log: MemoryLog, path: Path) -> tuple[dict[str, Head], str]:
    ledger = HeadLedger(MemoryEventStore(log), path)
    await ledger.start()
    if not ledger.problem:
        await ledger.catch_up()
    heads = dict(ledger.heads("acme"))
    await ledger.stop()
    return heads, ledger.problem


async def test_it_has_the_last_head_of_each_stream_and_goes_on_after_a_restart(
    tmp_path: Path,
) -> None:
    log = MemoryLog()
    store, path = MemoryEventStore(log), tmp_path / "heads.sqlite3"
    one = (await appended(store, ONE, "a", "b", "c"))[-1]
    await appended(store, OTHER, "x")
    assert await remembered(log, path) == ({str(ONE): one}, "")
    one = (await appended(MemoryEventStore(log), ONE, "d", head=one))[-1]
    two = (await appended(MemoryEventStore(log), TWO, "e"))[-1]
    assert await remembered(log, path) == ({str(ONE): one, str(TWO): two}, "")


async def test_what_is_stored_right_before_it_stops_is_in_it(tmp_path: Path) -> None:
    log = MemoryLog()
    store = MemoryEventStore(log)
    ledger = HeadLedger(store, tmp_path / "heads.sqlite3")
    await ledger.start()
    head = (await appended(store, ONE, *map(str, range(400))))[-1]
    await ledger.stop()
    heads, _ = await remembered(log, tmp_path / "heads.sqlite3")
    assert heads == {str(ONE): head}


@pytest.mark.parametrize("harm", ["shorter", "another", "replaced"])
async def test_a_log_that_differs_is_told_and_changes_nothing(tmp_path: Path, harm: str) -> None:
    log, path = MemoryLog(), tmp_path / "heads.sqlite3"
    head = (await appended(MemoryEventStore(log), ONE, "a", "b", "c"))[-1]
    await remembered(log, path)
    if harm == "shorter":
        del log.entries[2:]
    elif harm == "another":
        log.id = "another"
    else:
        log.entries.clear()
        await appended(MemoryEventStore(log), TWO, "a", "b", "c", "d")
    for _ in range(2):
        heads, problem = await remembered(log, path)
        assert problem.startswith("the event log")
        assert heads == {str(ONE): head}


async def test_an_accepted_loss_begins_anew(tmp_path: Path) -> None:
    log, path = MemoryLog(), tmp_path / "heads.sqlite3"
    heads = await appended(MemoryEventStore(log), ONE, "a", "b", "c")
    await remembered(log, path)
    del log.entries[2:]
    ledger = HeadLedger(MemoryEventStore(log), path)
    await ledger.start(accept_loss=True)
    await ledger.stop()
    assert await remembered(log, path) == ({str(ONE): heads[1]}, "")


async def test_a_damaged_file_is_refused_unless_that_is_accepted(tmp_path: Path) -> None:
    log, path = MemoryLog(), tmp_path / "heads.sqlite3"
    (head,) = await appended(MemoryEventStore(log), ONE, "a", head=START)
    path.write_text("no table\n" * 500)
    ledger = HeadLedger(MemoryEventStore(log), path)
    with pytest.raises(DataDamaged, match="accept-loss"):
        await ledger.start()
    await ledger.stop()
    await ledger.start(accept_loss=True)
    await ledger.stop()
    assert await remembered(log, path) == ({str(ONE): head}, "")


async def test_a_file_that_is_damaged_while_it_follows_is_said_to_who_waits(
    tmp_path: Path,
) -> None:
    store, path = MemoryEventStore(), tmp_path / "heads.sqlite3"
    ledger = HeadLedger(store, path)
    await ledger.start()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TRIGGER t BEFORE INSERT ON heads BEGIN SELECT RAISE(FAIL, ''); END"
        )
        connection.commit()
    await appended(store, ONE, "a")
    with pytest.raises(Internal, match="doesn't follow"):
        await ledger.catch_up()
    await ledger.stop()
