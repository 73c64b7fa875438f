"""The pure core of an agent: its revisions, and what may be done to them."""

from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import Message

from mesh.errors import AlreadyExists, Conflict, LimitExceeded, NotFound, RequestIdReused
from mesh.events.fold import Fold, Place
from mesh.events.store import StreamName
from weft.agents.v1 import agent_pb2, events_pb2

REVISIONS_MAX = 1_000
REQUESTS_MAX = 256

State = agent_pb2.AgentState


@dataclass(frozen=True, slots=True)
class CreateAgent:
    """Makes the agent."""

    agent: str
    spec: agent_pb2.AgentSpec
    request_id: str
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class UpdateAgent:
    """Makes another revision. `change` gives the new spec for the present one."""

    agent: str
    etag: str
    change: Callable[[agent_pb2.AgentSpec], agent_pb2.AgentSpec]
    request_id: str
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class DeleteAgent:
    """Deletes the agent."""

    agent: str
    etag: str
    request_id: str
    request_hash: bytes


def agent_stream(name: str) -> StreamName:
    """Stream of `tenants/{t}/agents/{a}`, or of the agent of a name under it."""
    _, tenant, _, agent = name.split("/")[:4]
    return StreamName("agents", tenant, (agent,))


def decide(state: State, command: CreateAgent | UpdateAgent | DeleteAgent) -> list[Message]:
    """The facts that `command` leads to; none where the same request came before.

    Raises AlreadyExists, NotFound, Conflict for a stale etag, RequestIdReused,
    LimitExceeded.
    """
    answered = find_request(state, command.request_id)
    if answered is not None:
        if answered.request_hash != command.request_hash:
            raise RequestIdReused(f"request_id {command.request_id} came before with another body")
        return []
    request = agent_pb2.AnsweredRequest(
        request_id=command.request_id,
        request_hash=command.request_hash,
        agent_revision=len(state.revisions) + 1,
    )
    if len(state.revisions) >= REVISIONS_MAX and not isinstance(command, DeleteAgent):
        raise LimitExceeded(f"agent {command.agent} has {REVISIONS_MAX} revisions already")
    if isinstance(command, CreateAgent):
        if state.revisions and not state.deleted:
            raise AlreadyExists(
                f"agent {command.agent} is there", metadata={"resource": command.agent}
            )
        created = events_pb2.AgentCreated(agent=command.agent, spec=command.spec, request=request)
        return [created]
    latest = latest_revision(state, command.agent)
    if command.etag and command.etag != latest.etag:
        raise Conflict(
            f"agent {command.agent} changed: its etag is {latest.etag}, not {command.etag}",
            metadata={"resource": command.agent, "etag": latest.etag},
        )
    if isinstance(command, DeleteAgent):
        request.agent_revision = latest.revision
        return [events_pb2.AgentDeleted(request=request)]
    return [events_pb2.AgentUpdated(spec=command.change(latest.spec), request=request)]


def latest_revision(state: State, name: str) -> agent_pb2.Agent:
    """The agent at its latest revision. Raises NotFound where there is none."""
    if not state.revisions or state.deleted:
        raise NotFound.of("agent", name)
    return state.revisions[-1]


def revision(state: State, name: str, number: int) -> agent_pb2.Agent:
    """The agent at a revision, also once it was deleted; the latest where it is 0."""
    if not number:
        return latest_revision(state, name)
    if number > len(state.revisions):
        raise NotFound(
            f"agent {name} has no revision {number}",
            metadata={"resource": name, "revision": str(number)},
        )
    return state.revisions[number - 1]


def find_request(state: State, request_id: str) -> agent_pb2.AnsweredRequest | None:
    """What is known of a request that came before."""
    for answered in state.requests:
        if answered.request_id == request_id:
            return answered
    return None


def evolve(state: State, event: Message, place: Place) -> State:
    """The state after `event`. Takes `state` over."""
    if isinstance(event, events_pb2.AgentCreated):
        state.deleted = False
        _revise(state, event.agent, event.spec, place)
        state.revisions[-1].create_time.CopyFrom(place.time)
        _answer(state, event.request)
    elif isinstance(event, events_pb2.AgentUpdated):
        before = state.revisions[-1]
        _revise(state, before.name, event.spec, place)
        state.revisions[-1].create_time.CopyFrom(before.create_time)
        _answer(state, event.request)
    elif isinstance(event, events_pb2.AgentDeleted):
        state.deleted = True
        _answer(state, event.request)
    return state


def _revise(state: State, name: str, spec: agent_pb2.AgentSpec, place: Place) -> None:
    number = len(state.revisions) + 1
    state.revisions.add(
        name=name, revision=number, spec=spec, update_time=place.time, etag=f"r{number}"
    )


def _answer(state: State, request: agent_pb2.AnsweredRequest) -> None:
    if len(state.requests) >= REQUESTS_MAX:
        del state.requests[0]
    state.requests.append(request)


AGENT_FOLD: Fold[State] = Fold(
    version=1,
    events=(events_pb2.AgentCreated, events_pb2.AgentUpdated, events_pb2.AgentDeleted),
    initial=agent_pb2.AgentState,
    evolve=evolve,
    encode=lambda state: state.SerializeToString(deterministic=True),
    decode=agent_pb2.AgentState.FromString,
)
