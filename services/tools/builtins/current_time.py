"""The time, in any zone of the IANA time zone database."""

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mesh.clock import NANOSECONDS


def current_time(now_ns: int, timezone: str = "") -> str:
    """`now_ns` in ISO 8601 with its offset, to the second; in UTC where no zone is named.

    Raises ValueError, with a text for who named it, where the zone isn't known.
    """
    return datetime.fromtimestamp(now_ns // NANOSECONDS, _zone(timezone)).isoformat()


def _zone(name: str) -> tzinfo:
    if not name or name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # OSError: a folder of the database, such as `America`.
        raise ValueError(
            f"no time zone {name!r}; use a name of the IANA database, such as 'Europe/Paris'"
        ) from None
