"""A function: pure rules of what may happen to it, and what it then is.

The stream's commits carry the ids of the requests that they answer. The state knows the last
of them, so that a repeated request is answered and not done again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from google.protobuf.message import Message

from mesh.errors import DataDamaged, NotFound, RequestIdReused
from mesh.events.store import StreamName
from weft.events.v1 import events_pb2 as envelope_pb2
from weft.functions.v1 import events_pb2, functions_pb2

AREA = "functions"
REQUESTS_MAX = 32
"""Requests that a function remembers."""
VERSIONS_MAX = 100
"""Versions that a function keeps."""

_FACTS = {
    fact.DESCRIPTOR.full_name: fact
    for fact in (
        events_pb2.FunctionDeployed,
        events_pb2.FunctionRolledBack,
        events_pb2.FunctionDeleted,
    )
}


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that was answered, with the hash of its body."""

    id: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class FunctionState:
    """A function's id: what is deployed under it, None where it was deleted; the last number
    that a version got; the last requests, oldest first."""

    function: functions_pb2.Function | None = None
    last_version: int = 0
    requests: tuple[Answered, ...] = ()


@dataclass(frozen=True, slots=True)
class Deploy:
    """Adds a version, whose number the state gives, and has it be invoked."""

    version: functions_pb2.FunctionVersion
    description: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class RollBack:
    """Has that version be invoked."""

    name: str
    version: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Takes the function away. A deletion has no body: its digest is empty."""

    name: str
    digest: bytes = b""


Command = Deploy | RollBack | Delete


def function_name(tenant: str, function_id: str) -> str:
    """The resource name of a function."""
    return f"tenants/{tenant}/functions/{function_id}"


def function_stream(name: str) -> StreamName:
    """The stream of the function with that resource name."""
    _, tenant, _, function_id = name.split("/")
    return StreamName(AREA, tenant, (function_id,))


def source_stream(name: str, sha256: bytes) -> StreamName:
    """The stream that has a source of the function."""
    stream = function_stream(name)
    return replace(stream, key=(*stream.key, sha256.hex()))


def find_version(function: functions_pb2.Function, number: int) -> functions_pb2.FunctionVersion:
    """The version of that number, the present one for 0. NotFound."""
    number = number or function.version
    for version in function.versions:
        if version.version == number:
            return version
    raise NotFound.of("version", f"{number} of {function.name}")


def answered(state: FunctionState, request_id: str, digest: bytes) -> bool:
    """Whether the request was answered before. RequestIdReused where another one had its id."""
    for request in state.requests:
        if request.id == request_id:
            if request.digest != digest:
                raise RequestIdReused.of("request_id", "was used before with another body")
            return True
    return False


def decide(state: FunctionState, command: Command) -> Sequence[Message]:
    """The facts that the command leads to; NotFound where there is no such function or
    version."""
    if isinstance(command, Deploy):
        version = functions_pb2.FunctionVersion()
        version.CopyFrom(command.version)
        version.version = state.last_version + 1
        return [
            events_pb2.FunctionDeployed(
                version=version, description=command.description, request_hash=command.digest
            )
        ]
    if state.function is None:
        raise NotFound.of("function", command.name)
    if isinstance(command, Delete):
        return [events_pb2.FunctionDeleted()]
    find_version(state.function, command.version)
    return [events_pb2.FunctionRolledBack(version=command.version, request_hash=command.digest)]


def evolve(
    state: FunctionState, stream: StreamName, event: Message, request_id: str
) -> FunctionState:
    """The state after a fact of the commit that answered `request_id`."""
    digest = b""
    function: functions_pb2.Function | None = None
    last_version = state.last_version
    if isinstance(event, events_pb2.FunctionDeployed):
        digest, last_version = event.request_hash, event.version.version
        function = _deployed(state, stream, event)
    elif isinstance(event, events_pb2.FunctionRolledBack) and state.function is not None:
        digest = event.request_hash
        function = functions_pb2.Function()
        function.CopyFrom(state.function)
        function.version = event.version
    if function is not None:
        _set_etag(function)
    requests = (*state.requests, Answered(request_id, digest))[-REQUESTS_MAX:]
    return FunctionState(function, last_version, requests)


def evolve_commit(state: FunctionState, commit: envelope_pb2.Commit) -> FunctionState:
    """The state after a stored commit; DataDamaged where a newer Weft wrote it."""
    stream = StreamName.parse(commit.stream)
    for event in commit.events:
        fact = _FACTS.get(event.type)
        if fact is not None:
            message = fact.FromString(event.payload.value)
            state = evolve(state, stream, message, commit.request_id)
        elif not event.may_ignore:
            raise DataDamaged(f"{commit.stream} has events of a newer kind: {event.type}")
    return state


def _deployed(
    state: FunctionState, stream: StreamName, event: events_pb2.FunctionDeployed
) -> functions_pb2.Function:
    function = functions_pb2.Function(name=function_name(stream.tenant, stream.key[0]))
    function.create_time.CopyFrom(event.version.create_time)
    if state.function is not None:
        function.create_time.CopyFrom(state.function.create_time)
        function.versions.extend(state.function.versions)
    function.versions.append(event.version)
    del function.versions[:-VERSIONS_MAX]
    function.version = event.version.version
    function.description = event.description
    return function


def _set_etag(function: functions_pb2.Function) -> None:
    function.ClearField("etag")
    digest = hashlib.sha256(function.SerializeToString(deterministic=True))
    function.etag = digest.hexdigest()[:16]
