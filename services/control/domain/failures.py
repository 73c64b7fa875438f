"""How many calls of each version, or turns of each of an agent's revisions, failed of late.
Time is in seconds, from the caller."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from services.control.domain.names import taker_of
from weft.control.v1 import events_pb2 as facts
from weft.control.v1 import splits_pb2

CALLS_MIN = 100
WINDOW_SECONDS = 60.0
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Served:
    """Calls or turns that ended, and those of them that failed."""

    calls: int = 0
    failures: int = 0

    def __add__(self, other: "Served") -> "Served":
        return Served(self.calls + other.calls, self.failures + other.failures)

    def __sub__(self, other: "Served") -> "Served":
        return Served(self.calls - other.calls, self.failures - other.failures)

    @property
    def failures_per_million(self) -> float:
        """Of a million calls so many failed; 0 where there were none."""
        return self.failures * MILLION / self.calls if self.calls else 0.0


class FailureWindow:
    """What ended over the last `seconds`: what is added, or is found in what instances say of
    all their calls.

    An instance counts from when it is first seen, so that what was before is forgotten.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: dict[str, Served] = {}
        self._added: deque[tuple[float, Mapping[str, Served]]] = deque()
        self._totals: dict[str, Served] = {}

    @property
    def totals(self) -> Mapping[str, Served]:
        """What ended within the window, by version or agent's revision."""
        return self._totals

    def observe(self, now: float, said: Mapping[str, tuple[str, Served]]) -> None:
        """Takes in what each instance says by now: its version, and its calls so far."""
        added: dict[str, Served] = {}
        for instance, (version, served) in said.items():
            before = self._seen.get(instance)
            if before is not None and served.calls > before.calls:
                added[version] = added.get(version, Served()) + (served - before)
        self._seen = {instance: served for instance, (_, served) in said.items()}
        self.add(now, added)

    def add(self, now: float, added: Mapping[str, Served]) -> None:
        """Takes in what ended since the last time, and forgets what did too long ago."""
        if added:
            self._added.append((now, added))
            for version, served in added.items():
                self._totals[version] = self._totals.get(version, Served()) + served
        while self._added and self._added[0][0] <= now - self._seconds:
            self._forget(self._added.popleft()[1])

    def _forget(self, added: Mapping[str, Served]) -> None:
        for version, served in added.items():
            left = self._totals[version] - served
            if left.calls:
                self._totals[version] = left
            else:
                del self._totals[version]


def window_seconds(policy: splits_pb2.RollbackPolicy) -> float:
    """How far back calls count."""
    return policy.window.ToTimedelta().total_seconds() or WINDOW_SECONDS


def failing(split: splits_pb2.Split, totals: Mapping[str, Served]) -> facts.FailureCount | None:
    """What fails more often than the split's policy allows, the worst where several do."""
    policy = split.rollback_policy
    calls_min = policy.calls_min or CALLS_MIN
    allowed = float(policy.failures_per_million_max)
    base = taker_of(split.portions[0]) if split.portions else ""
    if policy.over_base:
        allowed += totals.get(base, Served()).failures_per_million
    found = None
    for portion in split.portions:
        taker = taker_of(portion)
        served = totals.get(taker, Served())
        if policy.over_base and taker == base:
            continue
        if portion.weight and served.calls >= calls_min and served.failures_per_million > allowed:
            allowed = served.failures_per_million
            found = facts.FailureCount(
                version=portion.version,
                agent_revision=portion.agent_revision,
                calls=served.calls,
                failures=served.failures,
            )
    return found
