"""When a turn has stalled, and what an operator's word leads to. Times are Unix nanoseconds.

A turn has stalled when it runs and nothing has happened to it for too long; one that waits
for a person hasn't.
"""

from collections.abc import Sequence

from google.protobuf.message import Message

from mesh.errors import FailedPrecondition, NotFound
from services.state.domain import commands as c
from services.state.domain.decide import WAITING_STATUSES, decide, refuse_absent
from services.state.domain.names import turn_name
from weft.errors.v1 import errors_pb2
from weft.options.v1 import options_pb2
from weft.state.v1 import events_pb2, session_pb2

State = session_pb2.SessionState
Facts = Sequence[Message]
RUNNING_CALLS = (
    session_pb2.CALL_STATUS_PENDING,
    session_pb2.CALL_STATUS_APPROVED,
    session_pb2.CALL_STATUS_STARTED,
)
"""Of calls that run, or are about to."""
CALLS_NAMED_MAX = 8


def stall(state: State, turn: str, revision: int, since_ns: int, now_ns: int) -> Facts:
    """Says that the turn has stalled, where it runs, wasn't said to have, and nothing came
    behind `revision`. `since_ns` is since when nothing has happened to it."""
    active = state.active_turn
    if active.id != turn or not turn or state.revision != revision:
        return []
    if active.status in WAITING_STATUSES or active.HasField("stalled_time"):
        return []
    stalled = events_pb2.TurnStalled(turn=turn, doing=doing(active))
    stalled.idle.FromNanoseconds(max(0, now_ns - since_ns))
    return [stalled]


def doing(turn: session_pb2.OpenTurn) -> str:
    """What a turn that runs is at."""
    calls = [f"{c.call.tool} ({c.call.id})" for c in turn.calls if c.status in RUNNING_CALLS]
    if not calls:
        at = f"model step {turn.step_count + 1}"
    elif len(calls) > CALLS_NAMED_MAX:
        named = ", ".join(calls[:CALLS_NAMED_MAX])
        at = f"tool calls {named} and {len(calls) - CALLS_NAMED_MAX} more"
    else:
        at = f"tool calls {', '.join(calls)}" if len(calls) > 1 else f"tool call {calls[0]}"
    return f"{at}, and to be cancelled" if turn.cancel_requested else at


def skip_call(state: State, turn: str, call_id: str, reason: str) -> Facts:
    """Answers a call that runs, or is about to, with an error; nothing where it has its
    result.

    Raises NotFound for a turn or call that isn't there, FailedPrecondition for a turn that
    isn't open, and for a call that waits for a person, which has another way.
    """
    active = _active(state, turn)
    call = next((call for call in active.calls if call.call.id == call_id), None)
    if call is None:
        raise NotFound.of("call", f"{turn_name(state.name, turn)} {call_id}")
    if call.status == session_pb2.CALL_STATUS_WAITING_APPROVAL:
        raise FailedPrecondition(f"call {call_id} waits for approval: deny it")
    if call.status == session_pb2.CALL_STATUS_IN_DOUBT:
        raise FailedPrecondition(f"call {call_id} is in doubt: resolve it")
    harmless = call.effect == options_pb2.EFFECT_READ
    doubt = "" if harmless else "; whether it took effect is unknown"
    skipped = events_pb2.ToolCallCompleted(
        turn=turn,
        call_id=call_id,
        content=f"skipped by an operator{doubt}: {reason or 'no reason given'}",
        is_error=True,
    )
    return decide(state, c.CompleteCalls(turn, active.epoch, [skipped]))


def fail_turn(state: State, turn: str, message: str, owner: str, now_ns: int) -> Facts:
    """Fails the open turn, whoever owns it; one that waits behind it is `owner`'s. Nothing
    where it has failed already. Raises as `skip_call`."""
    refuse_absent(state)
    failed = session_pb2.TURN_STATUS_FAILED
    if any(ended.id == turn and ended.status == failed for ended in state.ended_turns):
        return []
    active = _active(state, turn)
    reason = errors_pb2.REASON_CANCELLED
    facts = decide(state, c.FailTurn(turn, active.epoch, reason, message, now_ns))
    for fact in facts:
        if isinstance(fact, events_pb2.TurnStarted):
            fact.owner = owner
    return facts


def _active(state: State, turn: str) -> session_pb2.OpenTurn:
    refuse_absent(state)
    if state.HasField("active_turn") and state.active_turn.id == turn:
        return state.active_turn
    name = turn_name(state.name, turn)
    if any(queued.id == turn for queued in state.queued_turns):
        raise FailedPrecondition(f"turn {name} waits for the one before it: cancel it")
    if any(ended.id == turn for ended in state.ended_turns):
        raise FailedPrecondition(f"turn {name} has ended")
    raise NotFound.of("turn", name)
