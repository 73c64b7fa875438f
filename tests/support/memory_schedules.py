"""Schedules in memory: just what a client sees of them."""

from datetime import UTC, datetime

from mesh.call import Call
from mesh.errors import NotFound
from tests.support.memory_catalogues import page_of
from weft.scheduler.v1 import schedule_service_pb2 as pb
from weft.scheduler.v1 import schedules_pb2, tasks_pb2

NEXT = [datetime(2026, 11, 30 - days, 8, tzinfo=UTC) for days in (4, 3, 2, 1, 0)]
"""When each of them ticks."""


class MemorySchedules:
    """The service `weft.scheduler.v1.ScheduleService`."""

    def __init__(self) -> None:
        self.kept: dict[str, schedules_pb2.Schedule] = {}
        self.triggered: list[pb.TriggerScheduleRequest] = []

    async def create_schedule(
        self, request: pb.CreateScheduleRequest, _: Call
    ) -> pb.CreateScheduleResponse:
        name = f"{request.parent}/schedules/{request.schedule_id}"
        made = self.kept.setdefault(name, schedules_pb2.Schedule(name=name, spec=request.spec))
        made.next_tick_time.FromDatetime(NEXT[0])
        return pb.CreateScheduleResponse(schedule=made)

    async def get_schedule(self, request: pb.GetScheduleRequest, _: Call) -> pb.GetScheduleResponse:
        response = pb.GetScheduleResponse(schedule=self._of(request.name))
        for time in NEXT:
            response.next_tick_times.add().FromDatetime(time)
        return response

    async def list_schedules(
        self, request: pb.ListSchedulesRequest, _: Call
    ) -> pb.ListSchedulesResponse:
        found = [self.kept[name] for name in sorted(self.kept)]
        page, token = page_of(found, request.page_size, request.page_token)
        return pb.ListSchedulesResponse(schedules=page, next_page_token=token)

    async def update_schedule(
        self, request: pb.UpdateScheduleRequest, _: Call
    ) -> pb.UpdateScheduleResponse:
        self._of(request.name).spec.CopyFrom(request.spec)
        return pb.UpdateScheduleResponse(schedule=self._of(request.name))

    async def pause_schedule(
        self, request: pb.PauseScheduleRequest, _: Call
    ) -> pb.PauseScheduleResponse:
        self._of(request.name).paused = True
        return pb.PauseScheduleResponse(schedule=self._of(request.name))

    async def resume_schedule(
        self, request: pb.ResumeScheduleRequest, _: Call
    ) -> pb.ResumeScheduleResponse:
        self._of(request.name).paused = False
        return pb.ResumeScheduleResponse(schedule=self._of(request.name))

    async def delete_schedule(
        self, request: pb.DeleteScheduleRequest, _: Call
    ) -> pb.DeleteScheduleResponse:
        del self.kept[self._of(request.name).name]
        return pb.DeleteScheduleResponse()

    async def trigger_schedule(
        self, request: pb.TriggerScheduleRequest, _: Call
    ) -> pb.TriggerScheduleResponse:
        spec = self._of(request.name).spec
        self.triggered.append(request)
        task = tasks_pb2.Task(
            name=f"{spec.queue}/tasks/t1", spec=spec.task, state=tasks_pb2.TASK_STATE_QUEUED
        )
        return pb.TriggerScheduleResponse(task=task)

    def _of(self, name: str) -> schedules_pb2.Schedule:
        if name not in self.kept:
            raise NotFound.of("schedule", name)
        return self.kept[name]
