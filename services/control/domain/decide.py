"""What may be done to a split."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from mesh.errors import (
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from mesh.events.requests import came_before
from services.control.domain.evolve import State
from services.control.domain.names import service_of, taker_of
from weft.control.v1 import events_pb2 as facts
from weft.control.v1 import splits_pb2

PROMOTED_WEIGHT = 100
SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Request:
    """The request that a command answers: of which split, who asks and why. `etag` is the
    one that the split is expected to have; empty for any."""

    name: str
    id: str
    hash: bytes
    actor: str
    reason: str
    etag: str


@dataclass(frozen=True, slots=True)
class SetSplit:
    """Sets the portions; none end the split."""

    request: Request
    portions: Sequence[splits_pb2.Portion]
    policy: splits_pb2.RollbackPolicy | None


@dataclass(frozen=True, slots=True)
class Promote:
    """Gives all to one portion: the one of that version, or of that agent's revision.
    `running` are the versions that may take calls; None for any."""

    request: Request
    version: str
    agent_revision: int
    running: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class RollBack:
    """Goes back to the portions before. `running` are the versions that may take calls;
    None for any."""

    request: Request
    running: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class RollBackFailing:
    """Goes back to where the version, or agent's revision, takes nothing that fails too often,
    unless the split isn't any more what was looked at: at `revision`. `running` are the
    versions that may take calls; None for any."""

    name: str
    revision: int
    failures: facts.FailureCount
    running: frozenset[str] | None


Change = SetSplit | Promote | RollBack
"""What somebody asks for."""
Command = Change | RollBackFailing


def decide(state: State, command: Command) -> list[Message]:
    """The facts that `command` leads to; none where the same request came before, or there
    is nothing to do.

    Raises NotFound, InvalidArgument, Conflict for a stale etag, RequestIdReused,
    FailedPrecondition where there is nothing to go back to, or nobody runs what gets all.
    """
    if isinstance(command, RollBackFailing):
        return _roll_back_failing(state, command)
    request = command.request
    if came_before(state.requests, request.id, request.hash):
        return []
    if request.etag and request.etag != state.split.etag:
        raise Conflict(
            f"{request.name} changed: its etag is {state.split.etag or 'none'}, not {request.etag}",
            metadata={"resource": request.name, "etag": state.split.etag},
        )
    if isinstance(command, SetSplit):
        return _set(command)
    if not state.revision:
        raise NotFound.of("split", request.name)
    if isinstance(command, Promote):
        return _promote(state, command)
    return _roll_back(state, command)


def check_running(name: str, versions: frozenset[str], running: frozenset[str]) -> None:
    """FailedPrecondition unless all of the versions are among those that run."""
    absent = ", ".join(sorted(versions - running))
    if absent:
        raise FailedPrecondition(
            f"no instance of {service_of(name)} that takes calls runs {absent};"
            " allow_absent (--allow-absent) goes on all the same",
            metadata={"resource": name},
        )


def _set(command: SetSplit) -> list[Message]:
    request = command.request
    _check(request.name, command.portions, command.policy)
    event = facts.SplitSet(
        split=request.name,
        portions=command.portions,
        rollback_policy=command.policy,
        actor=request.actor,
        reason=request.reason,
        request=_answered(request),
    )
    for portion in event.portions:
        portion.ClearField("since_revision")
    return [event]


def _check(
    name: str,
    portions: Sequence[splits_pb2.Portion],
    policy: splits_pb2.RollbackPolicy | None,
) -> None:
    of_service = bool(service_of(name))
    for index, portion in enumerate(portions):
        if of_service != bool(portion.version) or of_service == bool(portion.agent_revision):
            wanted = "a version only" if of_service else "an agent_revision only"
            raise InvalidArgument.of(f"portions[{index}]", f"needs {wanted}")
    if len({(each.version, each.agent_revision) for each in portions}) < len(portions):
        raise InvalidArgument.of("portions", "name each version or revision once")
    if portions and not any(each.weight for each in portions):
        raise InvalidArgument.of("portions", "need a weight above 0")
    if policy is not None and not portions:
        raise InvalidArgument.of("rollback_policy", "needs portions")


def _promote(state: State, command: Promote) -> list[Message]:
    request, split = command.request, state.split
    wanted = (command.version, command.agent_revision)
    if all((each.version, each.agent_revision) != wanted for each in split.portions):
        named = command.version or command.agent_revision or "nothing"
        raise FailedPrecondition(
            f"{request.name} has no portion of {named}", metadata={"resource": request.name}
        )
    if command.running is not None:
        check_running(request.name, frozenset({command.version}), command.running)
    portion = splits_pb2.Portion(
        version=command.version, agent_revision=command.agent_revision, weight=PROMOTED_WEIGHT
    )
    event = facts.SplitPromoted(
        portion=portion, actor=request.actor, reason=request.reason, request=_answered(request)
    )
    return [event]


def _roll_back(state: State, command: RollBack) -> list[Message]:
    request = command.request
    event = _back(state, "", command.running)
    if event is None:
        raise FailedPrecondition(
            f"{request.name} has nothing to go back to", metadata={"resource": request.name}
        )
    event.actor, event.reason = request.actor, request.reason
    event.request.CopyFrom(_answered(request))
    return [event]


def _roll_back_failing(state: State, command: RollBackFailing) -> list[Message]:
    if state.revision != command.revision:
        return []
    count = command.failures
    event = _back(state, taker_of(count), command.running)
    if event is None:
        raise FailedPrecondition(
            f"{command.name} has nothing to go back to without {taker_of(count)}",
            metadata={"resource": command.name},
        )
    event.actor = SYSTEM
    event.reason = f"{count.failures} of {count.calls} {_said_of(count)} failed"
    event.failures.CopyFrom(count)
    return [event]


def _back(
    state: State, without: str, running: frozenset[str] | None
) -> facts.SplitRolledBack | None:
    """Back to the last portions that give nothing to `without` and whose versions run; to
    the present ones' base where there are none, None where that wouldn't do either."""
    present = _taking(state.split.portions)
    for index, past in enumerate(state.past):
        taking = _taking(past.portions)
        if without in taking or taking == present:
            continue
        if running is None or set(taking) <= running:
            event = facts.SplitRolledBack(portions=past.portions, past_count=index + 1)
            if past.HasField("rollback_policy"):
                event.rollback_policy.CopyFrom(past.rollback_policy)
            return event
    if not present:
        return None
    base = splits_pb2.Portion()
    base.CopyFrom(state.split.portions[0])
    base.weight = PROMOTED_WEIGHT
    taking = _taking([base])
    if without in taking or set(taking) == set(present):
        return None
    if running is not None and not set(taking) <= running:
        return None
    return facts.SplitRolledBack(portions=[base], past_count=len(state.past))


def _said_of(count: facts.FailureCount) -> str:
    if count.version:
        return f"calls of {count.version}"
    return f"turns of revision {count.agent_revision}"


def _taking(portions: Iterable[splits_pb2.Portion]) -> dict[str, int]:
    """Weights of what takes calls, by version or the agent's revision."""
    return {taker_of(each): each.weight for each in portions if each.weight}


def _answered(request: Request) -> splits_pb2.SplitRequest:
    return splits_pb2.SplitRequest(request_id=request.id, request_hash=request.hash)
