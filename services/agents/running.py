"""The turns that run in this process."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

import structlog
from google.protobuf.message import Message

from mesh.clock import Clock
from mesh.control.leases import Leases
from mesh.errors import WeftError
from mesh.events.aggregate import Repository, StoredFacts
from mesh.events.tokens import TokenStream
from services.agents.definitions import AgentDefinitions
from services.agents.effects import Effects
from services.agents.feeds import Session, TurnFeeds
from services.agents.outcomes import Outcomes
from services.agents.runner import TurnRunner
from services.agents.settings import AgentsSettings
from services.state import domain
from weft.state.v1 import session_pb2

_log = structlog.get_logger()


class RunningTurns:
    """One runner for each turn that this instance owns and that doesn't wait."""

    def __init__(
        self,
        sessions: Repository[session_pb2.SessionState],
        definitions: AgentDefinitions,
        feeds: TurnFeeds,
        effects: Effects,
        leases: Leases,
        tokens: TokenStream,
        outcomes: Outcomes,
        settings: AgentsSettings,
        clock: Clock,
    ) -> None:
        self._sessions = sessions
        self._definitions = definitions
        self._feeds = feeds
        self._effects = effects
        self._leases = leases
        self._tokens = tokens
        self._outcomes = outcomes
        self._settings = settings
        self._clock = clock
        self._running: dict[tuple[str, str, int], asyncio.Task[None]] = {}
        self._runners: dict[tuple[str, str, int], TurnRunner] = {}
        self._stopping = False

    def runs(self, session_stream: str, turn: str) -> bool:
        """Whether this process works on the turn."""
        return any(key[:2] == (session_stream, turn) for key in self._running)

    def moved_ns(self, session_stream: str, turn: str) -> int:
        """When the model last wrote something for the turn here, in Unix nanoseconds; 0 where
        it didn't."""
        wanted = (session_stream, turn)
        moved = (each.moved_ns for key, each in self._runners.items() if key[:2] == wanted)
        return max(moved, default=0)

    def ensure(
        self, session: Session, pending: "asyncio.Task[StoredFacts | None] | None" = None
    ) -> None:
        """Starts a runner for the session's turn, if it is ours and nobody works on it."""
        turn = session.state.active_turn
        if (
            turn.owner != self._leases.instance
            or turn.status in domain.WAITING_STATUSES
            or self._stopping
        ):
            return
        key = (str(session.stream), turn.id, turn.epoch)
        if key not in self._running:
            self._running[key] = asyncio.create_task(self._run(session, key, pending))

    async def resume(self, session_stream: str, turn: str, lost_owner: str) -> bool:
        """Takes over an open turn whose owner is lost. False where it waits for a
        person, which needs no owner. Raises OwnerLost where somebody was quicker."""
        name = domain.session_name(session_stream)
        session = self._sessions.open(domain.session_stream(name))
        with pinned(session):
            state = await session.load()
            if state.active_turn.id == turn and state.active_turn.status in domain.WAITING_STATUSES:
                return False

            def decide(state: session_pb2.SessionState) -> Sequence[Message]:
                command = domain.ResumeTurn(
                    turn=turn,
                    lost_owner=lost_owner,
                    owner=self._leases.instance,
                    resumes_max=self._settings.resumes_max,
                    now_ns=self._clock.now_ns(),
                )
                return domain.decide(state, command)

            await session.execute(decide)
            self.ensure(session)
            return True

    async def drain(self) -> None:
        """Lets running turns go on for a while, then leaves them for others to resume."""
        self._stopping = True
        if self._running:
            await asyncio.wait(self._running.values(), timeout=self._settings.drain_seconds)
        abandoned = list(self._running.values())
        for task in abandoned:
            task.cancel()
        if abandoned:
            await asyncio.wait(abandoned)
        self._feeds.close()

    async def _run(
        self,
        session: Session,
        key: tuple[str, str, int],
        pending: "asyncio.Task[StoredFacts | None] | None",
    ) -> None:
        with pinned(session):
            try:
                await self._run_attached(session, key, pending)
                # If the store was away, what it holds isn't what we decided last.
                turn = (await session.ready()).active_turn
            except WeftError as error:
                _log.warning("turn is left open", turn=key[1], error=error.message)
                return
            finally:
                self._running.pop(key, None)
            if (turn.id, turn.epoch) != key[1:]:
                # A turn that waited behind this one is ours now. One that was left open
                # is taken up again by the recovery, which counts how often.
                self.ensure(session)

    async def _run_attached(
        self,
        session: Session,
        key: tuple[str, str, int],
        pending: "asyncio.Task[StoredFacts | None] | None",
    ) -> None:
        feed = await self._feeds.attach(session, key[1])
        try:
            runner = TurnRunner(
                session,
                await self._definitions.pinned(session.state),
                feed,
                epoch=key[2],
                effects=self._effects,
                leases=self._leases,
                tokens=self._tokens,
                outcomes=self._outcomes,
                settings=self._settings,
                clock=self._clock,
            )
            self._runners[key] = runner
            with _observing(session, runner):
                await runner.run(pending)
        finally:
            self._runners.pop(key, None)
            self._feeds.release(session, feed)


@contextlib.contextmanager
def pinned(session: Session) -> Iterator[None]:
    """Keeps the session in memory."""
    session.pins += 1
    try:
        yield
    finally:
        session.pins -= 1


@contextlib.contextmanager
def _observing(session: Session, runner: TurnRunner) -> Iterator[None]:
    session.observers.append(runner.observe)
    try:
        yield
    finally:
        session.observers.remove(runner.observe)
