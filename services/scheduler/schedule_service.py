"""The servicer of `weft.scheduler.v1.ScheduleService`."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from mesh.call import Call
from mesh.clock import Clock
from mesh.errors import LimitExceeded, NotFound, PermissionDenied
from mesh.events.aggregate import Aggregate, Repository
from mesh.events.store import EventStore, StreamName
from mesh.ids import new_id
from mesh.rpc.pages import read_page_token, write_page_token
from services.scheduler.domain import names, schedule
from services.scheduler.domain.schedule import Facts, State
from services.scheduler.schedules import Schedules
from services.scheduler.schedules_read_model import SchedulesReadModel
from services.scheduler.settings import SchedulerSettings
from services.scheduler.submitting import Submitter
from services.scheduler.turn_tasks import check_turn_task, refuse_absent_session
from weft.scheduler.v1 import schedule_service_pb2 as pb
from weft.scheduler.v1 import schedules_pb2

PAGE_SIZE = 100
NEXT_TICKS = 5
SUBMIT = "scheduler.submit"


class ScheduleService:
    """Keeps a tenant's schedules."""

    def __init__(
        self,
        store: EventStore,
        repository: Repository[State],
        read_model: SchedulesReadModel,
        schedules: Schedules,
        submitter: Submitter,
        settings: SchedulerSettings,
        clock: Clock,
    ) -> None:
        self._store = store
        self._repository = repository
        self._read_model = read_model
        self._schedules = schedules
        self._submitter = submitter
        self._settings = settings
        self._clock = clock
        self._creating: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def create_schedule(
        self, request: pb.CreateScheduleRequest, call: Call
    ) -> pb.CreateScheduleResponse:
        """Raises InvalidArgument for a timing that can't be read or leaves no tick and for a
        capability that the queue doesn't take, NotFound for a queue that wasn't made and for
        a turn of a session that isn't there, PermissionDenied for who may not submit to the
        queue or run the turn, AlreadyExists where there is a schedule of that id with another
        spec, LimitExceeded past the bound on schedules.
        """
        stream = names.schedule_stream(f"{request.parent}/schedules/{request.schedule_id}")
        aggregate = self._repository.open(stream)
        await aggregate.load()
        change = partial(schedule.create, spec=request.spec, creator=call.actor)
        if schedule.exists(aggregate.state):
            return pb.CreateScheduleResponse(schedule=await self._changed(stream, change))
        await self._check(request.spec, request.parent, call)
        # One at a time, so that the count counts those that were let through before.
        async with self._creating[stream.tenant]:
            if not schedule.exists(await aggregate.load()):
                await self._check_count(stream.tenant)
            return pb.CreateScheduleResponse(schedule=await self._changed(stream, change))

    async def get_schedule(
        self, request: pb.GetScheduleRequest, call: Call
    ) -> pb.GetScheduleResponse:
        """NotFound where there is none."""
        stream = names.schedule_stream(request.name)
        aggregate = await self._existing(stream)
        response = pb.GetScheduleResponse(schedule=self._view(stream, aggregate.state))
        for tick_ns in schedule.next_ticks(aggregate.state, self._clock.now_ns(), NEXT_TICKS):
            response.next_tick_times.add().FromNanoseconds(tick_ns)
        return response

    async def list_schedules(
        self, request: pb.ListSchedulesRequest, call: Call
    ) -> pb.ListSchedulesResponse:
        """By id."""
        after = read_page_token(request.page_token, request.parent)
        size = request.page_size or PAGE_SIZE
        tenant = request.parent.split("/")[1]
        streams = await self._read_model.schedules_of(tenant, after, size + 1)
        response = pb.ListSchedulesResponse()
        aggregates = [self._repository.open(stream) for stream in streams[:size]]
        states = await asyncio.gather(*(aggregate.load() for aggregate in aggregates))
        for aggregate, state in zip(aggregates, states, strict=True):
            if schedule.exists(state):
                found = self._view(aggregate.stream, state)
                found.spec.task.ClearField("payload")
                response.schedules.append(found)
        if len(streams) > size:
            last = streams[size - 1].key[0]
            response.next_page_token = write_page_token(last, request.parent)
        return response

    async def update_schedule(
        self, request: pb.UpdateScheduleRequest, call: Call
    ) -> pb.UpdateScheduleResponse:
        """NotFound where there is none; else refused as `create_schedule` would."""
        stream = names.schedule_stream(request.name)
        await self._existing(stream)
        await self._check(request.spec, f"tenants/{stream.tenant}", call)
        change = partial(schedule.update, spec=request.spec)
        return pb.UpdateScheduleResponse(schedule=await self._changed(stream, change))

    async def pause_schedule(
        self, request: pb.PauseScheduleRequest, call: Call
    ) -> pb.PauseScheduleResponse:
        """Does nothing where it is paused."""
        stream = names.schedule_stream(request.name)
        return pb.PauseScheduleResponse(schedule=await self._changed(stream, schedule.pause))

    async def resume_schedule(
        self, request: pb.ResumeScheduleRequest, call: Call
    ) -> pb.ResumeScheduleResponse:
        """Does nothing where it isn't paused."""
        stream = names.schedule_stream(request.name)
        return pb.ResumeScheduleResponse(schedule=await self._changed(stream, schedule.resume))

    async def delete_schedule(
        self, request: pb.DeleteScheduleRequest, call: Call
    ) -> pb.DeleteScheduleResponse:
        """NotFound where there never was one."""
        stream = names.schedule_stream(request.name)
        with _named(stream):
            await self._repository.open(stream).execute(schedule.delete)
        self._schedules.plan(stream)
        return pb.DeleteScheduleResponse()

    async def trigger_schedule(
        self, request: pb.TriggerScheduleRequest, call: Call
    ) -> pb.TriggerScheduleResponse:
        """Raises NotFound where there is none, and what submitting its task raises."""
        stream = names.schedule_stream(request.name)
        task = await self._schedules.trigger(stream, request.request_id or new_id())
        return pb.TriggerScheduleResponse(task=task)

    async def _check(self, spec: schedules_pb2.ScheduleSpec, parent: str, call: Call) -> None:
        schedule.check_spec(spec, parent, self._clock.now_ns())
        principal = call.principal
        # What it submits, it submits in place of who made it.
        if principal is not None and not call.caller and not principal.allows(SUBMIT, spec.queue):
            raise PermissionDenied(
                f"needs the permission {SUBMIT} for {spec.queue}, which the schedule would use",
                metadata={"permission": SUBMIT, "resource": spec.queue},
            )
        session = check_turn_task(names.queue_stream(spec.queue), spec.task, call)
        if session:
            await refuse_absent_session(self._store, session)
        await self._submitter.check(spec.queue, spec.task.capability, "spec.task.capability")

    async def _check_count(self, tenant: str) -> None:
        count = self._settings.schedules_max
        if len(await self._read_model.schedules_of(tenant, "", count)) >= count:
            raise LimitExceeded(f"a tenant has at most {count} schedules")

    async def _existing(self, stream: StreamName) -> Aggregate[State]:
        """Its writer, with all that is stored by now. NotFound where there is none."""
        aggregate = self._repository.open(stream)
        await aggregate.load()
        with _named(stream):
            schedule.refuse_absent(aggregate.state)
        return aggregate

    async def _changed(
        self, stream: StreamName, change: Callable[[State], Facts]
    ) -> schedules_pb2.Schedule:
        aggregate = self._repository.open(stream)
        with _named(stream):
            await aggregate.execute(change)
        self._schedules.plan(stream)
        return self._view(stream, (await aggregate.acknowledged()).state)

    def _view(self, stream: StreamName, state: State) -> schedules_pb2.Schedule:
        made = schedules_pb2.Schedule(
            name=names.schedule_name(stream),
            spec=state.spec,
            paused=state.paused,
            create_time=state.create_time,
            update_time=state.update_time,
            creator=state.creator,
            last_tick_time=state.last_tick_time if state.HasField("last_tick_time") else None,
            last_task=state.last_task,
            submitted_count=state.submitted_count,
            skipped_count=state.skipped_count,
            last_error=state.last_error,
        )
        for tick_ns in schedule.next_ticks(state, self._clock.now_ns(), 1):
            made.next_tick_time.FromNanoseconds(tick_ns)
        return made


@contextmanager
def _named(stream: StreamName) -> Iterator[None]:
    """Names the schedule that isn't there."""
    try:
        yield
    except NotFound:
        raise NotFound.of("schedule", names.schedule_name(stream)) from None
