"""After EraseSession nothing of what a session held can be read: not in the log, nor in
what was made of it, nor with what lies on the disk."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from mesh.events.aggregate import SNAPSHOT_COMMITS
from mesh.events.jetstream.erase import messages_of
from mesh.events.store import Selection
from mesh.runtime.host import Host
from mesh.runtime.settings import RuntimeSettings
from services.state.domain import session_stream
from tests.support.edge import open_access
from tests.support.nats import running_nats
from tests.support.platform import Platform
from tests.support.serve import SCRIPTED_CATALOGUE
from tests.support.session_calls import TENANT, SessionCalls
from weft.agents.v1 import turn_service_pb2
from weft.events.v1 import events_pb2
from weft.state.v1 import session_service_pb2, state_service_pb2

MARK = "canary-7f3a9c51"
BIG = f"{MARK} big " + "\N{MUSICAL SYMBOL G CLEF}" * 65_000
"""Of more bytes than stay in a commit."""


@asynccontextmanager
async def weft(folder: Path, nats_url: str = "") -> AsyncIterator[tuple[Host, SessionCalls]]:
    settings = RuntimeSettings(
        data_dir=folder,
        grpc_port=0,
        http_port=0,
        nats_port=0,
        notice_seconds=0,
        nats_url=nats_url,
    )
    async with Host(SCRIPTED_CATALOGUE, settings, open_access) as host:
        options = [("grpc.max_receive_message_length", 32 << 20)]
        async with grpc.aio.insecure_channel(host.addresses["grpc"], options) as channel:
            yield host, SessionCalls(channel)


def files_with(folder: Path, *needles: bytes) -> list[str]:
    """Files under the folder that hold one of these bytes."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    ]


async def codes_of(calls: dict[str, Any]) -> dict[str, grpc.StatusCode]:
    """How each call ended; OK with the text of what came where it has the mark."""
    codes = {}
    for name, call in calls.items():
        try:
            if hasattr(call, "__aiter__"):
                async with asyncio.timeout(5):
                    answers = [message async for message in call]
            else:
                answers = [await call]
        except grpc.aio.AioRpcError as error:
            codes[name], said = error.code(), error.details() or ""
        else:
            codes[name], said = grpc.StatusCode.OK, str(answers)
        assert MARK not in said, name
    return codes


async def refused(call: Any) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


async def kept_of(host: Host, session: str) -> dict[str, int]:
    """How many snapshots, token messages and blobs are kept of a session."""
    stream = session_stream(session)
    connection = host.events.connection
    until_position = await host.events.last_position()
    blobs = 0
    async for sealed in host.events.scan(Selection(str(stream)), 0, until_position):
        for event in events_pb2.Commit.FromString(sealed.data).events:
            if event.blob.key:
                blobs += await host.events._envelope._blobs.get(event.blob.key) is not None
    subjects = {"SNAPSHOTS": f"weft.snapshots.{stream}", "TOKENS": f"weft.tokens.{stream}.>"}
    counts = {
        name: len([m async for m in messages_of(connection, name, subject)])
        for name, subject in subjects.items()
    }
    return {**counts, "BLOBS": blobs}


async def test_nothing_of_an_erased_session_can_be_read_any_more(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with weft(folder) as (host, calls):
        agent = await calls.agent()
        session = await calls.create(agent)
        for number in range(SNAPSHOT_COMMITS + 5):
            await calls.run(session, f"{MARK} {number}")
        spoken = {"text": f"{MARK} word by word", "tokens": 5, "delay_seconds": 0.02}
        turns = [await calls.run(session, json.dumps({"steps": [spoken]}))]
        turns.append(await calls.run(session, BIG))
        fork = await calls.fork(session)
        turns.append(await calls.run(fork, f"{MARK} in the fork"))
        other = await calls.create(agent, "other")
        await calls.run(other, "of another session")

        commits = [c async for page in host.events.read(session_stream(session)) for c in page]
        key = await host.keyring.data_key_to_open(
            str(session_stream(session)), commits[0].commit.key_id
        )
        before = await kept_of(host, session)
        assert before["SNAPSHOTS"] >= 2, before
        assert before["TOKENS"] > 0, before
        assert before["BLOBS"] >= 2, before
        assert MARK in str(await calls.export(session))

        error = await refused(calls.erase(session))
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert fork in (error.details() or "")
        erased = await calls.erase(session, cascade=True, request_id="e1")
        assert erased == [fork, session]
        assert await calls.erase(session, cascade=True, request_id="e1") == erased

        for gone in (session, fork):
            assert set((await kept_of(host, gone)).values()) == {0}
            codes = await codes_of(calls.readings(gone, turns))
            assert set(codes.values()) == {grpc.StatusCode.NOT_FOUND}, codes
        create = session_service_pb2.CreateSessionRequest(
            parent=agent, session_id=session.rpartition("/")[2]
        )
        error = await refused(calls.sessions.CreateSession(create))
        assert error.code() == grpc.StatusCode.ALREADY_EXISTS
        assert await calls.listed() == [other]
        await watched_from_the_start(calls, agent)
        last = (await calls.verify())[-1]
        assert (list(last.problems), last.done, last.erased_count) == ([], True, 2)
        assert not held_in_memory(host, session, fork)
        needles = (MARK.encode(), key.secret, key.secret.hex().encode())
        assert files_with(folder, *needles) == []

    assert files_with(folder, *needles) == []
    async with weft(folder) as (_, calls):
        codes = await codes_of(calls.readings(session, turns))
        assert set(codes.values()) == {grpc.StatusCode.NOT_FOUND}, codes
        assert await calls.listed() == [other]
        last = (await calls.verify())[-1]
        assert (list(last.problems), last.erased_count) == ([], 2)
        assert (await calls.run(other, "still there?")).startswith(other)


async def watched_from_the_start(calls: SessionCalls, agent: str) -> None:
    """A watch of what is above the session tells that it was erased, and nothing of it."""
    for name in (agent, TENANT):
        request = state_service_pb2.WatchEventsRequest(name=name, after_position=0)
        seen = []
        watch = calls.state.WatchEvents(request, timeout=2)
        while (response := await next_of(watch)) is not None:
            seen.append(response.event)
        assert MARK not in str(seen)
        assert sum(event.type.endswith("SessionErased") for event in seen) == 2


async def next_of(watch: Any) -> Any:
    """The next message; None once its deadline passed."""
    try:
        return await watch.read()
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            return None
        raise


def held_in_memory(host: Host, *sessions: str) -> list[str]:
    """Sessions of which the process's repository of sessions still has something."""
    return [
        session
        for session in sessions
        for repository in host._repositories.values()
        if MARK in str(getattr(repository.hot(session_stream(session)), "_loaded", None))
    ]


async def test_an_open_turn_is_to_be_cancelled_first(tmp_path: Path) -> None:
    async with weft(tmp_path / "data") as (_, calls):
        session = await calls.create(await calls.agent())
        error = await refused(calls.erase(f"{session}-no"))
        assert error.code() == grpc.StatusCode.NOT_FOUND
        slow = {"text": "slowly", "tokens": 6, "delay_seconds": 0.5}
        running = asyncio.create_task(calls.run(session, json.dumps({"steps": [slow]})))
        turn = await open_turn(calls, session)
        error = await refused(calls.erase(session))
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert f"turn {turn} isn't ended: cancel it" in (error.details() or "")
        await calls.turns.CancelTurn(turn_service_pb2.CancelTurnRequest(name=turn))
        await running
        assert await calls.erase(session) == [session]


async def open_turn(calls: SessionCalls, session: str) -> str:
    """Name of the session's open turn, once there is one."""
    request = session_service_pb2.GetSessionRequest(name=session)
    async with asyncio.timeout(5):
        while True:
            response = await calls.sessions.GetSession(request)
            if response.session.active_turn:
                return f"{session}/turns/{response.session.active_turn}"
            await asyncio.sleep(0.01)


async def test_another_process_drops_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "nats").mkdir()
    async with (
        running_nats(tmp_path / "nats") as nats,
        weft(tmp_path / "one", nats.url) as (_, here),
        weft(tmp_path / "two", nats.url) as (there_host, there),
    ):
        session = await here.create(await here.agent())
        turn = await here.run(session, f"{MARK} here")
        await there.run(session, f"{MARK} there")
        assert held_in_memory(there_host, session)
        await here.erase(session)
        async with asyncio.timeout(5):
            while held_in_memory(there_host, session):  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        codes = await codes_of(there.readings(session, [turn]))
        assert set(codes.values()) == {grpc.StatusCode.NOT_FOUND}, codes
        assert await there.listed() == []
        assert not held_in_memory(there_host, session)


async def test_another_request_is_told_that_it_was_erased(tmp_path: Path) -> None:
    async with weft(tmp_path / "data") as (_, calls):
        session = await calls.create(await calls.agent())
        assert await calls.erase(session, request_id="e1") == [session]
        error = await refused(calls.erase(session, request_id="e2"))
        assert error.code() == grpc.StatusCode.NOT_FOUND
        assert "was erased" in (error.details() or "")
        error = await refused(calls.erase(session, request_id="e1", cascade=True))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_fork_made_at_the_same_moment_is_whole_or_gone(tmp_path: Path) -> None:
    """Whichever comes first: a fork that is there can be read, and none is there whose
    origin is erased."""
    async with weft(tmp_path / "data") as (_, calls):
        agent = await calls.agent()
        for number in range(12):
            session = await calls.create(agent, f"s{number}")
            await calls.run(session, f"{MARK} {number}")
            forks = [calls.fork(session, f"f{number}-{index}") for index in range(4)]
            done = await asyncio.gather(
                *forks[:2], calls.erase(session), *forks[2:], return_exceptions=True
            )
            unexpected = [e for e in done if isinstance(e, Exception)]
            assert all(isinstance(e, grpc.aio.AioRpcError) for e in unexpected)
            listed = await calls.listed(agent)
            for name in [name for name in listed if f"/f{number}-" in name]:
                request = session_service_pb2.GetSessionRequest(name=name)
                await calls.sessions.GetSession(request)
            if session not in listed:
                assert not [name for name in listed if f"/f{number}-" in name]
        (last,) = [response for response in await calls.verify() if response.done]
        assert not last.problems


@pytest.mark.parametrize("place", ["erase:committed", "erase:key_destroyed"])
async def test_a_crash_in_the_middle_is_finished_at_the_next_start(
    tmp_path: Path, place: str
) -> None:
    running = Platform(tmp_path / "data")
    await running.start()
    try:
        calls = SessionCalls(running.open_channel)
        agent = await calls.agent()
        session = await calls.create(agent)
        await calls.run(session, BIG)
        fork = await calls.fork(session)
        await running.arm(f"{place}@2")
        await refused(calls.erase(session, cascade=True, request_id="e1"))
        await running.gone()

        await running.start()
        calls = SessionCalls(running.open_channel)
        codes = await codes_of(calls.readings(session, []))
        assert set(codes.values()) == {grpc.StatusCode.NOT_FOUND}, codes
        assert await calls.erase(session, cascade=True, request_id="e1") == [fork, session]
        assert await calls.listed() == []
        last = (await calls.verify())[-1]
        assert (list(last.problems), last.erased_count) == ([], 2)
        assert await running.stop() == 0
    finally:
        await running.kill()
