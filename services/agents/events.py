"""From the facts of a turn to the events that its watchers get.

The same translation serves the runner, which has the facts first, and watchers of the
log: both send the same events with the same offsets.
"""

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.state.domain import turn_name
from weft.agents.v1 import turn_pb2
from weft.models.v1 import models_pb2
from weft.state.v1 import events_pb2
from weft.tools.v1 import tools_pb2

TurnEvent = turn_pb2.TurnEvent
ENDS = frozenset(("completed", "failed", "cancelled"))


class TurnTranslator:
    """Turns the facts of one turn, from its acceptance on, into turn events."""

    def __init__(self, session: str, turn: str) -> None:
        self._session = session
        self._turn = turn
        self._offset = turn_pb2.TurnOffset()
        self._step = 0
        self._calls: dict[str, models_pb2.ToolCall] = {}
        self._planned: dict[str, events_pb2.PlannedCall] = {}
        self._usage = models_pb2.Usage()
        self._sources: list[tools_pb2.Source] = []

    @property
    def step(self) -> int:
        """Number of the step whose tokens would come now, from 1."""
        return self._step + 1

    @property
    def attempt(self) -> int:
        """Attempt at that step."""
        return self._offset.attempt

    @property
    def text_length(self) -> int:
        """Code points of that attempt that were translated."""
        return self._offset.text_length

    @property
    def behind(self) -> tuple[int, int]:
        """Revision and part of the event behind which tokens would come now."""
        return self._offset.revision, self._offset.part

    def token(self, text: str, time: Timestamp) -> TurnEvent:
        """The event for what the model wrote after all that it wrote in this attempt."""
        event = TurnEvent(
            time=time,
            token=TurnEvent.Token(
                step=self.step,
                attempt=self.attempt,
                text_offset=self._offset.text_length,
                text=text,
            ),
        )
        self._offset.text_length += len(text)
        event.offset.CopyFrom(self._offset)
        return event

    def fact(self, revision: int, time: Timestamp, fact: Message) -> list[TurnEvent]:
        """The events for a fact of the session; none where it isn't of this turn."""
        if getattr(fact, "turn", None) != self._turn:
            return []
        events: list[TurnEvent] = []
        if isinstance(fact, events_pb2.ModelStepCompleted):
            rest = fact.message.text[self._offset.text_length :]
            if rest:
                events.append(self.token(rest, time))
            self._step = fact.step
            self._offset.text_length = 0
            self._use(fact)
        if isinstance(fact, events_pb2.TurnResumed):
            self._offset.attempt = fact.resume_count
            self._offset.text_length = 0
        for part, event in enumerate(self._translate(fact), start=1):
            self._offset.revision = revision
            self._offset.part = part
            event.time.CopyFrom(time)
            event.offset.CopyFrom(self._offset)
            events.append(event)
        return events

    def _use(self, fact: events_pb2.ModelStepCompleted) -> None:
        self._usage.input_tokens += fact.usage.input_tokens
        self._usage.output_tokens += fact.usage.output_tokens
        self._usage.estimated |= fact.usage.estimated
        self._calls = {call.id: call for call in fact.message.tool_calls}
        self._planned = {planned.call_id: planned for planned in fact.calls}

    def _called(self, call_id: str) -> TurnEvent:
        called = TurnEvent.ToolCalled(
            call=self._calls[call_id], effect=self._planned[call_id].effect
        )
        return TurnEvent(tool_call=called)

    def _translate(self, fact: Message) -> list[TurnEvent]:
        match fact:
            case events_pb2.TurnAccepted():
                name = turn_name(self._session, fact.turn)
                return [
                    TurnEvent(
                        accepted=TurnEvent.Accepted(
                            turn=name, request_id=fact.request_id, queued=fact.queued
                        )
                    )
                ]
            case events_pb2.TurnStarted():
                return [TurnEvent(started=TurnEvent.Started())]
            case events_pb2.TurnResumed():
                return [TurnEvent(resumed=TurnEvent.Resumed(resume_count=fact.resume_count))]
            case events_pb2.ModelStepCompleted():
                return self._stepped(fact)
            case events_pb2.ToolCallCompleted():
                self._sources += [s for s in fact.sources if s not in self._sources]
                result = TurnEvent.ToolResult(
                    call_id=fact.call_id,
                    content=fact.content,
                    is_error=fact.is_error,
                    sources=fact.sources,
                    untrusted=fact.untrusted,
                )
                return [TurnEvent(tool_result=result)]
            case _:
                return self._translate_decision(fact)

    def _stepped(self, fact: events_pb2.ModelStepCompleted) -> list[TurnEvent]:
        step = TurnEvent.ModelStep(
            step=fact.step, message=fact.message, usage=fact.usage, model=fact.model
        )
        called = [
            self._called(planned.call_id)
            for planned in fact.calls
            if not planned.requires_approval and not planned.refusal
        ]
        return [TurnEvent(model_step=step), *called]

    def _translate_decision(self, fact: Message) -> list[TurnEvent]:
        match fact:
            case events_pb2.ApprovalRequested():
                call = self._calls[fact.call_id]
                required = TurnEvent.ApprovalRequired(
                    call=call, reason=fact.reason, detail=fact.detail
                )
                return [TurnEvent(approval_required=required)]
            case events_pb2.ApprovalDecided():
                given = TurnEvent.ApprovalGiven(
                    call_id=fact.call_id, approved=fact.approved, comment=fact.comment
                )
                called = [self._called(fact.call_id)] if fact.approved else []
                return [TurnEvent(approval_given=given), *called]
            case events_pb2.ToolCallInDoubt():
                call = self._calls[fact.call_id]
                return [TurnEvent(in_doubt=TurnEvent.InDoubt(call=call))]
            case events_pb2.ToolCallResolved():
                resolved = TurnEvent(resolved=TurnEvent.Resolved(call_id=fact.call_id))
                again = fact.resolution == events_pb2.RESOLUTION_RETRY
                return [resolved, self._called(fact.call_id)] if again else [resolved]
            case events_pb2.ContextCompacted():
                compacted = TurnEvent.Compacted(message_count=fact.message_count)
                return [TurnEvent(compacted=compacted)]
            case events_pb2.TurnCancelRequested():
                requested = TurnEvent.CancelRequested(reason=fact.reason)
                return [TurnEvent(cancel_requested=requested)]
            case events_pb2.TurnStalled():
                stalled = TurnEvent.Stalled(idle=fact.idle, doing=fact.doing)
                return [TurnEvent(stalled=stalled)]
            case _:
                return self._translate_end(fact)

    def _translate_end(self, fact: Message) -> list[TurnEvent]:
        match fact:
            case events_pb2.TurnCompleted():
                completed = TurnEvent.Completed(
                    text=fact.text, usage=self._usage, sources=self._sources
                )
                return [TurnEvent(completed=completed)]
            case events_pb2.TurnFailed():
                error = turn_pb2.TurnError(reason=fact.reason, message=fact.message)
                return [TurnEvent(failed=TurnEvent.Failed(error=error))]
            case events_pb2.TurnCancelled():
                cancelled = TurnEvent.Cancelled(reason=fact.reason, partial_text=fact.partial_text)
                return [TurnEvent(cancelled=cancelled)]
            case _:
                return []


def behind(offset: turn_pb2.TurnOffset, event: TurnEvent) -> TurnEvent | None:
    """What of `event` a watcher at `offset` hasn't seen; None where it has seen all."""
    seen = (offset.revision, offset.part)
    place = (event.offset.revision, event.offset.part)
    if not event.HasField("token"):
        return event if place > seen else None
    if place < seen:
        return None
    same_attempt = place == seen and event.offset.attempt == offset.attempt
    if not same_attempt or event.token.text_offset >= offset.text_length:
        return event
    if event.offset.text_length <= offset.text_length:
        return None
    rest = TurnEvent()
    rest.CopyFrom(event)
    rest.token.text = event.token.text[offset.text_length - event.token.text_offset :]
    rest.token.text_offset = offset.text_length
    return rest
