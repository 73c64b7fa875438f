"""Finds open turns whose owner is lost, and takes them over."""

import asyncio
import contextlib

import structlog

from mesh.control.leases import Leases
from mesh.errors import OwnerLost, WeftError
from services.agents.read_model import AgentsReadModel, OpenTurnRow
from services.agents.running import RunningTurns

_log = structlog.get_logger()
RESUMED_AT_ONCE_MAX = 32


class Recovery:
    """Looks at the open turns again and again. Whoever wins the append of TurnResumed
    has the turn; the others see that and leave it."""

    def __init__(
        self,
        read_model: AgentsReadModel,
        running: RunningTurns,
        leases: Leases,
        interval_seconds: float,
    ) -> None:
        self._read_model = read_model
        self._running = running
        self._leases = leases
        self._interval_seconds = interval_seconds
        self._waiting: dict[str, int] = {}
        self._seen: set[OpenTurnRow] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends looking."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            if self._leases.held():
                rows = self._lost()
                for first in range(0, len(rows), RESUMED_AT_ONCE_MAX):
                    batch = rows[first : first + RESUMED_AT_ONCE_MAX]
                    await asyncio.gather(*(self._resume(row) for row in batch))
            await asyncio.sleep(self._interval_seconds)

    def _lost(self) -> list[OpenTurnRow]:
        """Open turns that nobody works on: their owner's lease expired, or they are ours
        and no runner has them (left open when the store was away)."""
        rows = self._read_model.open_turns()
        sessions = {row.session for row in rows}
        self._waiting = {s: r for s, r in self._waiting.items() if s in sessions}
        lost = [row for row in rows if self._unattended(row)]
        # Of our own turns, only those that stay so: a commit may just be on its way.
        again = [row for row in lost if row.owner != self._leases.instance or row in self._seen]
        self._seen = set(lost)
        return again

    def _unattended(self, row: OpenTurnRow) -> bool:
        if self._waiting.get(row.session) == row.revision:
            return False
        if row.owner == self._leases.instance:
            return not self._running.runs(row.session, row.turn)
        return self._leases.expired(row.owner)

    async def _resume(self, row: OpenTurnRow) -> None:
        try:
            resumed = await self._running.resume(row.session, row.turn, row.owner)
        except OwnerLost:
            return
        except WeftError as error:
            _log.warning("turn wasn't resumed", turn=row.turn, error=error.message)
            return
        except Exception:  # noqa: BLE001 - one session's fault mustn't end the recovery of all
            _log.exception("turn wasn't resumed", turn=row.turn)
            return
        if resumed:
            _log.info("turn resumed", session=row.session, turn=row.turn, lost_owner=row.owner)
        else:
            self._waiting[row.session] = row.revision
