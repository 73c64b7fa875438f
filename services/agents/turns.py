"""The RPCs of turns."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

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
    Unavailable,
)
from mesh.events.aggregate import Repository
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
from services.agents.running import RunningTurns, pinned
from services.agents.settings import AgentsSettings
from services.agents.turn_tasks import TurnTasks
from services.state import domain
from weft.agents.v1 import agent_pb2, turn_pb2, turn_service_pb2
from weft.state.v1 import events_pb2, session_pb2

READS_MAX = 5
"""How often a turn is read that ends meanwhile."""
BEGINS_SECONDS = 0.05
"""How soon it is looked again whether a turn that was taken has begun."""

Events = AsyncGenerator[list[turn_pb2.TurnEvent], None]


class Turns:
    """`weft.agents.v1.TurnService`."""

    def __init__(
        self,
        sessions: Repository[session_pb2.SessionState],
        definitions: AgentDefinitions,
        effects: Effects,
        read_model: AgentsReadModel,
        running: RunningTurns,
        feeds: TurnFeeds,
        tasks: TurnTasks,
        leases: Leases,
        tokens: TokenStream,
        settings: AgentsSettings,
        clock: Clock,
        process_stops: Callable[[], bool],
    ) -> None:
        self._sessions = sessions
        self._definitions = definitions
        self._effects = effects
        self._read_model = read_model
        self._running = running
        self._feeds = feeds
        self._tasks = tasks
        self._leases = leases
        self._tokens = tokens
        self._settings = settings
        self._clock = clock
        self._process_stops = process_stops

    async def run_turn(
        self, request: turn_service_pb2.RunTurnRequest, call: Call
    ) -> AsyncIterator[turn_service_pb2.RunTurnResponse]:
        """Accepts the turn, or finds the one that this request started, and follows it."""
        session = self._sessions.open(domain.session_stream(request.session))
        with pinned(session):
            turn, feed = await self._accept(session, request, new_id(), call)
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

    async def submit_turn(
        self, request: turn_service_pb2.SubmitTurnRequest, call: Call
    ) -> turn_service_pb2.SubmitTurnResponse:
        """Stores the turn as a task, unless its session would refuse it now."""
        sent = await self._tasks.sent(request)
        if sent is not None:
            return sent
        session = self._sessions.open(domain.session_stream(request.session))
        with pinned(session):
            run = turn_service_pb2.RunTurnRequest(
                session=request.session, input=request.input, timeout=request.timeout
            )
            command = await self._acceptance(session, run, new_id(), call)
            domain.decide(session.state, command)
            return await self._tasks.submit(request, command.timeout_ns, command.held_scopes)

    async def run_in_background(
        self, request: turn_service_pb2.RunTurnRequest, turn: str, held_scopes: Sequence[str]
    ) -> turn_pb2.TurnEvent:
        """Accepts the turn under that id, with the permissions that whoever submitted it had for
        its tools, or finds the one that this request started, and returns what happened last
        once it ended, waits for a person, or waits behind another turn of its session."""
        session = self._sessions.open(domain.session_stream(request.session))
        with pinned(session):
            _, feed = await self._accept(session, request, turn, held_scopes)
            last = turn_pb2.TurnEvent()
            try:
                follow = self._follow(session, feed, turn_pb2.TurnOffset(), until_it_waits=True)
                async with contextlib.aclosing(follow):
                    async for events in follow:
                        last = events[-1]
                        if last.accepted.queued:
                            break
            finally:
                self._feeds.release(session, feed)
            return last

    async def watch_turn(
        self, request: turn_service_pb2.WatchTurnRequest, call: Call
    ) -> AsyncIterator[turn_service_pb2.WatchTurnResponse]:
        """Follows a turn from an offset on."""
        name, turn = request.name.rsplit("/turns/", 1)
        session = self._sessions.open(domain.session_stream(name))
        with pinned(session):
            await self._begun(session, turn)
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
        return turn_service_pb2.GetTurnResponse(turn=await self._found(request.name))

    async def cancel_turn(
        self, request: turn_service_pb2.CancelTurnRequest, call: Call
    ) -> turn_service_pb2.CancelTurnResponse:
        """Cancels durably; the turn's owner ends it."""
        name, turn = request.name.rsplit("/turns/", 1)
        session = self._sessions.open(domain.session_stream(name))
        with pinned(session):
            try:
                if await self._existing(session, turn):
                    await self._cancel(session, turn, request.reason)
            except NotFound:
                await self._tasks.cancel(request.name, request.reason)
        return turn_service_pb2.CancelTurnResponse(turn=await self._found(request.name))

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

    async def change(
        self, name: str, decide: Callable[[session_pb2.SessionState], Sequence[Message]]
    ) -> turn_pb2.Turn:
        """The turn once what is decided of it is stored; it goes on here where it is ours.
        FailedPrecondition where it ended long ago or waits in the background, NotFound where
        there is none."""
        session_name, turn = name.rsplit("/turns/", 1)
        session = self._sessions.open(domain.session_stream(session_name))
        with pinned(session):
            try:
                if not await self._existing(session, turn):
                    raise FailedPrecondition(f"turn {name} has ended")
            except NotFound:
                await self._found(name)
                raise FailedPrecondition(f"turn {name} hasn't begun: cancel it") from None
            await session.execute(decide)
            self._running.ensure(session)
        return await self._view(name)

    def forget(self, stream: StreamName) -> None:
        """The session was erased: who watches its turns is shown nothing more."""
        self._feeds.forget(stream)

    async def _accept(
        self,
        session: Session,
        request: turn_service_pb2.RunTurnRequest,
        turn: str,
        asked_by: Call | Sequence[str],
    ) -> tuple[str, TurnFeed]:
        command = await self._acceptance(session, request, turn, asked_by)
        before = await self._started_before(session, command) if request.request_id else None
        if before is None:
            return await self._accept_new(session, command)
        return before, await self._feeds.attach(session, before)

    async def _acceptance(
        self,
        session: Session,
        request: turn_service_pb2.RunTurnRequest,
        turn: str,
        asked_by: Call | Sequence[str],
    ) -> domain.AcceptTurn:
        """The command, on a session that is there and an agent that may run. `asked_by` is the
        caller, or what they might do when they asked."""
        state = await session.ready()
        if not domain.exists(state):
            state = await session.load()
        domain.refuse_absent(state)
        if not state.revision:
            raise NotFound.of("session", request.session)
        agent = await self._definitions.runnable(state)
        if isinstance(asked_by, Call):
            held_scopes: Sequence[str] = await self._effects.held_scopes(agent, asked_by.principal)
        else:
            held_scopes = asked_by
        return domain.AcceptTurn(
            session=request.session,
            turn=turn,
            request_id=request.request_id or new_id(),
            request_hash=request_hash(request),
            input=request.input,
            timeout_ns=self._timeout_ns(request, agent),
            owner=self._leases.instance,
            now_ns=self._clock.now_ns(),
            expected_revision=request.expected_revision,
            held_scopes=held_scopes,
        )

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
            self._running.ensure(session, pending)
            if await asyncio.shield(pending) is not None:
                self._running.ensure(session)
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

    async def _begun(self, session: Session, turn: str) -> None:
        """Returns once the session knows the turn, which may wait in the background.
        Raises NotFound, and FailedPrecondition where it ended before it began."""
        name = domain.turn_name(domain.session_name(session.stream), turn)
        while True:
            try:
                await self._existing(session, turn)
                return
            except NotFound:
                await self._tasks.until_taken(name)
            await asyncio.sleep(BEGINS_SECONDS)

    async def _cancel(self, session: Session, turn: str, reason: str) -> None:
        def decide(state: session_pb2.SessionState) -> Sequence[Message]:
            owner, now_ns = self._leases.instance, self._clock.now_ns()
            return domain.decide(state, domain.RequestCancel(turn, reason, owner, now_ns))

        await session.execute(decide)
        self._running.ensure(session)

    async def _decide(
        self,
        request: turn_service_pb2.DecideApprovalRequest | turn_service_pb2.ResolveInDoubtRequest,
        command: Callable[[str], domain.Decision],
    ) -> None:
        session_name, turn = request.name.rsplit("/turns/", 1)
        session = self._sessions.open(domain.session_stream(session_name))
        with pinned(session):
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
            self._running.ensure(session)

    async def _found(self, name: str) -> turn_pb2.Turn:
        """A turn that its session knows, or one that waits in the background."""
        try:
            return await self._view(name)
        except NotFound:
            return await self._tasks.get(name)

    async def _view(self, name: str) -> turn_pb2.Turn:
        session_name, turn = name.rsplit("/turns/", 1)
        stream = domain.session_stream(session_name)
        for _ in range(READS_MAX):
            history = TurnHistory(session_name, turn)
            async for revision, time, fact in facts_of(self._sessions, stream):
                history.fact(revision, time, fact)
            state = await self._sessions.open(stream).load()
            domain.refuse_absent(state)
            found = history.turn(state)
            if found.status:
                return found
            # It ended after its facts were read and before the state was.
        raise Unavailable(f"turn {name} changes faster than it is read")

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
        if not self._running.runs(str(session.stream), feed.turn) and not feed.ended:
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
                if not self._running.runs(str(session.stream), feed.turn):
                    feed.remote_token(turn_pb2.TurnEvent.FromString(data))
