"""Prometheus metrics of calls."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

# From a local call to a model that thinks for a minute.
BUCKETS_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)


def new_registry() -> CollectorRegistry:
    """A registry that already reports the process: memory, CPU, descriptors, version."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class MethodMetrics:
    """The metrics of one method, with their labels resolved once."""

    __slots__ = ("_by_code", "_calls", "_duration", "_labels", "in_flight")

    def __init__(
        self, labels: tuple[str, str], calls: Counter, duration: Histogram, in_flight: Gauge
    ) -> None:
        self._labels = labels
        self._calls = calls
        self._by_code: dict[str, Counter] = {}
        self._duration = duration.labels(*labels)
        self.in_flight = in_flight.labels(*labels)

    def ended(self, code: str, seconds: float) -> None:
        """Reports the end of a call that was counted as in flight."""
        counter = self._by_code.get(code)
        if counter is None:
            counter = self._by_code[code] = self._calls.labels(*self._labels, code)
        counter.inc()
        self._duration.observe(seconds)
        self.in_flight.dec()


class RpcMetrics:
    """The metrics of all methods; one per registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        method = ("service", "method")
        self._calls = Counter(
            "weft_rpc_calls", "Calls ended, by status code.", (*method, "code"), registry=registry
        )
        self._duration = Histogram(
            "weft_rpc_duration_seconds",
            "Duration of calls; of streams, until their end.",
            method,
            buckets=BUCKETS_SECONDS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "weft_rpc_in_flight", "Calls being answered.", method, registry=registry
        )

    def method(self, service: str, name: str) -> MethodMetrics:
        """The metrics of one method of a contract."""
        return MethodMetrics((service, name), self._calls, self._duration, self._in_flight)
