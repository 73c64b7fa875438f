"""Has schedules tick: finds those that are due, submits their tasks, records that.

The task comes first, under an id that is made of the schedule and the tick, then the fact
that the schedule ticked. Who dies in between leaves a tick that is found due again, and
whose task is there already: of one tick comes one task, however often and by however many
instances it is found.
"""

import asyncio
import contextlib
import hashlib
import heapq
import itertools
from collections.abc import Sequence
from functools import partial

import structlog

from mesh.clock import NANOSECONDS, Clock
from mesh.errors import AlreadyExists, EventStoreUnavailable, NotFound, WeftError
from mesh.events.aggregate import Aggregate, Repository
from mesh.events.store import StoredCommit, StreamName
from mesh.ids import id_from
from services.scheduler.domain import decide, names, schedule
from services.scheduler.domain.schedule import State, Step
from services.scheduler.queues import Queues
from services.scheduler.settings import SchedulerSettings
from services.scheduler.submitting import Submitter
from weft.scheduler.v1 import schedule_events_pb2 as facts
from weft.scheduler.v1 import schedules_pb2, tasks_pb2

AT_ONCE_MAX = 64
"""Schedules that tick at once; others wait for one of them."""
STEPS_MAX = 20
"""Ticks of one schedule in a row; then others have their turn."""
ROUND_SECONDS_MAX = 30.0
"""How long one schedule may take for those."""
IDLE_SECONDS = 1.0
"""How often it looks at the clock, which may be set, where nothing is due."""
ELSEWHERE_SECONDS = 1.0
"""How often it looks whether a schedule that is due has become this instance's, which owns
the queue that it submits to."""
STALE_MAX = 1_000
"""Plans that no longer hold which are kept until their time, beside as many as do hold."""
RETRY_SECONDS = 1.0
RETRY_SECONDS_MAX = 60.0
"""First and longest wait before a task is submitted again that couldn't be."""

_OPEN = (
    tasks_pb2.TASK_STATE_QUEUED,
    tasks_pb2.TASK_STATE_UNSCHEDULABLE,
    tasks_pb2.TASK_STATE_RUNNING,
)
_log = structlog.get_logger(__name__)
_tokens = itertools.count(1)


class Schedules:
    """All schedules of all tenants, by when there is something to do for them next."""

    def __init__(
        self,
        repository: Repository[State],
        queues: Queues,
        submitter: Submitter,
        settings: SchedulerSettings,
        clock: Clock,
    ) -> None:
        self._repository = repository
        self._queues = queues
        self._submitter = submitter
        self._grace_ns = int(settings.tick_grace_seconds * NANOSECONDS)
        self._clock = clock
        self._planned: list[tuple[int, int, StreamName]] = []
        self._token: dict[StreamName, int] = {}
        self._ticking: dict[StreamName, asyncio.Task[None]] = {}
        self._behind: set[StreamName] = set()
        """Others wrote to them since they were read."""
        self._failures: dict[StreamName, int] = {}
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self, streams: Sequence[StreamName]) -> None:
        """Has these schedules tick, and those that it is told of."""
        for stream in streams:
            self.plan(stream)
        self._loop = asyncio.create_task(self._run(), name="schedules")

    async def stop(self) -> None:
        """Ends ticking. What was under way is found due at the next start."""
        tasks = [*self._ticking.values(), *([self._loop] if self._loop is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def plan(self, stream: StreamName, at_ns: int = 0) -> None:
        """Looks at the schedule at that time, at once by default, instead of when it was
        planned."""
        token = self._token[stream] = next(_tokens)
        if len(self._planned) > 2 * len(self._token) + STALE_MAX:
            self._planned = [each for each in self._planned if self._token.get(each[2]) == each[1]]
            heapq.heapify(self._planned)
        heapq.heappush(self._planned, (at_ns, token, stream))
        self._wake.set()

    def observe(self, batch: Sequence[StoredCommit]) -> None:
        """Commits were stored: those of other instances change what is planned here, also
        where a read was quicker to take them in."""
        for stored in batch:
            stream = StreamName.parse(stored.commit.stream)
            aggregate = self._repository.hot(stream)
            if aggregate is None or aggregate.head.position < stored.position:
                self._behind.add(stream)
            self.plan(stream)

    async def trigger(self, stream: StreamName, key: str) -> tasks_pb2.Task:
        """Submits the schedule's task now; the one that the same key made before, where
        there is one. NotFound where the schedule isn't there, and what `Submitter.submit`
        raises."""
        aggregate = self._repository.open(stream)
        await aggregate.load()
        state = (await aggregate.acknowledged()).state
        if not schedule.exists(state):
            raise NotFound.of("schedule", names.schedule_name(stream))
        task = await self._submit(stream, state, f"trigger/{key}")
        await aggregate.execute(partial(schedule.trigger, task=task.name))
        return task

    async def queue_id(self, name: str) -> str:
        """Id of the queue to which the schedule of that name submits; empty where there never
        was such a schedule."""
        return _queue_id(await self._repository.open(names.schedule_stream(name)).load())

    # What happens by itself

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            self._start_due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._idle_seconds()):
                    await self._wake.wait()

    def _idle_seconds(self) -> float:
        if not self._planned or len(self._ticking) >= AT_ONCE_MAX:
            return IDLE_SECONDS
        ahead = (self._planned[0][0] - self._clock.now_ns()) / NANOSECONDS
        return min(IDLE_SECONDS, max(0.001, ahead))

    def _start_due(self) -> None:
        now_ns = self._clock.now_ns()
        while self._planned and self._planned[0][0] <= now_ns and len(self._ticking) < AT_ONCE_MAX:
            _, token, stream = heapq.heappop(self._planned)
            # Of one that ticks already the token stays: it is planned anew when that ends.
            if self._token.get(stream) == token and stream not in self._ticking:
                del self._token[stream]
                self._ticking[stream] = asyncio.create_task(self._tick(stream))

    async def _tick(self, stream: StreamName) -> None:
        """Does what is due for one schedule, and plans when to look at it next."""
        again_ns: int | None = None
        try:
            async with asyncio.timeout(ROUND_SECONDS_MAX):
                again_ns = await self._round(stream)
            self._failures.pop(stream, None)
        except (WeftError, TimeoutError) as error:
            _log.warning("a schedule didn't tick", stream=str(stream), error=str(error))
            again_ns = self._retry_ns(stream)
        except Exception:  # noqa: BLE001 - nobody awaits this task; the log has the fault
            _log.exception("a schedule failed to tick", stream=str(stream))
            again_ns = self._retry_ns(stream)
        finally:
            del self._ticking[stream]
            if stream in self._token:
                # Something was said of it meanwhile.
                self.plan(stream)
            elif again_ns is not None:
                self.plan(stream, again_ns)
            self._wake.set()

    def _retry_ns(self, stream: StreamName) -> int:
        failures = self._failures[stream] = self._failures.get(stream, 0) + 1
        seconds = min(RETRY_SECONDS_MAX, RETRY_SECONDS * 2.0 ** min(failures - 1, 32))
        return self._clock.now_ns() + int(seconds * NANOSECONDS)

    async def _round(self, stream: StreamName) -> int | None:
        """When to look at the schedule next; None where nothing more comes of it."""
        aggregate = self._repository.open(stream)
        if stream in self._behind:
            self._behind.discard(stream)
            try:
                await aggregate.load()
            except BaseException:
                self._behind.add(stream)
                raise
        # A copy, with nothing in flight: a task comes of what is stored only.
        state = (await aggregate.acknowledged()).state
        if not self._queues.owns(_queue_id(state)):
            due_ns = schedule.due_ns(state)
            later_ns = self._clock.now_ns() + int(ELSEWHERE_SECONDS * NANOSECONDS)
            return max(due_ns, later_ns) if due_ns is not None else None
        for step in schedule.due(state, self._clock.now_ns(), self._grace_ns)[:STEPS_MAX]:
            await self._take(stream, aggregate, state, step)
            if aggregate.state.update_time != state.update_time:
                # It was changed, paused or deleted meanwhile.
                return 0
            state = (await aggregate.acknowledged()).state
        return schedule.due_ns(state)

    async def _take(
        self, stream: StreamName, aggregate: Aggregate[State], state: State, step: Step
    ) -> None:
        if step.tick_ns is None or await self._overlaps(state):
            reason = facts.SKIP_REASON_OVERLAP
            await aggregate.execute(partial(schedule.skip, step=step, reason=reason))
            return
        try:
            task = await self._submit(stream, state, str(step.tick_ns))
        except EventStoreUnavailable:
            # Where the log can't be reached, nothing can be noted there.
            raise
        except WeftError as error:
            await aggregate.execute(partial(schedule.fail, step=step, message=error.message))
            raise
        await aggregate.execute(partial(schedule.tick, step=step, task=task.name))

    async def _overlaps(self, state: State) -> bool:
        if state.spec.overlap != schedules_pb2.OVERLAP_POLICY_SKIP or not state.last_task:
            return False
        try:
            return (await self._queues.task(state.last_task)).state in _OPEN
        except NotFound:
            # It is final for so long that it isn't listed any more.
            return False

    async def _submit(self, stream: StreamName, state: State, key: str) -> tasks_pb2.Task:
        """The task that `key` makes of the schedule, submitted once however often this is
        called."""
        creator = names.schedule_name(stream)
        task_id = id_from(creator, str(state.create_time.ToNanoseconds()), key)
        submission = decide.Submission(
            task_id,
            schedule.task_spec(state.spec, self._clock.now_ns()),
            # No client's request can have a slash. Its body isn't told apart: deadlines
            # differ from try to try, and the id stands for one task.
            request_id=f"schedule/{task_id}",
            request_hash=hashlib.sha256(task_id.encode()).digest(),
            creator=creator,
        )
        try:
            return await self._submitter.submit(state.spec.queue, submission, id_is_new=False)
        except AlreadyExists:
            found = await self._queues.task(f"{state.spec.queue}/tasks/{task_id}")
            if found.creator != creator:
                raise
            return found


def _queue_id(state: State) -> str:
    """Id of the queue to which the schedule submits; empty where there is no schedule."""
    return names.queue_stream(state.spec.queue).key[0] if state.spec.queue else ""
