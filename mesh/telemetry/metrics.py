"""Prometheus metrics of calls."""

from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

# From a local call to a model that thinks for a minute.
BUCKETS_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)


_FAULTS = frozenset({"DATA_LOSS", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "UNKNOWN"})
"""Codes of calls that a server in order would have answered."""


def new_registry() -> CollectorRegistry:
    """A registry that already reports the process: memory, CPU, descriptors, version."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


FAILURES = ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS", "DEADLINE_EXCEEDED")
"""Codes of calls that failed by no fault of their caller."""
_DEADLINE = "DEADLINE_EXCEEDED"
HASTY_SECONDS = 1.0
"""A call that ended by its deadline before that says nothing of who served it: any caller may
set one that nobody can keep."""
_PACKAGE = "weft."


@dataclass(slots=True)
class Served:
    """Calls that ended, and those of them that failed by no fault of their caller."""

    calls: int = 0
    failures: int = 0


class MethodMetrics:
    """The metrics of one method: plain numbers, for one event loop. Prometheus' own objects
    lock for each of the five changes that a call makes, and cost as much as a whole layer."""

    __slots__ = ("counts", "failures", "hasty", "in_bucket", "in_flight", "seconds")

    def __init__(self, *, streams: bool = False) -> None:
        # At its deadline a stream that watches something just ends.
        self.failures = FAILURES[:-1] if streams else FAILURES
        self.in_flight = 0
        self.hasty = 0
        self.counts: dict[str, int] = {}
        self.in_bucket = [0] * (len(BUCKETS_SECONDS) + 1)
        self.seconds = 0.0

    def failed(self, codes: Collection[str]) -> int:
        """How many calls ended with one of the codes, but for those that had no time."""
        count = sum(self.counts.get(code, 0) for code in codes)
        return count - self.hasty if _DEADLINE in codes else count

    def ended(self, code: str, seconds: float) -> None:
        """Counts the end of a call that was counted as in flight."""
        self.in_flight -= 1
        self.counts[code] = self.counts.get(code, 0) + 1
        if code == _DEADLINE and seconds < HASTY_SECONDS:
            self.hasty += 1
        self.in_bucket[bisect_left(BUCKETS_SECONDS, seconds)] += 1
        self.seconds += seconds


class RpcMetrics(Collector):
    """The metrics of all methods; one per registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._methods: dict[tuple[str, str], MethodMetrics] = {}
        registry.register(self)

    def method(self, service: str, name: str, *, streams: bool = False) -> MethodMetrics:
        """The metrics of one method of a contract; `streams` says that it sends a stream."""
        return self._methods.setdefault((service, name), MethodMetrics(streams=streams))

    def served(self) -> dict[str, Served]:
        """Calls of Weft's own contracts that ended, by area, which is the service's name; areas
        without any left out."""
        served: dict[str, Served] = {}
        for (contract, _), method in self._methods.items():
            if method.counts and contract.startswith(_PACKAGE):
                of_area = served.setdefault(contract.split(".", 2)[1], Served())
                of_area.calls += sum(method.counts.values())
                of_area.failures += method.failed(method.failures)
        return served

    def totals(self) -> tuple[int, int]:
        """How many calls have ended, and how many by a fault of the server."""
        calls = faults = 0
        for method in self._methods.values():
            calls += sum(method.counts.values())
            faults += method.failed(_FAULTS)
        return calls, faults

    def collect(self) -> Iterable[Metric]:
        """What Prometheus scrapes."""
        labels = ("service", "method")
        calls = CounterMetricFamily(
            "weft_rpc_calls", "Calls ended, by status code.", labels=(*labels, "code")
        )
        duration = HistogramMetricFamily(
            "weft_rpc_duration_seconds",
            "Duration of calls; of streams, until their end.",
            labels=labels,
        )
        in_flight = GaugeMetricFamily("weft_rpc_in_flight", "Calls being answered.", labels=labels)
        for names, method in self._methods.items():
            for code, count in method.counts.items():
                calls.add_metric((*names, code), count)
            bounds = (*map(floatToGoString, BUCKETS_SECONDS), "+Inf")
            buckets = list(zip(bounds, accumulate(method.in_bucket), strict=True))
            duration.add_metric(names, buckets, method.seconds)
            in_flight.add_metric(names, method.in_flight)
        return (calls, duration, in_flight)
