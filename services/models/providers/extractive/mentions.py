"""What a text mentions literally: quoted strings, numbers, dates, ids, names, time zones."""

import re
import zoneinfo
from datetime import date
from functools import lru_cache

from services.models.providers.extractive.lexicon import SMALL_NUMBERS, word_list

_QUOTED = re.compile(
    r"\"([^\"]{1,500})\"|“([^”]{1,500})”|`([^`]{1,500})`|(?<!\w)'([^']{1,500})'(?!\w)"
)
_NUMBER = re.compile(
    r"(?<![\w.,/:-])[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|(?<![\w./:-])[-+]?\d+(?:\.\d+)?(?![\w/:]|-\d)"
)
_ISO_DATE = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})(T[\d:.]+(?:Z|[+-]\d{2}:?\d{2})?)?\b")
_MONTHS = word_list(
    "january february march april may june july august september october november december"
)
_MONTH = "|".join(f"{month}|{month[:3]}" for month in _MONTHS)
_DAY_MONTH = re.compile(
    rf"\b(\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?({_MONTH})\.?,?\s+(\d{{4}})\b", re.IGNORECASE
)
_MONTH_DAY = re.compile(
    rf"\b({_MONTH})\.?\s+(\d{{1,2}})(?:st|nd|rd|th)?,?\s+(\d{{4}})\b", re.IGNORECASE
)
_EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")
_URI = re.compile(r"\bhttps?://[^\s<>\"')]+")
_UUID = re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.IGNORECASE)
_ID = re.compile(r"(?<!\w)#?((?=[\w-]*\d)[\w]+(?:[-_/:.]\w+)*)")
_NAME = re.compile(
    r"[A-ZÀ-Þ][\w'\u2019-]*(?:\s+(?:(?:de|la|van|von|of|the)\s+)?[A-ZÀ-Þ][\w'\u2019-]*)*"
)
_ZONE = re.compile(r"\b[A-Z][A-Za-z]+/[A-Z][A-Za-z_]+(?:/[A-Z][A-Za-z_]+)?\b|\bUTC\b|\bGMT\b")
_SMALL_NUMBER = re.compile(rf"\b(?:{'|'.join(SMALL_NUMBERS)})\b", re.IGNORECASE)


def quoted(text: str) -> list[str]:
    """Strings in quotation marks or backticks, in order."""
    return [next(filter(None, match.groups()), "").strip() for match in _QUOTED.finditer(text)]


def numbers(text: str) -> list[tuple[int, float]]:
    """Numbers and where they stand; `three` counts, parts of dates and ids don't."""
    found = [
        (match.start(), float(match.group().replace(",", ""))) for match in _NUMBER.finditer(text)
    ]
    found += [
        (match.start(), float(SMALL_NUMBERS[match.group().lower()]))
        for match in _SMALL_NUMBER.finditer(text)
    ]
    return sorted(found)


def dates(text: str) -> list[str]:
    """Dates as ISO 8601, the written ones too (`3 May 2024`); impossible ones left out."""
    found: list[tuple[int, str]] = []
    for match in _ISO_DATE.finditer(text):
        found += _dated(match.start(), match[1], match[2], match[3])
    for match in _DAY_MONTH.finditer(text):
        found += _dated(match.start(), match[3], _month(match[2]), match[1])
    for match in _MONTH_DAY.finditer(text):
        found += _dated(match.start(), match[3], _month(match[1]), match[2])
    return [value for _, value in sorted(found)]


def _month(name: str) -> str:
    short = name.lower()[:3]
    return str(next(number for number, month in enumerate(_MONTHS, 1) if month[:3] == short))


def _dated(position: int, year: str, month: str, day: str) -> list[tuple[int, str]]:
    try:
        return [(position, date(int(year), int(month), int(day)).isoformat())]
    except ValueError:
        return []


def of_format(text: str, schema_format: str) -> list[str]:
    """Values of a JSON Schema `format` that `text` holds; empty for formats not known."""
    match schema_format:
        case "date":
            return dates(text)
        case "date-time":
            full = [match.group() for match in _ISO_DATE.finditer(text) if match[4]]
            return full or [f"{day}T00:00:00Z" for day in dates(text)]
        case "email":
            return _EMAIL.findall(text)
        case "uri" | "url":
            return _URI.findall(text)
        case "uuid":
            return _UUID.findall(text)
    return []


def ids(text: str) -> list[str]:
    """Words with a digit in them, such as `A-17`, `1234` or `ord_9`."""
    return [match[1] for match in _ID.finditer(text)]


def names(text: str) -> list[tuple[int, str]]:
    """Capitalised words and where they stand; the first word of the text is none."""
    return [
        (match.start(), match.group())
        for match in _NAME.finditer(text)
        if match.start() > 0 and match.group() != "I"
    ]


def time_zone(text: str) -> str | None:
    """The IANA time zone that `text` names, by its name or by its city."""
    if match := _ZONE.search(text):
        return match.group()
    lowered = text.lower()
    for city, zone in _cities().items():
        if city in lowered and re.search(rf"\b{re.escape(city)}\b", lowered):
            return zone
    return None


@lru_cache(maxsize=1)
def _cities() -> dict[str, str]:
    """City to zone, from the system's or the package's tz database; empty without one."""
    areas = ("Africa", "America", "Asia", "Atlantic", "Australia", "Europe", "Indian", "Pacific")
    return {
        zone.rsplit("/", 1)[-1].replace("_", " ").lower(): zone
        for zone in sorted(zoneinfo.available_timezones())
        if zone.startswith(areas) and "/" in zone
    }
