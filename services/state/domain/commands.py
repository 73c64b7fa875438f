"""What can be asked of a session. Times are Unix nanoseconds, spans nanoseconds.

Commands of a turn's owner carry the epoch at which it took the turn: `decide` refuses
them with OwnerLost once another instance has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from weft.errors.v1 import errors_pb2
from weft.models.v1 import models_pb2
from weft.state.v1 import events_pb2, session_pb2


@dataclass(frozen=True, slots=True)
class CreateSession:
    """Makes the session, pinned to an agent's revision."""

    session: str
    agent_revision: int
    submit_policy: "session_pb2.SubmitPolicy.ValueType"
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class ForkSession:
    """Makes the session of `origin`'s events, whose state at that revision `base` is."""

    session: str
    origin: session_pb2.ForkOrigin
    base: session_pb2.SessionState
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class AcceptTurn:
    """Takes a turn in: starts, queues or refuses it, as the session's policy says.
    `held_scopes` are the permissions that its tools may count on."""

    session: str
    turn: str
    request_id: str
    request_hash: bytes
    input: str
    timeout_ns: int
    owner: str
    now_ns: int
    expected_revision: int = 0
    held_scopes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ResumeTurn:
    """Takes over the open turn of an owner that is lost; fails it past `resumes_max`."""

    turn: str
    lost_owner: str
    owner: str
    resumes_max: int
    now_ns: int


@dataclass(frozen=True, slots=True)
class CompleteStep:
    """Records a model's answer, and ends the turn where it asks for no call or a bound
    of the turn is reached. With `denies_tainted` irreversible calls aren't made in a tainted
    context, else a person must approve them."""

    turn: str
    epoch: int
    step: int
    message: models_pb2.Message
    usage: models_pb2.Usage
    finish_reason: "models_pb2.FinishReason.ValueType"
    model: str
    calls: Sequence[events_pb2.PlannedCall]
    steps_max: int
    tokens_max: int
    now_ns: int
    denies_tainted: bool = False


@dataclass(frozen=True, slots=True)
class StartCall:
    """Records that an irreversible call is about to be made."""

    turn: str
    epoch: int
    call_id: str


@dataclass(frozen=True, slots=True)
class CompleteCalls:
    """Records results of tool calls."""

    turn: str
    epoch: int
    results: Sequence[events_pb2.ToolCallCompleted]


@dataclass(frozen=True, slots=True)
class DoubtCalls:
    """Records that irreversible calls were begun and their end is unknown."""

    turn: str
    epoch: int
    call_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class DecideApproval:
    """A person approves or denies a call."""

    turn: str
    call_id: str
    approved: bool
    comment: str
    owner: str
    now_ns: int


@dataclass(frozen=True, slots=True)
class ResolveCall:
    """A person says what became of a call in doubt. Refused until the call's timeout
    and a lease have passed since it was begun: until then it may still be running."""

    turn: str
    call_id: str
    resolution: "events_pb2.Resolution.ValueType"
    content: str
    owner: str
    lease_ns: int
    now_ns: int


@dataclass(frozen=True, slots=True)
class RequestCancel:
    """Asks the owner to end the turn; ends it at once where no owner works on it."""

    turn: str
    reason: str
    owner: str
    now_ns: int


@dataclass(frozen=True, slots=True)
class FinishCancel:
    """The owner ends a turn that somebody asked to cancel."""

    turn: str
    epoch: int
    partial_text: str
    now_ns: int


@dataclass(frozen=True, slots=True)
class FailTurn:
    """The owner ends a turn that can't go on."""

    turn: str
    epoch: int
    reason: "errors_pb2.Reason.ValueType"
    message: str
    now_ns: int


@dataclass(frozen=True, slots=True)
class CompactContext:
    """Replaces the context's first messages by a summary of all that came before.
    `compacted_message_count` is the state's, at the time that the summary was asked for."""

    turn: str
    epoch: int
    compacted_message_count: int
    message_count: int
    summary: str
    usage: models_pb2.Usage


@dataclass(frozen=True, slots=True)
class EraseSession:
    """Erases the session, for good."""

    session: str
    request_id: str
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class BeginImport:
    """Makes the session of an export; `event_count` facts follow."""

    session: str
    source_session: str
    event_count: int


TurnCommand = (
    AcceptTurn
    | ResumeTurn
    | CompleteStep
    | StartCall
    | CompleteCalls
    | DoubtCalls
    | DecideApproval
    | ResolveCall
    | RequestCancel
    | FinishCancel
    | FailTurn
    | CompactContext
)
"""What concerns the turns of a session that is there."""

Command = CreateSession | ForkSession | EraseSession | BeginImport | TurnCommand

Decision = DecideApproval | ResolveCall
"""What a person says of a call that waits."""
