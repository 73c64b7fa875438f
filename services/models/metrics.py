"""What models took, for Prometheus, by the names of OpenTelemetry's GenAI conventions.

Source: open-telemetry/semantic-conventions-genai 0.1: `gen_ai.client.inference.*` and
`gen_ai.client.embeddings.*`, dots as underscores and with the unit, as Prometheus has them. No
content: only counts and times, by operation, provider and model.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

CHAT = "chat"
EMBEDDINGS = "embeddings"
"""Operations, `gen_ai.operation.name`."""

SECONDS = tuple(0.01 * 2**power for power in range(14))
TOKENS = tuple(4**power for power in range(14))
"""Bounds of buckets, as the conventions name them."""
SERIES_MAX = 500
"""Models of one process; those beyond this count as `_OTHER`: endpoints may list any number."""
OTHER = "_OTHER"
"""And those that neither the settings nor their provider's list names: callers make them up."""

_INFERENCE = "gen_ai_client_inference"
_EMBEDDINGS = "gen_ai_client_embeddings"
_LABELS = (
    *("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"),
    "weft_provider",
)

Key = TypeVar("Key", bound=tuple[str, ...])
Names = tuple[str, str, str, str]
"""Operation, provider as OpenTelemetry and as the settings call it, model: see `names`."""


class _Histogram:
    """Plain numbers, for one event loop."""

    __slots__ = ("_bounds", "_in_bucket", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._in_bucket = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._in_bucket[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: tuple[str, ...]) -> None:
        bounds = (*map(floatToGoString, self._bounds), "+Inf")
        buckets = list(zip(bounds, accumulate(self._in_bucket), strict=True))
        family.add_metric(labels, buckets, self._sum)


class ModelMetrics(Collector):
    """The metrics of a process's calls of models; one per registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._seconds: dict[tuple[str, ...], _Histogram] = {}
        self._first_seconds: dict[Names, _Histogram] = {}
        self._input_tokens: dict[Names, _Histogram] = {}
        self._output_tokens: dict[Names, _Histogram] = {}
        self._fallbacks: dict[str, int] = {}
        self._open: dict[str, Callable[[], bool]] = {}
        self._models: set[tuple[str, str]] = set()
        if registry is not None:
            registry.register(self)

    def names(self, operation: str, system: str, provider: str, model: str) -> Names:
        """What the numbers of a call are kept under."""
        named = (provider, model)
        if named not in self._models:
            if len(self._models) >= SERIES_MAX:
                model = OTHER
            else:
                self._models.add(named)
        return operation, system, model, provider

    def ended(self, names: Names, seconds: float, error_type: str = "") -> None:
        """A call ended, by an error of that type or well."""
        _of(self._seconds, (*names, error_type), SECONDS).observe(seconds)

    def began(self, names: Names, seconds: float) -> None:
        """The first part of a call's answer came after that time."""
        _of(self._first_seconds, names, SECONDS).observe(seconds)

    def used(self, names: Names, input_tokens: int, output_tokens: int) -> None:
        """What a call used."""
        _of(self._input_tokens, names, TOKENS).observe(input_tokens)
        if names[0] == CHAT:
            _of(self._output_tokens, names, TOKENS).observe(output_tokens)

    def fell_back(self, route: str) -> None:
        """A model of the route failed, and the next was asked."""
        self._fallbacks[route] = self._fallbacks.get(route, 0) + 1

    def watch(self, provider: str, is_open: Callable[[], bool]) -> None:
        """Has the circuit breaker of a provider asked with each scrape."""
        self._open[provider] = is_open

    def collect(self) -> Iterable[Metric]:
        """What Prometheus scrapes."""
        for operation, prefix in ((CHAT, _INFERENCE), (EMBEDDINGS, _EMBEDDINGS)):
            yield _family(
                f"{prefix}_duration_seconds",
                "Duration of calls of models, to their end.",
                {names: each for names, each in self._seconds.items() if names[0] == operation},
                (*_LABELS, "error_type"),
            )
            yield _family(
                f"{prefix}_operation_input_tokens",
                "Tokens that a call read.",
                {n: each for n, each in self._input_tokens.items() if n[0] == operation},
            )
        yield _family(
            f"{_INFERENCE}_operation_output_tokens",
            "Tokens that a call wrote.",
            self._output_tokens,
        )
        yield _family(
            f"{_INFERENCE}_time_to_first_chunk_seconds",
            "Time until the first part of an answer.",
            self._first_seconds,
        )
        fallbacks = CounterMetricFamily(
            "weft_models_fallbacks",
            "Models of a route that failed, so that the next one was asked.",
            labels=("route",),
        )
        for route, count in self._fallbacks.items():
            fallbacks.add_metric((route,), count)
        yield fallbacks
        is_open = GaugeMetricFamily(
            "weft_models_breaker_open",
            "Whether a provider is left alone since it failed too often.",
            labels=("provider",),
        )
        for provider, asked in self._open.items():
            is_open.add_metric((provider,), float(asked()))
        yield is_open


def _of(kept: dict[Key, _Histogram], key: Key, bounds: tuple[float, ...]) -> _Histogram:
    found = kept.get(key)
    if found is None:
        found = kept[key] = _Histogram(bounds)
    return found


def _family(
    name: str,
    text: str,
    histograms: Mapping[Key, _Histogram],
    labels: tuple[str, ...] = _LABELS,
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=labels)
    for names, histogram in histograms.items():
        histogram.add_to(family, names)
    return family
