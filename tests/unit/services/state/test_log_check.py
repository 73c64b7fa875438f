"""What `VerifyLog` finds in a log that is damaged, cut off or put together of parts."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.events.aggregate import SNAPSHOT_COMMITS
from mesh.events.head_ledger import HeadLedger
from mesh.events.memory import LogEntry, MemoryEventStore, MemoryLog
from mesh.events.store import START, StreamName
from services.state.log_check import PROBLEMS_MAX, PROGRESS_COMMITS, LogCheck
from tests.support.events import appended
from weft.events.v1 import events_pb2
from weft.state.v1 import state_service_pb2

ONE, TWO = StreamName("state", "acme", ("bot", "s1")), StreamName("agents", "acme", ("bot",))
OTHER = StreamName("state", "other", ("bot", "s1"))
Damage = Callable[[MemoryLog], object]


async def a_log() -> MemoryLog:
    """Two streams of the tenant, interleaved with one of another tenant."""
    log = MemoryLog()
    store = MemoryEventStore(log)
    one = two = other = START
    for number in range(4):
        (one,) = await appended(store, ONE, f"one {number}", head=one)
        (two,) = await appended(store, TWO, f"two {number}", head=two)
        (other,) = await appended(store, OTHER, f"other {number}", head=other)
    return log


async def ledger_of(log: MemoryLog, path: Path) -> None:
    ledger = HeadLedger(MemoryEventStore(log), path / "heads.sqlite3")
    await ledger.start()
    await ledger.catch_up()
    await ledger.stop()


async def verified(
    log: MemoryLog, path: Path, tenant: str = "acme"
) -> list[state_service_pb2.VerifyLogResponse]:
    store = MemoryEventStore(log)
    ledger = HeadLedger(store, path / "heads.sqlite3")
    await ledger.start()
    responses = [response async for response in LogCheck(store, ledger, tenant).run()]
    await ledger.stop()
    return responses


def problems_in(responses: list[state_service_pb2.VerifyLogResponse]) -> list[str]:
    return [f"{each.stream}: {each.problem}" for one in responses for each in one.problems]


def change(log: MemoryLog, index: int, **fields: object) -> None:
    """Sets fields of the commit at an index of the log."""
    entry = log.entries[index]
    commit = events_pb2.Commit.FromString(entry.data)
    for name, value in fields.items():
        setattr(commit, name, value)
    log.entries[index] = LogEntry(entry.stream, entry.time_ns, commit.SerializeToString())


def swap(log: MemoryLog) -> None:
    log.entries[3], log.entries[6] = log.entries[6], log.entries[3]


def garble(log: MemoryLog) -> None:
    entry = log.entries[3]
    log.entries[3] = LogEntry(entry.stream, entry.time_ns, b"\xff" + entry.data)


def move(log: MemoryLog) -> None:
    """Another tenant's commit in a stream of ours."""
    log.entries[3] = LogEntry(str(ONE), 0, log.entries[2].data)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a commit changed": (lambda log: change(log, 3, actor="mallory"), "the hash chain breaks"),
    "the last commit changed": (lambda log: change(log, 9, actor="mallory"), "isn't the one"),
    "commits swapped": (swap, "comes next, but the log has"),
    "a commit doesn't parse": (garble, "doesn't parse"),
    "another tenant's commit": (move, "says that it is of the tenant 'other'"),
    "its tail lost": (lambda log: log.entries.__delitem__(slice(6, None)), "ends at position 6"),
    "a position that isn't": (lambda log: change(log, 3, previous_position=2), "stands at 2"),
    "an unknown codec": (lambda log: change(log, 9, codec="rot13"), "no codec named"),
}


async def test_a_log_that_holds_has_no_problem(tmp_path: Path) -> None:
    log = await a_log()
    await ledger_of(log, tmp_path)
    responses = await verified(log, tmp_path)
    last = responses[-1]
    assert problems_in(responses) == []
    assert (last.done, last.stream_count, last.commit_count) == (True, 2, 8)
    assert not any(response.done for response in responses[:-1])


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
async def test_damage_is_found_and_named(damage: Damage, said: str, tmp_path: Path) -> None:
    log = await a_log()
    await ledger_of(log, tmp_path)
    damage(log)
    responses = await verified(log, tmp_path)
    assert any(said in problem for problem in problems_in(responses)), problems_in(responses)
    assert responses[-1].done


async def test_the_tail_of_one_stream_is_missed_though_the_log_goes_on(tmp_path: Path) -> None:
    log = await a_log()
    await ledger_of(log, tmp_path)
    # As if it had been restored from a backup, and then gone on with.
    del log.entries[9:]
    store = MemoryEventStore(log)
    head = START
    for number in range(5):
        (head,) = await appended(
            store, StreamName("state", "acme", ("bot", "s2")), str(number), head=head
        )
    problems = problems_in(await verified(log, tmp_path))
    assert any(str(ONE) in each and "lost revision 4" in each for each in problems), problems
    assert any("another commit at position 12" in each for each in problems), problems


async def test_a_snapshot_of_a_past_that_never_was_is_found(tmp_path: Path) -> None:
    log = MemoryLog()
    store = MemoryEventStore(log)
    heads = await appended(store, ONE, *map(str, range(SNAPSHOT_COMMITS + 5)))
    snapshot = events_pb2.Snapshot(
        stream=str(ONE),
        revision=heads[-3].revision,
        position=heads[-3].position,
        head_hash=heads[-3].hash,
    )
    await store.save_snapshot(snapshot)
    assert problems_in(await verified(log, tmp_path)) == []
    snapshot.head_hash = b"x" * 32
    await store.save_snapshot(snapshot)
    (problem,) = problems_in(await verified(log, tmp_path))
    assert "isn't the one that a snapshot had seen" in problem


async def test_progress_comes_while_it_looks_and_others_work_meanwhile(tmp_path: Path) -> None:
    log = MemoryLog()
    await appended(MemoryEventStore(log), ONE, *map(str, range(2 * PROGRESS_COMMITS)))
    turns = 0

    async def work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(work())
    responses = await verified(log, tmp_path)
    other.cancel()
    counts = [response.commit_count for response in responses]
    assert {PROGRESS_COMMITS, 2 * PROGRESS_COMMITS} <= set(counts)
    assert turns > PROGRESS_COMMITS / 32


async def test_of_too_many_problems_the_rest_is_counted(tmp_path: Path) -> None:
    log = MemoryLog()
    await appended(MemoryEventStore(log), ONE, *map(str, range(PROBLEMS_MAX + 10)))
    for index in range(len(log.entries)):
        change(log, index, actor="mallory")
    problems = problems_in(await verified(log, tmp_path))
    assert len(problems) == PROBLEMS_MAX + 1
    assert "more problems" in problems[-1]
