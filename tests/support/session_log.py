"""A session's log without a store: decides commands, folds the facts, keeps both."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.clock import NANOSECONDS
from mesh.events.fold import Place
from services.state import domain
from weft.models.v1 import models_pb2
from weft.options.v1 import options_pb2
from weft.state.v1 import events_pb2, session_pb2

SESSION = "tenants/default/agents/bot/sessions/s1"
START_NS = 1_700_000_000 * NANOSECONDS
TIMEOUT_NS = 60 * NANOSECONDS
CALL_SECONDS = 5
LEASE_NS = NANOSECONDS

READ, IDEMPOTENT, IRREVERSIBLE = (
    options_pb2.EFFECT_READ,
    options_pb2.EFFECT_IDEMPOTENT,
    options_pb2.EFFECT_IRREVERSIBLE,
)


@dataclass(slots=True)
class SessionLog:
    """Facts with their places, and what they fold into; `inherited` are those of the
    sessions that it was forked from. `commits` are the facts of each command that had any,
    with its time. `now_ns` moves on by a second with every command."""

    state: session_pb2.SessionState = field(default_factory=session_pb2.SessionState)
    facts: list[tuple[Place, Message]] = field(default_factory=list)
    inherited: list[tuple[Place, Message]] = field(default_factory=list)
    commits: list[tuple[int, list[Message]]] = field(default_factory=list)
    now_ns: int = START_NS

    def do(self, command: domain.Command) -> list[Message]:
        """Decides, checks that deciding changed nothing, and folds what was decided."""
        before = self.state.SerializeToString(deterministic=True)
        facts = domain.decide(self.state, command)
        assert self.state.SerializeToString(deterministic=True) == before
        return self._decided(facts)

    def _decided(self, facts: Sequence[Message]) -> list[Message]:
        for fact in facts:
            self._fold(fact)
        if facts:
            self.commits.append((self.now_ns, list(facts)))
        self.now_ns += NANOSECONDS
        return list(facts)

    @property
    def active(self) -> session_pb2.OpenTurn:
        """The turn that isn't ended."""
        assert self.state.HasField("active_turn")
        return self.state.active_turn

    def forked_at(self, revision: int, session: str) -> "SessionLog":
        """The log of a fork of this session at one of its revisions."""
        inherited = self.inherited + self.facts[:revision]
        fork = SessionLog(folded(inherited), inherited=inherited, now_ns=self.now_ns)
        origin = session_pb2.ForkOrigin(session=self.state.name, revision=revision)
        (fact,) = domain.decide(
            session_pb2.SessionState(), domain.ForkSession(session, origin, self.state, b"fork")
        )
        fork._fold(fact)
        return fork

    def _fold(self, fact: Message) -> None:
        place = Place(len(self.facts) + 1, timestamp(self.now_ns))
        self.facts.append((place, fact))
        self.state = domain.evolve(self.state, fact, place)

    def create(
        self, policy: "session_pb2.SubmitPolicy.ValueType" = session_pb2.SUBMIT_POLICY_REJECT
    ) -> None:
        """Makes the session."""
        self.do(domain.CreateSession(SESSION, 1, policy, b"create"))

    def accept(self, turn: str, owner: str = "one", question: str = "what?") -> list[Message]:
        """Submits a turn, whose request id is its own."""
        return self.do(
            domain.AcceptTurn(
                session=self.state.name,
                turn=turn,
                request_id=turn,
                request_hash=turn.encode(),
                input=question,
                timeout_ns=TIMEOUT_NS,
                owner=owner,
                now_ns=self.now_ns,
            )
        )

    def step(
        self, *calls: events_pb2.PlannedCall, text: str = "", denies_tainted: bool = False
    ) -> list[Message]:
        """The model asks for `calls`, or answers with `text`."""
        command = step(self.state, *calls, text=text, now_ns=self.now_ns)
        return self.do(replace(command, denies_tainted=denies_tainted))

    def start_call(self, call_id: str) -> list[Message]:
        """The call is about to be made."""
        return self.do(domain.StartCall(self.active.id, self.active.epoch, call_id))

    def complete(self, *call_ids: str, content: str = "4") -> list[Message]:
        """The calls ended."""
        turn = self.active
        results = [
            events_pb2.ToolCallCompleted(turn=turn.id, call_id=each, content=content)
            for each in call_ids
        ]
        return self.do(domain.CompleteCalls(turn.id, turn.epoch, results))

    def doubt(self, *call_ids: str) -> list[Message]:
        """Nobody knows whether the calls ended."""
        return self.do(domain.DoubtCalls(self.active.id, self.active.epoch, call_ids))

    def approve(self, call_id: str, *, approved: bool = True, owner: str = "two") -> list[Message]:
        """A person decides."""
        turn = self.active.id
        return self.do(
            domain.DecideApproval(turn, call_id, approved, "because", owner, self.now_ns)
        )

    def resolve(
        self,
        call_id: str,
        resolution: "events_pb2.Resolution.ValueType",
        *,
        owner: str = "two",
    ) -> list[Message]:
        """A person says what became of a call."""
        return self.do(
            domain.ResolveCall(
                self.active.id, call_id, resolution, "done", owner, LEASE_NS, self.now_ns
            )
        )

    def resume(self, owner: str, *, lost_owner: str = "", resumes_max: int = 3) -> list[Message]:
        """Another instance takes the turn over."""
        lost = lost_owner or self.active.owner
        return self.do(domain.ResumeTurn(self.active.id, lost, owner, resumes_max, self.now_ns))

    def cancel(self, turn: str, owner: str = "two") -> list[Message]:
        """Somebody asks to end the turn."""
        return self.do(domain.RequestCancel(turn, "enough", owner, self.now_ns))

    def stall(self, *, seconds: int = 120) -> list[Message]:
        """Nothing has happened to the turn for so long."""
        since_ns = self.now_ns - seconds * NANOSECONDS
        return self._decided(
            domain.stall(self.state, self.active.id, self.state.revision, since_ns, self.now_ns)
        )

    def skip_call(self, call_id: str, reason: str = "hangs") -> list[Message]:
        """An operator skips a call."""
        return self._decided(domain.skip_call(self.state, self.active.id, call_id, reason))

    def fail_now(self, turn: str, owner: str = "two") -> list[Message]:
        """An operator fails a turn."""
        return self._decided(domain.fail_turn(self.state, turn, "hangs", owner, self.now_ns))

    def finish_cancel(self, partial_text: str = "") -> list[Message]:
        """The owner ends the turn that somebody cancelled."""
        turn = self.active
        return self.do(domain.FinishCancel(turn.id, turn.epoch, partial_text, self.now_ns))


def planned(
    call_id: str,
    effect: "options_pb2.Effect.ValueType" = READ,
    *,
    requires_approval: bool = False,
    untrusted: bool = False,
    refusal: str = "",
) -> events_pb2.PlannedCall:
    """A tool call as the agents service plans it."""
    plan = events_pb2.PlannedCall(
        call_id=call_id,
        effect=effect,
        idempotency_key=f"key of {call_id}",
        requires_approval=requires_approval,
        untrusted=untrusted,
        refusal=refusal,
    )
    plan.timeout.FromSeconds(CALL_SECONDS)
    return plan


def step(
    state: session_pb2.SessionState,
    *calls: events_pb2.PlannedCall,
    now_ns: int,
    text: str = "",
    epoch: int | None = None,
    steps_max: int = 100,
    tokens_max: int = 1_000_000,
) -> domain.CompleteStep:
    """The next answer of the model in the turn that is open."""
    turn = state.active_turn
    message = models_pb2.Message(role=models_pb2.ROLE_ASSISTANT, text=text)
    for plan in calls:
        message.tool_calls.add(id=plan.call_id, tool="sum", arguments_json='{"of": [2, 2]}')
    return domain.CompleteStep(
        turn=turn.id,
        epoch=turn.epoch if epoch is None else epoch,
        step=turn.step_count + 1,
        message=message,
        usage=models_pb2.Usage(input_tokens=10, output_tokens=5),
        finish_reason=models_pb2.FINISH_REASON_STOP,
        model="scripted/plan",
        calls=calls,
        steps_max=steps_max,
        tokens_max=tokens_max,
        now_ns=now_ns,
    )


def folded(facts: Sequence[tuple[Place, Message]]) -> session_pb2.SessionState:
    """What the facts fold into, from nothing."""
    state = session_pb2.SessionState()
    for place, fact in facts:
        state = domain.evolve(state, fact, place)
    return state


def timestamp(nanoseconds: int) -> Timestamp:
    """Unix time in nanoseconds as a message."""
    time = Timestamp()
    time.FromNanoseconds(nanoseconds)
    return time
