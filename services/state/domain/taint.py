"""What a tainted context means for the calls that a model asks for in it.

A context is tainted from the event on that brings in a result in which anybody may have had a
say: the same event, so that there is no moment between the two, whatever dies. It isn't undone
by turns, forks or summaries. What is asked for in it may be what that result wants, and not
what the session's people want; so a person looks at what can't be taken back.
"""

from collections.abc import Sequence

from google.protobuf.message import Message

from mesh.events.fold import Place
from weft.options.v1 import options_pb2
from weft.state.v1 import events_pb2, session_pb2

State = session_pb2.SessionState
NAME_LENGTH_MAX = 63


def judged(
    state: State, planned: events_pb2.PlannedCall, *, denies: bool
) -> events_pb2.PlannedCall:
    """The call as it may be made in this context: with `denies` one that can't be taken back
    isn't made where it is tainted, else a person must approve it."""
    if planned.refusal or not _is_doubtful(state, planned):
        return planned
    call = events_pb2.PlannedCall()
    call.CopyFrom(planned)
    if denies:
        call.requires_approval = False
        call.refusal = f"not made: it can't be taken back, and {_told(state)}"
    else:
        call.requires_approval = True
    return call


def consequences(state: State, turn: str, calls: Sequence[events_pb2.PlannedCall]) -> list[Message]:
    """The facts that go with the step that asks for these calls: the answers to those that
    aren't made, and the approvals that are asked for."""
    facts: list[Message] = []
    for call in calls:
        if call.refusal:
            facts.append(
                events_pb2.ToolCallCompleted(
                    turn=turn, call_id=call.call_id, content=call.refusal, is_error=True
                )
            )
        elif call.requires_approval:
            facts.append(_asked(state, turn, call))
    return facts


def taint(
    state: State, call: session_pb2.CallState, turn: str, untrusted: bool, place: Place
) -> None:
    """Taints the state by the call's result, where nothing did before. Changes `state`."""
    if state.HasField("taint") or not (untrusted or call.untrusted):
        return
    state.taint.tool = call.call.tool
    state.taint.turn = turn
    state.taint.call_id = call.call.id
    state.taint.revision = place.revision
    state.taint.time.CopyFrom(place.time)


def _is_doubtful(state: State, planned: events_pb2.PlannedCall) -> bool:
    return state.HasField("taint") and planned.effect == options_pb2.EFFECT_IRREVERSIBLE


def _asked(state: State, turn: str, call: events_pb2.PlannedCall) -> events_pb2.ApprovalRequested:
    asked = events_pb2.ApprovalRequested(
        turn=turn, call_id=call.call_id, reason=session_pb2.APPROVAL_REASON_REQUIRED
    )
    if _is_doubtful(state, call):
        asked.reason = session_pb2.APPROVAL_REASON_TAINTED_CONTEXT
        asked.detail = f"it can't be taken back, and {_told(state)}"
    return asked


def _told(state: State) -> str:
    tool = state.taint.tool[:NAME_LENGTH_MAX]
    return (
        f"the context holds what the untrusted tool {tool} answered"
        f" ({state.taint.call_id} of turn {state.taint.turn})"
    )
