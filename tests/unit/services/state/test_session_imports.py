"""What an import takes and refuses, on a log in memory."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.call import Call
from mesh.clock import SYSTEM
from mesh.errors import AlreadyExists, InvalidArgument, LimitExceeded, NotFound
from mesh.events.aggregate import Repository
from mesh.events.memory import MemoryEventStore
from mesh.events.store import START, CommitDraft, NewEvent
from services.control.domain import SPLIT_FOLD
from services.state import domain
from services.state.exporting import export
from services.state.importing import Imports
from services.state.read_model import SessionsReadModel
from services.state.revisions import Revisions
from services.state.settings import StateSettings
from tests.support.keys import memory_keyring
from tests.support.session_log import SESSION, SessionLog
from tests.support.session_walk import walked
from weft.agents.v1 import agent_pb2, agent_service_pb2
from weft.events.v1 import events_pb2 as envelope_pb2
from weft.state.v1 import events_pb2, session_pb2
from weft.state.v1.session_service_pb2 import ImportSessionRequest, SessionRecord

PARENT = "tenants/other/agents/bot"
IMPORTED = f"{PARENT}/sessions/new"
BLOBS = "x" * 300_000
Records = list[SessionRecord]


class Agents:
    """Has every agent, at revision 7."""

    async def GetAgent(  # noqa: N802 - gRPC's name
        self, request: agent_service_pb2.GetAgentRequest
    ) -> agent_service_pb2.GetAgentResponse:
        return agent_service_pb2.GetAgentResponse(
            agent=agent_pb2.Agent(name=request.name, revision=7)
        )


def imports_of(store: MemoryEventStore, **bounds: Any) -> Imports:
    agents: Any = Agents()
    repository = Repository(store, domain.SESSION_FOLD)
    revisions = Revisions(agents, Repository(store, SPLIT_FOLD))
    return Imports(repository, revisions, StateSettings(**bounds), SYSTEM)


def a_call() -> Call:
    return Call("/weft.state.v1.SessionService/ImportSession", time.monotonic() + 10, "r1")


async def parts(records: Sequence[SessionRecord], size: int = 10) -> AsyncIterator[Any]:
    for start in range(0, max(len(records), 1), size):
        yield ImportSessionRequest(
            parent=PARENT,
            session_id="" if start else "new",
            records=records[start : start + size],
        )


async def stored(log: SessionLog) -> MemoryEventStore:
    store, head = MemoryEventStore(), START
    for time_ns, facts in log.commits:
        draft = CommitDraft([NewEvent(fact) for fact in facts], time_ns, request_id="r0")
        head = await store.append(domain.session_stream(SESSION), draft, head)
    return store


async def exported(store: MemoryEventStore, session: str) -> Records:
    repository = Repository(store, domain.SESSION_FOLD)
    state = (await repository.load(domain.session_stream(session))).state
    return [record async for record in export(repository, state)]


def essence(records: Records) -> list[tuple[object, ...]]:
    """What of exported events a round trip leaves as it is."""
    found: list[tuple[object, ...]] = []
    for record in records[1:]:
        event = record.event
        payload = event.payload.value
        if event.type == events_pb2.SessionCreated.DESCRIPTOR.full_name:
            created = events_pb2.SessionCreated.FromString(payload)
            payload = bytes(created.submit_policy)
        found.append((event.revision, event.type, payload, event.time.ToNanoseconds()))
    return found


def plain(state: session_pb2.SessionState) -> session_pb2.SessionState:
    """The state without names, and with revisions as the import of it has them."""
    state.ClearField("name")
    state.ClearField("agent_revision")
    state.ClearField("forked_from")
    return state


def a_session() -> SessionLog:
    log = SessionLog()
    log.create()
    for turn in ("t1", "t2"):
        log.accept(turn, question=f"what of {turn}?")
        log.step(text=f"so it is {turn}")
    return log


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), moves=st.integers(1, 80))
async def test_what_was_exported_comes_back_the_same(seed: int, moves: int) -> None:
    log = walked(seed, moves)
    source = await stored(log)
    records = await exported(source, SESSION)
    target = MemoryEventStore()
    await imports_of(target).run(parts(records), a_call())
    again = await exported(target, IMPORTED)
    assert essence(again)[: len(records) - 1] == essence(records)
    loaded = await Repository(target, domain.SESSION_FOLD).load(domain.session_stream(IMPORTED))
    assert domain.exists(loaded.state)
    assert loaded.state.name == IMPORTED
    assert not loaded.state.HasField("active_turn")
    assert not loaded.state.queued_turns
    assert SESSION not in str(loaded.state)


async def test_the_state_is_equal_but_for_names_and_one_revision(tmp_path: Path) -> None:
    log = a_session()
    source = await stored(log)
    target = MemoryEventStore()
    await imports_of(target).run(parts(await exported(source, SESSION)), a_call())
    (loaded,) = [
        (await Repository(target, domain.SESSION_FOLD).load(domain.session_stream(IMPORTED))).state
    ]
    expected = log.state
    expected.revision += 1
    for turn in expected.ended_turns:
        turn.accept_revision += 1
        turn.end_revision += 1
    assert plain(loaded) == plain(expected)


async def test_who_imports_answers_for_it_and_an_open_turn_is_ended(tmp_path: Path) -> None:
    log = a_session()
    log.accept("t3", owner="somebody")
    store = MemoryEventStore()
    await imports_of(store).run(parts(await exported(await stored(log), SESSION)), a_call())
    commits = [c async for page in store.read(domain.session_stream(IMPORTED)) for c in page]
    last = events_pb2.TurnCancelled.FromString(commits[-1].commit.events[-1].payload.value)
    assert last.turn == "t3"
    assert "imported" in last.reason
    read_model = SessionsReadModel(store, tmp_path / "sessions.sqlite3", memory_keyring())
    await read_model.start()
    ((_, session),) = await read_model.sessions("other", "bot", None, 10)
    await read_model.stop()
    assert (session.turn_count, session.active_turn, session.agent_revision) == (3, "", 7)
    assert session.create_time.ToNanoseconds() == log.commits[0][0]


async def test_a_fork_is_flattened_and_its_origin_forgotten() -> None:
    parent = a_session()
    store = await stored(parent)
    fork = parent.forked_at(3, f"{SESSION}-fork")
    fork.accept("t9", question="and now?")
    fork.step(text="now it is")
    head = START
    for place, fact in fork.facts:
        draft = CommitDraft([NewEvent(fact)], place.time.ToNanoseconds())
        head = await store.append(domain.session_stream(fork.state.name), draft, head)
    records = await exported(store, fork.state.name)
    assert records[0].header.event_count == len(records) - 1 == 3 + len(fork.facts)
    target = MemoryEventStore()
    await imports_of(target).run(parts(records), a_call())
    state = (
        await Repository(target, domain.SESSION_FOLD).load(domain.session_stream(IMPORTED))
    ).state
    assert not state.HasField("forked_from")
    assert [m.text for m in state.context.messages] == [m.text for m in fork.state.context.messages]


async def test_nothing_is_there_before_all_is_stored(tmp_path: Path) -> None:
    log = a_session()
    store = MemoryEventStore()
    await imports_of(store).run(parts(await exported(await stored(log), SESSION)), a_call())
    entries = store._log.entries
    whole, half = list(entries), entries[: len(entries) // 2]
    entries[:] = half
    partial = MemoryEventStore(store._log)
    read_model = SessionsReadModel(partial, tmp_path / "sessions.sqlite3", memory_keyring())
    await read_model.start()
    assert await read_model.sessions("other", "bot", None, 10) == []
    state = (
        await Repository(partial, domain.SESSION_FOLD).load(domain.session_stream(IMPORTED))
    ).state
    assert not domain.exists(state)
    with pytest.raises(NotFound):
        domain.refuse_absent(state)
    assert read_model.stalled_imports(time.time_ns() - 10**12) == []
    assert read_model.stalled_imports(time.time_ns() + 1) == [IMPORTED]
    await read_model.stop()
    assert len(whole) > len(half)


def change(records: Records, number: int, **fields: object) -> Records:
    for name, value in fields.items():
        setattr(records[number].event, name, value)
    return records


def payload(records: Records, number: int, value: bytes) -> Records:
    records[number].event.payload.value = value
    return records


def retyped(records: Records, number: int, kind: Any, fact: Any) -> Records:
    event = records[number].event
    event.type = kind.DESCRIPTOR.full_name
    event.payload.Pack(fact)
    return records


def renumbered(records: Records) -> Records:
    for number, record in enumerate(records[1:], 1):
        record.event.revision = number
    return records


def header(records: Records, **fields: int) -> Records:
    for name, value in fields.items():
        setattr(records[0].header, name, value)
    return records


def nested(depth: int) -> bytes:
    value = b""
    for _ in range(depth):
        value = b"\x0a" + _varint(len(value)) + value
    return b"\x1a" + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    data = b""
    while number > 127:
        data, number = data + bytes([number & 127 | 128]), number >> 7
    return data + bytes([number])


HOSTILE: dict[str, Callable[[Records], Records]] = {
    "nothing": lambda r: [],
    "no header": lambda r: r[1:],
    "two headers": lambda r: [r[0], *r],
    "an empty record": lambda r: [*r[:2], SessionRecord(), *r[2:]],
    "cut off": lambda r: r[:-1],
    "one too many": lambda r: [*r, r[-1]],
    "reordered": lambda r: [*r[:2], r[3], r[2], *r[4:]],
    "reordered and renumbered": lambda r: renumbered([*r[:2], r[3], r[2], *r[4:]]),
    "duplicated and renumbered": lambda r: header(
        renumbered([*r[:3], r[2], *r[3:]]), event_count=len(r)
    ),
    "no first": lambda r: header(renumbered([r[0], *r[2:]]), event_count=len(r) - 2),
    "another format": lambda r: header(r, format=2),
    "no events": lambda r: header(r[:1], event_count=0),
    "a foreign type": lambda r: change(r, 3, type="weft.agents.v1.AgentCreated"),
    "no type": lambda r: change(r, 3, type=""),
    "another type in it": lambda r: change(r, 3, type="weft.state.v1.TurnFailed"),
    "bytes that don't parse": lambda r: payload(r, 3, b"\xff\xff\xff"),
    "deep": lambda r: payload(r, 3, nested(2_000)),
    "a turn's id too long": lambda r: retyped(
        r, 2, events_pb2.TurnAccepted, events_pb2.TurnAccepted(turn="t" * 64)
    ),
    "an unknown policy": lambda r: retyped(
        r,
        1,
        events_pb2.SessionCreated,
        events_pb2.SessionCreated(submit_policy=9),  # type: ignore[arg-type]
    ),
    "an import in an import": lambda r: retyped(
        r, 3, events_pb2.SessionImported, events_pb2.SessionImported(event_count=99)
    ),
    "an erasure": lambda r: retyped(
        r, 3, events_pb2.SessionErased, events_pb2.SessionErased(request_id="x")
    ),
    "a result of no call": lambda r: retyped(
        r, 3, events_pb2.ToolCallCompleted, events_pb2.ToolCallCompleted(turn="t1", call_id="c")
    ),
    "an end of no turn": lambda r: retyped(
        r, 3, events_pb2.TurnCompleted, events_pb2.TurnCompleted(turn="t7")
    ),
    "a start of none that waits": lambda r: retyped(
        r, 3, events_pb2.TurnStarted, events_pb2.TurnStarted(turn="t7")
    ),
    "more compacted than there is": lambda r: retyped(
        r, 3, events_pb2.ContextCompacted, events_pb2.ContextCompacted(turn="t1", message_count=9)
    ),
    "a fork first": lambda r: retyped(
        r,
        1,
        events_pb2.SessionForked,
        events_pb2.SessionForked(origin=session_pb2.ForkOrigin(session=SESSION, revision=1)),
    ),
}


@pytest.mark.parametrize("harm", HOSTILE.values(), ids=HOSTILE)
async def test_what_is_no_export_is_refused_and_nothing_is_stored(
    harm: Callable[[Records], Records],
) -> None:
    records = harm(await exported(await stored(a_session()), SESSION))
    store = MemoryEventStore()
    with pytest.raises(InvalidArgument):
        await imports_of(store).run(parts(records), a_call())
    assert await store.last_position() == 0


async def test_random_harm_never_leads_to_anything_but_a_refusal() -> None:
    source = await stored(walked(3, 60))
    choices = random.Random(1)
    for _ in range(300):
        records = await exported(source, SESSION)
        for _ in range(choices.randrange(1, 4)):
            number = choices.randrange(1, len(records))
            data = bytearray(records[number].event.payload.value)
            if data and choices.random() < 0.7:
                data[choices.randrange(len(data))] = choices.randrange(256)
                payload(records, number, bytes(data))
            else:
                other = choices.randrange(1, len(records))
                records[number], records[other] = records[other], records[number]
                renumbered(records)
        store = MemoryEventStore()
        try:
            await imports_of(store).run(parts(records), a_call())
        except InvalidArgument:
            assert await store.last_position() == 0


async def test_bounds_are_kept() -> None:
    records = await exported(await stored(a_session()), SESSION)
    store = MemoryEventStore()
    for bounds in (
        {"import_events_max": 3},
        {"import_bytes_max": 300},
        {"import_state_bytes_max": 50},
    ):
        with pytest.raises(LimitExceeded):
            await imports_of(store, **bounds).run(parts(records), a_call())


async def of_tenant(tenant: str, records: Records) -> AsyncIterator[Any]:
    async for part in parts(records):
        part.parent = f"tenants/{tenant}/agents/bot"
        yield part


@pytest.mark.parametrize(
    ("at_once_max", "tenant", "refused"),
    [(1, "acme", True), (2, "other", True), (2, "acme", False), (4, "other", False)],
)
async def test_one_tenants_imports_take_half_of_the_slots(
    at_once_max: int, tenant: str, refused: bool
) -> None:
    records = await exported(await stored(a_session()), SESSION)
    imports = imports_of(MemoryEventStore(), imports_at_once_max=at_once_max)

    async def slow() -> AsyncIterator[Any]:
        sent = [part async for part in parts(records, 2)]
        yield sent[0]
        with pytest.raises(LimitExceeded) if refused else nullcontext():
            await imports.run(of_tenant(tenant, records), a_call())
        for part in sent[1:]:
            yield part

    with nullcontext() if refused or tenant != "other" else pytest.raises(AlreadyExists):
        await imports.run(slow(), a_call())
    with pytest.raises(AlreadyExists):
        await imports.run(parts(records), a_call())


async def test_who_sends_nothing_holds_no_slot_and_who_stalls_loses_it() -> None:
    records = await exported(await stored(a_session()), SESSION)
    imports = imports_of(MemoryEventStore(), imports_at_once_max=1, import_part_seconds_max=0.05)

    async def stalled(count: int) -> AsyncIterator[Any]:
        for part in [part async for part in parts(records, 2)][:count]:
            yield part
        await asyncio.Event().wait()

    idle = asyncio.create_task(imports.run(stalled(0), a_call()))
    with pytest.raises(LimitExceeded, match=r"within 0\.05 s"):
        await imports.run(stalled(1), a_call())
    await imports.run(parts(records), a_call())
    idle.cancel()
    await asyncio.gather(idle, return_exceptions=True)


async def test_large_commits_are_parted_and_large_payloads_move_out() -> None:
    """As a hand-made file might have it: hundreds of events that are said to be one commit."""
    log = SessionLog()
    log.create()
    for number in range(300):
        log.accept(f"t{number}", question=("y" * 4_000) if number else BLOBS[:262_000])
        log.step(text="so")
    records = await exported(await stored(log), SESSION)
    for record in records[1:]:
        record.event.position = 1
        record.event.time.FromSeconds(1)
    store = MemoryEventStore()
    await imports_of(store).run(parts(records, 100), a_call())
    again = await exported(store, IMPORTED)
    assert len(again) == len(records)
    assert isinstance(again[1].event, envelope_pb2.RecordedEvent)
