"""`weft schedule`: tasks that are submitted by the clock."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import usage_error
from mesh.cli.names import DEFAULT_QUEUE, QUEUE, SCHEDULE, check_id, resource_name, short_name
from mesh.cli.output import Output, moment, note, one_line, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch
from mesh.cli.task_display import memory_of, preview, processors, show_task
from mesh.cli.task_specs import (
    Backoff,
    Cost,
    Cpu,
    Labels,
    MaxAttempts,
    MaxBackoff,
    Memory,
    Payload,
    PayloadFile,
    Priority,
    TaskOptions,
    Zone,
    span_of,
    time_of,
)

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from weft.scheduler.v1 import schedules_pb2
    from weft.scheduler.v1.schedule_service_pb2_grpc import ScheduleServiceStub

schedules = typer.Typer(
    help="Submit tasks by the clock: cron expressions and intervals.", no_args_is_help=True
)


class Missed(StrEnum):
    """What becomes of ticks that were missed."""

    SKIP = "skip"
    ONCE = "once"
    ALL = "all"


class Overlap(StrEnum):
    """What becomes of a tick while the task before is open."""

    ALLOW = "allow"
    SKIP = "skip"


ScheduleArgument = Annotated[
    str, typer.Argument(metavar="SCHEDULE", help="The schedule: an id or a full name.")
]
Cron = Annotated[
    str | None,
    typer.Option(
        metavar="EXPRESSION",
        help="Minute, hour, day of month, month, day of week: '0 9 * * MON-FRI'; or @hourly, "
        "@daily, @weekly, @monthly, @yearly.",
    ),
]
Every = Annotated[
    str | None, typer.Option(metavar="SPAN", help="How far ticks are apart: 90s, 5m, 1h30m.")
]
TimeZone = Annotated[
    str | None,
    typer.Option(metavar="ZONE", help="Zone of --cron, as Europe/Berlin; UTC otherwise."),
]
AttemptTimeout = Annotated[
    str | None, typer.Option(metavar="SPAN", help="How long one attempt may run; 5m otherwise.")
]
StartWithin = Annotated[
    str | None,
    typer.Option(metavar="SPAN", help="A task fails where it wasn't begun for so long."),
]
CompleteWithin = Annotated[
    str | None, typer.Option(metavar="SPAN", help="A task fails where it wasn't done for so long.")
]
MissedOption = Annotated[
    Missed | None,
    typer.Option(
        help="Ticks while nothing ran make no task, one in all (as otherwise), or one each "
        "(the last 100). One that is late by less than 5 s isn't missed."
    ),
]
OverlapOption = Annotated[
    Overlap | None,
    typer.Option(help="A tick while the task before isn't done makes its task, or is skipped."),
]
Start = Annotated[
    str | None, typer.Option(metavar="TIME", help="No tick before this time, or in 90s, 1h30m.")
]
End = Annotated[str | None, typer.Option(metavar="TIME", help="No tick after this time.")]


@command(
    schedules,
    "create",
    example="weft schedule create report report.daily --cron '0 9 * * MON-FRI' "
    "--time-zone Europe/Berlin",
)
def create_schedule(
    client: Client,
    schedule: Annotated[str, typer.Argument(metavar="ID", help="The schedule's id.")],
    capability: Annotated[
        str, typer.Argument(metavar="CAPABILITY", help="What a worker must be able to do.")
    ],
    cron: Cron = None,
    every: Every = None,
    time_zone: TimeZone = None,
    queue: Annotated[
        str, typer.Option(help="The queue of its tasks: an id or a full name.")
    ] = DEFAULT_QUEUE,
    payload: Payload = None,
    payload_file: PayloadFile = None,
    priority: Priority = None,
    label: Labels = None,
    zone: Zone = None,
    cpu: Cpu = None,
    memory: Memory = None,
    cost: Cost = None,
    attempt_timeout: AttemptTimeout = None,
    max_attempts: MaxAttempts = None,
    backoff: Backoff = None,
    max_backoff: MaxBackoff = None,
    start_within: StartWithin = None,
    complete_within: CompleteWithin = None,
    missed: MissedOption = None,
    overlap: OverlapOption = None,
    start: Start = None,
    end: End = None,
) -> None:
    """Makes a schedule: each of its ticks submits one task.

    One that is there with this very spec stays as it is. A fixed time that the clock leaves
    out in spring ticks right after the gap, one that comes twice in autumn ticks once; an
    expression whose minute or hour begins with a star follows the clock.
    """
    from weft.scheduler.v1 import schedule_service_pb2 as pb
    from weft.scheduler.v1 import schedules_pb2

    if (cron is None) == (every is None):
        raise usage_error("give one of --cron and --every")
    spec = schedules_pb2.ScheduleSpec(queue=resource_name(queue, QUEUE, client))
    _set_timing(spec, cron, every, time_zone, start, end)
    TaskOptions(
        capability=capability,
        payload=payload,
        payload_file=payload_file,
        priority=priority,
        labels=label,
        zone=zone,
        cpu=cpu,
        memory=memory,
        cost=cost,
        max_attempts=max_attempts,
        backoff=backoff,
        max_backoff=max_backoff,
    ).set_in(spec.task)
    _set_bounds(spec, attempt_timeout, start_within, complete_within)
    _set_policies(spec, missed, overlap)
    request = pb.CreateScheduleRequest(
        parent=client.parent, schedule_id=check_id(schedule, "ID"), spec=spec
    )
    made = client.call(_stub(client).CreateSchedule, request).schedule
    _show(client, made, [made.next_tick_time])


@command(schedules, "list", example="weft schedule list")
def list_schedules(client: Client, limit: Limit = LIMIT) -> None:
    """Lists schedules by id, and when they tick next."""
    from weft.scheduler.v1 import schedule_service_pb2 as pb

    request = pb.ListSchedulesRequest(parent=client.parent)
    found = fetch(client, _stub(client).ListSchedules, request, lambda page: page.schedules, limit)
    columns = {
        "schedule": lambda s: short_name(s.name),
        "state": _state,
        "when": _when,
        "capability": lambda s: s.spec.task.capability,
        "queue": lambda s: short_name(s.spec.queue),
        "next": lambda s: moment(s.next_tick_time),
        "last": lambda s: moment(s.last_tick_time),
        "tasks": lambda s: s.submitted_count,
        "skipped": lambda s: s.skipped_count,
        "note": lambda s: one_line(s.last_error),
    }
    show_list(client.output, found, columns)


@command(schedules, "show", example="weft schedule show report")
def show_schedule(client: Client, schedule: ScheduleArgument) -> None:
    """Shows a schedule, its last tick, its next five, and why it fails where it does."""
    from weft.scheduler.v1 import schedule_service_pb2 as pb

    request = pb.GetScheduleRequest(name=resource_name(schedule, SCHEDULE, client))
    found = client.call(_stub(client).GetSchedule, request)
    if client.output is Output.TABLE:
        _show(client, found.schedule, found.next_tick_times)
    else:
        show_message(client.output, found, {})


@command(
    schedules, "update", example="weft schedule update report --cron '0 8 * * *' --missed skip"
)
def update_schedule(
    client: Client,
    schedule: ScheduleArgument,
    cron: Cron = None,
    every: Every = None,
    time_zone: TimeZone = None,
    queue: Annotated[
        str | None, typer.Option(help="The queue of its tasks: an id or a full name.")
    ] = None,
    capability: Annotated[
        str | None, typer.Option(help="What a worker must be able to do.")
    ] = None,
    payload: Payload = None,
    payload_file: PayloadFile = None,
    priority: Priority = None,
    label: Labels = None,
    zone: Zone = None,
    cpu: Cpu = None,
    memory: Memory = None,
    cost: Cost = None,
    attempt_timeout: AttemptTimeout = None,
    max_attempts: MaxAttempts = None,
    backoff: Backoff = None,
    max_backoff: MaxBackoff = None,
    start_within: StartWithin = None,
    complete_within: CompleteWithin = None,
    missed: MissedOption = None,
    overlap: OverlapOption = None,
    start: Start = None,
    end: End = None,
) -> None:
    """Changes a schedule; what isn't named stays.

    With another timing or queue, ticks that are past and have no task yet get none.
    """
    from weft.scheduler.v1 import schedule_service_pb2 as pb

    if cron is not None and every is not None:
        raise usage_error("give one of --cron and --every")
    stub, name = _stub(client), resource_name(schedule, SCHEDULE, client)
    spec = client.call(stub.GetSchedule, pb.GetScheduleRequest(name=name)).schedule.spec
    before = spec.SerializeToString(deterministic=True)
    if queue is not None:
        spec.queue = resource_name(queue, QUEUE, client)
    _set_timing(spec, cron, every, time_zone, start, end)
    TaskOptions(
        capability=capability,
        payload=payload,
        payload_file=payload_file,
        priority=priority,
        labels=label,
        zone=zone,
        cpu=cpu,
        memory=memory,
        cost=cost,
        max_attempts=max_attempts,
        backoff=backoff,
        max_backoff=max_backoff,
    ).set_in(spec.task)
    _set_bounds(spec, attempt_timeout, start_within, complete_within)
    _set_policies(spec, missed, overlap)
    if spec.SerializeToString(deterministic=True) == before:
        raise usage_error("there is nothing to change", "Name an option; --help lists them.")
    changed = client.call(
        stub.UpdateSchedule, pb.UpdateScheduleRequest(name=name, spec=spec)
    ).schedule
    _show(client, changed, [changed.next_tick_time])


@command(schedules, "pause", example="weft schedule pause report")
def pause_schedule(client: Client, schedule: ScheduleArgument) -> None:
    """Lets a schedule tick no more; tasks that are there go on."""
    from weft.scheduler.v1 import schedule_service_pb2 as pb

    request = pb.PauseScheduleRequest(name=resource_name(schedule, SCHEDULE, client))
    _show(client, client.call(_stub(client).PauseSchedule, request).schedule, [])


@command(schedules, "resume", example="weft schedule resume report")
def resume_schedule(client: Client, schedule: ScheduleArgument) -> None:
    """Lets a schedule tick again; ticks while it was paused aren't made up for."""
    from weft.scheduler.v1 import schedule_service_pb2 as pb

    request = pb.ResumeScheduleRequest(name=resource_name(schedule, SCHEDULE, client))
    resumed = client.call(_stub(client).ResumeSchedule, request).schedule
    _show(client, resumed, [resumed.next_tick_time])


@command(schedules, "trigger", example="weft schedule trigger report")
def trigger_schedule(
    client: Client,
    schedule: ScheduleArgument,
    request_id: Annotated[
        str, typer.Option(help="Names this request: the same id finds the same task again.")
    ] = "",
) -> None:
    """Submits a schedule's task now, out of turn; also while it is paused."""
    from weft.scheduler.v1 import schedule_service_pb2 as pb

    request = pb.TriggerScheduleRequest(
        name=resource_name(schedule, SCHEDULE, client), request_id=request_id
    )
    show_task(client, client.call(_stub(client).TriggerSchedule, request).task)


@command(schedules, "delete", example="weft schedule delete report")
def delete_schedule(client: Client, schedule: ScheduleArgument) -> None:
    """Deletes a schedule; tasks that it submitted stay."""
    from weft.scheduler.v1 import schedule_service_pb2 as pb

    name = resource_name(schedule, SCHEDULE, client)
    client.call(_stub(client).DeleteSchedule, pb.DeleteScheduleRequest(name=name))
    note(f"deleted schedule {short_name(name)}")


def _stub(client: Client) -> "ScheduleServiceStub":
    from weft.scheduler.v1.schedule_service_pb2_grpc import ScheduleServiceStub

    stub: ScheduleServiceStub = client.stub(ScheduleServiceStub)
    return stub


def _set_timing(
    spec: "schedules_pb2.ScheduleSpec",
    cron: str | None,
    every: str | None,
    time_zone: str | None,
    start: str | None,
    end: str | None,
) -> None:
    """Sets what of it was typed; so do those below."""
    if cron is not None:
        spec.cron = cron
    if every is not None:
        spec.interval.CopyFrom(_given(span_of(every, "--every")))
    if time_zone is not None:
        spec.time_zone = time_zone
    if start is not None:
        spec.start_time.CopyFrom(_given(time_of(start, "--start")))
    if end is not None:
        spec.end_time.CopyFrom(_given(time_of(end, "--end")))


def _set_bounds(
    spec: "schedules_pb2.ScheduleSpec",
    attempt_timeout: str | None,
    start_within: str | None,
    complete_within: str | None,
) -> None:
    if attempt_timeout is not None:
        span = _given(span_of(attempt_timeout, "--attempt-timeout"))
        spec.task.attempt_timeout.CopyFrom(span)
    if start_within is not None:
        spec.start_within.CopyFrom(_given(span_of(start_within, "--start-within")))
    if complete_within is not None:
        spec.complete_within.CopyFrom(_given(span_of(complete_within, "--complete-within")))


def _set_policies(
    spec: "schedules_pb2.ScheduleSpec", missed: Missed | None, overlap: Overlap | None
) -> None:
    from weft.scheduler.v1 import schedules_pb2 as pb

    if missed is not None:
        spec.missed_ticks = pb.MissedTicksPolicy.Value(f"MISSED_TICKS_POLICY_{missed.name}")
    if overlap is not None:
        spec.overlap = pb.OverlapPolicy.Value(f"OVERLAP_POLICY_{overlap.name}")


def _given(value: Any) -> Any:
    assert value is not None, "it was typed"
    return value


def _state(schedule: "schedules_pb2.Schedule") -> str:
    if schedule.paused:
        return "paused"
    return "active" if schedule.HasField("next_tick_time") else "over"


def _when(schedule: "schedules_pb2.Schedule") -> str:
    spec = schedule.spec
    if spec.WhichOneof("timing") == "interval":
        return f"every {_span(spec.interval)}"
    return f"{spec.cron}  {spec.time_zone or 'UTC'}"


def _span(span: "Duration") -> str:
    """`1h30m` of 5400 s; empty where it isn't set."""
    left, text = span.seconds, ""
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60)):
        count, left = divmod(left, seconds)
        text += f"{count}{unit}" if count else ""
    rest = left + span.nanos / 1e9
    return text + (f"{rest:g}s" if rest else "")


def _tick(time: "Timestamp", zone: str) -> str:
    """A tick in UTC and, for a person, on the clock of the schedule's zone."""
    from datetime import UTC
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    text = moment(time)
    if not text or zone in ("", "UTC"):
        return text
    try:
        local = time.ToDatetime(UTC).astimezone(ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # This machine's database lacks what the server's has.
        return text
    return f"{text}  {local:%a %H:%M %Z}"


def _policy(name: str, prefix: str) -> str:
    word = name.removeprefix(prefix).lower()
    return "" if word == "unspecified" else word


def _show(
    client: Client, schedule: "schedules_pb2.Schedule", next_times: "Sequence[Timestamp]"
) -> None:
    from weft.scheduler.v1 import schedules_pb2 as pb

    spec, task = schedule.spec, schedule.spec.task
    missed = _policy(pb.MissedTicksPolicy.Name(spec.missed_ticks), "MISSED_TICKS_POLICY_")
    overlap = _policy(pb.OverlapPolicy.Name(spec.overlap), "OVERLAP_POLICY_")
    fields = {
        "schedule": short_name(schedule.name),
        "state": _state(schedule),
        "when": _when(schedule),
        "from": moment(spec.start_time),
        "until": moment(spec.end_time),
        "capability": task.capability,
        "queue": short_name(spec.queue),
        "payload": preview(task.payload),
        "priority": task.priority if task.HasField("priority") else "",
        "labels": " ".join(f"{label.key}={label.value}" for label in task.labels),
        "zone": task.preferred_zone,
        "cpu": processors(task.resources),
        "memory": memory_of(task.resources),
        "cost": _span(task.estimated_cost),
        "attempt timeout": _span(task.attempt_timeout),
        "max attempts": task.retry.max_attempts or "",
        "backoff": _span(task.retry.initial_backoff),
        "max backoff": _span(task.retry.max_backoff),
        "start within": _span(spec.start_within),
        "complete within": _span(spec.complete_within),
        "missed": missed or "once",
        "overlap": overlap or "allow",
        "next": "\n".join(_tick(time, spec.time_zone) for time in next_times),
        "last": _tick(schedule.last_tick_time, spec.time_zone),
        "last task": short_name(schedule.last_task),
        "tasks": schedule.submitted_count,
        "skipped": schedule.skipped_count,
        "error": schedule.last_error,
        "created": moment(schedule.create_time),
        "updated": moment(schedule.update_time),
        "by": schedule.creator,
    }
    show_message(client.output, schedule, fields)
