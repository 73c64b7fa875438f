"""The time in which a budget's limit may be spent."""

from datetime import UTC, datetime
from typing import NamedTuple

from weft.models.v1 import budgets_pb2

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
HOUR_NS = 3_600 * SECOND_NS
DECEMBER = 12


class Window(NamedTuple):
    """From when to when, in Unix nanoseconds; both 0 where there is one window only."""

    start_ns: int
    end_ns: int


def window_at(kind: "budgets_pb2.BudgetWindow.ValueType", now_ns: int) -> Window:
    """The window that a moment is in."""
    if kind == budgets_pb2.BUDGET_WINDOW_DAY:
        start_ns = now_ns // DAY_NS * DAY_NS
        return Window(start_ns, start_ns + DAY_NS)
    if kind == budgets_pb2.BUDGET_WINDOW_MONTH:
        now = datetime.fromtimestamp(now_ns // SECOND_NS, UTC)
        first = datetime(now.year, now.month, 1, tzinfo=UTC)
        year, month = (now.year + 1, 1) if now.month == DECEMBER else (now.year, now.month + 1)
        return Window(_ns(first), _ns(datetime(year, month, 1, tzinfo=UTC)))
    return Window(0, 0)


def _ns(moment: datetime) -> int:
    return int(moment.timestamp()) * SECOND_NS
