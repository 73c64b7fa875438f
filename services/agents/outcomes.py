"""What the end of a turn says of its agent's revision. Pure."""

from collections.abc import Iterable
from typing import Protocol

from google.protobuf.message import Message

from weft.errors.v1 import errors_pb2
from weft.state.v1 import events_pb2

HASTY_SECONDS = 1.0
"""A turn that had less time says nothing when that is over: any caller may give it so little
that nobody can keep to it."""

_OF_THE_REVISION = frozenset(
    {
        # A model that no provider has, or what no model takes.
        errors_pb2.REASON_INVALID_FIELD,
        errors_pb2.REASON_RESOURCE_NOT_FOUND,
        errors_pb2.REASON_MODEL_UNAVAILABLE,
        errors_pb2.REASON_MODEL_RATE_LIMITED,
        errors_pb2.REASON_MODEL_BAD_ANSWER,
        errors_pb2.REASON_MODEL_REFUSED,
        errors_pb2.REASON_TOOL_UNAVAILABLE,
    }
)


class Outcomes(Protocol):
    """Is told of the turns whose end says something of their agent's revision."""

    async def start(self) -> None:
        """Returns once it knows which are of interest."""
        ...

    async def stop(self) -> None:
        """Takes in nothing new of which are."""
        ...

    def count(self, agent: str, agent_revision: int, *, failed: bool) -> None:
        """A turn of the agent ended, of a session that is pinned to that revision. Called once
        for each turn, by the process that ended it, after that is stored."""
        ...


def failed_by_revision(facts: Iterable[Message], own_seconds: float) -> bool | None:
    """Whether the turn that a commit ends failed by what its agent's revision is: its model,
    its tools, its bounds, or the time that it took. None where the commit ends none, or where
    that says nothing of the revision: somebody cancelled it or said that it fails, or
    something of Weft's own was missing or at fault.

    `own_seconds` is the time that the turn was given; 0 where it lost some of it, as when its
    process died.
    """
    steps = False
    for fact in facts:
        if isinstance(fact, events_pb2.TurnCompleted):
            return False
        if isinstance(fact, events_pb2.ModelStepCompleted):
            steps = True
        if isinstance(fact, events_pb2.TurnFailed):
            if fact.reason == errors_pb2.REASON_DEADLINE_EXCEEDED:
                blamed = own_seconds >= HASTY_SECONDS
            elif fact.reason == errors_pb2.REASON_LIMIT_EXCEEDED:
                # With a step it is the revision's bound of steps or tokens; without one, the
                # store is full, or too many calls are under way.
                blamed = steps
            else:
                blamed = fact.reason in _OF_THE_REVISION
            return True if blamed else None
    return None
