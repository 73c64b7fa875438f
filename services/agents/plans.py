"""What becomes of the calls that a model asks for: which are made, and what they are planned as."""

from collections.abc import Collection

from services.agents.effects import TOOL_SECONDS, BoundTool
from weft.models.v1 import models_pb2
from weft.options.v1 import options_pb2
from weft.state.v1 import events_pb2, session_pb2

TOOL_LENGTH_MAX = 128


def refusal(
    call: session_pb2.CallState, bound: BoundTool | None, held_scopes: Collection[str]
) -> str:
    """Why a call that was planned isn't made; empty where it is. What was asked for days ago,
    or before a crash, may be of a tool that is another one now."""
    if bound is None:
        return _absent(call.call.tool)
    return bound.denial(held_scopes) or bound.change(call)


def _absent(tool: str) -> str:
    return f"this agent has no tool {tool[:TOOL_LENGTH_MAX]}"


def planned_calls(
    session: str,
    turn: str,
    step: int,
    message: models_pb2.Message,
    tools: dict[str, BoundTool],
    held_scopes: Collection[str],
) -> list[events_pb2.PlannedCall]:
    """What the catalogue says of the calls that a model asks for. One that may not be made is
    planned as a read with its refusal, and nothing is called, whatever is registered later."""
    planned = []
    for call in message.tool_calls:
        bound = tools.get(call.tool)
        refusal = bound.denial(held_scopes) if bound else _absent(call.tool)
        if refusal:
            bound = None
        plan = events_pb2.PlannedCall(
            call_id=call.id,
            effect=bound.tool.effect if bound else options_pb2.EFFECT_READ,
            idempotency_key=f"{session}/turns/{turn}/steps/{step}/calls/{call.id}",
            requires_approval=bound.requires_approval if bound else False,
            untrusted=bound.untrusted if bound else False,
            refusal=refusal,
        )
        plan.timeout.FromMilliseconds(int((bound.seconds_max if bound else TOOL_SECONDS) * 1000))
        planned.append(plan)
    return planned
