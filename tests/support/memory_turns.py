"""Turns in memory, each of which plays a script: just what a client sees of them."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from google.protobuf.timestamp_pb2 import Timestamp

from mesh.call import Call
from mesh.errors import NotFound, NotServing
from mesh.ids import id_from
from tests.support.memory_catalogues import page_of
from weft.agents.v1 import stalled_turn_service_pb2 as stalled
from weft.agents.v1 import turn_pb2
from weft.agents.v1 import turn_service_pb2 as pb
from weft.models.v1 import models_pb2
from weft.state.v1 import session_pb2

Event = turn_pb2.TurnEvent
FINAL_EVENTS = ("completed", "failed", "cancelled")


@dataclass
class Script:
    """What a turn does: the events after its acceptance.

    `cut_after` cuts the first stream after that many events with UNAVAILABLE, or with a
    restart of the whole server where `restarts` is set. `repeated` events are sent once
    more when the turn is attached again, as a server does that knows the place roughly.
    `after_decision` follows once a person decided the call that waits.
    """

    events: Sequence[Event] = ()
    cut_after: int | None = None
    restarts: bool = False
    repeated: int = 0
    after_decision: Sequence[Event] = ()


@dataclass
class _Turn:
    name: str
    request: pb.RunTurnRequest
    script: Script
    events: list[Event] = field(default_factory=list)
    waiting: list[session_pb2.CallState] = field(default_factory=list)
    grew: asyncio.Event = field(default_factory=asyncio.Event)
    was_cut: bool = False
    stalled_doing: str = ""
    running: list[models_pb2.ToolCall] = field(default_factory=list)

    def add(self, events: Sequence[Event]) -> None:
        for event in events:
            stored = Event()
            stored.CopyFrom(event)
            stored.offset.revision = len(self.events) + 1
            self.events.append(stored)
            if event.HasField("approval_required"):
                self._wait(event.approval_required.call, session_pb2.CALL_STATUS_WAITING_APPROVAL)
            if event.HasField("in_doubt"):
                self._wait(event.in_doubt.call, session_pb2.CALL_STATUS_IN_DOUBT)
        grew, self.grew = self.grew, asyncio.Event()
        grew.set()

    def _wait(self, call: models_pb2.ToolCall, status: session_pb2.CallStatus.ValueType) -> None:
        self.waiting.append(session_pb2.CallState(call=call, status=status))

    @property
    def ended(self) -> bool:
        return self.events[-1].WhichOneof("event") in FINAL_EVENTS


class MemoryTurns:
    """`weft.agents.v1.TurnService` and `StalledTurnService`: a turn plays the script of its input.

    `requests` holds each request to run a turn, `decisions` each decision of a person.
    """

    def __init__(self, restart_soon: Callable[[], None]) -> None:
        self.scripts: dict[str, Script] = {}
        self.requests: list[pb.RunTurnRequest] = []
        self.decisions: list[pb.DecideApprovalRequest | pb.ResolveInDoubtRequest] = []
        self._restart_soon = restart_soon
        self._turns: dict[str, _Turn] = {}

    async def run_turn(
        self, request: pb.RunTurnRequest, _: Call
    ) -> AsyncGenerator[pb.RunTurnResponse, None]:
        self.requests.append(request)
        turn = self._accept(request)
        for sent, event in enumerate(turn.events):
            if sent == turn.script.cut_after and not turn.was_cut:
                turn.was_cut = True
                if not turn.script.restarts:
                    raise NotServing("draining")
                self._restart_soon()
                await asyncio.Event().wait()
            yield pb.RunTurnResponse(events=[event])

    async def watch_turn(
        self, request: pb.WatchTurnRequest, _: Call
    ) -> AsyncGenerator[pb.WatchTurnResponse, None]:
        turn = self._of(request.name)
        begin = request.offset.revision
        if begin:
            begin = max(begin - turn.script.repeated, 0)
        while True:
            grew = turn.grew
            for event in turn.events[begin:]:
                begin += 1
                yield pb.WatchTurnResponse(events=[event])
            if turn.ended:
                return
            await grew.wait()

    async def get_turn(self, request: pb.GetTurnRequest, _: Call) -> pb.GetTurnResponse:
        return pb.GetTurnResponse(turn=self._resource(self._of(request.name)))

    async def cancel_turn(self, request: pb.CancelTurnRequest, _: Call) -> pb.CancelTurnResponse:
        turn = self._of(request.name)
        if not turn.ended:
            turn.add([Event(cancelled=Event.Cancelled(reason=request.reason))])
        return pb.CancelTurnResponse(turn=self._resource(turn))

    async def decide_approval(
        self, request: pb.DecideApprovalRequest, _: Call
    ) -> pb.DecideApprovalResponse:
        return pb.DecideApprovalResponse(turn=self._decide(request))

    async def resolve_in_doubt(
        self, request: pb.ResolveInDoubtRequest, _: Call
    ) -> pb.ResolveInDoubtResponse:
        return pb.ResolveInDoubtResponse(turn=self._decide(request))

    async def list_stalled_turns(
        self, request: stalled.ListStalledTurnsRequest, _: Call
    ) -> stalled.ListStalledTurnsResponse:
        found = [self._resource(turn) for turn in self._turns.values() if turn.stalled_doing]
        page, token = page_of(found, request.page_size, request.page_token)
        return stalled.ListStalledTurnsResponse(turns=page, next_page_token=token)

    async def skip_call(
        self, request: stalled.SkipCallRequest, _: Call
    ) -> stalled.SkipCallResponse:
        turn = self._of(request.name)
        turn.running = [call for call in turn.running if call.id != request.call_id]
        result = Event.ToolResult(call_id=request.call_id, content=request.reason, is_error=True)
        turn.add([Event(tool_result=result)])
        return stalled.SkipCallResponse(turn=self._resource(turn))

    async def fail_turn(
        self, request: stalled.FailTurnRequest, _: Call
    ) -> stalled.FailTurnResponse:
        turn = self._of(request.name)
        error = turn_pb2.TurnError(message=request.reason)
        turn.add([Event(failed=Event.Failed(error=error))])
        return stalled.FailTurnResponse(turn=self._resource(turn))

    def stall(self, doing: str, *calls: models_pb2.ToolCall) -> str:
        """Has the only turn stall in these calls; returns its name."""
        (turn,) = self._turns.values()
        turn.stalled_doing, turn.running = doing, list(calls)
        return turn.name

    def running_calls(self) -> list[models_pb2.ToolCall]:
        """Calls of the only turn that run."""
        (turn,) = self._turns.values()
        return turn.running

    def _decide(
        self, request: pb.DecideApprovalRequest | pb.ResolveInDoubtRequest
    ) -> turn_pb2.Turn:
        turn = self._of(request.name)
        self.decisions.append(request)
        turn.waiting = [state for state in turn.waiting if state.call.id != request.call_id]
        turn.add(turn.script.after_decision)
        return self._resource(turn)

    def _accept(self, request: pb.RunTurnRequest) -> _Turn:
        name = f"{request.session}/turns/{id_from(request.session, request.request_id)}"
        if name not in self._turns:
            turn = _Turn(name, request, self.scripts[request.input])
            accepted = Event.Accepted(turn=name, request_id=request.request_id)
            turn.add([Event(accepted=accepted), *turn.script.events])
            self._turns[name] = turn
        return self._turns[name]

    def _of(self, name: str) -> _Turn:
        if name not in self._turns:
            raise NotFound.of("turn", name)
        return self._turns[name]

    def _resource(self, turn: _Turn) -> turn_pb2.Turn:
        statuses = {
            "completed": session_pb2.TURN_STATUS_COMPLETED,
            "failed": session_pb2.TURN_STATUS_FAILED,
            "cancelled": session_pb2.TURN_STATUS_CANCELLED,
        }
        last = turn.events[-1]
        stalled_time = Timestamp(seconds=100) if turn.stalled_doing else None
        running = session_pb2.CALL_STATUS_PENDING
        return turn_pb2.Turn(
            stalled_time=stalled_time,
            stalled_doing=turn.stalled_doing,
            running_calls=[
                session_pb2.CallState(call=call, status=running) for call in turn.running
            ],
            error=last.failed.error if last.HasField("failed") else None,
            name=turn.name,
            status=statuses.get(last.WhichOneof("event") or "", session_pb2.TURN_STATUS_RUNNING),
            input=turn.request.input,
            text=last.completed.text,
            waiting_calls=turn.waiting,
        )


def token(text: str, *, step: int = 1, attempt: int = 0, offset: int = 0) -> Event:
    """The model wrote."""
    return Event(token=Event.Token(step=step, attempt=attempt, text_offset=offset, text=text))


def model_step(text: str, step: int = 1) -> Event:
    """The model ended a step."""
    message = models_pb2.Message(role=models_pb2.ROLE_ASSISTANT, text=text)
    return Event(model_step=Event.ModelStep(step=step, message=message))


def completed(text: str, *sources: tuple[str, str]) -> Event:
    """The turn answered; sources are (uri, title)."""
    done = Event.Completed(text=text)
    for uri, title in sources:
        done.sources.add(uri=uri, title=title, locator="line 3")
    return Event(completed=done)


def call_of(tool: str, call_id: str = "call-1") -> models_pb2.ToolCall:
    """A tool call."""
    return models_pb2.ToolCall(id=call_id, tool=tool, arguments_json='{"n": 1}')
