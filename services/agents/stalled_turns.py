"""Turns that have stalled: finds them, and does what an operator says of them.

Whoever owns a turn finds that it has stalled, since it alone sees what the model writes;
anybody does where the owner is lost and nobody could take it over.
"""

import asyncio
import contextlib
from functools import partial

import structlog

from mesh.call import Call
from mesh.clock import NANOSECONDS, Clock
from mesh.control.leases import Leases
from mesh.errors import WeftError
from mesh.events.aggregate import Repository
from mesh.rpc.pages import read_page_token, write_page_token
from services.agents.history import open_turn
from services.agents.read_model import AgentsReadModel, OpenTurnRow
from services.agents.running import RunningTurns
from services.agents.settings import AgentsSettings
from services.agents.turns import Turns
from services.state import domain
from weft.agents.v1 import stalled_turn_service_pb2 as pb
from weft.state.v1 import session_pb2

LOOK_SECONDS = 0.5
"""How often it looks."""
PAGE_SIZE = 100

_log = structlog.get_logger(__name__)


class StalledTurns:
    """`weft.agents.v1.StalledTurnService`, and the loop that finds them."""

    def __init__(
        self,
        sessions: Repository[session_pb2.SessionState],
        read_model: AgentsReadModel,
        turns: Turns,
        running: RunningTurns,
        leases: Leases,
        settings: AgentsSettings,
        clock: Clock,
    ) -> None:
        self._sessions = sessions
        self._read_model = read_model
        self._turns = turns
        self._running = running
        self._leases = leases
        self._bound_ns = int(settings.stalled_turn_seconds * NANOSECONDS)
        self._clock = clock
        self._settled: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look."""
        self._task = asyncio.create_task(self._run(), name="stalled turns")

    async def stop(self) -> None:
        """Ends looking."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def list_stalled_turns(
        self, request: pb.ListStalledTurnsRequest, call: Call
    ) -> pb.ListStalledTurnsResponse:
        """By their sessions."""
        after = read_page_token(request.page_token, request.parent)
        size = request.page_size or PAGE_SIZE
        tenant = request.parent.split("/")[1]
        streams = await self._read_model.stalled_turns(tenant, after, size + 1)
        response = pb.ListStalledTurnsResponse()
        for stream in streams[:size]:
            name = domain.session_name(stream)
            state = await self._sessions.open(domain.session_stream(name)).load()
            if state.active_turn.HasField("stalled_time"):
                response.turns.append(open_turn(name, state.active_turn))
        if len(streams) > size:
            response.next_page_token = write_page_token(streams[size - 1], request.parent)
        return response

    async def skip_call(self, request: pb.SkipCallRequest, call: Call) -> pb.SkipCallResponse:
        """NotFound for a call that isn't the turn's, FailedPrecondition for one that waits
        for a person and for a turn that isn't open."""
        turn = await self._turns.change(
            request.name,
            partial(
                domain.skip_call,
                turn=_id(request.name),
                call_id=request.call_id,
                reason=request.reason,
            ),
        )
        return pb.SkipCallResponse(turn=turn)

    async def fail_turn(self, request: pb.FailTurnRequest, call: Call) -> pb.FailTurnResponse:
        """FailedPrecondition for a turn that isn't open and hasn't failed."""
        turn = await self._turns.change(
            request.name,
            partial(
                domain.fail_turn,
                turn=_id(request.name),
                message=request.reason or f"failed by {call.actor}",
                owner=self._leases.instance,
                now_ns=self._clock.now_ns(),
            ),
        )
        return pb.FailTurnResponse(turn=turn)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except Exception:  # noqa: BLE001 - the next look may go well; the log has the fault
                _log.exception("looking for stalled turns failed")

    async def _look(self) -> None:
        rows = self._read_model.idle_turns(self._clock.now_ns() - self._bound_ns)
        idle = {row.session: row.revision for row in rows}
        self._settled = {s: r for s, r in self._settled.items() if idle.get(s) == r}
        for row in rows:
            since_ns = max(row.update_ns, self._running.moved_ns(row.session, row.turn))
            over = self._clock.now_ns() - since_ns >= self._bound_ns
            if over and row.session not in self._settled and self._is_ours(row):
                await self._tell(row, since_ns)

    def _is_ours(self, row: OpenTurnRow) -> bool:
        return row.owner == self._leases.instance or self._leases.expired(row.owner)

    async def _tell(self, row: OpenTurnRow, since_ns: int) -> None:
        change = partial(
            domain.stall,
            turn=row.turn,
            revision=row.revision,
            since_ns=since_ns,
            now_ns=self._clock.now_ns(),
        )
        session = self._sessions.open(domain.session_stream(domain.session_name(row.session)))
        try:
            await session.load()
            stored = await session.execute(change)
        except WeftError as error:
            _log.warning("a stall wasn't stored", turn=row.turn, error=error.message)
            return
        if stored is None:
            # It waits for a person, or was told of: nothing to say before something happens.
            self._settled[row.session] = row.revision


def _id(name: str) -> str:
    return name.rpartition("/")[2]
