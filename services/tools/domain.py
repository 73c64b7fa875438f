"""A registered tool: pure rules of what may happen to it, and what it then is.

The stream's commits carry the ids of the requests that they answer. The state knows
the last of them, so that a repeated request is answered and not done again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from mesh.errors import DataDamaged, NotFound, RequestIdReused
from mesh.events.store import StreamName
from weft.events.v1 import events_pb2 as envelope_pb2
from weft.tools.v1 import events_pb2, tools_pb2

AREA = "tools"
REQUESTS_MAX = 32
"""Requests that a tool remembers."""

_FACTS = {
    fact.DESCRIPTOR.full_name: fact for fact in (events_pb2.ToolRegistered, events_pb2.ToolDeleted)
}


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """A request that was answered; `tool` is what it registered, None if it deleted."""

    id: str
    digest: bytes
    tool: tools_pb2.Tool | None


@dataclass(frozen=True, slots=True)
class ToolState:
    """A tool's id: what is registered under it, and the last requests, oldest first."""

    tool: tools_pb2.Tool | None = None
    requests: tuple[AnsweredRequest, ...] = ()


@dataclass(frozen=True, slots=True)
class Register:
    """Makes `tool` what is registered. `digest` is the SHA-256 of the request."""

    tool: tools_pb2.Tool
    digest: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Takes the tool of that name away. A deletion has no body: its digest is empty."""

    name: str
    digest: bytes = b""


Command = Register | Delete


def tool_name(tenant: str, tool_id: str) -> str:
    """The resource name of a tool."""
    return f"tenants/{tenant}/tools/{tool_id}"


def tool_stream(name: str) -> StreamName:
    """The stream of the tool with that resource name."""
    _, tenant, _, tool_id = name.split("/")
    return StreamName(AREA, tenant, (tool_id,))


def with_etag(tool: tools_pb2.Tool) -> tools_pb2.Tool:
    """The tool with the etag that its definition has: equal definitions, equal etags."""
    definition = tools_pb2.Tool()
    definition.CopyFrom(tool)
    definition.ClearField("name")
    definition.ClearField("create_time")
    definition.ClearField("etag")
    digest = hashlib.sha256(definition.SerializeToString(deterministic=True))
    tool.etag = digest.hexdigest()[:16]
    return tool


def answered(state: ToolState, request_id: str, digest: bytes) -> AnsweredRequest | None:
    """The earlier answer to the request, if it is known.

    Raises RequestIdReused where the id came with another body.
    """
    for request in state.requests:
        if request.id == request_id:
            if request.digest != digest:
                raise RequestIdReused.of("request_id", "was used before with another body")
            return request
    return None


def decide(state: ToolState, command: Command) -> Sequence[Message]:
    """The facts that the command leads to; NotFound where there is nothing to delete."""
    if isinstance(command, Register):
        return [events_pb2.ToolRegistered(tool=command.tool, request_hash=command.digest)]
    if state.tool is None:
        raise NotFound.of("tool", command.name)
    return [events_pb2.ToolDeleted()]


def evolve(state: ToolState, event: Message, request_id: str) -> ToolState:
    """The state after a fact of the commit that answered `request_id`."""
    if isinstance(event, events_pb2.ToolRegistered):
        request = AnsweredRequest(request_id, event.request_hash, event.tool)
    else:
        request = AnsweredRequest(request_id, b"", None)
    return ToolState(request.tool, (*state.requests, request)[-REQUESTS_MAX:])


def evolve_commit(state: ToolState, commit: envelope_pb2.Commit) -> ToolState:
    """The state after a stored commit; DataDamaged where a newer Weft wrote it."""
    for event in commit.events:
        fact = _FACTS.get(event.type)
        if fact is not None:
            state = evolve(state, fact.FromString(event.payload.value), commit.request_id)
        elif not event.may_ignore:
            raise DataDamaged(f"{commit.stream} has events of a newer kind: {event.type}")
    return state
