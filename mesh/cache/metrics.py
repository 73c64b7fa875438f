"""What the cache tells Prometheus: hits, misses and time per namespace and level."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

MEMORY = "memory"
LOAD = "load"
"""Not a level: what it took to make a value."""
HIT, MISS, STALE, FAULT, OFF = "hit", "miss", "stale", "fault", "off"
"""How a look into a level ended: STALE was there, but expired or invalidated; FAULT didn't
answer; OFF wasn't asked, since it didn't answer before."""
BUCKETS_SECONDS = (
    *(0.000_001, 0.000_002_5, 0.000_005, 0.000_01, 0.000_025, 0.000_05),
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1, 5, 30),
)

Size = Callable[[], tuple[int, int]]
"""Bytes that a level holds, and entries that went from it for want of room."""


class Looks:
    """How looks into one level ended and how long they took: plain numbers, for one loop."""

    __slots__ = ("counts", "in_bucket", "seconds")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.in_bucket = [0] * (len(BUCKETS_SECONDS) + 1)
        self.seconds = 0.0

    def ended(self, result: str, seconds: float) -> None:
        """Counts one."""
        self.counts[result] = self.counts.get(result, 0) + 1
        self.in_bucket[bisect_left(BUCKETS_SECONDS, seconds)] += 1
        self.seconds += seconds


class CacheMetrics(Collector):
    """The metrics of a process's cache; one per registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._looks: dict[tuple[str, str], Looks] = {}
        self._sizes: dict[str, Size] = {}
        self.joined = 0
        """Calls that waited for another one's load."""
        self.invalidations = 0
        if registry is not None:
            registry.register(self)

    def looks(self, namespace: str, level: str) -> Looks:
        """The numbers of one namespace and level."""
        return self._looks.setdefault((namespace, level), Looks())

    def measure(self, level: str, size: Size) -> None:
        """Has `size` asked with each scrape."""
        self._sizes[level] = size

    def collect(self) -> Iterable[Metric]:
        """What Prometheus scrapes."""
        labels = ("namespace", "level")
        looks = CounterMetricFamily(
            "weft_cache_looks",
            "Looks into a level of the cache, by how they ended; `load` made the value.",
            labels=(*labels, "result"),
        )
        duration = HistogramMetricFamily(
            "weft_cache_look_seconds", "Duration of looks into a level.", labels=labels
        )
        for names, level in self._looks.items():
            for result, count in level.counts.items():
                looks.add_metric((*names, result), count)
            bounds = (*map(floatToGoString, BUCKETS_SECONDS), "+Inf")
            buckets = list(zip(bounds, accumulate(level.in_bucket), strict=True))
            duration.add_metric(names, buckets, level.seconds)
        held = GaugeMetricFamily("weft_cache_bytes", "Bytes held by a level.", labels=labels[1:])
        evicted = CounterMetricFamily(
            "weft_cache_evictions", "Entries that went for want of room.", labels=labels[1:]
        )
        for name, size in self._sizes.items():
            size_bytes, count = size()
            held.add_metric((name,), size_bytes)
            evicted.add_metric((name,), count)
        joined = CounterMetricFamily(
            "weft_cache_joined", "Calls that waited for another one's load.", value=self.joined
        )
        invalidations = CounterMetricFamily(
            "weft_cache_invalidations",
            "Tags invalidated, here or elsewhere.",
            value=self.invalidations,
        )
        return (looks, duration, held, evicted, joined, invalidations)
