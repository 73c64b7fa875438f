"""Erasing sessions, and what is left when it is interrupted, on a log in memory."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf.message import Message

from mesh.clock import SYSTEM
from mesh.errors import DataErased, FailedPrecondition, NotFound
from mesh.events.aggregate import Repository
from mesh.events.blobs import MemoryBlobStore
from mesh.events.codec import PLAIN, Codecs
from mesh.events.memory import MemoryEventStore, MemoryLog
from mesh.security.keyring import Keyring
from services.state import domain
from services.state.erasing import Erasures, Sweeper
from services.state.existing import existing
from services.state.read_model import SessionsReadModel
from services.state.settings import StateSettings
from tests.support.cached import memory_cache
from tests.support.eventually import eventually
from tests.support.keys import memory_keyring, sealing
from tests.support.memory_tokens import MemoryTokens
from tests.support.session_log import SESSION
from weft.state.v1 import events_pb2, session_pb2
from weft.state.v1.session_service_pb2 import EraseSessionRequest

BIG = "big " * 100_000
SNAPSHOT_COMMITS = 2


@dataclass
class World:
    """All that erasing touches; `blobs`, `log` and `tokens` are what is kept."""

    repository: Repository[session_pb2.SessionState]
    read_model: SessionsReadModel
    erasures: Erasures
    blobs: MemoryBlobStore
    log: MemoryLog
    tokens: MemoryTokens

    async def say(self, session: str, *facts: Message) -> None:
        def decide(state: session_pb2.SessionState) -> Sequence[Message]:
            return facts

        await self.repository.open(domain.session_stream(session)).execute(decide)

    async def create(self, session: str = SESSION, text: str = "what?") -> None:
        """A session with a turn that ended."""
        await self.say(session, events_pb2.SessionCreated(session=session, agent_revision=1))
        await self.say(session, events_pb2.TurnAccepted(turn="t", input=text, owner="one"))
        await self.say(session, events_pb2.TurnCompleted(turn="t", text=text))

    async def fork(self, origin: str, fork: str) -> None:
        """As ForkSession does, without its looks before and after."""
        place = session_pb2.ForkOrigin(session=origin, revision=1)
        await self.say(fork, events_pb2.SessionForked(session=fork, origin=place))

    async def erase(self, session: str, *, cascade: bool = False, request: str = "e") -> list[str]:
        asked = EraseSessionRequest(name=session, cascade=cascade, request_id=request)
        return await self.erasures.erase(asked)

    async def exists(self, session: str) -> bool:
        try:
            await existing(self.repository, session)
        except NotFound:
            return False
        return True


async def world_of(codecs: Codecs, path: Path, keyring: Keyring) -> AsyncIterator[World]:
    log, blobs, tokens = MemoryLog(), MemoryBlobStore(), MemoryTokens()
    store = MemoryEventStore(log, blobs=blobs, codecs=codecs)
    repository = Repository(store, domain.SESSION_FOLD, snapshot_commits=SNAPSHOT_COMMITS)
    read_model = SessionsReadModel(store, path / "sessions.sqlite3", keyring)
    await read_model.start()
    erasures = Erasures(repository, read_model, keyring, tokens, memory_cache())
    yield World(repository, read_model, erasures, blobs, log, tokens)
    await read_model.stop()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Sealed, as a server has it."""
    keyring = memory_keyring()
    await keyring.start()
    async for made in world_of(sealing(keyring), tmp_path, keyring):
        yield made


@pytest.fixture
async def old_world(tmp_path: Path) -> AsyncIterator[World]:
    """Its commits were stored before there were seals."""
    async for made in world_of(PLAIN, tmp_path, memory_keyring()):
        yield made


async def test_forks_go_first_the_deepest_before_the_others(world: World) -> None:
    a, b, c, d = (f"{SESSION}-{letter}" for letter in "abcd")
    await world.create(a)
    await world.create(d)
    await world.fork(a, b)
    await world.fork(b, c)
    with pytest.raises(FailedPrecondition, match="has forks"):
        await world.erase(a)
    assert await world.erase(a, cascade=True) == [c, b, a]
    assert [session for session in (a, b, c, d) if await world.exists(session)] == [d]


async def test_snapshots_blobs_and_tokens_go_with_it(world: World) -> None:
    await world.create(text=BIG)
    world.tokens.publish(domain.session_stream(SESSION), "t", b"token")
    assert world.blobs._blobs
    assert world.log.snapshots
    await world.erase(SESSION)
    assert (world.blobs._blobs, dict(world.log.snapshots), world.tokens.kept) == ({}, {}, {})


async def test_a_session_from_before_there_were_seals_is_gone_for_callers(
    old_world: World,
) -> None:
    await old_world.create()
    writer = old_world.repository.open(domain.session_stream(SESSION))
    assert await old_world.erase(SESSION) == [SESSION]
    assert not await old_world.exists(SESSION)
    for _ in range(2):
        with pytest.raises(NotFound, match="was erased"):
            await writer.execute(
                lambda state: domain.decide(
                    state, domain.AcceptTurn(SESSION, "t2", "r", b"", "again?", 10**9, "one", 1)
                )
            )


async def test_a_fork_of_what_is_erased_is_found_by_its_maker(world: World) -> None:
    await world.create()
    await world.erase(SESSION)
    fork = f"{SESSION}-fork"
    await world.fork(SESSION, fork)
    with pytest.raises(DataErased):
        await world.erasures.follow_origin(fork, SESSION)
    await world.read_model.catch_up()
    assert world.read_model.erasure(fork) is not None
    assert world.read_model.forks(SESSION, 10) == []


async def test_a_fork_whose_maker_died_is_swept(world: World) -> None:
    await world.create()
    await world.erase(SESSION)
    fork = f"{SESSION}-fork"
    await world.fork(SESSION, fork)
    await world.erasures.sweep(0)
    assert await world.erase(SESSION) == [SESSION, fork]
    assert not await world.exists(fork)


async def test_a_broken_import_is_swept_once_it_stalls(world: World) -> None:
    imported = events_pb2.SessionImported(session=SESSION, event_count=9)
    await world.say(SESSION, imported)
    await world.say(SESSION, events_pb2.SessionCreated(session=SESSION))
    await world.say(SESSION, events_pb2.TurnAccepted(turn="t", owner="one"))
    assert not await world.exists(SESSION)
    with pytest.raises(NotFound):
        await world.erase(SESSION)
    await world.erasures.sweep(time.time_ns() - 10**12)
    assert world.read_model.erasure(SESSION) is None
    await world.erasures.sweep(time.time_ns() + 1)
    assert world.read_model.erasure(SESSION) is not None


async def test_what_was_committed_and_not_scrubbed_is_finished(world: World) -> None:
    await world.create(text=BIG)
    await world.say(SESSION, events_pb2.SessionErased(request_id="e"))
    await world.erasures.finish()
    assert world.blobs._blobs == {}
    assert world.read_model.unfinished() == []
    with pytest.raises(DataErased):
        await world.repository.load(domain.session_stream(SESSION))


async def test_what_an_outage_left_half_done_is_finished_without_a_new_start(world: World) -> None:
    await world.create(text=BIG)
    sweeper = Sweeper(world.erasures, StateSettings(sweep_interval_seconds=0.02), SYSTEM)
    sweeper.start()
    await asyncio.sleep(0.1)
    await world.say(SESSION, events_pb2.SessionErased(request_id="e"))
    await eventually(lambda: not world.blobs._blobs)
    await sweeper.stop()
