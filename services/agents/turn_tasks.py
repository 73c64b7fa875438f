"""Turns that wait to run in the background: each is a task of its tenant's queue `turns`,
and has the task's id."""

import contextlib
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from mesh.clock import NANOSECONDS
from mesh.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RequestIdReused,
)
from mesh.ids import new_id
from mesh.runtime.requests import request_hash
from mesh.security.keyring import Keyring
from mesh.security.sealing import SealedCodec
from services.state import domain
from weft.agents.v1 import turn_pb2, turn_service_pb2
from weft.scheduler.v1 import task_service_pb2, tasks_pb2
from weft.state.v1 import session_pb2

if TYPE_CHECKING:
    from weft.scheduler.v1.task_service_pb2_grpc import TaskServiceAsyncStub

QUEUE = "turns"
CAPABILITY = "agent-turn"
ATTEMPTS_MAX = 10
MARGIN_SECONDS = 60
"""How much longer than its turn a task may run."""
ATTEMPT_SECONDS_MAX = 86_400
INPUT_BYTES_MAX = 190_000
"""Sealed and in JSON it fits in a task."""
_WAITING = (tasks_pb2.TASK_STATE_QUEUED, tasks_pb2.TASK_STATE_UNSCHEDULABLE)
_STATUS = {
    tasks_pb2.TASK_STATE_FAILED: session_pb2.TURN_STATUS_FAILED,
    tasks_pb2.TASK_STATE_CANCELLED: session_pb2.TURN_STATUS_CANCELLED,
}


class TurnTasks:
    """Turns that their session doesn't know yet. Their questions are sealed with the
    session's key."""

    def __init__(self, stub: "TaskServiceAsyncStub", keyring: Keyring) -> None:
        self._stub = stub
        self._codec = SealedCodec(keyring)

    async def sent(
        self, request: turn_service_pb2.SubmitTurnRequest
    ) -> turn_service_pb2.SubmitTurnResponse | None:
        """The answer to a request that came before; None where it is new. RequestIdReused
        where it came with another body."""
        if not request.request_id:
            return None
        name = domain.turn_name(request.session, _id_of(request))
        try:
            task = await self._task(name)
        except NotFound:
            return None
        if turn_in(task.spec.payload).request_hash != request_hash(request):
            raise RequestIdReused.of("request_id", "was used before with another body")
        return turn_service_pb2.SubmitTurnResponse(turn=name, task=task.name)

    async def submit(
        self,
        request: turn_service_pb2.SubmitTurnRequest,
        timeout_ns: int,
        held_scopes: Sequence[str],
    ) -> turn_service_pb2.SubmitTurnResponse:
        """Stores a turn, with the permissions that its caller has for its tools. Raises
        InvalidArgument for what can't be stored, RequestIdReused, LimitExceeded where too many
        wait already."""
        turn = _id_of(request) if request.request_id else new_id()
        name = domain.turn_name(request.session, turn)
        spec = tasks_pb2.TaskSpec(
            capability=CAPABILITY, payload=await self._sealed(request, name, held_scopes)
        )
        if request.HasField("priority"):
            spec.priority = request.priority
        if request.HasField("not_before"):
            spec.not_before.CopyFrom(request.not_before)
        if request.HasField("start_deadline"):
            spec.start_deadline.CopyFrom(request.start_deadline)
        seconds = timeout_ns // NANOSECONDS + MARGIN_SECONDS
        spec.attempt_timeout.seconds = min(seconds, ATTEMPT_SECONDS_MAX)
        spec.retry.max_attempts = ATTEMPTS_MAX
        task = _task_name(name)
        submit = task_service_pb2.SubmitTaskRequest(
            parent=task.rpartition("/tasks/")[0], task_id=turn, spec=spec
        )
        try:
            await self._stub.SubmitTask(submit)
        except AlreadyExists:
            # Another call with the same request was faster.
            sent = await self.sent(request)
            if sent is None:
                raise
            return sent
        return turn_service_pb2.SubmitTurnResponse(turn=name, task=task)

    async def question(self, name: str, task: turn_pb2.TurnTask) -> str:
        """What the turn of that name asks. DataErased once its session is erased."""
        if not task.sealed_input:
            return task.input
        stream = str(domain.session_stream(task.session))
        seal = await self._codec.to_read(stream, task.key_id)
        return seal.open(0, _place(name), task.sealed_input).decode()

    async def held_scopes(self, name: str, task: turn_pb2.TurnTask) -> Sequence[str]:
        """The permissions that whoever submitted the turn of that name had for its tools: none
        where it is a task that SubmitTurn didn't make. DataErased once its session is erased."""
        if not task.sealed_scopes:
            return ()
        stream = str(domain.session_stream(task.session))
        seal = await self._codec.to_read(stream, task.key_id)
        return seal.open(0, _scopes_place(name), task.sealed_scopes).decode().split()

    async def get(self, name: str) -> turn_pb2.Turn:
        """A turn that hasn't begun, or never will. NotFound where there is none."""
        task = await self._task(name)
        asked = turn_in(task.spec.payload)
        turn = turn_pb2.Turn(
            name=name,
            status=_STATUS.get(task.state, session_pb2.TURN_STATUS_QUEUED),
            request_id=asked.request_id,
            input=await self.question(name, asked),
            create_time=task.create_time,
        )
        if task.state in _STATUS:
            turn.end_time.CopyFrom(task.update_time)
        if task.state == tasks_pb2.TASK_STATE_FAILED:
            turn.error.message = task.reason
        return turn

    async def cancel(self, name: str, reason: str) -> None:
        """Cancels a turn that hasn't begun. NotFound where there is none."""
        task = await self._task(name)
        if task.state not in _STATUS:
            cancel = task_service_pb2.CancelTaskRequest(name=task.name, reason=reason[:512])
            await self._stub.CancelTask(cancel)

    async def until_taken(self, name: str) -> None:
        """Returns once a worker has taken the turn. Raises NotFound where there is none,
        FailedPrecondition where it ended without."""
        task = await self._task(name)
        watch = task_service_pb2.WatchTaskRequest(name=task.name)
        stream: Any = self._stub.WatchTask(watch)
        async with contextlib.aclosing(stream) as changes:
            async for change in changes:
                task = change.task
                if task.state not in _WAITING:
                    break
        if task.state in _STATUS:
            raise FailedPrecondition(f"turn {name} ended before it began: {task.reason}")

    async def _sealed(
        self, request: turn_service_pb2.SubmitTurnRequest, name: str, held_scopes: Sequence[str]
    ) -> bytes:
        plain = request.input.encode()
        if len(plain) > INPUT_BYTES_MAX:
            raise InvalidArgument.of("input", f"is longer than {INPUT_BYTES_MAX} bytes")
        seal = await self._codec.to_write(str(domain.session_stream(request.session)))
        task = turn_pb2.TurnTask(
            session=request.session,
            sealed_input=seal.seal(0, _place(name), plain),
            key_id=seal.key_id,
            request_id=request.request_id,
            request_hash=request_hash(request),
            timeout=request.timeout if request.HasField("timeout") else None,
        )
        if held_scopes:
            scopes = " ".join(held_scopes).encode()
            task.sealed_scopes = seal.seal(0, _scopes_place(name), scopes)
        text = json_format.MessageToJson(task, preserving_proto_field_name=True, indent=None)
        return text.encode()

    async def _task(self, turn: str) -> tasks_pb2.Task:
        get = task_service_pb2.GetTaskRequest(name=_task_name(turn))
        try:
            task = (await self._stub.GetTask(get)).task
        except NotFound:
            raise NotFound.of("turn", turn) from None
        if turn_in(task.spec.payload).session != turn.rpartition("/turns/")[0]:
            raise NotFound.of("turn", turn)
        return task


def turn_in(payload: bytes) -> turn_pb2.TurnTask:
    """What a task of the queue asks for. FailedPrecondition where that isn't a turn."""
    try:
        return json_format.Parse(payload, turn_pb2.TurnTask())
    except (json_format.ParseError, UnicodeDecodeError):
        raise FailedPrecondition("the task isn't a turn") from None


def _task_name(turn: str) -> str:
    tenant, turn_id = turn.partition("/agents/")[0], turn.rpartition("/")[2]
    return f"{tenant}/queues/{QUEUE}/tasks/{turn_id}"


def _place(turn: str) -> str:
    """To what a sealed question is bound beside its session."""
    return f"{CAPABILITY} {turn}"


def _scopes_place(turn: str) -> str:
    """The same for what its caller might do."""
    return f"{CAPABILITY} scopes {turn}"


def _id_of(request: turn_service_pb2.SubmitTurnRequest) -> str:
    """The same for the same request of the same session."""
    digest = hashlib.sha256(f"{request.session}\n{request.request_id}".encode()).hexdigest()
    return f"r{digest[:31]}"
