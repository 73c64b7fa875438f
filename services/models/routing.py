"""Which models may answer a request, and in which order they are tried."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mesh.errors import NotFound
from services.models.provider_settings import ROUTE, ModelSettings, RouteSettings
from services.models.providers.provider import Provider
from services.models.settings import ModelsSettings
from services.models.tokens import input_tokens_estimate
from weft.models.v1 import model_service_pb2 as pb

OUTPUT_TOKENS_GUESS = 1_000
"""Tokens of an answer without a bound, to compare what models cost."""
AVERAGE_SHARE = 0.2
"""How much of the moving average the newest value is."""
FRESH_SECONDS = 60.0
"""How long a moving average counts after its last value; then the model is tried again."""
PROBE_SECONDS = 5.0
"""How long others aren't sent to a model that is being tried."""
FAILURE_SECONDS = 60.0
"""What a failure counts as: else an endpoint that refuses at once would look fast."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may answer, and who runs it."""

    provider: Provider
    model: str
    settings: ModelSettings

    @property
    def id(self) -> str:
        """Its id, `<provider>/<model>`."""
        return f"{self.provider.name}/{self.model}"


@dataclass(slots=True)
class _Seen:
    seconds: float = 0.0
    at: float = -math.inf
    tried_at: float = -math.inf


class Latencies:
    """How soon models began to answer of late, as this process saw it: exponentially weighted
    moving averages of the seconds until the first part."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._seen: dict[str, _Seen] = {}

    def note(self, model_id: str, seconds: float) -> None:
        """Takes a call's seconds into account."""
        seen, now = self._seen.setdefault(model_id, _Seen()), self._now()
        if now - seen.at > FRESH_SECONDS:
            seen.seconds = seconds
        seen.seconds += AVERAGE_SHARE * (seconds - seen.seconds)
        seen.at = now

    def expected_seconds(self, model_id: str) -> float:
        """What to order by: the average, 0 for a model to try, and more than any for one of
        which nothing is known yet but that it is being tried."""
        seen, now = self._seen.get(model_id), self._now()
        if seen is None:
            return 0.0
        if now - seen.at <= FRESH_SECONDS:
            return seen.seconds
        return math.inf if now - seen.tried_at <= PROBE_SECONDS else 0.0

    def tried(self, model_id: str) -> None:
        """A call goes to the model."""
        self._seen.setdefault(model_id, _Seen()).tried_at = self._now()


class Routing:
    """The routes of the settings over the providers."""

    def __init__(
        self,
        settings: ModelsSettings,
        providers: Mapping[str, Provider],
        now: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._providers = providers
        self._routes = {f"{ROUTE}/{route.name}": route for route in settings.routes}
        self._by_latency = {
            model
            for route in settings.routes
            if route.choose == "latency"
            for model in route.models
        }
        self._latencies = Latencies(now)
        defaults = (settings.default_model, settings.default_embedding_model)
        self._named = {model for route in settings.routes for model in route.models} | {*defaults}

    @property
    def routes(self) -> Mapping[str, RouteSettings]:
        """The routes, by id."""
        return self._routes

    def candidates(self, model_id: str, request: pb.GenerateRequest) -> list[Candidate]:
        """Who may answer, whoever is to be tried first at the front: the model of that id, or
        those of the route, that have the labels of the request. Raises NotFound where there
        is none."""
        route = self._routes.get(model_id)
        if route is None:
            found = [self.candidate(model_id)]
        else:
            found = [self.candidate(each) for each in route.models]
        wanted = {(label.key, label.value) for label in request.labels}
        found = [each for each in found if wanted <= each.settings.labels.items()]
        if not found:
            raise NotFound.of("model with these labels of", model_id)
        if route is not None and route.choose == "cost":
            found.sort(key=lambda each: _cost(each.settings, request))
        if route is not None and route.choose == "latency":
            found.sort(key=lambda each: self._latencies.expected_seconds(each.id))
            self._latencies.tried(found[0].id)
        return found

    def candidate(self, model_id: str) -> Candidate:
        """The model of that id. Raises NotFound where no provider of that name is there."""
        name, _, model = model_id.partition("/")
        provider = self._providers.get(name)
        if provider is None:
            raise NotFound.of("model", model_id)
        return Candidate(provider, model, self._settings.model(model_id))

    def knows(self, candidate: Candidate) -> bool:
        """Whether the settings or its provider name the model, and not only a caller."""
        return candidate.id in self._named or candidate.provider.knows(candidate.model)

    def ended(self, candidate: Candidate, seconds: float, *, failed: bool) -> None:
        """A call of the candidate began to answer, or failed, after that time."""
        if candidate.id in self._by_latency:
            longest = max(seconds, FAILURE_SECONDS)
            self._latencies.note(candidate.id, longest if failed else seconds)


def _cost(model: ModelSettings, request: pb.GenerateRequest) -> float:
    """About what the request costs, to compare; infinite where there are no prices."""
    read, written = model.input_price_usd_micros_per_mtok, model.output_price_usd_micros_per_mtok
    if read is None or written is None:
        return math.inf
    output_tokens = request.parameters.output_tokens_max or OUTPUT_TOKENS_GUESS
    return input_tokens_estimate(request) * read + output_tokens * written
