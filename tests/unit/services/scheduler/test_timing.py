"""When schedules tick."""

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import InvalidArgument
from services.scheduler.domain.timing import (
    NANOSECONDS,
    Timing,
    last_ticks,
    next_tick,
    ticks,
    timing_of,
)
from weft.scheduler.v1 import schedules_pb2

BERLIN = "Europe/Berlin"
ZONES = ("UTC", BERLIN, "America/New_York", "Asia/Kolkata", "Pacific/Apia", "America/Sao_Paulo")
EXPRESSIONS = (
    *("* * * * *", "*/7 * * * *", "30 * * * *", "0 9 * * MON-FRI", "30 2 * * *", "0,30 1-3 * * *"),
    *("15 2 29 2 *", "0 0 1,15 * FRI", "*/20 2 * * *", "0 0 L * *", "0 12 * * MON#1"),
)
FIRST = int(datetime(2010, 1, 1, tzinfo=UTC).timestamp())
LAST = int(datetime(2030, 1, 1, tzinfo=UTC).timestamp())
DAY = 86_400

moments = st.integers(FIRST, LAST).map(lambda seconds: seconds * NANOSECONDS)
spans = st.integers(0, 3 * DAY).map(lambda seconds: seconds * NANOSECONDS)
cron_timings = st.builds(
    lambda cron, zone: timing_of(schedules_pb2.ScheduleSpec(cron=cron, time_zone=zone), 0),
    st.sampled_from(EXPRESSIONS),
    st.sampled_from(ZONES),
)
interval_timings = st.builds(
    Timing,
    anchor_ns=moments,
    interval_ns=st.integers(60 * NANOSECONDS, 40 * DAY * NANOSECONDS),
)
timings = cron_timings | interval_timings


def at(text: str, zone: str = "UTC") -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))
    return int(moment.timestamp()) * NANOSECONDS


def cron(expression: str, zone: str = "", **fields: object) -> Timing:
    spec = schedules_pb2.ScheduleSpec(cron=expression, time_zone=zone, **fields)  # type: ignore[arg-type]
    return timing_of(spec, 0)


def said(timing: Timing, after: str, count: int, zone: str) -> list[str]:
    """The first ticks behind a time, as a clock in the zone shows them."""
    found = itertools.islice(ticks(timing, at(after, zone)), count)
    return [
        f"{datetime.fromtimestamp(tick // NANOSECONDS, ZoneInfo(zone)):%d %H:%M %Z}"
        for tick in found
    ]


def between(timing: Timing, after_ns: int, until_ns: int) -> list[int]:
    return list(itertools.takewhile(lambda tick: tick <= until_ns, ticks(timing, after_ns)))


@given(timings, moments, spans, spans)
def test_ticks_dont_depend_on_where_one_begins_to_look(
    timing: Timing, begin_ns: int, one_ns: int, other_ns: int
) -> None:
    """So none is lost or doubled by a restart between two of them."""
    middle_ns = begin_ns + one_ns
    end_ns = middle_ns + other_ns
    whole = between(timing, begin_ns, end_ns)
    assert whole == between(timing, begin_ns, middle_ns) + between(timing, middle_ns, end_ns)
    assert whole == sorted(set(whole))
    assert all(begin_ns < tick <= end_ns for tick in whole)


@given(timings, moments, spans, st.integers(1, 50))
def test_the_last_ticks_are_the_end_of_all_of_them(
    timing: Timing, after_ns: int, span_ns: int, count: int
) -> None:
    until_ns = after_ns + span_ns
    assert (
        last_ticks(timing, after_ns, until_ns, count)
        == between(timing, after_ns, until_ns)[-count:]
    )


@given(cron_timings, moments, spans, spans)
def test_no_tick_is_before_the_start_or_after_the_end(
    timing: Timing, after_ns: int, until_start_ns: int, until_end_ns: int
) -> None:
    start_ns = after_ns + NANOSECONDS + until_start_ns
    end_ns = start_ns + until_end_ns
    bounded = Timing(0, cron=timing.cron, zone=timing.zone, start_ns=start_ns, end_ns=end_ns)
    assert list(ticks(bounded, after_ns)) == between(timing, start_ns - 1, end_ns)


@given(interval_timings, moments)
def test_an_interval_counts_from_its_anchor(timing: Timing, after_ns: int) -> None:
    first = next_tick(timing, after_ns)
    assert first is not None
    assert first >= timing.anchor_ns
    assert (first - timing.anchor_ns) % timing.interval_ns == 0
    assert first - timing.interval_ns <= after_ns or first == timing.anchor_ns


def test_a_time_that_is_left_out_ticks_once_after_the_gap() -> None:
    """2026-03-29 in Berlin: from 02:00 to 03:00 at once."""
    for expression in ("30 2 * * *", "0,15,30 2 * * *"):
        found = said(cron(expression, BERLIN), "2026-03-28 12:00", 2, BERLIN)
        assert found[0] == "29 03:00 CEST"
        assert found[1].startswith("30 02:")
    assert said(cron("0 2,3 * * *", BERLIN), "2026-03-28 12:00", 2, BERLIN) == [
        *("29 03:00 CEST", "30 02:00 CEST"),
    ]


def test_a_time_that_comes_twice_ticks_once() -> None:
    """2026-10-25 in Berlin: from 03:00 back to 02:00."""
    found = said(cron("30 2 * * *", BERLIN), "2026-10-24 12:00", 2, BERLIN)
    assert found == ["25 02:30 CEST", "26 02:30 CET"]
    within_ns = at("2026-10-25 00:45") + 30 * 60 * NANOSECONDS
    following = next_tick(cron("30 2 * * *", BERLIN), within_ns)
    assert following == at("2026-10-26 02:30", BERLIN)


def test_an_expression_with_a_star_follows_the_clock() -> None:
    twice = said(cron("*/30 * * * *", BERLIN), "2026-10-25 01:45", 5, BERLIN)
    assert twice == [
        *("25 02:00 CEST", "25 02:30 CEST", "25 02:00 CET", "25 02:30 CET", "25 03:00 CET"),
    ]
    left_out = said(cron("*/30 2 * * *", BERLIN), "2026-03-28 12:00", 1, BERLIN)
    assert left_out == ["30 02:00 CEST"]


def test_a_day_that_is_left_out_ticks_once() -> None:
    """Samoa had no 2011-12-30."""
    apia = "Pacific/Apia"
    found = said(cron("0 9 * * *", apia), "2011-12-29 08:00", 3, apia)
    assert [each[:8] for each in found] == ["29 09:00", "31 00:00", "31 09:00"]


@pytest.mark.parametrize(
    ("nickname", "expression"),
    [
        ("@hourly", "0 * * * *"),
        ("@DAILY", "0 0 * * *"),
        ("@weekly", "0 0 * * SUN"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
    ],
)
def test_nicknames_stand_for_expressions(nickname: str, expression: str) -> None:
    begin = at("2026-05-05 05:05")
    one, other = cron(nickname), cron(expression)
    assert [*itertools.islice(ticks(one, begin), 9)] == [*itertools.islice(ticks(other, begin), 9)]


@pytest.mark.parametrize(
    "expression",
    [
        *("", "* * * *", "0 * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 30 2 *"),
        *("* * * 13 *", "* * * * 8", "* * * * MOO", "*/0 * * * *", "5-1 * * * *", "1,,2 * * * *"),
        *("@reboot", "@every 5m", "-1 * * * *", "a b c d e", "* * * * ²L", "1/2/3 * * * *"),
    ],
)
def test_what_isnt_a_cron_expression_is_refused_with_a_hint(expression: str) -> None:
    with pytest.raises(InvalidArgument, match=r"spec\.cron: isn't a cron expression.*@daily"):
        cron(expression)


@given(st.text(st.sampled_from("0123456789*/,-#LW @abcdMONFRI²٣\n"), max_size=128))
def test_any_text_is_read_or_refused(expression: str) -> None:
    try:
        timing = cron(expression)
    except InvalidArgument:
        return
    next_tick(timing, at("2026-01-01"))


@pytest.mark.parametrize(
    "zone", ["Europe/Atlantis", "America", "../etc/passwd", "/etc/passwd", "a\x00b"]
)
def test_an_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(InvalidArgument, match="IANA"):
        cron("* * * * *", zone)


def test_a_spec_without_a_timing_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="needs cron or interval"):
        timing_of(schedules_pb2.ScheduleSpec(), 0)


def test_a_missed_year_of_minutes_is_looked_at_from_its_end() -> None:
    until_ns = at("2026-01-01")
    found = last_ticks(cron("* * * * *"), at("2025-01-01"), until_ns, 3)
    minute_ns = 60 * NANOSECONDS
    assert found == [until_ns - 2 * minute_ns, until_ns - minute_ns, until_ns]


def test_an_interval_begins_at_its_start() -> None:
    spec = schedules_pb2.ScheduleSpec(interval=Duration(seconds=90))
    spec.start_time.FromDatetime(datetime(2026, 1, 1, 12, tzinfo=UTC))
    timing = timing_of(spec, at("2026-01-01"))
    begin = at("2026-01-01 12:00")
    step_ns = int(timedelta(seconds=90).total_seconds()) * NANOSECONDS
    assert [*itertools.islice(ticks(timing, at("2026-01-01")), 3)] == [
        *(begin, begin + step_ns, begin + 2 * step_ns),
    ]
