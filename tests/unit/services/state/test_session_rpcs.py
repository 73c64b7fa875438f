"""The RPCs of sessions and of what their log says, on a log in memory."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from mesh.call import Call
from mesh.clock import SYSTEM
from mesh.errors import InvalidArgument, LimitExceeded
from mesh.events.aggregate import FORK_DEPTH_MAX, Repository
from mesh.events.head_ledger import HeadLedger
from mesh.events.memory import MemoryEventStore
from mesh.rpc.local import LocalChannel
from mesh.rpc.pages import write_page_token
from services.control.domain import SPLIT_FOLD
from services.state import domain
from services.state.erasing import Erasures
from services.state.history import PAGE_BYTES_MAX, StateHistory
from services.state.importing import Imports
from services.state.read_model import SessionsReadModel
from services.state.revisions import Revisions
from services.state.sessions import Sessions
from services.state.settings import StateSettings
from tests.support.cached import memory_cache
from tests.support.keys import memory_keyring
from tests.support.memory_tokens import MemoryTokens
from tests.support.session_log import SESSION, SessionLog
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub
from weft.events.v1 import events_pb2
from weft.state.v1 import session_pb2, session_service_pb2, state_service_pb2

AGENT = SESSION.rpartition("/sessions/")[0]
NO_NUMBERS = ["²", "٣", "-1", "0", "1_0", "9" * 400, str(2**63), "x"]

Repo = Repository[session_pb2.SessionState]


def a_call() -> Call:
    return Call("/weft.state.v1.StateService/Any", time.monotonic() + 10, "r1")


@pytest.fixture
def repository() -> Repo:
    return Repository(MemoryEventStore(), domain.SESSION_FOLD)


@pytest.fixture
async def history(repository: Repo, tmp_path: Path) -> AsyncIterator[StateHistory]:
    heads = HeadLedger(repository.store, tmp_path / "heads.sqlite3")
    await heads.start()
    yield StateHistory(repository, heads)
    await heads.stop()


@pytest.fixture
async def sessions(repository: Repo, tmp_path: Path) -> AsyncIterator[Sessions]:
    read_model = SessionsReadModel(
        repository.store, tmp_path / "sessions.sqlite3", memory_keyring()
    )
    await read_model.start()
    # Nobody serves agents: only what makes a session of one asks for it.
    channel: Any = LocalChannel({})
    agents = AgentServiceStub(channel)
    erasures = Erasures(repository, read_model, memory_keyring(), MemoryTokens(), memory_cache())
    revisions = Revisions(agents, Repository(repository.store, SPLIT_FOLD))
    imports = Imports(repository, revisions, StateSettings(), SYSTEM)
    yield Sessions(repository, read_model, revisions, erasures, imports)
    await read_model.stop()


async def write(repository: Repo, log: SessionLog) -> None:
    aggregate = repository.open(domain.session_stream(SESSION))
    for _, facts in log.commits:
        await aggregate.execute(always(facts))


def always(facts: Sequence[Message]) -> Callable[[session_pb2.SessionState], Sequence[Message]]:
    return lambda state: facts


def with_texts(lengths: Sequence[int]) -> SessionLog:
    """A session of questions of these lengths, and of answers that are short."""
    log = SessionLog()
    log.create()
    for number, length in enumerate(lengths):
        log.accept(f"t{number}", question="x" * length)
        log.step(text="so")
    return log


class TestPages:
    async def all_pages(
        self, history: StateHistory, page_size: int = 0
    ) -> list[list[events_pb2.RecordedEvent]]:
        request = state_service_pb2.ListEventsRequest(parent=SESSION, page_size=page_size)
        pages = []
        while True:
            response = await history.list_events(request, a_call())
            pages.append(list(response.events))
            if not response.next_page_token:
                return pages
            request.page_token = response.next_page_token

    async def test_a_page_of_events_ends_before_it_is_too_large_for_a_client(
        self, repository: Repo, history: StateHistory
    ) -> None:
        log = with_texts([900_000] * 5)
        await write(repository, log)
        pages = await self.all_pages(history)
        assert len(pages) == 3
        for page in pages:
            assert sum(event.ByteSize() for event in page) <= PAGE_BYTES_MAX
        revisions = [event.revision for page in pages for event in page]
        assert revisions == list(range(1, len(log.facts) + 1))

    async def test_an_event_larger_than_a_page_is_one_of_its_own(
        self, repository: Repo, history: StateHistory
    ) -> None:
        await write(repository, with_texts([PAGE_BYTES_MAX + 1, PAGE_BYTES_MAX + 1]))
        pages = await self.all_pages(history)
        large = [page for page in pages if page[0].ByteSize() > PAGE_BYTES_MAX]
        assert [len(page) for page in large] == [1, 1]

    async def test_a_page_has_no_more_events_than_were_asked_for(
        self, repository: Repo, history: StateHistory
    ) -> None:
        log = with_texts([1] * 3)
        await write(repository, log)
        sizes = [len(page) for page in await self.all_pages(history, page_size=2)]
        assert sizes[:-1] == [2] * (len(sizes) - 1)
        assert sum(sizes) == len(log.facts)

    @pytest.mark.parametrize("last", [*NO_NUMBERS, "3"])
    async def test_a_forged_token_of_events_is_refused(
        self, repository: Repo, history: StateHistory, last: str
    ) -> None:
        log = SessionLog()
        log.create()
        await write(repository, log)
        request = state_service_pb2.ListEventsRequest(
            parent=SESSION, page_token=write_page_token(last, SESSION)
        )
        with pytest.raises(InvalidArgument, match="page_token"):
            await history.list_events(request, a_call())

    @pytest.mark.parametrize("last", NO_NUMBERS)
    async def test_a_forged_token_of_sessions_is_refused(
        self, sessions: Sessions, last: str
    ) -> None:
        request = session_service_pb2.ListSessionsRequest(
            parent=AGENT, page_token=write_page_token(last, AGENT)
        )
        with pytest.raises(InvalidArgument, match="page_token"):
            await sessions.list_sessions(request, a_call())


class TestForks:
    async def test_forks_in_a_row_end_before_one_that_could_not_be_read(
        self, repository: Repo, history: StateHistory, sessions: Sessions
    ) -> None:
        await write(repository, with_texts([1]))
        name = SESSION
        for _ in range(FORK_DEPTH_MAX):
            request = session_service_pb2.ForkSessionRequest(name=name)
            name = (await sessions.fork_session(request, a_call())).session.name
        request = session_service_pb2.ForkSessionRequest(name=name, session_id="more")
        for _ in range(2):
            with pytest.raises(LimitExceeded, match=f"{FORK_DEPTH_MAX} times in a row"):
                await sessions.fork_session(request, a_call())
        asked = state_service_pb2.GetStateRequest(name=name)
        state = (await history.get_state(asked, a_call())).state
        assert state.name == name
        elsewhere = Repository(repository.store, domain.SESSION_FOLD)
        assert (await elsewhere.load(domain.session_stream(name))).state == state

    async def test_another_fork_of_the_first_session_is_always_possible(
        self, repository: Repo, sessions: Sessions
    ) -> None:
        await write(repository, with_texts([1]))
        for _ in range(FORK_DEPTH_MAX + 2):
            request = session_service_pb2.ForkSessionRequest(name=SESSION)
            forked = (await sessions.fork_session(request, a_call())).session.forked_from
            assert forked.session == SESSION
