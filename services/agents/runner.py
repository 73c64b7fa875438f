"""The loop of one turn: effects between commits, until it ends, waits or is lost.

A commit's acknowledgement is awaited before what depends on it: anything shown to the
caller, an effect that isn't a read, the next commit. A model call starts before it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.call import Call, current_call
from mesh.clock import NANOSECONDS, Clock
from mesh.control.leases import Leases
from mesh.errors import DeadlineExceeded, EventStoreUnavailable, OwnerLost, WeftError
from mesh.events.aggregate import Aggregate, StoredFacts
from mesh.events.tokens import TokenStream
from mesh.principal import system
from services.agents import context
from services.agents.effects import BoundTool, CallInDoubt, Effects, is_unserved, planned_calls
from services.agents.feed import TurnFeed
from services.agents.outcomes import Outcomes, failed_by_revision
from services.agents.settings import AgentsSettings
from services.agents.token_batch import TokenBatch
from services.state import domain
from weft.agents.v1 import agent_pb2
from weft.errors.v1 import errors_pb2
from weft.models.v1 import model_service_pb2, models_pb2
from weft.options.v1 import options_pb2
from weft.state.v1 import events_pb2, session_pb2

_log = structlog.get_logger()

LEASE_POLL_SECONDS = 0.05
WIRE_PASSES = 2
RESULTS_TOGETHER_MAX = 32
"""Results of one commit: so many of those that are too small for blobs fit in one."""
_RUNNABLE = (session_pb2.CALL_STATUS_PENDING, session_pb2.CALL_STATUS_APPROVED)
Aggregated = Aggregate[session_pb2.SessionState]
_Outcome = events_pb2.ToolCallCompleted | events_pb2.ToolCallInDoubt
"""What became of a call."""


@dataclass(slots=True)
class _Pending:
    """A commit on its way, and how to decide it again if its fate is unknown."""

    task: "asyncio.Task[StoredFacts | None]"
    decide: Callable[[session_pb2.SessionState], Sequence[Message]] | None = None


class TurnRunner:
    """Runs the turn that this instance owns at `epoch`."""

    def __init__(
        self,
        aggregate: Aggregated,
        agent: agent_pb2.Agent,
        feed: TurnFeed,
        *,
        epoch: int,
        effects: Effects,
        leases: Leases,
        tokens: TokenStream,
        outcomes: Outcomes,
        settings: AgentsSettings,
        clock: Clock,
    ) -> None:
        self.feed = feed
        self.turn = feed.turn
        self.epoch = epoch
        self._aggregate = aggregate
        self._agent = agent
        self._effects = effects
        self._leases = leases
        self._outcomes = outcomes
        self._settings = settings
        self._clock = clock
        self._batch = TokenBatch(feed, tokens, aggregate.stream, clock, settings)
        self._pending: _Pending | None = None
        self._committing = asyncio.Lock()
        self._cancelled = False
        self._interrupted = False
        self._working: asyncio.Task[Any] | None = None
        self._tools: dict[str, BoundTool] | None = None
        self._partial_text = ""
        self._deadline_ns = 0
        # What the turn was given; 0 once it lost some of it by no fault of its agent's.
        self._own_seconds = 0.0
        self._calls: dict[str, asyncio.Task[_Outcome]] = {}
        self.moved_ns = 0
        """When the model last wrote something, in Unix nanoseconds; 0 before."""

    @property
    def _state(self) -> session_pb2.SessionState:
        return self._aggregate.state

    @property
    def _turn(self) -> session_pb2.OpenTurn | None:
        """The turn, while it is open and ours."""
        turn = self._state.active_turn
        return turn if turn.id == self.turn and turn.epoch == self.epoch else None

    async def run(self, pending: "asyncio.Task[StoredFacts | None] | None" = None) -> None:
        """Runs until the turn ends, waits for a person, or another instance has it.
        `pending` is the commit that gave it to us, if it isn't acknowledged yet.

        Faults that aren't the turn's own (a store or a service that is away, a lost lease)
        leave it open: whoever holds its lease then resumes it.
        """
        self._pending = _Pending(pending) if pending is not None else None
        try:
            self._set_call()
            await _leave_for_the_wire()
            while await self._advance():
                continue
            await self._acknowledged()
        except OwnerLost:
            _log.info("turn was taken over or ended", turn=self.turn)
        except DeadlineExceeded as error:
            await self._fail(errors_pb2.REASON_DEADLINE_EXCEEDED, error.message)
        except EventStoreUnavailable as error:
            _log.warning("turn is left open", turn=self.turn, error=error.message)
        except WeftError as error:
            if is_unserved(error):
                # As if this process had died: it is resumed soon, the broken step anew.
                _log.warning("turn is left open", turn=self.turn, error=error.message)
            else:
                await self._fail(error.reason, error.message)

    def observe(self, revision: int, time: Timestamp, fact: Message) -> None:
        """Is told of the session's facts, whoever wrote them."""
        if isinstance(fact, events_pb2.TurnCancelRequested):
            if fact.turn == self.turn:
                self._interrupt()
        elif isinstance(fact, events_pb2.TurnResumed) and fact.epoch > self.epoch:
            # Taken over: what is being done here is in vain.
            self._interrupt()
        elif isinstance(fact, events_pb2.TurnFailed) and fact.turn == self.turn:
            self._interrupt()
        elif isinstance(fact, events_pb2.ToolCallCompleted) and fact.turn == self.turn:
            call = self._calls.pop(fact.call_id, None)
            if call is not None:
                # Answered by somebody else.
                call.cancel()

    async def _advance(self) -> bool:
        """Does the next thing; False once there is nothing left to do here."""
        turn = self._turn
        if turn is None or turn.status in domain.WAITING_STATUSES:
            return False
        if turn.cancel_requested or self._cancelled:
            return await self._finish_cancel()
        if any(call.status in _RUNNABLE for call in turn.calls):
            await self._until_cancelled(self._run_calls(turn))
        elif any(call.status != session_pb2.CALL_STATUS_COMPLETED for call in turn.calls):
            # Begun by an owner before us: a person must say what became of it.
            await self._doubt(turn)
        else:
            await self._until_cancelled(self._step())
        return True

    async def _until_cancelled(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` until it's done, somebody cancels, or the turn's time is over."""
        self._working = asyncio.current_task()
        limit = asyncio.timeout(self._seconds_left())
        try:
            async with limit:
                await work
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded("the turn's time is over") from None
        except asyncio.CancelledError:
            # Another cancellation beside our own means that this process stops.
            if not self._interrupted or asyncio.current_task().uncancel():  # type: ignore[union-attr]
                raise
        finally:
            self._working = None
            self._interrupted = False

    def _interrupt(self) -> None:
        """Ends what is being done, so that the runner looks at the turn again."""
        self._cancelled = True
        if self._working is not None and not self._interrupted:
            self._interrupted = True
            self._working.cancel()

    async def _step(self) -> None:
        """One model step, from the context to its commit."""
        tools = await self._bound_tools()
        definitions = [tool.definition for tool in tools.values()]
        budget = await self._budget(definitions)
        if self._state.context_tokens > budget * self._settings.context_share:
            await self._compact()
        await self._lease_held()
        request = context.generate_request(self._state, self._agent, definitions, budget)
        answer = await self._answer(request)
        step = self._owned_turn().step_count + 1
        message = _with_unique_calls(answer.message, step)
        limits = self._agent.spec.limits
        command = domain.CompleteStep(
            turn=self.turn,
            epoch=self.epoch,
            step=step,
            message=message,
            usage=answer.usage,
            finish_reason=answer.finish_reason,
            model=answer.model,
            calls=planned_calls(self._state.name, self.turn, step, message, tools),
            steps_max=limits.steps_max or self._settings.steps_max,
            tokens_max=limits.turn_tokens_max or self._settings.turn_tokens_max,
            now_ns=self._clock.now_ns(),
        )
        await self._commit(command)
        self._partial_text = ""

    async def _answer(
        self, request: model_service_pb2.GenerateRequest
    ) -> model_service_pb2.GenerateResponse:
        self._partial_text = ""
        turn = self._owned_turn()
        self._batch.begin(turn.step_count + 1, turn.resume_count)
        answer = None
        parts = self._effects.stream(request, self._seconds_left())
        try:
            async with contextlib.aclosing(parts):
                async for part in parts:
                    if part.HasField("completed"):
                        answer = part.completed
                        continue
                    # What is shown depends on the commit before it.
                    await self._acknowledged()
                    self._partial_text += part.text_delta
                    self.moved_ns = self._clock.now_ns()
                    await self._batch.add(part.text_delta)
        finally:
            self._batch.end()
        await self._acknowledged()
        assert answer is not None, "the stream ends with the whole answer"
        return answer

    async def _budget(self, definitions: list[models_pb2.ToolDefinition]) -> int:
        """Tokens that the conversation may take of the model's window."""
        spec = self._agent.spec
        parent = "/".join(self._state.name.split("/")[:2])
        window = await self._effects.window_tokens(parent, spec.model)
        if spec.limits.context_tokens_max:
            window = min(window, spec.limits.context_tokens_max)
        fixed = context.fixed_tokens(self._state, self._agent, definitions)
        reserved = spec.parameters.output_tokens_max or window // 8
        return max(256, window - fixed - reserved)

    async def _compact(self) -> None:
        count = context.compactable(self._state)
        if not count:
            return
        await self._acknowledged()
        await self._lease_held()
        compacted_before = self._state.compacted_message_count
        request = context.summary_request(self._state, self._agent, count)
        summary = await self._effects.generate(request, self._seconds_left())
        await self._commit(
            domain.CompactContext(
                turn=self.turn,
                epoch=self.epoch,
                compacted_message_count=compacted_before,
                message_count=count,
                summary=summary.message.text,
                usage=summary.usage,
            )
        )

    async def _run_calls(self, turn: session_pb2.OpenTurn) -> None:
        """Runs the calls that may be run, and commits each result as it lands, those
        that are there already together."""
        tools = await self._bound_tools()
        runnable = [_copy(call) for call in turn.calls if call.status in _RUNNABLE]
        self._calls = {
            call.call.id: asyncio.create_task(self._run_call(call, tools)) for call in runnable
        }
        tasks = set(self._calls.values())
        try:
            while tasks:
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                await self._commit_results([task.result() for task in done if not task.cancelled()])
        finally:
            self._calls = {}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _run_call(self, call: session_pb2.CallState, tools: dict[str, BoundTool]) -> _Outcome:
        """What became of a call."""
        completed = events_pb2.ToolCallCompleted(turn=self.turn, call_id=call.call.id)
        bound = tools.get(call.call.tool)
        if bound is None:
            completed.content = f"this agent has no tool {call.call.tool}"
            completed.is_error = True
            return completed
        if call.effect == options_pb2.EFFECT_IRREVERSIBLE:
            await self._lease_held()
            await self._commit(domain.StartCall(self.turn, self.epoch, call.call.id))
        if call.effect != options_pb2.EFFECT_READ:
            await self._acknowledged()
        try:
            result = await self._effects.call(
                self._state.name,
                call,
                bound.binding,
                self.epoch,
                self._seconds_left(),
                self._lease_held,
            )
        except CallInDoubt:
            return events_pb2.ToolCallInDoubt(turn=self.turn, call_id=call.call.id)
        completed.content = result.content
        completed.is_error = result.is_error
        completed.sources.extend(result.sources)
        return completed

    async def _commit_results(
        self,
        outcomes: Sequence[_Outcome],
    ) -> None:
        results = [one for one in outcomes if isinstance(one, events_pb2.ToolCallCompleted)]
        doubted = [one.call_id for one in outcomes if isinstance(one, events_pb2.ToolCallInDoubt)]
        for first in range(0, len(results), RESULTS_TOGETHER_MAX):
            some = results[first : first + RESULTS_TOGETHER_MAX]
            await self._commit(domain.CompleteCalls(self.turn, self.epoch, some))
        if doubted:
            await self._commit(domain.DoubtCalls(self.turn, self.epoch, doubted))

    async def _bound_tools(self) -> dict[str, BoundTool]:
        """The agent's tools, as they were when this process began to work on the turn."""
        if self._tools is None:
            self._tools = await self._effects.bound_tools(self._agent)
        return self._tools

    async def _doubt(self, turn: session_pb2.OpenTurn) -> None:
        started = [
            call.call.id for call in turn.calls if call.status == session_pb2.CALL_STATUS_STARTED
        ]
        await self._commit(domain.DoubtCalls(self.turn, self.epoch, started))

    async def _finish_cancel(self) -> bool:
        await self._acknowledged()
        if self._owned_turn().cancel_requested:
            command = domain.FinishCancel(
                self.turn, self.epoch, self._partial_text, self._clock.now_ns()
            )
            await self._commit(command)
            await self._acknowledged()
        return False

    async def _fail(self, reason: "errors_pb2.Reason.ValueType", message: str) -> None:
        command = domain.FailTurn(self.turn, self.epoch, reason, message, self._clock.now_ns())
        try:
            await self._commit(command)
            await self._acknowledged()
        except WeftError as error:
            _log.warning("turn is left open", turn=self.turn, error=error.message)

    async def _commit(self, command: domain.Command) -> None:
        """Sends the commit, after the one before it is acknowledged."""

        def decide(state: session_pb2.SessionState) -> Sequence[Message]:
            return domain.decide(state, command)

        async with self._committing:
            while True:
                await self._acknowledged()
                try:
                    self._pending = _Pending(await self._aggregate.send(decide), decide)
                    break
                except EventStoreUnavailable:
                    # It couldn't be read what others did to the session meanwhile.
                    self._own_seconds = 0.0
                    if not self._time_left():
                        raise
        await _leave_for_the_wire()

    async def _acknowledged(self) -> None:
        """Waits until the last commit is stored. While the store is away it is tried
        again, on what is stored by then, until the turn's time is over: what was done
        must not be done again for want of a record."""
        while (pending := self._pending) is not None:
            try:
                stored = await asyncio.shield(pending.task)
            except EventStoreUnavailable:
                self._own_seconds = 0.0
                if pending.decide is None or not self._time_left():
                    raise
                if self._pending is pending:
                    again = self._aggregate.execute(pending.decide)
                    self._pending = _Pending(asyncio.create_task(again), pending.decide)
            except WeftError as error:
                if pending.decide is None:
                    # What gave us the turn was refused: who asked for it is told.
                    raise OwnerLost(f"turn {self.turn} wasn't taken") from error
                if self._pending is pending:
                    # Refused for good: what is next, that the turn failed, can be stored.
                    self._pending = None
                raise
            else:
                if self._pending is pending:
                    self._pending = None
                    self._count(stored)
                if pending.decide is None:
                    # Decided again after a conflict, it gave the turn to another runner.
                    self._owned_turn()

    def _count(self, stored: StoredFacts | None) -> None:
        """Tells of the turn's end, if it was stored by this commit of ours: whoever else works
        on the turn can't have stored it, too."""
        facts = [event.payload for event in stored.draft.events] if stored is not None else []
        failed = failed_by_revision(facts, self._own_seconds)
        if failed is not None:
            self._outcomes.count(self._agent.name, self._agent.revision, failed=failed)

    async def _lease_held(self) -> None:
        """An instance that couldn't renew its lease starts no effect. Once it holds
        again, the log says whether the turn is still ours."""
        if self._leases.held():
            return
        self._own_seconds = 0.0
        await self._acknowledged()
        while not self._leases.held():
            if self._seconds_left() <= 0:
                raise DeadlineExceeded("the turn's time is over")
            await asyncio.sleep(LEASE_POLL_SECONDS)
        await self._aggregate.load()
        self._owned_turn()

    def _owned_turn(self) -> session_pb2.OpenTurn:
        turn = self._turn
        if turn is None:
            raise OwnerLost(f"turn {self.turn} was taken over or ended")
        return turn

    def _seconds_left(self) -> float:
        self._deadline_ns = self._owned_turn().deadline_time.ToNanoseconds()
        return max(0.0, (self._deadline_ns - self._clock.now_ns()) / NANOSECONDS)

    def _time_left(self) -> bool:
        # The state may be unknown just now; the deadline is the one last seen.
        return self._clock.now_ns() < self._deadline_ns

    def _set_call(self) -> None:
        """The turn goes on after the call that asked for it: it has its own deadline."""
        asked = current_call.get()
        turn = self._owned_turn()
        if not turn.resume_count:
            self._own_seconds = turn.timeout.ToTimedelta().total_seconds()
        current_call.set(
            Call(
                method="/weft.agents.v1.TurnService/RunTurn",
                deadline=self._clock.monotonic() + self._seconds_left(),
                request_id=turn.request_id,
                principal=asked.principal if asked else system(self._aggregate.stream.tenant),
                traceparent=asked.traceparent if asked else "",
                clock=self._clock,
            )
        )


async def _leave_for_the_wire() -> None:
    """Gives a commit that was just decided the passes of the event loop that it takes to
    be on its way, so that what is done next goes on beside it and not before it."""
    for _ in range(WIRE_PASSES):
        await asyncio.sleep(0)


def _copy(call: session_pb2.CallState) -> session_pb2.CallState:
    """The state's own message changes under whoever keeps it."""
    copy = session_pb2.CallState()
    copy.CopyFrom(call)
    return copy


def _with_unique_calls(message: models_pb2.Message, step: int) -> models_pb2.Message:
    """The answer with call ids that are unique in their turn, whatever the model sent."""
    unique = models_pb2.Message()
    unique.CopyFrom(message)
    unique.role = models_pb2.ROLE_ASSISTANT
    for index, call in enumerate(unique.tool_calls, start=1):
        call.id = f"step{step}-call{index}"
    return unique
