"""Runs the turns that wait in the background: this process is a worker of the queues
`turns` of all tenants.

A task has its slot until its turn ends, waits for a person, or waits behind another turn
of its session; what goes on after that goes on without one.
"""

import asyncio
import contextlib
from collections.abc import Callable

import structlog
from google.protobuf import json_format

from mesh.call import Call, current_call
from mesh.clock import NANOSECONDS, Clock
from mesh.errors import NotFound, WeftError
from mesh.principal import Principal
from mesh.rpc.status import code_of
from mesh.worker import TaskFailure, Worker, WorkerTask
from services.agents.settings import AgentsSettings
from services.agents.turn_tasks import CAPABILITY, QUEUE, TurnTasks, turn_in
from services.agents.turns import Turns
from services.state import domain
from weft.agents.v1 import turn_pb2, turn_service_pb2
from weft.scheduler.v1.worker_service_pb2_grpc import WorkerServiceStub
from weft.state.v1 import session_pb2

RETRY_SECONDS = 5.0
FAILED_PRECONDITION = 9
UNAVAILABLE = 14

_log = structlog.get_logger()
_STATUS = {
    "accepted": session_pb2.TURN_STATUS_QUEUED,
    "approval_required": session_pb2.TURN_STATUS_WAITING_APPROVAL,
    "in_doubt": session_pb2.TURN_STATUS_IN_DOUBT,
    "completed": session_pb2.TURN_STATUS_COMPLETED,
    "cancelled": session_pb2.TURN_STATUS_CANCELLED,
}
"""Where a turn stands that needs no slot any more, by what happened last."""


class TurnWorker:
    """Takes as many turns at once as the settings say."""

    def __init__(
        self,
        turns: Turns,
        tasks: TurnTasks,
        stub: WorkerServiceStub,
        instance: str,
        settings: AgentsSettings,
        clock: Clock,
        process_stops: Callable[[], bool],
    ) -> None:
        self._process_stops = process_stops
        self._turns = turns
        self._tasks = tasks
        self._clock = clock
        self._worker = Worker(
            QUEUE,
            slots=settings.background_turns_max,
            worker_id=instance,
            all_tenants=True,
            stub=stub,
            ends=process_stops,
        )
        self._worker.task(CAPABILITY)(self._run)
        self._working: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Takes turns from now on."""
        self._working = asyncio.create_task(self._work())

    def pause(self, paused: bool) -> None:
        """Takes no turns while it is paused; those that run go on."""
        self._worker.pause(paused)

    async def stop(self) -> None:
        """Takes no more. Turns that run go on or are resumed by others; their tasks are
        given to other workers."""
        if self._working is not None:
            self._working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._working

    async def _work(self) -> None:
        while not self._process_stops():
            try:
                await self._worker.work()
            except WeftError as error:
                _log.warning("no turns are taken from the queue", reason=error.message)
            if not self._process_stops():
                await asyncio.sleep(RETRY_SECONDS)

    async def _run(self, task: WorkerTask) -> str:
        turn = task.name.rpartition("/")[2]
        try:
            asked = turn_in(task.payload)
            name = domain.turn_name(asked.session, turn)
            current_call.set(self._call(task, asked.request_id or turn))
            run = turn_service_pb2.RunTurnRequest(
                session=asked.session,
                input=await self._tasks.question(name, asked),
                request_id=asked.request_id or turn,
                timeout=asked.timeout if asked.HasField("timeout") else None,
            )
            held_scopes = await self._tasks.held_scopes(name, asked)
            last = await self._turns.run_in_background(run, turn, held_scopes)
        except asyncio.CancelledError as cancelled:
            if cancelled.args:
                await self._cancel(name, cancelled.args[0])
            raise
        except WeftError as error:
            raise TaskFailure(error.message, code_of(error).value[0]) from error
        return _result(name, last)

    async def _cancel(self, turn: str, reason: str) -> None:
        call = current_call.get()
        assert call is not None, "the turn runs in a call"
        request = turn_service_pb2.CancelTurnRequest(name=turn, reason=reason)
        with contextlib.suppress(NotFound):
            await self._turns.cancel_turn(request, call)

    def _call(self, task: WorkerTask, request_id: str) -> Call:
        """Whoever submitted the turn runs it, as the log tells it."""
        seconds = task.deadline - self._clock.now_ns() / NANOSECONDS
        return Call(
            method="/weft.agents.v1.TurnService/SubmitTurn",
            deadline=self._clock.monotonic() + seconds,
            request_id=request_id,
            principal=Principal(task.creator, task.name.split("/")[1]),
            clock=self._clock,
        )


def _result(turn: str, last: turn_pb2.TurnEvent) -> str:
    kind = last.WhichOneof("event")
    if kind == "failed":
        raise TaskFailure(last.failed.error.message, FAILED_PRECONDITION)
    if kind not in _STATUS:
        raise TaskFailure("the process that ran the turn ends", UNAVAILABLE)
    result = turn_pb2.TurnTaskResult(turn=turn, status=_STATUS[kind])
    return json_format.MessageToJson(result, preserving_proto_field_name=True, indent=None)
