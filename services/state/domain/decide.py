"""Decides what a command does to a session: the facts, or the error that refuses it."""

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

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
from services.state.domain import commands as c
from services.state.domain.evolve import QUEUED_TURNS_MAX
from services.state.domain.names import turn_name
from services.state.domain.taint import consequences, judged
from weft.errors.v1 import errors_pb2
from weft.state.v1 import events_pb2, session_pb2

State = session_pb2.SessionState
Facts = list[Message]
WAITING_STATUSES = (session_pb2.TURN_STATUS_WAITING_APPROVAL, session_pb2.TURN_STATUS_IN_DOUBT)
"""Of a turn that waits for a person."""
_RUNNABLE = (session_pb2.CALL_STATUS_PENDING, session_pb2.CALL_STATUS_APPROVED)


def decide(state: State, command: c.Command) -> Facts:
    """The facts that `command` leads to; none where it was done before.

    Raises the errors that `weft.errors.v1.Reason` lists for a caller's fault, Conflict
    for a revision that isn't the session's, OwnerLost for a stale epoch.
    """
    if isinstance(command, c.CreateSession | c.ForkSession | c.BeginImport):
        return _make(state, command)
    if isinstance(command, c.EraseSession):
        return _erase(state, command)
    refuse_absent(state)
    return _change(state, command)


def exists(state: State) -> bool:
    """Whether the session is there for callers: made, not erased, and imported whole."""
    return bool(state.revision) and not state.erased and not state.import_remaining_count


def refuse_absent(state: State) -> None:
    """Raises NotFound where the session was erased or isn't imported whole."""
    if state.erased:
        raise NotFound(f"session {state.name} was erased", metadata={"resource": state.name})
    if state.import_remaining_count:
        raise NotFound.of("session", state.name)


def _make(state: State, command: c.CreateSession | c.ForkSession | c.BeginImport) -> Facts:
    if state.revision:
        raise AlreadyExists(
            f"session {command.session} is there", metadata={"resource": command.session}
        )
    match command:
        case c.CreateSession():
            return [
                events_pb2.SessionCreated(
                    session=command.session,
                    agent_revision=command.agent_revision,
                    submit_policy=command.submit_policy,
                    request_hash=command.request_hash,
                )
            ]
        case c.BeginImport():
            return [
                events_pb2.SessionImported(
                    session=command.session,
                    source_session=command.source_session,
                    event_count=command.event_count,
                )
            ]
        case c.ForkSession():
            return [
                events_pb2.SessionForked(
                    session=command.session,
                    origin=command.origin,
                    request_hash=command.request_hash,
                    agent_revision=command.base.agent_revision,
                    submit_policy=command.base.submit_policy,
                    turn_count=command.base.turn_count,
                )
            ]


def _erase(state: State, command: c.EraseSession) -> Facts:
    """One that isn't imported whole is erased whatever it holds: nobody works on it."""
    if not state.revision:
        raise NotFound.of("session", command.session)
    if state.erased:
        return []
    if state.HasField("active_turn") and not state.import_remaining_count:
        name = turn_name(state.name, state.active_turn.id)
        raise FailedPrecondition(
            f"turn {name} isn't ended: cancel it and those that wait behind it, then erase",
            metadata={"turn": name},
        )
    return [
        events_pb2.SessionErased(request_id=command.request_id, request_hash=command.request_hash)
    ]


def _change(state: State, command: c.TurnCommand) -> Facts:
    match command:
        case c.AcceptTurn():
            return _accept(state, command)
        case c.ResumeTurn():
            return _resume(state, command)
        case c.CompleteStep():
            return _complete_step(state, command)
        case c.StartCall():
            return _start_call(state, command)
        case c.CompleteCalls():
            return _complete_calls(state, command)
        case c.DoubtCalls():
            return _doubt_calls(state, command)
        case c.DecideApproval():
            return _decide_approval(state, command)
        case c.ResolveCall():
            return _resolve(state, command)
        case c.RequestCancel():
            return _request_cancel(state, command)
        case c.FinishCancel():
            turn = _owned(state, command.turn, command.epoch)
            return [
                events_pb2.TurnCancelled(
                    turn=turn.id, reason=turn.cancel_reason, partial_text=command.partial_text
                ),
                *_start_next(state, turn.owner, command.now_ns),
            ]
        case c.FailTurn():
            turn = _owned(state, command.turn, command.epoch)
            return _fail(state, turn, command.reason, command.message, command.now_ns)
        case c.CompactContext():
            _owned(state, command.turn, command.epoch)
            if state.compacted_message_count != command.compacted_message_count:
                # Decided again after an unknown end: it was stored.
                return []
            return [
                events_pb2.ContextCompacted(
                    turn=command.turn,
                    message_count=command.message_count,
                    summary=command.summary,
                    usage=command.usage,
                )
            ]


def find_request(state: State, request_id: str, request_hash: bytes) -> str | None:
    """Id of the turn that this request started, if it came before.

    Raises RequestIdReused where it came with another body.
    """
    turns: list[session_pb2.OpenTurn | session_pb2.TurnRecord] = []
    if state.HasField("active_turn"):
        turns.append(state.active_turn)
    for turn in (*turns, *state.queued_turns, *state.ended_turns):
        if turn.request_id == request_id:
            if turn.request_hash != request_hash:
                raise RequestIdReused(
                    f"request_id {request_id} came before with another body",
                    metadata={"turn": turn_name(state.name, turn.id)},
                )
            return turn.id
    return None


def _accept(state: State, command: c.AcceptTurn) -> Facts:
    if not state.revision:
        raise NotFound.of("session", command.session)
    if find_request(state, command.request_id, command.request_hash):
        return []
    if command.expected_revision and command.expected_revision != state.revision:
        raise Conflict(
            f"session {state.name} is at revision {state.revision}, "
            f"not {command.expected_revision}",
            metadata={"resource": state.name, "revision": str(state.revision)},
        )
    accepted = events_pb2.TurnAccepted(
        turn=command.turn,
        request_id=command.request_id,
        request_hash=command.request_hash,
        input=command.input,
        timeout=_duration(command.timeout_ns),
        held_scopes=command.held_scopes,
    )
    if not state.HasField("active_turn"):
        _own(accepted, state, command.owner, command.now_ns + command.timeout_ns)
        return [accepted]
    return _accept_behind(state, command, accepted)


def _accept_behind(state: State, command: c.AcceptTurn, accepted: events_pb2.TurnAccepted) -> Facts:
    running = state.active_turn
    if state.submit_policy not in (
        session_pb2.SUBMIT_POLICY_ENQUEUE,
        session_pb2.SUBMIT_POLICY_INTERRUPT,
    ):
        name = turn_name(state.name, running.id)
        raise TurnInProgress(
            f"turn {name} isn't ended, and the session rejects another one",
            metadata={"turn": name},
        )
    if len(state.queued_turns) >= QUEUED_TURNS_MAX:
        raise LimitExceeded(f"session {state.name} has {QUEUED_TURNS_MAX} turns waiting already")
    if state.submit_policy == session_pb2.SUBMIT_POLICY_INTERRUPT:
        reason = "interrupted by another turn"
        if running.status in WAITING_STATUSES:
            # Nobody works on it, so nobody else would end it.
            cancelled = events_pb2.TurnCancelled(turn=running.id, reason=reason)
            next_turn = _start_next(state, command.owner, command.now_ns)
            if next_turn:
                accepted.queued = True
            else:
                _own(accepted, state, command.owner, command.now_ns + command.timeout_ns)
            return [cancelled, *next_turn, accepted]
        accepted.queued = True
        if running.cancel_requested:
            return [accepted]
        return [events_pb2.TurnCancelRequested(turn=running.id, reason=reason), accepted]
    accepted.queued = True
    return [accepted]


def _resume(state: State, command: c.ResumeTurn) -> Facts:
    turn = _active(state, command.turn)
    if turn is None or turn.owner != command.lost_owner or turn.status in WAITING_STATUSES:
        raise OwnerLost(f"turn {command.turn} isn't {command.lost_owner}'s any more")
    if turn.resume_count >= command.resumes_max:
        message = f"its process died {turn.resume_count + 1} times while it ran"
        facts = _fail(state, turn, errors_pb2.REASON_LIMIT_EXCEEDED, message, command.now_ns)
        # A turn that waited behind it begins with us, not with the owner that is lost.
        for fact in facts:
            if isinstance(fact, events_pb2.TurnStarted):
                fact.owner = command.owner
        return facts
    facts = [
        events_pb2.TurnResumed(
            turn=turn.id,
            owner=command.owner,
            epoch=state.epoch + 1,
            resume_count=turn.resume_count + 1,
        )
    ]
    facts += [
        events_pb2.ToolCallInDoubt(turn=turn.id, call_id=call.call.id)
        for call in turn.calls
        if call.status == session_pb2.CALL_STATUS_STARTED
    ]
    return facts


def _complete_step(state: State, command: c.CompleteStep) -> Facts:
    turn = _owned(state, command.turn, command.epoch)
    if turn.step_count >= command.step:
        # Decided again after an unknown end: it was stored.
        return []
    calls = [judged(state, call, denies=command.denies_tainted) for call in command.calls]
    stepped = events_pb2.ModelStepCompleted(
        turn=turn.id,
        step=command.step,
        message=command.message,
        usage=command.usage,
        finish_reason=command.finish_reason,
        model=command.model,
        calls=calls,
    )
    facts: Facts = [stepped]
    if not calls:
        facts.append(events_pb2.TurnCompleted(turn=turn.id, text=command.message.text))
        return [*facts, *_start_next(state, turn.owner, command.now_ns)]
    bound = _bound_reached(turn, command)
    if bound:
        return facts + _fail(state, turn, errors_pb2.REASON_LIMIT_EXCEEDED, bound, command.now_ns)
    return facts + consequences(state, turn.id, calls)


def _bound_reached(turn: session_pb2.OpenTurn, command: c.CompleteStep) -> str:
    if command.step >= command.steps_max:
        return f"it took {command.steps_max} model steps, its bound, without an answer"
    tokens = turn.usage.input_tokens + turn.usage.output_tokens
    tokens += command.usage.input_tokens + command.usage.output_tokens
    if tokens >= command.tokens_max:
        return f"it used {tokens} tokens; its bound is {command.tokens_max}"
    return ""


def _start_call(state: State, command: c.StartCall) -> Facts:
    _owned(state, command.turn, command.epoch)
    _, call = _open_call(state, command.turn, command.call_id)
    if call.status == session_pb2.CALL_STATUS_STARTED:
        return []
    if call.status not in _RUNNABLE:
        raise FailedPrecondition(f"call {command.call_id} can't be begun")
    return [events_pb2.ToolCallStarted(turn=command.turn, call_id=command.call_id)]


def _doubt_calls(state: State, command: c.DoubtCalls) -> Facts:
    turn = _owned(state, command.turn, command.epoch)
    return [
        events_pb2.ToolCallInDoubt(turn=command.turn, call_id=call.call.id)
        for call in turn.calls
        if call.call.id in command.call_ids and call.status == session_pb2.CALL_STATUS_STARTED
    ]


def _complete_calls(state: State, command: c.CompleteCalls) -> Facts:
    turn = _owned(state, command.turn, command.epoch)
    open_calls = {
        call.call.id for call in turn.calls if call.status != session_pb2.CALL_STATUS_COMPLETED
    }
    return [result for result in command.results if result.call_id in open_calls]


def _decide_approval(state: State, command: c.DecideApproval) -> Facts:
    turn, call = _open_call(state, command.turn, command.call_id)
    if call.status != session_pb2.CALL_STATUS_WAITING_APPROVAL:
        raise FailedPrecondition(f"call {command.call_id} doesn't wait for approval")
    decided = events_pb2.ApprovalDecided(
        turn=turn.id,
        call_id=command.call_id,
        approved=command.approved,
        comment=command.comment,
    )
    _take_over(decided, state, turn, command.owner, command.now_ns)
    return [decided]


def _resolve(state: State, command: c.ResolveCall) -> Facts:
    turn, call = _open_call(state, command.turn, command.call_id)
    if call.status != session_pb2.CALL_STATUS_IN_DOUBT:
        raise FailedPrecondition(f"call {command.call_id} isn't in doubt")
    begun_ns = call.start_time.ToNanoseconds()
    over_ns = begun_ns + call.timeout.ToNanoseconds() + command.lease_ns
    if command.now_ns < over_ns:
        wait_seconds = (over_ns - command.now_ns) / 1e9
        raise FailedPrecondition(
            f"call {command.call_id} may still be running; resolve it in {wait_seconds:.0f} s",
            retry_seconds=wait_seconds,
        )
    resolved = events_pb2.ToolCallResolved(
        turn=turn.id,
        call_id=command.call_id,
        resolution=command.resolution,
        content=command.content,
    )
    _take_over(resolved, state, turn, command.owner, command.now_ns)
    return [resolved]


def _take_over(
    event: events_pb2.ApprovalDecided | events_pb2.ToolCallResolved,
    state: State,
    turn: session_pb2.OpenTurn,
    owner: str,
    now_ns: int,
) -> None:
    """Whoever decides the call that a turn waits for goes on with it, if no other call
    of it waits still. A turn that runs keeps its owner."""
    if turn.status not in WAITING_STATUSES:
        return
    waited = turn.wait_time.ToNanoseconds()
    others = [
        call
        for call in turn.calls
        if call.call.id != event.call_id and call.status != session_pb2.CALL_STATUS_COMPLETED
    ]
    ends_call = not (
        (isinstance(event, events_pb2.ApprovalDecided) and event.approved)
        or (
            isinstance(event, events_pb2.ToolCallResolved)
            and event.resolution == events_pb2.RESOLUTION_RETRY
        )
    )
    if others and ends_call:
        return
    event.owner = owner
    event.epoch = state.epoch + 1
    deadline_ns = turn.deadline_time.ToNanoseconds() + max(0, now_ns - waited)
    event.deadline_time.FromNanoseconds(deadline_ns)


def _request_cancel(state: State, command: c.RequestCancel) -> Facts:
    if any(turn.id == command.turn for turn in state.queued_turns):
        return [events_pb2.TurnCancelled(turn=command.turn, reason=command.reason)]
    turn = _active(state, command.turn)
    if turn is None:
        if any(ended.id == command.turn for ended in state.ended_turns):
            return []
        raise NotFound.of("turn", turn_name(state.name, command.turn))
    if turn.status in WAITING_STATUSES:
        return [
            events_pb2.TurnCancelled(turn=turn.id, reason=command.reason),
            *_start_next(state, command.owner, command.now_ns),
        ]
    if turn.cancel_requested:
        return []
    return [events_pb2.TurnCancelRequested(turn=turn.id, reason=command.reason)]


def _fail(
    state: State,
    turn: session_pb2.OpenTurn,
    reason: "errors_pb2.Reason.ValueType",
    message: str,
    now_ns: int,
) -> Facts:
    return [
        events_pb2.TurnFailed(turn=turn.id, reason=reason, message=message),
        *_start_next(state, turn.owner, now_ns),
    ]


def _start_next(state: State, owner: str, now_ns: int) -> Sequence[events_pb2.TurnStarted]:
    """In the commit that ends a turn, so that no queued turn is ever without an owner."""
    if not state.queued_turns:
        return ()
    queued = state.queued_turns[0]
    started = events_pb2.TurnStarted(turn=queued.id)
    _own(started, state, owner, now_ns + queued.timeout.ToNanoseconds())
    return (started,)


def _own(
    event: events_pb2.TurnAccepted | events_pb2.TurnStarted,
    state: State,
    owner: str,
    deadline_ns: int,
) -> None:
    event.owner = owner
    event.epoch = state.epoch + 1
    event.deadline_time.CopyFrom(_timestamp(deadline_ns))


def _active(state: State, turn: str) -> session_pb2.OpenTurn | None:
    if state.HasField("active_turn") and state.active_turn.id == turn:
        return state.active_turn
    return None


def _owned(state: State, turn: str, epoch: int) -> session_pb2.OpenTurn:
    active = _active(state, turn)
    if active is None or active.epoch != epoch:
        raise OwnerLost(f"turn {turn_name(state.name, turn)} was taken over or ended")
    return active


def _open_call(
    state: State, turn_id: str, call_id: str
) -> tuple[session_pb2.OpenTurn, session_pb2.CallState]:
    turn = _active(state, turn_id)
    if turn is None:
        name = turn_name(state.name, turn_id)
        if any(ended.id == turn_id for ended in state.ended_turns):
            raise FailedPrecondition(f"turn {name} has ended")
        raise NotFound.of("turn", name)
    for call in turn.calls:
        if call.call.id == call_id:
            return turn, call
    raise NotFound.of("call", f"{turn_name(state.name, turn_id)} {call_id}")


def _timestamp(nanoseconds: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(nanoseconds)
    return timestamp


def _duration(nanoseconds: int) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(nanoseconds)
    return duration
