"""What an import takes: facts that a session could have come to, in their order.

`evolve` trusts what it folds, since `decide` made it. Facts of a file were made by anyone,
so that each is checked against the state that it is to change.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

from google.protobuf.message import Message

from services.state.domain.evolve import QUEUED_TURNS_MAX
from weft.state.v1 import events_pb2, session_pb2

State = session_pb2.SessionState
ABANDONED = "abandoned: the session was imported while this turn was open"
_ENDED = session_pb2.CALL_STATUS_COMPLETED


def check_follows(state: State, event: Message) -> str:
    """What is wrong with `event` as the next fact of the session; empty where nothing is."""
    if isinstance(event, events_pb2.SessionImported | events_pb2.SessionErased):
        return "is no part of an export"
    if isinstance(event, events_pb2.SessionCreated):
        return "must be the first event, and only that" if state.name else ""
    if not state.name:
        return "comes before SessionCreated"
    return _CHECKS[type(event)](state, event)


def renamed(event: Message, session: str, agent_revision: int) -> Message:
    """The fact as the session of that name has it. Only where sessions are named is it
    another one; ids of turns and keys of calls stay as they were."""
    if isinstance(event, events_pb2.SessionCreated | events_pb2.SessionForked):
        fact = deepcopy(event)
        fact.session = session
        fact.agent_revision = agent_revision
        fact.ClearField("request_hash")
        if isinstance(fact, events_pb2.SessionForked):
            # It continues what it holds itself, no session of another name.
            fact.ClearField("origin")
        return fact
    return event


def abandon_open_turns(state: State) -> list[Message]:
    """Ends the turns that were open in the export: nobody works on them here."""
    turns = [turn.id for turn in state.queued_turns]
    if state.HasField("active_turn"):
        turns.append(state.active_turn.id)
    return [events_pb2.TurnCancelled(turn=turn, reason=ABANDONED) for turn in turns]


def _forked(state: State, event: events_pb2.SessionForked) -> str:
    return ""


def _accepted(state: State, event: events_pb2.TurnAccepted) -> str:
    open_turns = {state.active_turn.id, *(turn.id for turn in state.queued_turns)}
    known = open_turns | {turn.id for turn in state.ended_turns}
    if not event.turn or event.turn in known:
        return "accepts a turn that was accepted before, or has no id"
    if event.queued != state.HasField("active_turn"):
        return "must be queued where another turn is open, and only there"
    if len(state.queued_turns) >= QUEUED_TURNS_MAX:
        return f"is one of more than {QUEUED_TURNS_MAX} turns that wait"
    return ""


def _started(state: State, event: events_pb2.TurnStarted) -> str:
    if state.HasField("active_turn"):
        return "starts a turn while another one is open"
    if not state.queued_turns or state.queued_turns[0].id != event.turn:
        return "starts a turn that isn't the next that waits"
    return ""


def _of_open_turn(state: State, event: Message) -> str:
    turn: str = event.turn  # type: ignore[attr-defined]
    if not state.HasField("active_turn") or state.active_turn.id != turn:
        return "is of a turn that isn't open"
    return ""


def _stepped(state: State, event: events_pb2.ModelStepCompleted) -> str:
    turn = state.active_turn
    if problem := _of_open_turn(state, event):
        return problem
    if event.step != turn.step_count + 1:
        return f"is step {event.step} where step {turn.step_count + 1} comes next"
    if any(call.status != _ENDED for call in turn.calls):
        return "comes before the calls of the step before it ended"
    asked = [call.id for call in event.message.tool_calls]
    planned = [call.call_id for call in event.calls]
    if len(set(planned)) != len(planned) or not set(planned) <= set(asked):
        return "plans calls that its message doesn't ask for"
    return ""


def _of_open_call(state: State, event: Message) -> str:
    if problem := _of_open_turn(state, event):
        return problem
    call_id: str = event.call_id  # type: ignore[attr-defined]
    if not any(
        call.call.id == call_id and call.status != _ENDED for call in state.active_turn.calls
    ):
        return "is of a call that isn't open"
    return ""


def _compacted(state: State, event: events_pb2.ContextCompacted) -> str:
    if problem := _of_open_turn(state, event):
        return problem
    if event.message_count > len(state.context.messages):
        return "compacts more messages than there are"
    return ""


def _cancelled(state: State, event: events_pb2.TurnCancelled) -> str:
    if any(turn.id == event.turn for turn in state.queued_turns):
        return ""
    return _of_open_turn(state, event)


_E = TypeVar("_E", bound=Message)
_CHECKS: dict[type[Message], Callable[[State, Message], str]] = {}


def _on(check: Callable[[State, _E], str], *events: type[_E]) -> None:
    for event in events:
        _CHECKS[event] = check  # type: ignore[assignment]


_on(_forked, events_pb2.SessionForked)
_on(_accepted, events_pb2.TurnAccepted)
_on(_started, events_pb2.TurnStarted)
_on(_stepped, events_pb2.ModelStepCompleted)
_on(_compacted, events_pb2.ContextCompacted)
_on(_cancelled, events_pb2.TurnCancelled)
_on(
    _of_open_turn,
    events_pb2.TurnResumed,
    events_pb2.TurnCancelRequested,
    events_pb2.TurnStalled,
    events_pb2.TurnCompleted,
    events_pb2.TurnFailed,
)
_on(
    _of_open_call,
    events_pb2.ApprovalRequested,
    events_pb2.ApprovalDecided,
    events_pb2.ToolCallStarted,
    events_pb2.ToolCallCompleted,
    events_pb2.ToolCallInDoubt,
    events_pb2.ToolCallResolved,
)
