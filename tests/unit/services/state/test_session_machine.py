"""Any sequence of commands against a plain model of what a session is."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from mesh.errors import FailedPrecondition, LimitExceeded, OwnerLost, TurnInProgress
from services.state import domain
from tests.support.session_log import (
    CALL_SECONDS,
    IDEMPOTENT,
    IRREVERSIBLE,
    LEASE_NS,
    READ,
    SESSION,
    TIMEOUT_NS,
    SessionLog,
    folded,
    planned,
    step,
)
from weft.errors.v1 import errors_pb2
from weft.models.v1 import models_pb2
from weft.options.v1 import options_pb2
from weft.state.v1 import events_pb2, session_pb2

SECOND_NS = 1_000_000_000
OWNERS = ("one", "two", "three")
RESUMES_MAX = 2
POLICIES = {
    session_pb2.SUBMIT_POLICY_REJECT: "reject",
    session_pb2.SUBMIT_POLICY_ENQUEUE: "enqueue",
    session_pb2.SUBMIT_POLICY_INTERRUPT: "interrupt",
}
STATUSES = {
    session_pb2.TURN_STATUS_COMPLETED: "completed",
    session_pb2.TURN_STATUS_FAILED: "failed",
    session_pb2.TURN_STATUS_CANCELLED: "cancelled",
}
CALL_STATUSES = {
    session_pb2.CALL_STATUS_PENDING: "pending",
    session_pb2.CALL_STATUS_WAITING_APPROVAL: "asks",
    session_pb2.CALL_STATUS_APPROVED: "approved",
    session_pb2.CALL_STATUS_STARTED: "begun",
    session_pb2.CALL_STATUS_IN_DOUBT: "doubted",
    session_pb2.CALL_STATUS_COMPLETED: "done",
}
CALLS = st.lists(
    st.tuples(st.sampled_from((READ, IDEMPOTENT, IRREVERSIBLE)), st.booleans(), st.integers(0, 3)),
    min_size=1,
    max_size=4,
)
DRAW = st.integers(0, 1_000)
REQUIRED = session_pb2.APPROVAL_REASON_REQUIRED
TAINTED = session_pb2.APPROVAL_REASON_TAINTED_CONTEXT


@dataclass
class ModelCall:
    effect: "options_pb2.Effect.ValueType"
    status: str
    untrusted: bool = False
    begun_ns: int = 0


@dataclass
class ModelTurn:
    name: str
    owner: str
    deadline_ns: int
    calls: dict[str, ModelCall] = field(default_factory=dict)
    resumes: int = 0
    waits_since_ns: int = 0
    cancel_asked: bool = False

    def open_statuses(self) -> set[str]:
        return {call.status for call in self.calls.values() if call.status != "done"}

    def waits(self) -> bool:
        return bool(self.open_statuses()) and self.open_statuses() <= {"asks", "doubted"}


class SessionMachine(RuleBasedStateMachine):
    """`log` is the product's, the rest the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.log = SessionLog()
        self.policy = ""
        self.active: ModelTurn | None = None
        self.queue: list[str] = []
        self.ended: dict[str, str] = {}
        self.epoch = 0
        self.made = 0
        self.compacted = 0
        self.forks = 0
        # The session's revision, and the fork's number, at which it was tainted.
        self.tainted_at: tuple[int, int] | None = None

    @initialize(policy=st.sampled_from(sorted(POLICIES)))
    def create(self, policy: "session_pb2.SubmitPolicy.ValueType") -> None:
        self.policy = POLICIES[policy]
        self.log.create(policy)

    @property
    def turn(self) -> ModelTurn:
        assert self.active is not None
        return self.active

    def runs(self) -> bool:
        return self.active is not None and not self.active.waits()

    def begin(self, name: str, owner: str, now_ns: int) -> None:
        self.epoch += 1
        self.active = ModelTurn(name, owner, now_ns + TIMEOUT_NS)

    def end(self, status: str, next_owner: str, now_ns: int) -> None:
        self.ended[self.turn.name] = status
        self.active = None
        if self.queue:
            self.begin(self.queue.pop(0), next_owner, now_ns)

    def see_waiting(self, now_ns: int) -> None:
        turn = self.turn
        if not turn.waits():
            turn.waits_since_ns = 0
        elif not turn.waits_since_ns:
            turn.waits_since_ns = now_ns

    def calls_that_are(self, *statuses: str) -> list[str]:
        if self.active is None:
            return []
        return [name for name, call in self.active.calls.items() if call.status in statuses]

    @rule(owner=st.sampled_from(OWNERS))
    def accept(self, owner: str) -> None:
        self.made += 1
        name, now_ns = f"t{self.made}", self.log.now_ns
        if self.active is None:
            self.log.accept(name, owner)
            self.begin(name, owner, now_ns)
        elif self.policy == "reject":
            with pytest.raises(TurnInProgress):
                self.log.accept(name, owner)
        elif len(self.queue) == domain.QUEUED_TURNS_MAX:
            with pytest.raises(LimitExceeded):
                self.log.accept(name, owner)
        else:
            self.log.accept(name, owner)
            self.queue.append(name)
            if self.policy == "interrupt" and self.active.waits():
                self.end("cancelled", owner, now_ns)
            elif self.policy == "interrupt":
                self.active.cancel_asked = True

    @rule(draw=DRAW)
    def accept_again(self, draw: int) -> None:
        known = [*([self.active.name] if self.active else []), *self.queue, *self.ended]
        if known:
            assert self.log.accept(known[draw % len(known)]) == []

    @precondition(lambda self: self.runs() and not self.turn.open_statuses())
    @rule(calls=CALLS, denies=st.booleans())
    def ask_for_calls(
        self, calls: list[tuple["options_pb2.Effect.ValueType", bool, int]], denies: bool
    ) -> None:
        now_ns = self.log.now_ns
        self.made += 1
        plans = [
            # One in four is of an untrusted tool.
            planned(f"c{self.made}-{index}", effect, requires_approval=asks, untrusted=not draw)
            for index, (effect, asks, draw) in enumerate(calls)
        ]
        facts = self.log.step(*plans, text="let me see", denies_tainted=denies)
        self.turn.calls = {
            plan.call_id: ModelCall(plan.effect, self.planned_status(plan, denies), plan.untrusted)
            for plan in plans
        }
        asked = {
            fact.call_id: fact for fact in facts if isinstance(fact, events_pb2.ApprovalRequested)
        }
        assert set(asked) == set(self.calls_that_are("asks"))
        for call_id, fact in asked.items():
            doubtful = self.tainted_at and self.turn.calls[call_id].effect == IRREVERSIBLE
            assert fact.reason == (TAINTED if doubtful else REQUIRED)
            assert bool(fact.detail) == bool(doubtful)
        self.see_waiting(now_ns)

    def planned_status(self, plan: events_pb2.PlannedCall, denies: bool) -> str:
        if self.tainted_at and plan.effect == IRREVERSIBLE:
            return "done" if denies else "asks"
        return "asks" if plan.requires_approval else "pending"

    def see_result(self, call_id: str) -> None:
        if self.turn.calls[call_id].untrusted and not self.tainted_at:
            self.tainted_at = (self.forks, self.log.state.taint.revision)

    @precondition(lambda self: self.runs() and not self.turn.open_statuses())
    @rule(text=st.text(min_size=1, max_size=40))
    def answer(self, text: str) -> None:
        now_ns = self.log.now_ns
        self.log.step(text=text)
        self.end("completed", self.turn.owner, now_ns)

    @precondition(lambda self: self.calls_that_are("pending", "approved"))
    @rule(draw=DRAW)
    def begin_call(self, draw: int) -> None:
        names = self.calls_that_are("pending", "approved")
        call_id = names[draw % len(names)]
        call = self.turn.calls[call_id]
        if call.effect == IRREVERSIBLE:
            call.status, call.begun_ns = "begun", self.log.now_ns
            self.log.start_call(call_id)
            assert self.log.start_call(call_id) == []

    @precondition(lambda self: self.calls_that_are("pending", "approved", "begun"))
    @rule(draw=DRAW, together=st.booleans(), content=st.text(max_size=40))
    def complete_calls(self, draw: int, together: bool, content: str) -> None:
        names = self.calls_that_are("pending", "approved", "begun")
        chosen = names if together else [names[draw % len(names)]]
        now_ns = self.log.now_ns
        assert len(self.log.complete(*chosen, content=content)) == len(chosen)
        assert self.log.complete(*chosen, content=content) == []
        for name in chosen:
            self.turn.calls[name].status = "done"
            self.see_result(name)
        self.see_waiting(now_ns)

    @precondition(lambda self: self.calls_that_are("begun"))
    @rule()
    def doubt(self) -> None:
        now_ns = self.log.now_ns
        names = self.calls_that_are("begun")
        self.log.doubt(*names)
        for name in names:
            self.turn.calls[name].status = "doubted"
        self.see_waiting(now_ns)

    @precondition(lambda self: self.calls_that_are("asks"))
    @rule(draw=DRAW, approved=st.booleans(), owner=st.sampled_from(OWNERS))
    def decide_approval(self, draw: int, approved: bool, owner: str) -> None:
        names = self.calls_that_are("asks")
        call_id = names[draw % len(names)]
        now_ns = self.log.now_ns
        self.log.approve(call_id, approved=approved, owner=owner)
        self.person_decided(call_id, "approved" if approved else "done", owner, now_ns)

    @precondition(lambda self: self.calls_that_are("doubted"))
    @rule(
        draw=DRAW,
        resolution=st.sampled_from(
            (
                events_pb2.RESOLUTION_RETRY,
                events_pb2.RESOLUTION_COMPLETED,
                events_pb2.RESOLUTION_FAILED,
            )
        ),
        owner=st.sampled_from(OWNERS),
    )
    def resolve(self, draw: int, resolution: "events_pb2.Resolution.ValueType", owner: str) -> None:
        names = self.calls_that_are("doubted")
        call_id = names[draw % len(names)]
        over_ns = self.turn.calls[call_id].begun_ns + CALL_SECONDS * SECOND_NS + LEASE_NS
        if self.log.now_ns < over_ns:
            with pytest.raises(FailedPrecondition):
                self.log.resolve(call_id, resolution, owner=owner)
        self.log.now_ns = now_ns = max(self.log.now_ns, over_ns)
        self.log.resolve(call_id, resolution, owner=owner)
        retried = resolution == events_pb2.RESOLUTION_RETRY
        if not retried:
            self.see_result(call_id)
        self.person_decided(call_id, "approved" if retried else "done", owner, now_ns)

    def person_decided(self, call_id: str, status: str, owner: str, now_ns: int) -> None:
        turn = self.turn
        waited_since_ns = turn.waits_since_ns
        turn.calls[call_id].status = status
        self.see_waiting(now_ns)
        if waited_since_ns and not turn.waits():
            self.epoch += 1
            turn.owner = owner
            turn.deadline_ns += now_ns - waited_since_ns

    @precondition(lambda self: self.active is not None)
    @rule(owner=st.sampled_from(OWNERS))
    def cancel_active(self, owner: str) -> None:
        now_ns = self.log.now_ns
        self.log.cancel(self.turn.name, owner)
        if self.turn.waits():
            self.end("cancelled", owner, now_ns)
        else:
            self.turn.cancel_asked = True

    @precondition(lambda self: self.queue)
    @rule(draw=DRAW)
    def cancel_queued(self, draw: int) -> None:
        name = self.queue.pop(draw % len(self.queue))
        self.log.cancel(name)
        self.ended[name] = "cancelled"

    @precondition(lambda self: self.runs() and self.turn.cancel_asked)
    @rule(partial_text=st.sampled_from(("", "so far")))
    def finish_cancel(self, partial_text: str) -> None:
        now_ns = self.log.now_ns
        self.log.finish_cancel(partial_text)
        self.end("cancelled", self.turn.owner, now_ns)

    @precondition(lambda self: self.runs())
    @rule()
    def fail(self) -> None:
        now_ns = self.log.now_ns
        reason = errors_pb2.REASON_MODEL_UNAVAILABLE
        self.log.do(domain.FailTurn(self.turn.name, self.epoch, reason, "down", now_ns))
        self.end("failed", self.turn.owner, now_ns)

    @precondition(lambda self: self.active is not None)
    @rule(draw=DRAW)
    def resume(self, draw: int) -> None:
        turn, now_ns = self.turn, self.log.now_ns
        others = [owner for owner in OWNERS if owner != turn.owner]
        owner = others[draw % len(others)]
        with pytest.raises(OwnerLost):
            self.log.resume(owner, lost_owner=owner)
        now_ns = self.log.now_ns
        if turn.waits():
            with pytest.raises(OwnerLost):
                self.log.resume(owner)
            return
        self.log.resume(owner, resumes_max=RESUMES_MAX)
        if turn.resumes == RESUMES_MAX:
            self.end("failed", owner, now_ns)
            return
        self.epoch += 1
        turn.owner = owner
        turn.resumes += 1
        for name in self.calls_that_are("begun"):
            turn.calls[name].status = "doubted"
        self.see_waiting(now_ns)

    @precondition(lambda self: self.active is not None)
    @rule(draw=DRAW)
    def compact(self, draw: int) -> None:
        messages = self.log.state.context.messages
        starts = [i for i, message in enumerate(messages) if message.role == models_pb2.ROLE_USER]
        count = starts[draw % len(starts)]
        usage = models_pb2.Usage(input_tokens=1)
        self.log.do(
            domain.CompactContext(
                self.turn.name, self.epoch, self.compacted, count, "in short", usage
            )
        )
        self.compacted += count

    @precondition(lambda self: self.log.facts)
    @rule(draw=DRAW)
    def fork_and_stay(self, draw: int) -> None:
        revision = 1 + draw % len(self.log.facts)
        fork = self.log.forked_at(revision, SESSION + "b")
        before = self.tainted_at is not None and (
            self.tainted_at[0] < self.forks or self.tainted_at[1] <= revision
        )
        assert fork.state.HasField("taint") == before
        assert not fork.state.HasField("active_turn")
        assert not fork.state.queued_turns
        assert fork.state.revision == 1
        check_context(fork.state, open_calls=set())

    @precondition(lambda self: self.log.facts and self.forks < 3)
    @rule()
    def fork_and_go_on_there(self) -> None:
        self.forks += 1
        self.log = self.log.forked_at(self.log.state.revision, f"{SESSION}{self.forks}")
        self.active = None
        self.queue.clear()
        self.ended.clear()

    @precondition(lambda self: self.active is not None and self.epoch > 0)
    @rule(draw=DRAW)
    def stale_owner(self, draw: int) -> None:
        epoch = draw % self.epoch
        turn, now_ns = self.turn.name, self.log.now_ns
        commands: tuple[domain.Command, ...] = (
            step(self.log.state, text="late", epoch=epoch, now_ns=now_ns),
            domain.StartCall(turn, epoch, "any"),
            domain.CompleteCalls(turn, epoch, []),
            domain.DoubtCalls(turn, epoch, ["any"]),
            domain.FinishCancel(turn, epoch, "", now_ns),
            domain.FailTurn(turn, epoch, errors_pb2.REASON_INTERNAL, "", now_ns),
            domain.CompactContext(turn, epoch, self.compacted, 1, "", models_pb2.Usage()),
        )
        for command in commands:
            with pytest.raises(OwnerLost):
                self.log.do(command)

    @invariant()
    def revisions_have_no_gap(self) -> None:
        revisions = [place.revision for place, _ in self.log.facts]
        assert revisions == list(range(1, len(revisions) + 1))
        assert self.log.state.revision == len(revisions)

    @invariant()
    def the_turns_are_those_of_the_model(self) -> None:
        state = self.log.state
        assert state.HasField("active_turn") == (self.active is not None)
        assert state.epoch == self.epoch
        assert [turn.id for turn in state.queued_turns] == self.queue
        assert {turn.id: STATUSES[turn.status] for turn in state.ended_turns} == self.ended
        assert not state.queued_turns or state.HasField("active_turn")

    @invariant()
    def the_open_turn_is_that_of_the_model(self) -> None:
        if self.active is None:
            return
        turn, model = self.log.active, self.active
        assert (turn.id, turn.owner, turn.epoch) == (model.name, model.owner, self.epoch)
        calls = {call.call.id: CALL_STATUSES[call.status] for call in turn.calls}
        assert calls == {name: call.status for name, call in model.calls.items()}
        assert turn.deadline_time.ToNanoseconds() == model.deadline_ns
        assert turn.wait_time.ToNanoseconds() == model.waits_since_ns
        assert turn.cancel_requested == model.cancel_asked
        assert turn.status == self.expected_status()

    def expected_status(self) -> "session_pb2.TurnStatus.ValueType":
        if not self.turn.waits():
            return session_pb2.TURN_STATUS_RUNNING
        if "doubted" in self.turn.open_statuses():
            return session_pb2.TURN_STATUS_IN_DOUBT
        return session_pb2.TURN_STATUS_WAITING_APPROVAL

    @invariant()
    def the_context_holds_together(self) -> None:
        open_calls = set(self.calls_that_are("pending", "asks", "approved", "begun", "doubted"))
        check_context(self.log.state, open_calls)

    @invariant()
    def it_is_tainted_since_an_untrusted_result_and_for_ever(self) -> None:
        state = self.log.state
        assert state.HasField("taint") == (self.tainted_at is not None)
        if self.tainted_at is not None:
            assert self.tainted_at[1] == state.taint.revision > 0

    @invariant()
    def bounds_are_kept(self) -> None:
        assert len(self.log.state.queued_turns) <= domain.QUEUED_TURNS_MAX
        assert len(self.log.state.ended_turns) <= domain.ENDED_TURNS_MAX
        assert self.log.state.compacted_message_count == self.compacted

    @invariant()
    def the_facts_alone_give_the_state(self) -> None:
        assert folded(self.log.inherited + self.log.facts) == self.log.state


def check_context(state: session_pb2.SessionState, open_calls: set[str]) -> None:
    """Each call that was asked for is answered once, those still open not at all, and
    the context's tokens are what its messages add up to."""
    messages = state.context.messages
    asked = [call.id for message in messages for call in message.tool_calls]
    answered = [m.tool_call_id for m in messages if m.role == models_pb2.ROLE_TOOL]
    assert sorted(answered) == sorted(set(asked) - open_calls)
    assert state.context_tokens == sum(tokens_of(message) for message in messages)


def tokens_of(message: models_pb2.Message) -> int:
    texts = [message.text]
    for call in message.tool_calls:
        texts += [call.tool, call.arguments_json]
    return 8 + sum(len(text) // 4 + 1 for text in texts if text)


TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = settings(max_examples=200, stateful_step_count=60, derandomize=True)
