"""Which ends of turns are held against the revision of their agent."""

import pytest
from google.protobuf.message import Message

from services.agents.outcomes import HASTY_SECONDS, failed_by_revision
from weft.errors.v1 import errors_pb2
from weft.state.v1 import events_pb2

SECONDS = 600.0
STEP = events_pb2.ModelStepCompleted(turn="t")
NEXT = events_pb2.TurnStarted(turn="next")

OF_THE_REVISION = {
    "INVALID_FIELD",
    "RESOURCE_NOT_FOUND",
    "MODEL_UNAVAILABLE",
    "MODEL_RATE_LIMITED",
    "MODEL_BAD_ANSWER",
    "MODEL_REFUSED",
    "TOOL_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
}
OF_OTHERS = {
    # A person's word.
    "BUDGET_SPENT",
    "CANCELLED",
    # Weft's own.
    "EVENT_STORE_UNAVAILABLE",
    "NOT_SERVING",
    "OWNER_LOST",
    "INTERNAL",
    "DATA_DAMAGED",
    "DATA_ERASED",
    "REVISION_CONFLICT",
    "STATE_PRECONDITION",
    "LIMIT_EXCEEDED",
    "RATE_LIMITED",
    "UNIMPLEMENTED",
    "TURN_IN_PROGRESS",
    "REQUEST_ID_REUSED",
    "RESOURCE_EXISTS",
    "UNSPECIFIED",
    # The caller's.
    "CREDENTIAL_INVALID",
    "PERMISSION_DENIED",
}


def failed(reason: str) -> events_pb2.TurnFailed:
    return events_pb2.TurnFailed(turn="t", reason=errors_pb2.Reason.Value(f"REASON_{reason}"))


def test_every_reason_is_judged() -> None:
    """A new reason needs a word on whom it is held against."""
    known = {name.removeprefix("REASON_") for name in errors_pb2.Reason.keys()}  # noqa: SIM118
    assert known == OF_THE_REVISION | OF_OTHERS


@pytest.mark.parametrize("reason", sorted(OF_THE_REVISION))
def test_what_its_model_its_tools_or_its_time_end_is_held_against_it(reason: str) -> None:
    assert failed_by_revision([failed(reason), NEXT], SECONDS) is True


@pytest.mark.parametrize("reason", sorted(OF_OTHERS))
def test_what_others_end_says_nothing_of_it(reason: str) -> None:
    assert failed_by_revision([failed(reason), NEXT], SECONDS) is None


def test_an_answer_speaks_for_it() -> None:
    facts: list[Message] = [STEP, events_pb2.TurnCompleted(turn="t"), NEXT]
    assert failed_by_revision(facts, SECONDS) is False


def test_its_bounds_of_steps_and_tokens_are_held_against_it() -> None:
    assert failed_by_revision([STEP, failed("LIMIT_EXCEEDED")], SECONDS) is True


def test_time_that_nobody_could_keep_or_that_was_lost_is_not_held_against_it() -> None:
    late = [failed("DEADLINE_EXCEEDED")]
    assert failed_by_revision(late, HASTY_SECONDS) is True
    assert failed_by_revision(late, HASTY_SECONDS / 2) is None
    assert failed_by_revision(late, 0.0) is None


@pytest.mark.parametrize(
    "facts",
    [
        [],
        [STEP],
        [events_pb2.TurnCancelled(turn="t")],
        [events_pb2.TurnCancelled(turn="t"), NEXT],
        [events_pb2.ToolCallCompleted(turn="t", is_error=True)],
        [events_pb2.TurnResumed(turn="t")],
    ],
)
def test_what_ends_no_turn_or_was_cancelled_says_nothing(facts: list[Message]) -> None:
    assert failed_by_revision(facts, SECONDS) is None
