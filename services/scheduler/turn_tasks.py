"""Tasks of the queue `turns`: each is a turn that whoever submits it may run."""

from google.protobuf import json_format

from mesh.call import Call
from mesh.errors import InvalidArgument, NotFound, PermissionDenied
from mesh.events.store import EventStore, StreamName
from mesh.rpc.tenancy import tenant_of
from mesh.rpc.validation import violations_of
from services.scheduler.domain import names
from weft.agents.v1 import turn_pb2
from weft.scheduler.v1 import tasks_pb2

CAPABILITY = "agent-turn"
PERMISSION = "agents.run"
SESSIONS_AREA = "state"
_violations = violations_of(turn_pb2.TurnTask.DESCRIPTOR)


def check_turn_task(stream: StreamName, spec: tasks_pb2.TaskSpec, call: Call) -> str:
    """The session of a task of the queue `turns`; empty for tasks of other queues.

    Raises InvalidArgument for a task of the queue `turns` that is no turn, NotFound for
    one of another tenant's session, PermissionDenied where the caller may not run it. Weft's
    services have asked that already, and tasks of other queues may be anything."""
    if not call.peer or call.caller:
        return ""
    is_turn = spec.capability == CAPABILITY
    if stream.key[0] != names.TURNS_QUEUE:
        if is_turn:
            raise InvalidArgument.of("spec.capability", "is that of the queue turns only")
        return ""
    if not is_turn:
        raise InvalidArgument.of("spec.capability", f"the queue turns takes {CAPABILITY} only")
    turn = turn_pb2.TurnTask()
    try:
        json_format.Parse(spec.payload, turn)
    except (json_format.ParseError, UnicodeDecodeError):
        problem = "isn't the JSON of a weft.agents.v1.TurnTask"
        raise InvalidArgument.of("spec.payload", problem) from None
    for violation in _violations(turn):
        raise InvalidArgument.of(f"spec.payload.{violation.field}", violation.description)
    if not turn.input:
        raise InvalidArgument.of("spec.payload.input", "is required")
    if tenant_of(turn.session) != stream.tenant:
        raise NotFound.of("session", turn.session)
    if call.principal is None or not call.principal.allows(PERMISSION, turn.session):
        raise PermissionDenied(
            f"needs the permission {PERMISSION} for {turn.session}",
            metadata={"permission": PERMISSION, "resource": turn.session},
        )
    return turn.session


async def refuse_absent_session(store: EventStore, session: str) -> None:
    """Raises NotFound where there is no such session, or it was erased.

    Its own service can't be asked, which stands on this one; the log can.
    """
    _, tenant, _, agent, _, session_id = session.split("/")
    stream = StreamName(SESSIONS_AREA, tenant, (agent, session_id))
    async for _ in store.read(stream, until_revision=1):
        return
    raise NotFound.of("session", session)
