"""Which calls of a model are made: as they are planned, and right before they are made."""

from typing import Any

import pytest

from services.agents.effects import BoundTool
from services.agents.plans import planned_calls, refusal
from weft.agents.v1 import agent_pb2
from weft.models.v1 import models_pb2
from weft.options.v1 import options_pb2
from weft.state.v1 import session_pb2
from weft.tools.v1 import tools_pb2

SESSION = "tenants/acme/agents/bot/sessions/s1"
READ, IRREVERSIBLE = options_pb2.EFFECT_READ, options_pb2.EFFECT_IRREVERSIBLE
PENDING, APPROVED = session_pb2.CALL_STATUS_PENDING, session_pb2.CALL_STATUS_APPROVED


def bound(**fields: Any) -> BoundTool:
    fields.setdefault("trust", tools_pb2.TRUST_TRUSTED)
    fields.setdefault("effect", IRREVERSIBLE)
    tool = tools_pb2.Tool(name="tenants/acme/tools/pay", **fields)
    return BoundTool(tool, agent_pb2.ToolBinding(tool="pay"), models_pb2.ToolDefinition())


def planned(tool: BoundTool | None, held_scopes: tuple[str, ...] = (), name: str = "pay") -> Any:
    message = models_pb2.Message(tool_calls=[models_pb2.ToolCall(id="c1", tool=name)])
    tools = {"pay": tool} if tool else {}
    (plan,) = planned_calls(SESSION, "t1", 1, message, tools, held_scopes)
    return plan


@pytest.mark.parametrize(
    ("trust", "untrusted"),
    [
        (tools_pb2.TRUST_UNSPECIFIED, True),
        (tools_pb2.TRUST_UNTRUSTED, True),
        (tools_pb2.TRUST_TRUSTED, False),
        (tools_pb2.TRUST_BY_RESULT, False),
    ],
)
def test_a_plan_says_whose_word_the_result_will_be(
    trust: "tools_pb2.Trust.ValueType", untrusted: bool
) -> None:
    plan = planned(bound(trust=trust))
    assert (plan.untrusted, plan.effect, plan.refusal) == (untrusted, IRREVERSIBLE, "")


@pytest.mark.parametrize("name", ["wipe", "Pay", "pay ", "p\u0430y", "pay\u200b", "", "x" * 9_000])
def test_what_the_agent_has_not_is_planned_as_refused(name: str) -> None:
    plan = planned(bound(requires_approval=True), name=name)
    assert plan.refusal.startswith("this agent has no tool")
    assert len(plan.refusal) < 1_024
    assert plan.effect == READ
    assert not plan.requires_approval


@pytest.mark.parametrize(
    ("held_scopes", "refused"),
    [
        ((), "blobs.put, pay.send"),
        (("pay.send",), "blobs.put"),
        (("blobs.put", "pay.send"), ""),
        (("blobs.*", "*"), "blobs.put, pay.send"),
    ],
)
def test_all_of_its_permissions_are_wanted(held_scopes: tuple[str, ...], refused: str) -> None:
    plan = planned(bound(required_scopes=["blobs.put", "pay.send"]), held_scopes)
    assert bool(plan.refusal) == bool(refused)
    assert refused in plan.refusal


@pytest.mark.parametrize(
    ("now", "status", "made"),
    [
        (bound(), PENDING, True),
        (bound(), APPROVED, True),
        (None, APPROVED, False),
        (bound(effect=READ), PENDING, False),
        (bound(requires_approval=True), PENDING, False),
        (bound(requires_approval=True), APPROVED, True),
        (bound(required_scopes=["pay.send"]), APPROVED, False),
    ],
    ids=[
        *("the same", "approved", "gone", "another effect", "wants approval now"),
        *("approved what wants it", "wants a permission now"),
    ],
)
def test_a_tool_that_changed_since_is_not_called(
    now: BoundTool | None, status: "session_pb2.CallStatus.ValueType", made: bool
) -> None:
    call = session_pb2.CallState(
        call=models_pb2.ToolCall(id="c1", tool="pay"), effect=IRREVERSIBLE, status=status
    )
    assert (refusal(call, now, ()) == "") == made


def test_what_was_planned_as_a_read_since_it_was_not_there_is_never_called() -> None:
    """It was registered between plan and call, and can't be taken back."""
    call = session_pb2.CallState(
        call=models_pb2.ToolCall(id="c1", tool="pay"), effect=READ, status=PENDING
    )
    assert refusal(call, bound(), ())
