"""What may be done to an agent, and what becomes of it."""

import pytest

from mesh.errors import AlreadyExists, Conflict, LimitExceeded, NotFound, RequestIdReused
from mesh.events.fold import Place
from services.agents import domain
from services.agents.domain import CreateAgent, DeleteAgent, UpdateAgent
from tests.support.session_log import timestamp
from weft.agents.v1 import agent_pb2

AGENT = "tenants/default/agents/bot"
Spec = agent_pb2.AgentSpec


class AgentLog:
    """An agent without a store."""

    def __init__(self) -> None:
        self.state = agent_pb2.AgentState()
        self.revision = 0

    def do(self, command: CreateAgent | UpdateAgent | DeleteAgent) -> int:
        """Decides and folds; returns how many facts there were."""
        before = self.state.SerializeToString(deterministic=True)
        facts = domain.decide(self.state, command)
        assert self.state.SerializeToString(deterministic=True) == before
        for fact in facts:
            self.revision += 1
            place = Place(self.revision, timestamp(self.revision))
            self.state = domain.evolve(self.state, fact, place)
        return len(facts)

    def create(self, request: str = "create", instructions: str = "one") -> int:
        spec = Spec(instructions=instructions)
        return self.do(CreateAgent(AGENT, spec, request, instructions.encode()))

    def update(self, instructions: str, *, request: str = "", etag: str = "") -> int:
        request_id = request or instructions
        spec = Spec(instructions=instructions)
        return self.do(UpdateAgent(AGENT, etag, lambda _: spec, request_id, instructions.encode()))

    def delete(self, request: str = "delete", etag: str = "") -> int:
        return self.do(DeleteAgent(AGENT, etag, request, b"delete"))


@pytest.fixture
def log() -> AgentLog:
    log = AgentLog()
    log.create()
    return log


def test_each_change_makes_a_revision_that_stays(log: AgentLog) -> None:
    log.update("two")
    first, second = (domain.revision(log.state, AGENT, number) for number in (1, 2))
    assert (first.spec.instructions, second.spec.instructions) == ("one", "two")
    assert (first.etag, second.etag) == ("r1", "r2")
    assert second.create_time == first.create_time == timestamp(1)
    assert second.update_time == timestamp(2)
    assert domain.latest_revision(log.state, AGENT) == second


def test_an_update_changes_what_is_there(log: AgentLog) -> None:
    def append(spec: Spec) -> Spec:
        return Spec(instructions=spec.instructions + " and more")

    log.do(UpdateAgent(AGENT, "", append, "r", b""))
    assert log.state.revisions[-1].spec.instructions == "one and more"
    assert log.state.revisions[0].spec.instructions == "one"


def test_an_agent_is_not_made_twice(log: AgentLog) -> None:
    with pytest.raises(AlreadyExists):
        log.create("again")


def test_an_agent_that_was_deleted_is_made_again_with_its_history(log: AgentLog) -> None:
    log.delete()
    with pytest.raises(NotFound):
        domain.latest_revision(log.state, AGENT)
    assert domain.revision(log.state, AGENT, 1).spec.instructions == "one"
    log.create("again", "two")
    assert domain.latest_revision(log.state, AGENT).revision == 2


@pytest.mark.parametrize("change", ["update", "delete"])
def test_a_stale_etag_is_refused(log: AgentLog, change: str) -> None:
    log.update("two")
    with pytest.raises(Conflict) as raised:
        log.update("three", etag="r1") if change == "update" else log.delete(etag="r1")
    assert raised.value.metadata["etag"] == "r2"


def test_the_present_etag_is_taken(log: AgentLog) -> None:
    assert log.update("two", etag="r1") == 1
    assert log.delete(etag="r2") == 1


@pytest.mark.parametrize("change", ["update", "delete"])
def test_what_is_not_there_is_not_found(change: str) -> None:
    with pytest.raises(NotFound):
        AgentLog().update("two") if change == "update" else AgentLog().delete()


def test_a_revision_to_come_is_not_found(log: AgentLog) -> None:
    with pytest.raises(NotFound) as raised:
        domain.revision(log.state, AGENT, 2)
    assert raised.value.metadata["revision"] == "2"


def test_repeated_requests_do_nothing_and_remember_their_revision(log: AgentLog) -> None:
    log.update("two")
    log.update("three")
    log.delete()
    assert [log.create(), log.update("two"), log.delete()] == [0, 0, 0]
    answered = domain.find_request(log.state, "two")
    assert answered is not None
    assert answered.agent_revision == 2


def test_a_request_id_with_another_body_is_refused(log: AgentLog) -> None:
    with pytest.raises(RequestIdReused):
        log.update("other", request="create")


def test_requests_and_revisions_are_bounded(log: AgentLog) -> None:
    for number in range(domain.REVISIONS_MAX - 1):
        log.update(f"{number}")
    with pytest.raises(LimitExceeded):
        log.update("one too many")
    assert len(log.state.requests) == domain.REQUESTS_MAX
    assert log.delete() == 1
