"""The models service."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from functools import partial

import structlog
from prometheus_client import CollectorRegistry

from mesh.cache.cache import Cache
from mesh.cache.codecs import MessageCodec
from mesh.call import Call
from mesh.clock import NANOSECONDS
from mesh.errors import (
    BudgetSpent,
    InvalidArgument,
    ModelBadAnswer,
    ModelRateLimited,
    ModelRefused,
    ModelUnavailable,
)
from mesh.rpc.pages import read_page_token, write_page_token
from mesh.telemetry import traces
from services.models.batches import generate_each
from services.models.budgets.budgets import Budgets
from services.models.budgets.known import Unpriced
from services.models.charged import (
    charge_texts,
    charged_stream,
    check_charged,
    price_of,
    say_price,
)
from services.models.embedding import Embeddings
from services.models.metrics import CHAT, EMBEDDINGS, OTHER, ModelMetrics, Names
from services.models.providers.builtin import BuiltinProvider
from services.models.providers.http import HttpProvider
from services.models.providers.provider import HASTY_SECONDS, Provider, Vectors
from services.models.requests import check_embed, check_generate
from services.models.routing import Candidate, Routing
from services.models.settings import ModelsSettings
from services.models.structured import structured, whole
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

_PAGE_SIZE_DEFAULT = 100
_CONTEXT_TOKENS_GUESS = 16_384
"""Of a route while none of its models is listed."""
_FAILURES = (ModelBadAnswer, ModelRateLimited, ModelRefused, ModelUnavailable)
"""What a model can fail with, whoever asks it."""
_FALLS_BACK = (*_FAILURES, Unpriced)
"""After what the next model of a route is asked."""

Parts = AsyncGenerator[str | pb.GenerateResponse, None]

log = structlog.get_logger(__name__)


class ModelsService:
    """Implements `weft.models.v1.ModelService` over the providers that are configured.

    Each call of a provider passes `_called` or `_embedded`, and is charged there. Raises
    InvalidArgument where a provider's key can't be read.
    """

    def __init__(
        self,
        settings: ModelsSettings,
        cache: Cache,
        budgets: Budgets,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._settings = settings
        self._budgets = budgets
        self._answers = cache.of("models.answers", MessageCodec(pb.GenerateResponse))
        self._embeddings = Embeddings(cache)
        self._metrics = ModelMetrics(registry)
        builtin = BuiltinProvider(settings.extractive_context_tokens_max)
        self._providers: dict[str, Provider] = {builtin.name: builtin}
        self._first: Provider = builtin
        for described in reversed(settings.every_provider):
            try:
                self._first = provider = HttpProvider(described)
            except ValueError as error:
                raise InvalidArgument.of("models.providers", str(error)) from None
            self._providers[provider.name] = provider
            self._metrics.watch(provider.name, partial(getattr, provider.breaker, "is_open"))
        self._routing = Routing(settings, self._providers, time.monotonic)

    @property
    def handlers(self) -> Mapping[str, object]:
        """What implements each contract."""
        return {
            "weft.models.v1.BudgetService": self._budgets.rpcs,
            "weft.models.v1.ModelService": self,
        }

    async def start(self) -> None:
        """Reads the budgets; an endpoint that is down must not keep Weft from starting. Raises
        EventStoreUnavailable, DataDamaged."""
        await self._budgets.start()

    async def stop(self) -> None:
        """Gives back what is left of budgets, and closes the providers' connections."""
        await self._budgets.stop()
        for provider in self._providers.values():
            await provider.close()

    async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        """The models of all providers and the routes, by id. Raises InvalidArgument for a bad
        page token."""
        after = read_page_token(request.page_token, request.parent)
        models = await self._models()
        try:
            default = await self._default_model()
        except ModelUnavailable:
            default = ""
        following = sorted(model for model in models if model > after)
        page = following[: request.page_size or _PAGE_SIZE_DEFAULT]
        response = pb.ListModelsResponse()
        for model_id in page:
            response.models.add().CopyFrom(models[model_id])
            response.models[-1].is_default = model_id == default
            say_price(response.models[-1], price_of(self._settings, model_id))
        if len(page) < len(following):
            response.next_page_token = write_page_token(page[-1], request.parent)
        return response

    async def generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        """One answer, whole. Where a model of a route fails, whatever it wrote by then, the next
        one is asked. Raises as `stream_generate` does."""
        if not request.HasField("cache_ttl"):
            return await whole(self._parts(request, call, are_shown=False))
        await _check(request)
        check_charged(request, call)
        asked = pb.GenerateRequest()
        asked.CopyFrom(request)
        asked.ClearField("cache_ttl")
        # The default model may be another one tomorrow.
        asked.model = request.model or await self._default_model()
        # Who asks makes no difference to the answer.
        asked.ClearField("charged_session")
        key = asked.SerializeToString(deterministic=True)
        asked.charged_session = request.charged_session
        asks = False

        async def load() -> pb.GenerateResponse:
            nonlocal asks
            asks = True
            return await whole(self._parts(asked, call, are_shown=False))

        tenant = request.parent.split("/")[1]
        seconds = request.cache_ttl.ToNanoseconds() / NANOSECONDS
        try:
            answer = await self._answers.get(tenant, key, load, ttl_seconds=seconds)
        except BudgetSpent:
            if asks:
                raise
            # Of another session, whose call this one had joined: its own budget may cover it.
            answer = await self._answers.get(tenant, key, load, ttl_seconds=seconds)
        answer.cached = not asks
        if answer.cached and answer.usage.HasField("cost_micro_usd"):
            answer.usage.cost_micro_usd = 0
        return answer

    async def stream_generate(
        self, request: pb.StreamGenerateRequest, call: Call
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        """One answer, as it comes.

        Where a model of a route fails before any of its text was passed on, or has no price and
        a budget demands one, the next one is asked. Afterwards nothing is: another model's
        answer doesn't go on where this one broke off, so the caller has what came and the error.

        Raises InvalidArgument, NotFound for an unknown model, ModelRefused,
        ModelRateLimited, ModelUnavailable, ModelBadAnswer, BudgetSpent, Unpriced, and
        PermissionDenied for a charged_session that isn't an agent's.
        """
        if request.request.HasField("cache_ttl"):
            answer = await self.generate(request.request, call)
            yield pb.StreamGenerateResponse(text_delta=answer.message.text)
            yield pb.StreamGenerateResponse(completed=answer)
            return
        async with aclosing(self._parts(request.request, call, are_shown=True)) as parts:
            async for part in parts:
                if isinstance(part, str):
                    yield pb.StreamGenerateResponse(text_delta=part)
                else:
                    yield pb.StreamGenerateResponse(completed=part)

    async def batch_generate(
        self, request: pb.BatchGenerateRequest, call: Call
    ) -> AsyncGenerator[pb.BatchGenerateResponse, None]:
        """What becomes of each call, as it ends. Raises InvalidArgument where one is of another
        tenant than the batch; what one of them raises is its own."""
        for index, each in enumerate(request.requests):
            if each.parent != request.parent:
                raise InvalidArgument.of(f"requests[{index}].parent", f"must be {request.parent}")
        most = self._settings.batch_concurrency_max
        outcomes = generate_each(
            request.requests,
            lambda each: self.generate(each, call),
            min(request.concurrency_max or most, most),
        )
        async with aclosing(outcomes):
            async for outcome in outcomes:
                yield outcome

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """The texts' vectors. Raises as `stream_generate` does, LimitExceeded where they are
        more than an answer holds. There is no fallback: vectors of another model are of no
        use beside those of this one."""
        check_embed(request)
        candidate = self._routing.candidate(request.model or self._settings.default_embedding_model)

        async def embedded(candidate: Candidate, texts: Sequence[str]) -> Vectors:
            return await self._embedded(candidate, texts, request, call)

        return await self._embeddings.embed(request, candidate, embedded)

    async def _parts(self, request: pb.GenerateRequest, call: Call, *, are_shown: bool) -> Parts:
        """An answer's text and then the whole, by the first candidate that has one. Of those that
        `are_shown` to the caller none may be taken back."""
        await _check(request)
        check_charged(request, call)
        model_id = request.model or await self._default_model()
        candidates = self._routing.candidates(model_id, request)
        for candidate in candidates:
            is_bound = False
            try:
                async with aclosing(self._answered(candidate, request, call)) as parts:
                    async for part in parts:
                        is_bound = are_shown
                        yield part
                return
            except _FALLS_BACK as error:
                is_over = call.remaining_seconds() <= 0
                if is_bound or candidate is candidates[-1] or is_over:
                    raise
                log.info("model_fell_back", model=candidate.id, error=error.message)
                self._metrics.fell_back(model_id)

    def _answered(self, candidate: Candidate, request: pb.GenerateRequest, call: Call) -> Parts:
        """One candidate's answer, checked where it must fit a schema."""
        if request.response_json_schema:
            return structured(request, lambda asked: self._called(candidate, asked, call))
        return self._called(candidate, request, call)

    async def _called(self, candidate: Candidate, request: pb.GenerateRequest, call: Call) -> Parts:
        """One call of a provider to generate, with its attempts."""
        parts = charged_stream(
            self._budgets,
            candidate,
            request,
            self._settings.budget_output_tokens_max,
            call.remaining_seconds(),
        )
        with self._measured(CHAT, candidate, call) as (names, span):
            started, first_seconds = time.perf_counter(), -1.0
            span.set(traces.GEN_AI_REQUEST_STREAM, True)
            if request.response_json_schema:
                span.set(traces.GEN_AI_OUTPUT_TYPE, "json")
            async with aclosing(parts):
                async for part in parts:
                    if first_seconds < 0:
                        first_seconds = time.perf_counter() - started
                        self._metrics.began(names, first_seconds)
                        self._routing.ended(candidate, first_seconds, failed=False)
                        span.set(traces.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, first_seconds)
                    if isinstance(part, pb.GenerateResponse):
                        self._metrics.used(names, part.usage.input_tokens, part.usage.output_tokens)
                        _tell(span, part)
                    yield part

    async def _embedded(
        self, candidate: Candidate, texts: Sequence[str], request: pb.EmbedRequest, call: Call
    ) -> Vectors:
        """One call of a provider to embed, with its attempts."""
        with self._measured(EMBEDDINGS, candidate, call) as (names, span):
            seconds_max = call.remaining_seconds()
            charge = await charge_texts(
                self._budgets, candidate, request.parent, texts, seconds_max
            )
            with charge:
                vectors = await candidate.provider.embed(
                    texts, candidate.model, request.dimension, seconds_max, charge.sent
                )
                charge.finish(vectors.usage)
            self._metrics.used(names, vectors.usage.input_tokens, 0)
            span.set(traces.GEN_AI_USAGE_INPUT_TOKENS, vectors.usage.input_tokens)
            span.set(traces.GEN_AI_EMBEDDINGS_DIMENSION_COUNT, len(vectors.values[0]))
            return vectors

    @contextmanager
    def _measured(
        self, operation: str, candidate: Candidate, call: Call
    ) -> Iterator[tuple[Names, traces.Span]]:
        """The span and the metrics around a call of a provider."""
        provider, model = candidate.provider, candidate.model
        # A label that callers could make would use up those of the models that there are.
        label = model if self._routing.knows(candidate) else OTHER
        names = self._metrics.names(operation, provider.system, provider.name, label)
        started, error_type = time.perf_counter(), ""
        try:
            with traces.model_span(operation, provider.system, model, call.traceparent) as span:
                yield names, span
        except BaseException as error:
            error_type, seconds = type(error).__name__, time.perf_counter() - started
            hasty = seconds < HASTY_SECONDS and call.remaining_seconds() <= 0
            if isinstance(error, _FAILURES) and operation == CHAT and not hasty:
                self._routing.ended(candidate, seconds, failed=True)
            raise
        finally:
            self._metrics.ended(names, time.perf_counter() - started, error_type)

    async def _models(self) -> dict[str, models_pb2.Model]:
        """The models and routes, by id."""
        models: dict[str, models_pb2.Model] = {}
        listed = (provider.models() for provider in self._providers.values())
        for found in await asyncio.gather(*listed):
            models |= {model.id: model for model in found}
        for route_id, route in self._routing.routes.items():
            known = [models[each].context_tokens_max for each in route.models if each in models]
            models[route_id] = models_pb2.Model(
                id=route_id,
                description=f"Route, by {route.choose}: {', '.join(route.models)}"[:1_024],
                context_tokens_max=min(known, default=_CONTEXT_TOKENS_GUESS),
            )
        return models

    async def _default_model(self) -> str:
        return self._settings.default_model or await self._first.default_model()


async def _check(request: pb.GenerateRequest) -> None:
    """Raises InvalidArgument. A long schema takes a while, in which other calls go on."""
    if request.response_json_schema:
        await asyncio.to_thread(check_generate, request)
    else:
        check_generate(request)


def _tell(span: traces.Span, answer: pb.GenerateResponse) -> None:
    """Sets what a call used, and how it ended: no word of what was said."""
    usage = answer.usage
    reason = models_pb2.FinishReason.Name(answer.finish_reason)
    span.set(traces.GEN_AI_USAGE_INPUT_TOKENS, usage.input_tokens)
    span.set(traces.GEN_AI_USAGE_OUTPUT_TOKENS, usage.output_tokens)
    span.set(traces.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, usage.cached_input_tokens)
    span.set(traces.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS, usage.reasoning_tokens)
    span.set(
        traces.GEN_AI_RESPONSE_FINISH_REASONS,
        (reason.removeprefix("FINISH_REASON_").lower(),),
    )
