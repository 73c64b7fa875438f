"""When a schedule ticks: pure functions of its timing. Times are Unix nanoseconds.

An interval counts real time from its anchor. A cron expression is read in its zone as
Debian's cron reads it (`cronsim`), so changes of the clock are met in one of two ways:

- where the minute or the hour begins with a star, the expression follows the clock: an hour
  that is left out has no ticks, one that comes twice has them twice;
- otherwise it means fixed times: one that is left out ticks once, in the first minute after
  the gap (together with others of the same gap, and with one that is due then anyway), and
  one that comes twice ticks the first time only.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from mesh.errors import InvalidArgument
from weft.scheduler.v1 import schedules_pb2

NANOSECONDS = 1_000_000_000
FIELDS = 5
TIME_NS_MAX = 7_258_118_400 * NANOSECONDS
"""2200-01-01: no tick is looked for behind it."""
WINDOW_NS = 64 * NANOSECONDS
"""How far back the last ticks are looked for at first."""

_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


@dataclass(frozen=True, slots=True)
class Timing:
    """When something ticks: at `anchor_ns` and every `interval_ns` behind it, or where that
    is 0 by the expression `cron` in `zone`; between `start_ns` and `end_ns`, both included,
    None where there is none."""

    anchor_ns: int
    interval_ns: int = 0
    cron: str = ""
    zone: tzinfo = UTC
    start_ns: int | None = None
    end_ns: int | None = None


def timing_of(spec: schedules_pb2.ScheduleSpec, anchor_ns: int) -> Timing:
    """The timing of a spec; intervals without a start count from `anchor_ns`. Raises
    InvalidArgument for what can't be read."""
    start_ns = spec.start_time.ToNanoseconds() if spec.HasField("start_time") else None
    end_ns = spec.end_time.ToNanoseconds() if spec.HasField("end_time") else None
    zone = _zone(spec.time_zone)
    kind = spec.WhichOneof("timing")
    if kind == "interval":
        anchor_ns = anchor_ns if start_ns is None else start_ns
        interval_ns = spec.interval.ToNanoseconds()
        return Timing(anchor_ns, interval_ns, start_ns=start_ns, end_ns=end_ns)
    if kind is None:
        raise InvalidArgument.of("spec.timing", "needs cron or interval")
    return Timing(anchor_ns, 0, _expression(spec.cron), zone, start_ns, end_ns)


def ticks(timing: Timing, after_ns: int) -> Iterator[int]:
    """The ticks behind `after_ns`, in order."""
    if timing.start_ns is not None:
        after_ns = max(after_ns, timing.start_ns - 1)
    found = _every(timing, after_ns) if timing.interval_ns else _by_cron(timing, after_ns)
    end_ns = TIME_NS_MAX if timing.end_ns is None else min(timing.end_ns, TIME_NS_MAX)
    return itertools.takewhile(lambda tick: tick <= end_ns, found)


def next_tick(timing: Timing, after_ns: int) -> int | None:
    """The first tick behind `after_ns`; None where there is none."""
    return next(ticks(timing, after_ns), None)


def last_ticks(timing: Timing, after_ns: int, until_ns: int, count_max: int) -> list[int]:
    """The last `count_max` ticks behind `after_ns` and up to `until_ns`, in order. What it
    takes grows with `count_max`, not with how long ago `after_ns` is."""
    window_ns = WINDOW_NS
    while True:
        from_ns = max(after_ns, until_ns - window_ns)
        found = list(itertools.takewhile(lambda tick: tick <= until_ns, ticks(timing, from_ns)))
        if from_ns == after_ns or len(found) >= count_max:
            return found[-count_max:]
        window_ns *= 2


def _every(timing: Timing, after_ns: int) -> Iterator[int]:
    past = (after_ns - timing.anchor_ns) // timing.interval_ns + 1
    return itertools.count(timing.anchor_ns + max(0, past) * timing.interval_ns, timing.interval_ns)


def _by_cron(timing: Timing, after_ns: int) -> Iterator[int]:
    if after_ns >= TIME_NS_MAX:
        return
    begin = datetime.fromtimestamp(after_ns // NANOSECONDS, timing.zone)
    last_ns = after_ns
    for found in CronSim(timing.cron, begin):
        tick_ns = int(found.timestamp()) * NANOSECONDS
        # Behind a time that comes twice it begins with ticks of the first one.
        if tick_ns > last_ns:
            last_ns = tick_ns
            yield tick_ns


def _expression(text: str) -> str:
    expression = _NICKNAMES.get(text.strip().lower(), text)
    try:
        if len(expression.split()) != FIELDS:
            # It would take six, the first of them seconds.
            raise CronSimError("Wrong number of fields")
        CronSim(expression, datetime(2000, 1, 1))
    except CronSimError as error:
        known = ", ".join(sorted(_NICKNAMES))
        raise InvalidArgument.of(
            "spec.cron",
            f"isn't a cron expression ({str(error).lower()}); write five fields such as"
            f" '0 9 * * MON-FRI', or one of {known}",
        ) from None
    return expression


def _zone(name: str) -> tzinfo:
    if not name or name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # OSError: a folder of the database, such as `America`.
        raise InvalidArgument.of(
            "spec.time_zone",
            f"no time zone {name!r}; use a name of the IANA database, such as 'Europe/Paris'",
        ) from None
