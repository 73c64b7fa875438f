"""The RPCs of turns, and the turns that run in this process."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence

import structlog
from google.protobuf.message import Message

from mesh.call import Call
from mesh.clock import NANOSECONDS, Clock
from mesh.control.leases import LEASE_SECONDS, Leases
from mesh.errors import (
    EventStoreUnavailable,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RequestIdReused,
    WeftError,
)
from mesh.events.aggregate import Repository, StoredFacts
from mesh.events.store import StreamName
from mesh.events.tokens import TokenStream
from mesh.ids import new_id
from mesh.runtime.requests import request_hash
from services.agents.definitions import AgentDefinitions
from services.agents.effects import Effects
from services.agents.feed import TurnFeed
from services.agents.feeds import Session, TurnFeeds
from services.agents.history import TurnHistory, decided_before, facts_of
from services.agents.read_model import AgentsReadModel
from services.agents.runner import TurnRunner
from services.agents.settings import AgentsSettings
from services.state import domain
from weft.agents.v1 import agent_pb2, turn_pb2, turn_service_pb2
from weft.state.v1 import events_pb2, session_pb2

_log = structlog.get_logger()
Events = AsyncGenerator[list[turn_pb2.TurnEvent], None]


class Turns:
    """`weft.agents.v1.TurnService`."""

    def __init__(
        self,
        sessions: Repository[session_pb2.SessionState],
        definitions: AgentDefinitions,
        read_model: AgentsReadModel,
        effects: Effects,
        leases: Leases,
        tokens: TokenStream,
        settings: AgentsSettings,
        clock: Clock,
        process_stops: Callable[[], bool],
    ) -> None:
        self._sessions = sessions
        self._definitions = definitions
        self._read_model = read_model
        self._effects = effects
        self._leases = leases
        self._tokens = tokens
        self._settings = settings
        self._clock = clock
        self._process_stops = process_stops
        self._feeds = TurnFeeds(sessions)
        self._running: dict[tuple[str, str, int], asyncio.Task[None]] = {}
        self._runners: dict[tuple[str, str, int], TurnRunner] = {}
        self._stopping = False

    async def run_turn(
        self, request: turn_service_pb2.RunTurnRequest, call: Call
    ) -> AsyncIterator[turn_service_pb2.RunTurnResponse]:
        """Accepts the turn, or finds the one that this request started, and follows it."""
        session = self._sessions.open(domain.session_stream(request.session))
        with _pinned(session):
            turn, feed = await self._accept(session, request, call)
            done = False
            try:
                follow = self._follow(session, feed, turn_pb2.TurnOffset(), until_it_waits=True)
                async with contextlib.aclosing(follow):
                    async for events in follow:
                        yield turn_service_pb2.RunTurnResponse(events=events)
                done = True
            finally:
                self._feeds.release(session, feed)
                if request.cancel_on_disconnect and not done and not self._process_stops():
                    reason = "the caller's connection was lost"
                    await asyncio.shield(self._cancel(session, turn, reason))

    async def watch_turn(
        self, request: turn_service_pb2.WatchTurnRequest, call: Call
    ) -> AsyncIterator[turn_service_pb2.WatchTurnResponse]:
        """Follows a turn from an offset on."""
        name, turn = request.name.rsplit("/turns/", 1)
        session = self._sessions.open(domain.session_stream(name))
        with _pinned(session):
            await self._existing(session, turn)
            feed = await self._feeds.attach(session, turn)
            try:
                follow = self._follow(session, feed, request.offset, until_it_waits=False)
                async with contextlib.aclosing(follow):
                    async for events in follow:
                        yield turn_service_pb2.WatchTurnResponse(events=events)
            finally:
                self._feeds.release(session, feed)

    async def get_turn(
        self, request: turn_service_pb2.GetTurnRequest, call: Call
    ) -> turn_service_pb2.GetTurnResponse:
        """The turn, as the log has it."""
        return turn_service_pb2.GetTurnResponse(turn=await self._view(request.name))

    async def cancel_turn(
        self, request: turn_service_pb2.CancelTurnRequest, call: Call
    ) -> turn_service_pb2.CancelTurnResponse:
        """Cancels durably; the turn's owner ends it."""
        name, turn = request.name.rsplit("/turns/", 1)
        session = self._sessions.open(domain.session_stream(name))
        with _pinned(session):
            if await self._existing(session, turn):
                await self._cancel(session, turn, request.reason)
        return turn_service_pb2.CancelTurnResponse(turn=await self._view(request.name))

    async def decide_approval(
        self, request: turn_service_pb2.DecideApprovalRequest, call: Call
    ) -> turn_service_pb2.DecideApprovalResponse:
        """Takes a person's decision, and goes on with the turn if it waited for it."""
        await self._decide(
            request,
            lambda turn: domain.DecideApproval(
                turn=turn,
                call_id=request.call_id,
                approved=request.approved,
                comment=request.comment,
                owner=self._leases.instance,
                now_ns=self._clock.now_ns(),
            ),
        )
        return turn_service_pb2.DecideApprovalResponse(turn=await self._view(request.name))

    async def resolve_in_doubt(
        self, request: turn_service_pb2.ResolveInDoubtRequest, call: Call
    ) -> turn_service_pb2.ResolveInDoubtResponse:
        """Takes a person's word of what became of a call, and goes on with the turn."""
        retried = request.resolution == events_pb2.RESOLUTION_RETRY
        if retried and request.content:
            raise InvalidArgument.of("content", "must be empty with RESOLUTION_RETRY")
        await self._decide(
            request,
            lambda turn: domain.ResolveCall(
                turn=turn,
                call_id=request.call_id,
                resolution=request.resolution,
                content=request.content,
                owner=self._leases.instance,
                lease_ns=int(LEASE_SECONDS * NANOSECONDS),
                now_ns=self._clock.now_ns(),
            ),
        )
        return turn_service_pb2.ResolveInDoubtResponse(turn=await self._view(request.name))

    async def resume(self, session_stream: str, turn: str, lost_owner: str) -> bool:
        """Takes over an open turn whose owner is lost. False where it waits for a
        person, which needs no owner. Raises OwnerLost where somebody was quicker."""
        name = domain.session_name(session_stream)
        session = self._sessions.open(domain.session_stream(name))
        with _pinned(session):
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
            self._ensure_runner(session)
            return True

    async def change(
        self, name: str, decide: Callable[[session_pb2.SessionState], Sequence[Message]]
    ) -> turn_pb2.Turn:
        """The turn once what is decided of it is stored; it goes on here where it is ours.
        FailedPrecondition where it ended long ago, NotFound where there is none."""
        session_name, turn = name.rsplit("/turns/", 1)
        session = self._sessions.open(domain.session_stream(session_name))
        with _pinned(session):
            if not await self._existing(session, turn):
                raise FailedPrecondition(f"turn {name} has ended")
            await session.execute(decide)
            self._ensure_runner(session)
        return await self._view(name)

    def moved_ns(self, session_stream: str, turn: str) -> int:
        """When the model last wrote something for the turn here, in Unix nanoseconds; 0 where
        it didn't."""
        wanted = (session_stream, turn)
        moved = (each.moved_ns for key, each in self._runners.items() if key[:2] == wanted)
        return max(moved, default=0)

    def forget(self, stream: StreamName) -> None:
        """The session was erased: who watches its turns is shown nothing more."""
        self._feeds.forget(stream)

    def runs(self, session_stream: str, turn: str) -> bool:
        """Whether this process works on the turn."""
        return any(key[:2] == (session_stream, turn) for key in self._running)

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

    async def _accept(
        self, session: Session, request: turn_service_pb2.RunTurnRequest, call: Call
    ) -> tuple[str, TurnFeed]:
        state = await session.ready()
        if not domain.exists(state):
            state = await session.load()
        domain.refuse_absent(state)
        if not state.revision:
            raise NotFound.of("session", request.session)
        agent = await self._definitions.runnable(state)
        request_id = request.request_id or new_id()
        command = domain.AcceptTurn(
            session=request.session,
            turn=new_id(),
            request_id=request_id,
            request_hash=request_hash(request),
            input=request.input,
            timeout_ns=self._timeout_ns(request, agent),
            owner=self._leases.instance,
            now_ns=self._clock.now_ns(),
            expected_revision=request.expected_revision,
        )
        turn = await self._started_before(session, command) if request.request_id else None
        if turn is None:
            return await self._accept_new(session, command)
        return turn, await self._feeds.attach(session, turn)

    async def _started_before(self, session: Session, command: domain.AcceptTurn) -> str | None:
        """The turn that this request started, if it came before. Raises RequestIdReused."""
        request_id, digest = command.request_id, command.request_hash
        if domain.find_request(session.state, request_id, digest) is not None:
            # The acceptance may just be on its way, and not arrive.
            return domain.find_request(await session.load(), request_id, digest)
        if session.state.turn_count <= domain.ENDED_TURNS_MAX:
            return None
        known = await self._read_model.turn(str(session.stream), request_id=request_id)
        if known is not None and known.request_hash != digest:
            raise RequestIdReused(f"request_id {request_id} came before with another body")
        return known.turn if known is not None else None

    async def _accept_new(
        self, session: Session, command: domain.AcceptTurn
    ) -> tuple[str, TurnFeed]:
        """Commits the acceptance; the runner starts while its commit is on its way."""
        feed = self._feeds.begin(session, command.turn)
        try:
            pending = await session.send(
                lambda state: domain.decide(state, command), command.request_id
            )
            self._ensure_runner(session, pending)
            if await asyncio.shield(pending) is not None:
                self._ensure_runner(session)
                feed.users += 1
                return command.turn, feed
        finally:
            self._feeds.release(session, feed)
        # Another call with the same request came first.
        turn = domain.find_request(session.state, command.request_id, command.request_hash)
        if turn is None:
            raise NotFound.of("turn", command.turn)
        return turn, await self._feeds.attach(session, turn)

    def _timeout_ns(self, request: turn_service_pb2.RunTurnRequest, agent: agent_pb2.Agent) -> int:
        limits = agent.spec.limits
        longest = limits.turn_timeout.ToNanoseconds() or int(
            self._settings.turn_seconds_max * NANOSECONDS
        )
        return min(request.timeout.ToNanoseconds() or longest, longest)

    async def _existing(self, session: Session, turn: str) -> bool:
        """Whether the session's state knows the turn; False where it ended too long ago.
        Raises NotFound."""
        state = await session.load()
        domain.refuse_absent(state)
        known = {state.active_turn.id, *(queued.id for queued in state.queued_turns)}
        if turn not in known and all(ended.id != turn for ended in state.ended_turns):
            if await self._read_model.turn(str(session.stream), turn=turn) is None:
                name = domain.turn_name(domain.session_name(session.stream), turn)
                raise NotFound.of("turn", name)
            return False
        return True

    async def _cancel(self, session: Session, turn: str, reason: str) -> None:
        def decide(state: session_pb2.SessionState) -> Sequence[Message]:
            owner, now_ns = self._leases.instance, self._clock.now_ns()
            return domain.decide(state, domain.RequestCancel(turn, reason, owner, now_ns))

        await session.execute(decide)
        self._ensure_runner(session)

    async def _decide(
        self,
        request: turn_service_pb2.DecideApprovalRequest | turn_service_pb2.ResolveInDoubtRequest,
        command: Callable[[str], domain.Decision],
    ) -> None:
        session_name, turn = request.name.rsplit("/turns/", 1)
        session = self._sessions.open(domain.session_stream(session_name))
        with _pinned(session):
            await session.load()
            try:
                await session.execute(
                    lambda state: domain.decide(state, command(turn)), request.request_id
                )
            except (FailedPrecondition, NotFound):
                # Once decided, it can't be decided again; the same request is answered again.
                if not await decided_before(
                    self._sessions, session.stream, request.request_id, command(turn)
                ):
                    raise
            self._ensure_runner(session)

    async def _view(self, name: str) -> turn_pb2.Turn:
        session_name, turn = name.rsplit("/turns/", 1)
        stream = domain.session_stream(session_name)
        history = TurnHistory(session_name, turn)
        async for revision, time, fact in facts_of(self._sessions, stream):
            history.fact(revision, time, fact)
        state = await self._sessions.open(stream).load()
        domain.refuse_absent(state)
        return history.turn(state)

    async def _follow(
        self,
        session: Session,
        feed: TurnFeed,
        offset: turn_pb2.TurnOffset,
        *,
        until_it_waits: bool,
    ) -> Events:
        def waits() -> bool:
            turn = session.state.active_turn
            waiting = turn.id == feed.turn and turn.status in domain.WAITING_STATUSES
            # What is on its way isn't shown yet: the stream must not end before it.
            return until_it_waits and waiting and session.settled

        remote = None
        if not self.runs(str(session.stream), feed.turn) and not feed.ended:
            remote = asyncio.create_task(self._follow_tokens(session, feed))
        try:
            async for events in feed.follow(offset, waits):
                yield events
        finally:
            if remote is not None:
                remote.cancel()

    async def _follow_tokens(self, session: Session, feed: TurnFeed) -> None:
        """Tokens that another process writes; ours go to the feed directly."""
        with contextlib.suppress(EventStoreUnavailable):
            # Without them, a step's text comes as a whole when it ends.
            async for data in self._tokens.follow(session.stream, feed.turn):
                if not self.runs(str(session.stream), feed.turn):
                    feed.remote_token(turn_pb2.TurnEvent.FromString(data))

    def _ensure_runner(
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

    async def _run(
        self,
        session: Session,
        key: tuple[str, str, int],
        pending: "asyncio.Task[StoredFacts | None] | None",
    ) -> None:
        with _pinned(session):
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
                self._ensure_runner(session)

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
def _pinned(session: Session) -> Iterator[None]:
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
