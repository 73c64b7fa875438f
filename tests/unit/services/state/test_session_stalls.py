"""When a turn has stalled, and what an operator's word leads to."""

import pytest

from mesh.errors import FailedPrecondition, NotFound
from services.state import domain
from tests.support.session_log import IDEMPOTENT, IRREVERSIBLE, SessionLog, planned
from weft.errors.v1 import errors_pb2
from weft.state.v1 import events_pb2, session_pb2


@pytest.fixture
def log() -> SessionLog:
    """A session with a turn that runs, and one that waits behind it."""
    log = SessionLog()
    log.create(session_pb2.SUBMIT_POLICY_ENQUEUE)
    log.accept("t1")
    log.accept("t2")
    return log


def stalled(log: SessionLog) -> bool:
    return log.active.HasField("stalled_time")


def test_a_stall_is_told_once_with_what_the_turn_is_at(log: SessionLog) -> None:
    (fact,) = log.stall(seconds=125)
    assert isinstance(fact, events_pb2.TurnStalled)
    assert (fact.turn, fact.doing, fact.idle.ToSeconds()) == ("t1", "model step 1", 125)
    assert log.active.stalled_doing == "model step 1"
    assert log.stall() == []


def test_it_says_which_calls_run(log: SessionLog) -> None:
    log.step(planned("a"), planned("b"), planned("c", requires_approval=True))
    log.stall()
    assert log.active.stalled_doing == "tool calls sum (a), sum (b)"
    log.complete("a")
    log.stall()
    assert log.active.stalled_doing == "tool call sum (b)"
    log.complete("b")
    assert log.stall() == [], "it waits for a person"


def test_many_calls_are_not_all_named(log: SessionLog) -> None:
    log.step(*(planned(f"c{number}") for number in range(10)))
    log.stall()
    assert log.active.stalled_doing.endswith("sum (c7) and 2 more")


def test_what_came_meanwhile_is_looked_at_first(log: SessionLog) -> None:
    revision = log.state.revision
    log.step(planned("a"))
    for turn, seen in (("t1", revision), ("t2", log.state.revision), ("", log.state.revision)):
        assert domain.stall(log.state, turn, seen, 0, log.now_ns) == []


def test_the_next_thing_that_happens_to_the_turn_ends_the_stall(log: SessionLog) -> None:
    log.stall()
    log.accept("t3")
    log.cancel("t3")
    assert stalled(log), "that was another turn"
    log.step(planned("a"))
    assert not stalled(log)
    assert log.stall(), "it may stall again"


def test_a_turn_that_begins_next_has_not_stalled(log: SessionLog) -> None:
    log.stall()
    log.step(text="so")
    assert (log.active.id, stalled(log)) == ("t2", False)


@pytest.mark.parametrize("started", [False, True])
def test_a_skipped_call_has_an_error_for_a_result_and_the_turn_goes_on(
    log: SessionLog, started: bool
) -> None:
    log.step(planned("a", IRREVERSIBLE))
    if started:
        log.start_call("a")
    (fact,) = log.skip_call("a", "the host is down")
    assert isinstance(fact, events_pb2.ToolCallCompleted)
    assert fact.is_error
    assert fact.content == (
        "skipped by an operator; whether it took effect is unknown: the host is down"
    )
    assert log.active.status == session_pb2.TURN_STATUS_RUNNING
    assert log.complete("a") == [], "its own result comes too late"
    assert log.skip_call("a") == []
    with pytest.raises(FailedPrecondition):
        log.start_call("a")
    log.step(text="so")


def test_a_skipped_read_had_no_effect(log: SessionLog) -> None:
    log.step(planned("a"), planned("b", IDEMPOTENT))
    (read,), (write,) = log.skip_call("a", ""), log.skip_call("b", "")
    assert isinstance(read, events_pb2.ToolCallCompleted)
    assert isinstance(write, events_pb2.ToolCallCompleted)
    assert read.content == "skipped by an operator: no reason given"
    assert "unknown" in write.content


def test_what_waits_for_a_person_is_not_skipped(log: SessionLog) -> None:
    log.step(planned("a", requires_approval=True), planned("b", IRREVERSIBLE))
    log.start_call("b")
    log.doubt("b")
    for call_id, word in (("a", "deny it"), ("b", "resolve it")):
        with pytest.raises(FailedPrecondition, match=word):
            log.skip_call(call_id)
    with pytest.raises(NotFound):
        log.skip_call("c")


def test_a_turn_is_failed_at_once_and_the_next_begins_here(log: SessionLog) -> None:
    log.step(planned("a", requires_approval=True))
    failed, started = log.fail_now("t1", owner="two")
    assert isinstance(failed, events_pb2.TurnFailed)
    assert (failed.reason, failed.message) == (errors_pb2.REASON_CANCELLED, "hangs")
    assert isinstance(started, events_pb2.TurnStarted)
    assert (log.active.id, log.active.owner) == ("t2", "two")
    assert log.fail_now("t1") == []


def test_only_an_open_turn_is_failed(log: SessionLog) -> None:
    with pytest.raises(FailedPrecondition, match="cancel it"):
        log.fail_now("t2")
    with pytest.raises(NotFound):
        log.fail_now("t9")
    log.step(text="so")
    with pytest.raises(FailedPrecondition, match="has ended"):
        log.fail_now("t1")
