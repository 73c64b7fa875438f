"""Folds a session's events into its state."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.events.fold import Fold, Place
from mesh.events.store import StreamName
from services.state.domain.names import session_stream
from services.state.domain.taint import taint
from weft.errors.v1 import errors_pb2
from weft.models.v1 import models_pb2
from weft.state.v1 import events_pb2, session_pb2

FOLD_VERSION = 2
"""Grows whenever the same events would fold into another state."""
ENDED_TURNS_MAX = 256
"""Turns whose request ids the fold still knows after they ended."""
QUEUED_TURNS_MAX = 16
SOURCES_MAX = 100
CONTEXT_TOKENS_PER_MESSAGE = 8
"""What a message costs besides its text, as estimated."""

State = session_pb2.SessionState
_WAITING = (session_pb2.CALL_STATUS_WAITING_APPROVAL, session_pb2.CALL_STATUS_IN_DOUBT)


def estimate_tokens(text: str) -> int:
    """Tokens of a text as we estimate them everywhere: one for four characters."""
    return len(text) // 4 + 1 if text else 0


def state_hash(state: State) -> bytes:
    """SHA-256 of the state's canonical bytes: the same in every process."""
    return hashlib.sha256(state.SerializeToString(deterministic=True)).digest()


def evolve(state: State, event: Message, place: Place) -> State:
    """The state after `event`. Takes `state` over: the caller must not use it again."""
    if state.import_remaining_count:
        state.import_remaining_count -= 1
    turn = getattr(event, "turn", "")
    if turn and turn == state.active_turn.id:
        # Whatever happens to it ends a stall.
        state.active_turn.ClearField("stalled_time")
        state.active_turn.ClearField("stalled_doing")
    _HANDLERS[type(event)](state, event, place)
    state.revision = place.revision
    state.update_time.CopyFrom(place.time)
    return state


def _created(state: State, event: events_pb2.SessionCreated, place: Place) -> None:
    state.name = event.session
    state.agent_revision = event.agent_revision
    state.submit_policy = event.submit_policy
    state.create_time.CopyFrom(place.time)


def _forked(state: State, event: events_pb2.SessionForked, place: Place) -> None:
    """What was open in the parent is abandoned: here nobody works on it."""
    if state.HasField("active_turn"):
        _close_calls(state, "abandoned: the session was forked while this call was open")
        state.ClearField("active_turn")
    state.ClearField("queued_turns")
    state.ClearField("ended_turns")
    state.name = event.session
    if event.HasField("origin"):
        state.forked_from.CopyFrom(event.origin)
    state.create_time.CopyFrom(place.time)


def _imported(state: State, event: events_pb2.SessionImported, place: Place) -> None:
    state.name = event.session
    state.import_remaining_count = event.event_count
    state.create_time.CopyFrom(place.time)


def _erased(state: State, event: events_pb2.SessionErased, place: Place) -> None:
    name = state.name
    state.Clear()
    state.name = name
    state.erased = True


def _accepted(state: State, event: events_pb2.TurnAccepted, place: Place) -> None:
    turn = state.queued_turns.add() if event.queued else state.active_turn
    turn.id = event.turn
    turn.request_id = event.request_id
    turn.request_hash = event.request_hash
    turn.input = event.input
    turn.timeout.CopyFrom(event.timeout)
    turn.accept_revision = place.revision
    turn.accept_time.CopyFrom(place.time)
    turn.held_scopes.extend(event.held_scopes)
    turn.status = session_pb2.TURN_STATUS_QUEUED
    state.turn_count += 1
    if not event.queued:
        _begin(state, event.owner, event.epoch, event.deadline_time)


def _started(state: State, event: events_pb2.TurnStarted, place: Place) -> None:
    state.active_turn.CopyFrom(state.queued_turns[0])
    del state.queued_turns[0]
    _begin(state, event.owner, event.epoch, event.deadline_time)


def _begin(state: State, owner: str, epoch: int, deadline_time: Timestamp) -> None:
    turn = state.active_turn
    turn.status = session_pb2.TURN_STATUS_RUNNING
    turn.deadline_time.CopyFrom(deadline_time)
    _own(state, owner, epoch)
    _say(state, models_pb2.Message(role=models_pb2.ROLE_USER, text=turn.input))


def _own(state: State, owner: str, epoch: int) -> None:
    state.active_turn.owner = owner
    state.active_turn.epoch = epoch
    state.epoch = epoch


def _resumed(state: State, event: events_pb2.TurnResumed, place: Place) -> None:
    _own(state, event.owner, event.epoch)
    state.active_turn.resume_count = event.resume_count


def _stepped(state: State, event: events_pb2.ModelStepCompleted, place: Place) -> None:
    turn = state.active_turn
    turn.step_count = event.step
    _use(state, event.usage)
    _say(state, event.message)
    del turn.calls[:]
    calls = {call.id: call for call in event.message.tool_calls}
    for planned in event.calls:
        turn.calls.add(
            call=calls[planned.call_id],
            effect=planned.effect,
            status=session_pb2.CALL_STATUS_PENDING,
            idempotency_key=planned.idempotency_key,
            timeout=planned.timeout,
            untrusted=planned.untrusted,
        )


def _approval_requested(state: State, event: events_pb2.ApprovalRequested, place: Place) -> None:
    call = _call(state, event.call_id)
    call.status = session_pb2.CALL_STATUS_WAITING_APPROVAL
    call.approval_reason = event.reason
    call.approval_detail = event.detail
    _settle(state, place)


def _approval_decided(state: State, event: events_pb2.ApprovalDecided, place: Place) -> None:
    call = _call(state, event.call_id)
    if event.approved:
        call.status = session_pb2.CALL_STATUS_APPROVED
    else:
        _answer(state, call, f"denied by a person: {event.comment or 'no reason given'}", True)
    _go_on(state, event, place)


def _call_started(state: State, event: events_pb2.ToolCallStarted, place: Place) -> None:
    call = _call(state, event.call_id)
    call.status = session_pb2.CALL_STATUS_STARTED
    call.start_time.CopyFrom(place.time)


def _call_completed(state: State, event: events_pb2.ToolCallCompleted, place: Place) -> None:
    call = _call(state, event.call_id)
    _answer(state, call, event.content, event.is_error)
    taint(state, call, event.turn, event.untrusted, place)
    sources = state.active_turn.sources
    for source in event.sources:
        if len(sources) < SOURCES_MAX and source not in sources:
            sources.append(source)
    _settle(state, place)


def _call_in_doubt(state: State, event: events_pb2.ToolCallInDoubt, place: Place) -> None:
    _call(state, event.call_id).status = session_pb2.CALL_STATUS_IN_DOUBT
    _settle(state, place)


def _call_resolved(state: State, event: events_pb2.ToolCallResolved, place: Place) -> None:
    call = _call(state, event.call_id)
    if event.resolution == events_pb2.RESOLUTION_RETRY:
        call.status = session_pb2.CALL_STATUS_APPROVED
        call.ClearField("start_time")
    else:
        _answer(state, call, event.content, event.resolution == events_pb2.RESOLUTION_FAILED)
        # A person may pass on what the tool answered.
        taint(state, call, event.turn, False, place)
    _go_on(state, event, place)


def _go_on(
    state: State, event: events_pb2.ApprovalDecided | events_pb2.ToolCallResolved, place: Place
) -> None:
    _settle(state, place)
    if event.owner:
        _own(state, event.owner, event.epoch)
        state.active_turn.deadline_time.CopyFrom(event.deadline_time)


def _compacted(state: State, event: events_pb2.ContextCompacted, place: Place) -> None:
    messages = state.context.messages
    state.context_tokens -= sum(_message_tokens(m) for m in messages[: event.message_count])
    del messages[: event.message_count]
    state.summary = event.summary
    state.compacted_message_count += event.message_count
    _use(state, event.usage)


def _cancel_requested(state: State, event: events_pb2.TurnCancelRequested, place: Place) -> None:
    state.active_turn.cancel_requested = True
    state.active_turn.cancel_reason = event.reason


def _stalled(state: State, event: events_pb2.TurnStalled, place: Place) -> None:
    state.active_turn.stalled_time.CopyFrom(place.time)
    state.active_turn.stalled_doing = event.doing


def _completed(state: State, event: events_pb2.TurnCompleted, place: Place) -> None:
    _end(state, session_pb2.TURN_STATUS_COMPLETED, place)


def _failed(state: State, event: events_pb2.TurnFailed, place: Place) -> None:
    _close_calls(state, "not run: the turn failed")
    _end(state, session_pb2.TURN_STATUS_FAILED, place, event.reason)


def _cancelled(state: State, event: events_pb2.TurnCancelled, place: Place) -> None:
    for index, queued in enumerate(state.queued_turns):
        if queued.id == event.turn:
            _record(state, queued, session_pb2.TURN_STATUS_CANCELLED, place)
            del state.queued_turns[index]
            return
    _close_calls(state, "not run: the turn was cancelled")
    if event.partial_text:
        text = event.partial_text
        _say(state, models_pb2.Message(role=models_pb2.ROLE_ASSISTANT, text=text))
    _end(state, session_pb2.TURN_STATUS_CANCELLED, place)


def _end(
    state: State,
    status: "session_pb2.TurnStatus.ValueType",
    place: Place,
    reason: "errors_pb2.Reason.ValueType" = errors_pb2.REASON_UNSPECIFIED,
) -> None:
    _record(state, state.active_turn, status, place, reason)
    state.ClearField("active_turn")


def _record(
    state: State,
    turn: session_pb2.OpenTurn,
    status: "session_pb2.TurnStatus.ValueType",
    place: Place,
    reason: "errors_pb2.Reason.ValueType" = errors_pb2.REASON_UNSPECIFIED,
) -> None:
    if len(state.ended_turns) >= ENDED_TURNS_MAX:
        del state.ended_turns[0]
    state.ended_turns.add(
        id=turn.id,
        request_id=turn.request_id,
        request_hash=turn.request_hash,
        status=status,
        accept_revision=turn.accept_revision,
        end_revision=place.revision,
        error_reason=reason,
    )


def _close_calls(state: State, text: str) -> None:
    """Models demand an answer to each call that they asked for."""
    for call in state.active_turn.calls:
        if call.status == session_pb2.CALL_STATUS_COMPLETED:
            continue
        begun = call.status in (
            session_pb2.CALL_STATUS_STARTED,
            session_pb2.CALL_STATUS_IN_DOUBT,
        )
        _answer(state, call, "begun; whether it took effect is unknown" if begun else text, True)


def _answer(state: State, call: session_pb2.CallState, content: str, is_error: bool) -> None:
    call.status = session_pb2.CALL_STATUS_COMPLETED
    _say(
        state,
        models_pb2.Message(
            role=models_pb2.ROLE_TOOL,
            text=content,
            tool_call_id=call.call.id,
            is_error=is_error,
        ),
    )


def _settle(state: State, place: Place) -> None:
    """A turn waits when nothing is left to do but what waits for a person."""
    turn = state.active_turn
    open_calls = [c.status for c in turn.calls if c.status != session_pb2.CALL_STATUS_COMPLETED]
    if not open_calls or any(status not in _WAITING for status in open_calls):
        turn.status = session_pb2.TURN_STATUS_RUNNING
        turn.ClearField("wait_time")
        return
    in_doubt = session_pb2.CALL_STATUS_IN_DOUBT in open_calls
    turn.status = (
        session_pb2.TURN_STATUS_IN_DOUBT if in_doubt else session_pb2.TURN_STATUS_WAITING_APPROVAL
    )
    if not turn.HasField("wait_time"):
        turn.wait_time.CopyFrom(place.time)


def _call(state: State, call_id: str) -> session_pb2.CallState:
    return next(call for call in state.active_turn.calls if call.call.id == call_id)


def _say(state: State, message: models_pb2.Message) -> None:
    state.context.messages.append(message)
    state.context_tokens += _message_tokens(message)


def _message_tokens(message: models_pb2.Message) -> int:
    tokens = CONTEXT_TOKENS_PER_MESSAGE + estimate_tokens(message.text)
    for call in message.tool_calls:
        tokens += estimate_tokens(call.tool) + estimate_tokens(call.arguments_json)
    return tokens


def _use(state: State, usage: models_pb2.Usage) -> None:
    for total in (state.usage, state.active_turn.usage):
        total.input_tokens += usage.input_tokens
        total.output_tokens += usage.output_tokens
        total.estimated = total.estimated or usage.estimated


_E = TypeVar("_E", bound=Message)
_HANDLERS: dict[type[Message], Callable[[State, Message, Place], None]] = {}


def _on(event: type[_E], handler: Callable[[State, _E, Place], None]) -> None:
    _HANDLERS[event] = handler  # type: ignore[assignment]


_on(events_pb2.SessionCreated, _created)
_on(events_pb2.SessionForked, _forked)
_on(events_pb2.SessionImported, _imported)
_on(events_pb2.SessionErased, _erased)
_on(events_pb2.TurnAccepted, _accepted)
_on(events_pb2.TurnStarted, _started)
_on(events_pb2.TurnResumed, _resumed)
_on(events_pb2.ModelStepCompleted, _stepped)
_on(events_pb2.ApprovalRequested, _approval_requested)
_on(events_pb2.ApprovalDecided, _approval_decided)
_on(events_pb2.ToolCallStarted, _call_started)
_on(events_pb2.ToolCallCompleted, _call_completed)
_on(events_pb2.ToolCallInDoubt, _call_in_doubt)
_on(events_pb2.ToolCallResolved, _call_resolved)
_on(events_pb2.ContextCompacted, _compacted)
_on(events_pb2.TurnCancelRequested, _cancel_requested)
_on(events_pb2.TurnStalled, _stalled)
_on(events_pb2.TurnCompleted, _completed)
_on(events_pb2.TurnFailed, _failed)
_on(events_pb2.TurnCancelled, _cancelled)


def _origin(event: Message) -> tuple[StreamName, int] | None:
    if isinstance(event, events_pb2.SessionForked) and event.HasField("origin"):
        return session_stream(event.origin.session), event.origin.revision
    return None


SESSION_FOLD: Fold[State] = Fold(
    version=FOLD_VERSION,
    events=tuple(_HANDLERS),
    initial=session_pb2.SessionState,
    evolve=evolve,
    encode=lambda state: state.SerializeToString(deterministic=True),
    decode=session_pb2.SessionState.FromString,
    origin=_origin,
)
