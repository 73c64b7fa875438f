"""A turn as the log has it."""

from collections.abc import AsyncIterator

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.errors import NotFound, RequestIdReused
from mesh.events.aggregate import Repository
from mesh.events.store import StreamName
from services.state.domain import (
    RUNNING_CALLS,
    DecideApproval,
    Decision,
    ResolveCall,
    turn_name,
)
from weft.agents.v1 import turn_pb2
from weft.state.v1 import events_pb2, session_pb2

_WAITING = (session_pb2.CALL_STATUS_WAITING_APPROVAL, session_pb2.CALL_STATUS_IN_DOUBT)


async def facts_of(
    sessions: Repository[session_pb2.SessionState], stream: StreamName
) -> AsyncIterator[tuple[int, Timestamp, Message]]:
    """Every fact of the session's own stream: its revision, its time, the fact."""
    async for page in sessions.store.read(stream):
        for stored in page:
            stored.refuse_erased()
            for revision, event in enumerate(stored.commit.events, stored.commit.revision):
                fact = sessions.fold.open(event)
                if fact is not None:
                    yield revision, stored.commit.time, fact


async def decided_before(
    sessions: Repository[session_pb2.SessionState],
    stream: StreamName,
    request_id: str,
    decision: Decision,
) -> bool:
    """Whether this very request made the decision. Raises RequestIdReused where it made
    another one."""
    if not request_id:
        return False
    async for page in sessions.store.read(stream):
        for stored in page:
            if stored.commit.request_id == request_id:
                stored.refuse_erased()
                facts = (sessions.fold.open(event) for event in stored.commit.events)
                if any(_says(fact, decision) for fact in facts):
                    return True
                raise RequestIdReused(f"request_id {request_id} came before with another body")
    return False


def _says(fact: Message | None, decision: Decision) -> bool:
    said: tuple[object, ...]
    asked: tuple[object, ...]
    if isinstance(fact, events_pb2.ApprovalDecided) and isinstance(decision, DecideApproval):
        said = (fact.approved, fact.comment)
        asked = (decision.approved, decision.comment)
    elif isinstance(fact, events_pb2.ToolCallResolved) and isinstance(decision, ResolveCall):
        said = (fact.resolution, fact.content)
        asked = (decision.resolution, decision.content)
    else:
        return False
    return (fact.turn, fact.call_id, *said) == (decision.turn, decision.call_id, *asked)


class TurnHistory:
    """Gathers the facts of one turn into the resource that callers get."""

    def __init__(self, session: str, turn: str) -> None:
        self._id = turn
        self._turn = turn_pb2.Turn(name=turn_name(session, turn))

    def fact(self, revision: int, time: Timestamp, fact: Message) -> None:
        """Takes the next fact of the session; those of other turns change nothing."""
        if getattr(fact, "turn", None) != self._id:
            return
        turn = self._turn
        match fact:
            case events_pb2.TurnAccepted():
                turn.request_id = fact.request_id
                turn.input = fact.input
                turn.accept_revision = revision
                turn.create_time.CopyFrom(time)
            case events_pb2.TurnResumed():
                turn.resume_count = fact.resume_count
            case events_pb2.ModelStepCompleted():
                turn.step_count = fact.step
                turn.usage.input_tokens += fact.usage.input_tokens
                turn.usage.output_tokens += fact.usage.output_tokens
                turn.usage.estimated |= fact.usage.estimated
                if fact.usage.HasField("cost_micro_usd"):
                    turn.usage.cost_micro_usd += fact.usage.cost_micro_usd
            case events_pb2.ToolCallCompleted():
                turn.sources.extend(s for s in fact.sources if s not in turn.sources)
            case events_pb2.TurnCompleted():
                turn.text = fact.text
                self._end(session_pb2.TURN_STATUS_COMPLETED, revision, time)
            case events_pb2.TurnFailed():
                turn.error.reason = fact.reason
                turn.error.message = fact.message
                self._end(session_pb2.TURN_STATUS_FAILED, revision, time)
            case events_pb2.TurnCancelled():
                turn.text = fact.partial_text
                self._end(session_pb2.TURN_STATUS_CANCELLED, revision, time)

    def turn(self, state: session_pb2.SessionState) -> turn_pb2.Turn:
        """The turn; what only the state of an open one knows comes from `state`.

        Raises NotFound where no fact was of it.
        """
        turn = self._turn
        if not turn.accept_revision:
            raise NotFound.of("turn", turn.name)
        if not turn.end_revision:
            for one in (state.active_turn, *state.queued_turns):
                if one.id == self._id:
                    _show_open(turn, one)
        return turn

    def _end(
        self, status: "session_pb2.TurnStatus.ValueType", revision: int, time: Timestamp
    ) -> None:
        self._turn.status = status
        self._turn.end_revision = revision
        self._turn.end_time.CopyFrom(time)


def open_turn(session: str, known: session_pb2.OpenTurn) -> turn_pb2.Turn:
    """A turn that isn't ended, as far as its session's state knows it; without what was
    asked and what it used."""
    turn = turn_pb2.Turn(
        name=turn_name(session, known.id),
        request_id=known.request_id,
        step_count=known.step_count,
        resume_count=known.resume_count,
        create_time=known.accept_time,
        accept_revision=known.accept_revision,
    )
    _show_open(turn, known)
    return turn


def _show_open(turn: turn_pb2.Turn, known: session_pb2.OpenTurn) -> None:
    """What only the state of an open turn knows."""
    turn.status = known.status
    turn.waiting_calls.extend(call for call in known.calls if call.status in _WAITING)
    turn.running_calls.extend(call for call in known.calls if call.status in RUNNING_CALLS)
    if known.HasField("stalled_time"):
        turn.stalled_time.CopyFrom(known.stalled_time)
        turn.stalled_doing = known.stalled_doing
