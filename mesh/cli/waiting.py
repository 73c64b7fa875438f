"""Turns that wait for a person: asking one at the terminal, or saying what to type."""

import sys
from typing import TYPE_CHECKING

from mesh.cli.connection import Client
from mesh.cli.failures import CommandFailed
from mesh.cli.names import short_name
from mesh.cli.output import Output, note, printable
from mesh.cli.transcript import because, call_line

if TYPE_CHECKING:
    from weft.agents.v1 import turn_pb2
    from weft.models.v1 import models_pb2
    from weft.state.v1 import session_pb2


EVENTS = ("approval_required", "in_doubt")


def settle(client: Client, turn: str, event: "turn_pb2.TurnEvent") -> None:
    """Asks the person at the terminal about the call of an event and sends the answer.

    Does nothing where the call was decided since, as when events are shown again.
    CommandFailed, with what to type, where there is no terminal or the person leaves it.
    """
    waiting = waiting_calls(client, turn)
    state = next((state for state in waiting if state.call.id == _call_id(event)), None)
    if state is None:
        return
    interactive = client.output is Output.TABLE and sys.stdin.isatty() and sys.stderr.isatty()
    if not (interactive and _ask(client, turn, state)):
        notes = [line for state in waiting for line in command_lines(short_name(turn), state)]
        notes.append(f"Then: weft turn watch {short_name(turn)}")
        raise CommandFailed("the turn waits for a person", notes=notes)


def say_what_to_type(client: Client, turn: str, event: "turn_pb2.TurnEvent") -> None:
    """Notes the commands that decide about the call of an event, if it still waits."""
    for state in waiting_calls(client, turn):
        if state.call.id == _call_id(event):
            for line in command_lines(short_name(turn), state):
                note(line, style="")


def waiting_calls(client: Client, turn: str) -> "list[session_pb2.CallState]":
    """The turn's calls that wait for a person."""
    from weft.agents.v1 import turn_service_pb2 as pb
    from weft.agents.v1.turn_service_pb2_grpc import TurnServiceStub

    turns: TurnServiceStub = client.stub(TurnServiceStub)
    return list(client.call(turns.GetTurn, pb.GetTurnRequest(name=turn)).turn.waiting_calls)


def command_lines(turn: str, state: "session_pb2.CallState") -> list[str]:
    """What the call wants to do, and the commands that decide about it."""
    from weft.state.v1 import session_pb2

    call = state.call
    if state.status == session_pb2.CALL_STATUS_IN_DOUBT:
        resolve = f"weft turn resolve {turn} {call.id}"
        return [
            f"In doubt: {call_line(call)}",
            f"  {resolve} --retry",
            f"  {resolve} --completed RESULT",
            f"  {resolve} --failed REASON",
        ]
    approve = f"weft turn approve {turn} {call.id}"
    asked = f"Needs approval: {call_line(call)}{because(state.approval_detail)}"
    return [asked, f"  {approve}", f"  {approve} --deny"]


def _call_id(event: "turn_pb2.TurnEvent") -> str:
    if event.WhichOneof("event") == "approval_required":
        return event.approval_required.call.id
    return event.in_doubt.call.id


def _ask(client: Client, turn: str, state: "session_pb2.CallState") -> bool:
    from weft.state.v1 import session_pb2

    if state.status == session_pb2.CALL_STATUS_IN_DOUBT:
        return _ask_what_became_of(client, turn, state.call)
    return _ask_for_approval(client, turn, state.call)


def _ask_for_approval(client: Client, turn: str, call: "models_pb2.ToolCall") -> bool:
    from weft.agents.v1 import turn_service_pb2 as pb
    from weft.agents.v1.turn_service_pb2_grpc import TurnServiceStub

    answer = _question(f"Run {call_line(call)}? (yes, no, later) ").lower()
    if answer not in ("y", "yes", "n", "no"):
        return False
    approved = answer.startswith("y")
    request = pb.DecideApprovalRequest(name=turn, call_id=call.id, approved=approved)
    turns: TurnServiceStub = client.stub(TurnServiceStub)
    client.call(turns.DecideApproval, request)
    return True


def _ask_what_became_of(client: Client, turn: str, call: "models_pb2.ToolCall") -> bool:
    from weft.agents.v1 import turn_service_pb2 as pb
    from weft.agents.v1.turn_service_pb2_grpc import TurnServiceStub
    from weft.state.v1 import events_pb2

    resolutions = {
        "retry": events_pb2.RESOLUTION_RETRY,
        "completed": events_pb2.RESOLUTION_COMPLETED,
        "failed": events_pb2.RESOLUTION_FAILED,
    }
    note("This call was begun, and nobody knows whether it ended.")
    answer = _question("What became of it? (retry, completed, failed, later) ").lower()
    if answer not in resolutions:
        return False
    resolution = resolutions[answer]
    content = ""
    if resolution != events_pb2.RESOLUTION_RETRY:
        content = _question("What the model is told: ")
    turns: TurnServiceStub = client.stub(TurnServiceStub)
    request = pb.ResolveInDoubtRequest(
        name=turn, call_id=call.id, resolution=resolution, content=content
    )
    client.call(turns.ResolveInDoubt, request)
    return True


def _question(text: str) -> str:
    """The person's answer. The question goes to stderr, since stdout is the answer's of
    the agent; an end of input answers nothing."""
    sys.stderr.write(printable(text))
    sys.stderr.flush()
    return sys.stdin.readline().strip()
