"""The tool that tells the time."""

import pytest

from services.tools.builtins.current_time import current_time

MORNING_NS = 1_800_000_000 * 1_000_000_000


@pytest.mark.parametrize(
    ("timezone", "shown"),
    [
        ("", "2027-01-15T08:00:00+00:00"),
        ("UTC", "2027-01-15T08:00:00+00:00"),
        ("Europe/Paris", "2027-01-15T09:00:00+01:00"),
        ("Asia/Kolkata", "2027-01-15T13:30:00+05:30"),
    ],
)
def test_the_time_is_told_in_any_zone(timezone: str, shown: str) -> None:
    assert current_time(MORNING_NS, timezone) == shown


@pytest.mark.parametrize(
    "timezone", ["Mars/Olympus", "../etc/passwd", "/etc/localtime", "America", "a\x00b", "Ünï"]
)
def test_a_zone_that_is_not_known_is_said(timezone: str) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        current_time(MORNING_NS, timezone)
