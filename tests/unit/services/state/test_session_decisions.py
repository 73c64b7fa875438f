"""What each command does to a session."""

from collections.abc import Callable

import pytest

from mesh.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    LimitExceeded,
    NotFound,
    OwnerLost,
    RequestIdReused,
    TurnInProgress,
)
from services.state import domain
from services.state.domain.evolve import SOURCES_MAX
from tests.support.session_log import (
    CALL_SECONDS,
    IRREVERSIBLE,
    LEASE_NS,
    SESSION,
    START_NS,
    TIMEOUT_NS,
    SessionLog,
    planned,
    step,
)
from weft.errors.v1 import errors_pb2
from weft.models.v1 import models_pb2
from weft.state.v1 import events_pb2, session_pb2
from weft.tools.v1 import tools_pb2

SECOND_NS = 1_000_000_000
ENQUEUE = session_pb2.SUBMIT_POLICY_ENQUEUE
INTERRUPT = session_pb2.SUBMIT_POLICY_INTERRUPT


@pytest.fixture
def log() -> SessionLog:
    """A session that rejects double submits."""
    log = SessionLog()
    log.create()
    return log


def session_with(policy: "session_pb2.SubmitPolicy.ValueType") -> SessionLog:
    log = SessionLog()
    log.create(policy)
    return log


def in_doubt(log: SessionLog, call_id: str = "a") -> None:
    """Brings the session to a turn that waits for a person's word on a call."""
    log.accept("t1")
    log.step(planned(call_id, IRREVERSIBLE))
    log.start_call(call_id)
    log.doubt(call_id)


def statuses(log: SessionLog) -> dict[str, int]:
    return {call.call.id: call.status for call in log.active.calls}


class TestCreate:
    def test_a_session_is_made_as_asked_for(self, log: SessionLog) -> None:
        assert log.state.name == SESSION
        assert log.state.agent_revision == 1
        assert log.state.revision == 1
        assert log.state.create_time.ToNanoseconds() == START_NS

    def test_a_session_is_not_made_twice(self, log: SessionLog) -> None:
        with pytest.raises(AlreadyExists):
            log.create()


class TestAccept:
    def test_a_turn_begins_with_its_question_owner_and_deadline(self, log: SessionLog) -> None:
        accepted_ns = log.now_ns
        log.accept("t1", owner="one", question="how much?")

        turn = log.active
        assert (turn.id, turn.owner, turn.epoch, turn.accept_revision) == ("t1", "one", 1, 2)
        assert turn.status == session_pb2.TURN_STATUS_RUNNING
        assert turn.deadline_time.ToNanoseconds() == accepted_ns + TIMEOUT_NS
        assert [message.text for message in log.state.context.messages] == ["how much?"]

    def test_an_unknown_session_takes_no_turn(self) -> None:
        with pytest.raises(NotFound):
            SessionLog().accept("t1")

    @pytest.mark.parametrize("while_it", ["runs", "waits", "has ended"])
    def test_a_repeated_request_does_nothing(self, log: SessionLog, while_it: str) -> None:
        log.accept("t1")
        if while_it == "waits":
            log.step(planned("a", requires_approval=True))
        elif while_it == "has ended":
            log.step(text="done")
        assert log.accept("t1") == []

    def test_a_request_id_with_another_body_is_refused(self, log: SessionLog) -> None:
        log.accept("t1")
        command = domain.AcceptTurn(SESSION, "t2", "t1", b"other", "?", TIMEOUT_NS, "one", 0)
        with pytest.raises(RequestIdReused) as raised:
            log.do(command)
        assert raised.value.metadata["turn"] == f"{SESSION}/turns/t1"

    def test_a_stale_expected_revision_is_refused(self, log: SessionLog) -> None:
        command = domain.AcceptTurn(
            SESSION, "t1", "t1", b"", "?", TIMEOUT_NS, "one", 0, expected_revision=9
        )
        with pytest.raises(Conflict) as raised:
            log.do(command)
        assert raised.value.metadata["revision"] == "1"

    @pytest.mark.parametrize(
        "policy", [session_pb2.SUBMIT_POLICY_UNSPECIFIED, session_pb2.SUBMIT_POLICY_REJECT]
    )
    def test_a_second_turn_is_rejected_unless_the_policy_says_more(
        self, policy: "session_pb2.SubmitPolicy.ValueType"
    ) -> None:
        log = session_with(policy)
        log.accept("t1")
        with pytest.raises(TurnInProgress) as raised:
            log.accept("t2")
        assert raised.value.metadata["turn"] == f"{SESSION}/turns/t1"

    def test_a_second_turn_waits_and_begins_in_the_commit_that_ends_the_first(self) -> None:
        log = session_with(ENQUEUE)
        log.accept("t1", owner="one")
        log.accept("t2", owner="two")
        assert [turn.id for turn in log.state.queued_turns] == ["t2"]

        facts = log.step(text="done")

        assert [type(fact).__name__ for fact in facts] == [
            "ModelStepCompleted",
            "TurnCompleted",
            "TurnStarted",
        ]
        assert (log.active.id, log.active.owner, log.active.epoch) == ("t2", "one", 2)
        assert not log.state.queued_turns

    def test_an_interrupting_turn_cancels_the_running_one_once(self) -> None:
        log = session_with(INTERRUPT)
        log.accept("t1")
        assert len(log.accept("t2")) == 2
        assert len(log.accept("t3")) == 1
        assert log.active.cancel_requested
        log.finish_cancel()
        assert log.active.id == "t2"

    def test_an_interrupting_turn_takes_the_place_of_one_that_waits(self) -> None:
        log = session_with(INTERRUPT)
        log.accept("t1")
        log.step(planned("a", requires_approval=True))

        log.accept("t2", owner="two")

        assert (log.active.id, log.active.owner) == ("t2", "two")
        assert log.state.ended_turns[0].status == session_pb2.TURN_STATUS_CANCELLED

    def test_only_so_many_turns_wait(self) -> None:
        log = session_with(ENQUEUE)
        for number in range(domain.QUEUED_TURNS_MAX + 1):
            log.accept(f"t{number}")
        with pytest.raises(LimitExceeded):
            log.accept("one-too-many")


class TestSteps:
    def test_an_answer_without_calls_ends_the_turn(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(text="four")
        assert not log.state.HasField("active_turn")
        record = log.state.ended_turns[0]
        assert (record.id, record.status) == ("t1", session_pb2.TURN_STATUS_COMPLETED)
        assert record.end_revision == log.state.revision
        assert log.state.usage.input_tokens == 10

    def test_calls_keep_the_keys_that_they_were_planned_with(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(planned("a"), planned("b", IRREVERSIBLE))
        keys = {call.call.id: call.idempotency_key for call in log.active.calls}
        assert keys == {"a": "key of a", "b": "key of b"}

    def test_a_step_that_is_stored_already_is_not_stored_again(self, log: SessionLog) -> None:
        log.accept("t1")
        command = step(log.state, planned("a"), now_ns=log.now_ns)
        log.do(command)
        assert log.do(command) == []

    @pytest.mark.parametrize(("steps_max", "tokens_max"), [(1, 1_000), (10, 15)])
    def test_a_turn_past_its_bounds_fails_and_answers_its_calls(
        self, log: SessionLog, steps_max: int, tokens_max: int
    ) -> None:
        log.accept("t1")
        command = step(
            log.state,
            planned("a"),
            now_ns=log.now_ns,
            steps_max=steps_max,
            tokens_max=tokens_max,
        )
        log.do(command)
        assert log.state.ended_turns[0].error_reason == errors_pb2.REASON_LIMIT_EXCEEDED
        assert log.state.context.messages[-1].tool_call_id == "a"

    def test_a_turn_waits_only_once_nothing_else_is_left(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(planned("a", requires_approval=True), planned("b"))
        assert log.active.status == session_pb2.TURN_STATUS_RUNNING
        log.complete("b")
        assert log.active.status == session_pb2.TURN_STATUS_WAITING_APPROVAL


class TestCalls:
    def test_a_result_is_taken_once(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(planned("a"), planned("b"))
        assert len(log.complete("a")) == 1
        assert len(log.complete("a", "b")) == 1

    def test_sources_are_kept_once_each_and_bounded(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(planned("a"))
        result = events_pb2.ToolCallCompleted(turn="t1", call_id="a", content="found")
        result.sources.extend(
            tools_pb2.Source(uri=f"file:{number // 2}") for number in range(3 * SOURCES_MAX)
        )
        log.do(domain.CompleteCalls("t1", 1, [result]))
        uris = [source.uri for source in log.active.sources]
        assert uris == [f"file:{number}" for number in range(SOURCES_MAX)]

    def test_a_call_is_begun_once(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(planned("a", IRREVERSIBLE))
        begun_ns = log.now_ns
        log.start_call("a")
        assert log.start_call("a") == []
        assert log.active.calls[0].start_time.ToNanoseconds() == begun_ns

    @pytest.mark.parametrize("where", ["completed", "in doubt", "waiting"])
    def test_a_call_that_may_not_run_is_not_begun(self, log: SessionLog, where: str) -> None:
        log.accept("t1")
        log.step(planned("a", IRREVERSIBLE, requires_approval=where == "waiting"))
        if where != "waiting":
            log.start_call("a")
            log.complete("a") if where == "completed" else log.doubt("a")
        with pytest.raises(FailedPrecondition):
            log.start_call("a")

    def test_an_unknown_call_is_not_begun(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(planned("a", IRREVERSIBLE))
        with pytest.raises(NotFound):
            log.start_call("b")

    def test_only_what_was_begun_can_be_in_doubt(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(planned("a", IRREVERSIBLE), planned("b", IRREVERSIBLE))
        log.start_call("a")
        log.doubt("a", "b")
        assert statuses(log) == {
            "a": session_pb2.CALL_STATUS_IN_DOUBT,
            "b": session_pb2.CALL_STATUS_PENDING,
        }


class TestApproval:
    def test_whoever_approves_goes_on_and_the_deadline_stood_still(self, log: SessionLog) -> None:
        log.accept("t1", owner="one")
        log.step(planned("a", requires_approval=True))
        deadline_ns = log.active.deadline_time.ToNanoseconds()
        log.now_ns += 3 * 86_400 * SECOND_NS

        log.approve("a", owner="two")

        turn = log.active
        assert (turn.owner, turn.epoch) == ("two", 2)
        assert turn.status == session_pb2.TURN_STATUS_RUNNING
        assert not turn.HasField("wait_time")
        waited_ns = (3 * 86_400 + 1) * SECOND_NS
        assert turn.deadline_time.ToNanoseconds() == deadline_ns + waited_ns

    def test_a_denied_call_tells_the_model_why(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(planned("a", requires_approval=True))
        log.approve("a", approved=False)
        message = log.state.context.messages[-1]
        assert message.is_error
        assert "because" in message.text

    def test_a_turn_with_another_open_question_goes_on_waiting(self, log: SessionLog) -> None:
        log.accept("t1", owner="one")
        log.step(*(planned(each, requires_approval=True) for each in "ab"))
        log.approve("a", approved=False)
        assert log.active.status == session_pb2.TURN_STATUS_WAITING_APPROVAL
        assert log.active.owner == "one"
        log.approve("b")
        assert log.active.owner == "two"

    def test_an_approval_while_the_turn_runs_leaves_it_its_owner(self, log: SessionLog) -> None:
        log.accept("t1", owner="one")
        log.step(planned("a", requires_approval=True), planned("b"))
        log.approve("a", owner="two")
        assert (log.active.owner, log.active.epoch) == ("one", 1)

    def test_a_call_is_decided_once(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(planned("a", requires_approval=True))
        log.approve("a")
        with pytest.raises(FailedPrecondition):
            log.approve("a")

    def test_unknown_calls_and_turns_are_not_found(self, log: SessionLog) -> None:
        log.accept("t1")
        with pytest.raises(NotFound):
            log.approve("a")
        with pytest.raises(NotFound):
            log.do(domain.DecideApproval("t9", "a", True, "", "two", log.now_ns))

    def test_a_call_of_an_ended_turn_is_not_decided(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(text="done")
        with pytest.raises(FailedPrecondition):
            log.do(domain.DecideApproval("t1", "a", True, "", "two", log.now_ns))


class TestDoubt:
    def test_a_call_may_not_be_resolved_while_it_may_still_run(self, log: SessionLog) -> None:
        in_doubt(log)
        begun_ns = log.active.calls[0].start_time.ToNanoseconds()
        over_ns = begun_ns + CALL_SECONDS * SECOND_NS + LEASE_NS
        log.now_ns = over_ns - SECOND_NS
        with pytest.raises(FailedPrecondition) as raised:
            log.resolve("a", events_pb2.RESOLUTION_COMPLETED)
        assert raised.value.retry_seconds == 1.0
        log.now_ns = over_ns
        log.resolve("a", events_pb2.RESOLUTION_COMPLETED)

    @pytest.mark.parametrize(
        ("resolution", "status", "is_error"),
        [
            (events_pb2.RESOLUTION_COMPLETED, session_pb2.CALL_STATUS_COMPLETED, False),
            (events_pb2.RESOLUTION_FAILED, session_pb2.CALL_STATUS_COMPLETED, True),
            (events_pb2.RESOLUTION_RETRY, session_pb2.CALL_STATUS_APPROVED, None),
        ],
    )
    def test_a_person_says_what_became_of_a_call(
        self,
        log: SessionLog,
        resolution: "events_pb2.Resolution.ValueType",
        status: "session_pb2.CallStatus.ValueType",
        is_error: bool | None,
    ) -> None:
        in_doubt(log)
        log.now_ns += 60 * SECOND_NS
        log.resolve("a", resolution, owner="two")
        assert statuses(log) == {"a": status}
        assert (log.active.owner, log.active.epoch) == ("two", 2)
        answers = [m.is_error for m in log.state.context.messages if m.tool_call_id == "a"]
        assert answers == ([] if is_error is None else [is_error])

    def test_a_call_that_is_not_in_doubt_is_not_resolved(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(planned("a", IRREVERSIBLE))
        with pytest.raises(FailedPrecondition):
            log.resolve("a", events_pb2.RESOLUTION_COMPLETED)


class TestResume:
    def test_another_instance_takes_over_and_doubts_what_was_begun(self, log: SessionLog) -> None:
        log.accept("t1", owner="one")
        log.step(planned("a", IRREVERSIBLE), planned("b"))
        log.start_call("a")

        log.resume("two")

        assert (log.active.owner, log.active.epoch, log.active.resume_count) == ("two", 2, 1)
        assert statuses(log)["a"] == session_pb2.CALL_STATUS_IN_DOUBT
        assert log.active.status == session_pb2.TURN_STATUS_RUNNING

    def test_only_the_owner_that_is_lost_is_replaced(self, log: SessionLog) -> None:
        log.accept("t1", owner="one")
        log.resume("two")
        with pytest.raises(OwnerLost):
            log.resume("three", lost_owner="one")

    def test_a_turn_that_waits_needs_no_owner(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(planned("a", requires_approval=True))
        with pytest.raises(OwnerLost):
            log.resume("two")

    def test_a_turn_that_kills_its_process_again_and_again_fails(self) -> None:
        log = session_with(ENQUEUE)
        log.accept("t1", owner="one")
        log.accept("t2")
        log.resume("two", resumes_max=1)
        log.resume("three", resumes_max=1)
        assert log.state.ended_turns[0].error_reason == errors_pb2.REASON_LIMIT_EXCEEDED
        assert (log.active.id, log.active.owner) == ("t2", "three")


class TestCancel:
    def test_the_owner_of_a_running_turn_ends_it_with_what_it_has(self, log: SessionLog) -> None:
        log.accept("t1")
        log.cancel("t1")
        assert log.cancel("t1") == []
        assert log.active.cancel_requested
        log.finish_cancel("The answer is")
        assert log.state.ended_turns[0].status == session_pb2.TURN_STATUS_CANCELLED
        assert log.state.context.messages[-1].text == "The answer is"

    def test_a_turn_that_waits_is_cancelled_at_once(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(planned("a", requires_approval=True))
        log.cancel("t1")
        assert not log.state.HasField("active_turn")
        assert log.state.context.messages[-1].tool_call_id == "a"

    def test_a_queued_turn_is_cancelled_where_it_stands(self) -> None:
        log = session_with(ENQUEUE)
        for turn in ("t1", "t2", "t3"):
            log.accept(turn)
        log.cancel("t2")
        assert [turn.id for turn in log.state.queued_turns] == ["t3"]
        assert log.active.id == "t1"
        assert not log.active.cancel_requested

    def test_an_ended_turn_stays_as_it_is(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(text="done")
        assert log.cancel("t1") == []

    def test_an_unknown_turn_is_not_found(self, log: SessionLog) -> None:
        with pytest.raises(NotFound):
            log.cancel("t9")

    def test_a_call_cut_off_in_its_middle_is_said_to_be_unknown(self, log: SessionLog) -> None:
        log.accept("t1")
        log.step(planned("a", IRREVERSIBLE), planned("b"))
        log.start_call("a")
        log.cancel("t1")
        log.finish_cancel()
        answers = {m.tool_call_id: m.text for m in log.state.context.messages if m.tool_call_id}
        assert "unknown" in answers["a"]
        assert "not run" in answers["b"]


class TestCompaction:
    def compacted(self, log: SessionLog) -> domain.CompactContext:
        log.accept("t1", question="first")
        log.step(text="one")
        log.accept("t2", question="second")
        command = domain.CompactContext("t2", log.active.epoch, 0, 2, "so far", models_pb2.Usage())
        log.do(command)
        return command

    def test_a_summary_takes_the_place_of_the_oldest_messages(self, log: SessionLog) -> None:
        self.compacted(log)
        assert log.state.summary == "so far"
        assert [message.text for message in log.state.context.messages] == ["second"]
        assert log.state.compacted_message_count == 2

    def test_a_compaction_that_is_stored_already_takes_no_more_away(self, log: SessionLog) -> None:
        command = self.compacted(log)
        assert log.do(command) == []


class TestOwners:
    @pytest.mark.parametrize(
        "command",
        [
            lambda state: step(state, epoch=1, now_ns=0),
            lambda state: domain.StartCall("t1", 1, "a"),
            lambda state: domain.CompleteCalls("t1", 1, []),
            lambda state: domain.DoubtCalls("t1", 1, ["a"]),
            lambda state: domain.FinishCancel("t1", 1, "", 0),
            lambda state: domain.FailTurn("t1", 1, errors_pb2.REASON_INTERNAL, "", 0),
            lambda state: domain.CompactContext("t1", 1, 0, 0, "", models_pb2.Usage()),
        ],
    )
    def test_an_owner_that_lost_the_turn_decides_nothing(
        self, log: SessionLog, command: Callable[[session_pb2.SessionState], domain.Command]
    ) -> None:
        log.accept("t1", owner="one")
        log.step(planned("a", IRREVERSIBLE))
        log.resume("two")
        with pytest.raises(OwnerLost):
            log.do(command(log.state))


class TestForks:
    def test_a_fork_abandons_what_is_open_and_keeps_what_was_said(self, log: SessionLog) -> None:
        log.accept("t1", question="how much?")
        log.step(planned("a"), planned("b"))
        log.complete("a")

        fork = log.forked_at(log.state.revision, SESSION + "b").state

        assert not fork.HasField("active_turn")
        assert (fork.name, fork.revision) == (SESSION + "b", 1)
        assert fork.forked_from.revision == log.state.revision
        answers = [m.tool_call_id for m in fork.context.messages if m.tool_call_id]
        assert answers == ["a", "b"]
        assert fork.context.messages[0].text == "how much?"

    def test_a_fork_takes_turns_of_its_own(self, log: SessionLog) -> None:
        log.accept("t1")
        fork = log.forked_at(2, SESSION + "b")
        fork.accept("t1")
        assert fork.active.epoch == 2


def test_request_ids_of_the_turns_that_ended_last_are_known(log: SessionLog) -> None:
    for number in range(domain.ENDED_TURNS_MAX + 1):
        log.accept(f"t{number}")
        log.step(text="done")
    assert len(log.state.ended_turns) == domain.ENDED_TURNS_MAX
    assert domain.find_request(log.state, "t0", b"t0") is None
    assert domain.find_request(log.state, "t1", b"t1") == "t1"


@pytest.mark.parametrize("tokens", [("", 0), ("abc", 1), ("abcd", 2), ("x" * 400, 101)])
def test_tokens_are_estimated_from_the_length(tokens: tuple[str, int]) -> None:
    text, expected = tokens
    assert domain.estimate_tokens(text) == expected
