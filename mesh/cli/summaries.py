"""Events of the log, each in a line."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mesh.cli.contracts import message_class, reason_name
from mesh.cli.output import moment, one_line

if TYPE_CHECKING:
    from weft.events.v1 import events_pb2


def type_name(event: "events_pb2.RecordedEvent") -> str:
    """The event's type without its package."""
    return event.type.rsplit(".", 1)[-1]


def summary(event: "events_pb2.RecordedEvent") -> str:
    """What happened, in a line; empty for types that this client doesn't know."""
    from google.protobuf.message import DecodeError

    describe = _SUMMARIES.get(event.type.removeprefix("weft."))
    payload_class = message_class(event.type)
    if describe is None or payload_class is None:
        return ""
    payload = payload_class()
    try:
        event.payload.Unpack(payload)
    except DecodeError:
        return "(damaged payload)"
    return one_line(describe(payload))


def event_row(event: "events_pb2.RecordedEvent") -> str:
    """The event as a line: when, where, what."""
    place = f"{event.stream}@{event.revision}"
    return f"{moment(event.time)}  {place}  {type_name(event)}  {summary(event)}".rstrip()


def _model_step(event: Any) -> str:
    calls = ", ".join(call.tool for call in event.message.tool_calls)
    said = f"{event.message.text} " if event.message.text else ""
    return f"{event.step}: {said}" + (f"[calls {calls}]" if calls else "")


def _tool_call_completed(event: Any) -> str:
    return f"{event.call_id}{' failed' if event.is_error else ''}: {event.content}"


def _resolved(event: Any) -> str:
    from weft.state.v1 import events_pb2

    name = events_pb2.Resolution.Name(event.resolution).removeprefix("RESOLUTION_").lower()
    return f"{event.call_id}: {name} {event.content}"


def _shares(portions: Sequence[Any]) -> str:
    shares = (f"{each.version or each.agent_revision}={each.weight}" for each in portions)
    return " ".join(shares) or "ended"


_SUMMARIES: Mapping[str, Callable[[Any], str]] = {
    "control.v1.SplitSet": lambda e: f"{_shares(e.portions)} {e.reason}",
    "control.v1.SplitPromoted": lambda e: f"{_shares([e.portion])} {e.reason}",
    "control.v1.SplitRolledBack": lambda e: f"{_shares(e.portions)} {e.reason}",
    "state.v1.SessionCreated": lambda e: f"{e.session}, agent revision {e.agent_revision}",
    "state.v1.SessionForked": lambda e: (
        f"of {e.origin.session} at {e.origin.revision}" if e.HasField("origin") else "imported"
    ),
    "state.v1.SessionImported": lambda e: f"of {e.source_session}, {e.event_count} events",
    "state.v1.SessionErased": lambda _: "",
    "state.v1.TurnAccepted": lambda e: f"{e.turn}{' (queued)' if e.queued else ''}: {e.input}",
    "state.v1.TurnStarted": lambda e: f"{e.turn} by {e.owner}",
    "state.v1.TurnResumed": lambda e: f"{e.turn} by {e.owner}, resumption {e.resume_count}",
    "state.v1.ModelStepCompleted": _model_step,
    "state.v1.ApprovalRequested": lambda e: e.call_id,
    "state.v1.ApprovalDecided": lambda e: (
        f"{e.call_id}: {'approved' if e.approved else 'denied'} {e.comment}"
    ),
    "state.v1.ToolCallStarted": lambda e: e.call_id,
    "state.v1.ToolCallCompleted": _tool_call_completed,
    "state.v1.ToolCallInDoubt": lambda e: e.call_id,
    "state.v1.ToolCallResolved": _resolved,
    "state.v1.ContextCompacted": lambda e: f"{e.message_count} messages",
    "state.v1.TurnCancelRequested": lambda e: f"{e.turn}: {e.reason}",
    "state.v1.TurnStalled": lambda e: f"{e.turn} at {e.doing}",
    "state.v1.TurnCompleted": lambda e: e.text,
    "state.v1.TurnFailed": lambda e: f"{reason_name(e.reason)}: {e.message}",
    "state.v1.TurnCancelled": lambda e: e.reason,
    "agents.v1.AgentCreated": lambda e: e.spec.display_name,
    "agents.v1.AgentUpdated": lambda e: f"revision {e.agent_revision}",
    "agents.v1.AgentDeleted": lambda _: "",
    "scheduler.v1.TaskSubmitted": lambda e: f"{e.task}: {e.spec.capability}",
    "scheduler.v1.TaskStarted": lambda e: f"{e.task} by {e.worker}, attempt {e.attempt}",
    "scheduler.v1.TaskAttemptFailed": lambda e: f"{e.task}, attempt {e.attempt}: {e.message}",
    "scheduler.v1.TaskReleased": lambda e: f"{e.task}, attempt {e.attempt}",
    "scheduler.v1.TaskSucceeded": lambda e: f"{e.task}, attempt {e.attempt}",
    "scheduler.v1.TaskFailed": lambda e: f"{e.task}: {e.message}",
    "scheduler.v1.TaskCancelRequested": lambda e: f"{e.task}: {e.reason}",
    "scheduler.v1.TaskCancelled": lambda e: f"{e.task}: {e.reason}",
    "scheduler.v1.TaskRedriven": lambda e: e.task,
    "scheduler.v1.TaskDiscarded": lambda e: f"{e.task}: {e.reason}",
    "scheduler.v1.TaskStalled": lambda e: f"{e.task}, attempt {e.attempt}: {e.reason}",
    "scheduler.v1.TaskProgressed": lambda e: f"{e.task}, attempt {e.attempt}",
    "scheduler.v1.TaskWithdrawn": lambda e: f"{e.task} from {e.worker}: {e.reason}",
    "tools.v1.ToolRegistered": lambda e: e.tool.name,
    "tools.v1.ToolDeleted": lambda _: "",
}
