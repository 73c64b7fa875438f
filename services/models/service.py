"""The models service."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from mesh.cache.cache import Cache
from mesh.cache.codecs import MessageCodec
from mesh.call import Call
from mesh.clock import NANOSECONDS
from mesh.errors import FieldViolation, InvalidArgument, ModelBadAnswer, ModelUnavailable, NotFound
from mesh.rpc.pages import read_page_token, write_page_token
from mesh.telemetry import traces
from services.models.batches import generate_each
from services.models.budgets.budgets import Budgets
from services.models.charged import charged_stream, check_charged, free_of_charge, price_of
from services.models.domain import Price
from services.models.providers.extractive import ExtractiveProvider
from services.models.providers.openai import OpenAIProvider
from services.models.providers.provider import Provider
from services.models.settings import ModelsSettings
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

EXTRACTIVE_ID = "builtin/extractive"
"""The offline model, the default where no endpoint is configured."""

_PAGE_SIZE_DEFAULT = 100
_TEMPERATURE_MAX = 2.0


class ModelsService:
    """Implements `weft.models.v1.ModelService` over the providers that are configured."""

    def __init__(self, settings: ModelsSettings, cache: Cache, budgets: Budgets) -> None:
        self._settings = settings
        self._budgets = budgets
        self._answers = cache.of("models.answers", MessageCodec(pb.GenerateResponse))
        extractive = ExtractiveProvider(settings.extractive_context_tokens_max)
        self._openai = OpenAIProvider(settings) if settings.has_openai else None
        configured: list[Provider] = [extractive]
        if self._openai is not None:
            configured.append(self._openai)
        self._providers = {provider.name: provider for provider in configured}

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
        """The models of all providers, by id. Raises InvalidArgument for a bad page token."""
        after = read_page_token(request.page_token, request.parent)
        models: dict[str, models_pb2.Model] = {}
        for provider in self._providers.values():
            models |= {model.id: model for model in await provider.models()}
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
            _say_price(response.models[-1], price_of(self._settings, model_id))
        if len(page) < len(following):
            response.next_page_token = write_page_token(page[-1], request.parent)
        return response

    async def generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        """One answer, whole. Raises as `stream_generate` does."""
        if not request.HasField("cache_ttl"):
            return await self._whole(request, call)
        _check(request)
        check_charged(request, call)
        asked = pb.GenerateRequest()
        asked.CopyFrom(request)
        asked.ClearField("cache_ttl")
        # The default model may be another one tomorrow.
        asked.model = request.model or await self._default_model()
        charged = asked.charged_session
        # Who asks makes no difference to the answer.
        asked.ClearField("charged_session")
        key = asked.SerializeToString(deterministic=True)
        asked.charged_session = charged
        made: list[pb.GenerateResponse] = []

        async def load() -> pb.GenerateResponse:
            made.append(await self._whole(asked, call))
            return made[0]

        answer = await self._answers.get(
            request.parent.split("/")[1],
            key,
            load,
            ttl_seconds=request.cache_ttl.ToNanoseconds() / NANOSECONDS,
        )
        answer.cached = not made
        if answer.cached:
            free_of_charge(answer.usage)
        return answer

    async def stream_generate(
        self, request: pb.StreamGenerateRequest, call: Call
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        """One answer, as it comes.

        Raises InvalidArgument, NotFound for an unknown model, ModelRefused,
        ModelRateLimited, ModelUnavailable, ModelBadAnswer, BudgetSpent, PermissionDenied for a
        charged_session that isn't an agent's.
        """
        if request.request.HasField("cache_ttl"):
            answer = await self.generate(request.request, call)
            yield pb.StreamGenerateResponse(text_delta=answer.message.text)
            yield pb.StreamGenerateResponse(completed=answer)
            return
        async with aclosing(self._parts(request.request, call)) as parts:
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

    async def _whole(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        async with aclosing(self._parts(request, call)) as parts:
            async for part in parts:
                if isinstance(part, pb.GenerateResponse):
                    return part
        raise ModelBadAnswer("the model's answer has no end")

    async def _parts(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[str | pb.GenerateResponse, None]:
        _check(request)
        check_charged(request, call)
        model_id = request.model or await self._default_model()
        provider_name, _, model = model_id.partition("/")
        provider = self._providers.get(provider_name)
        if provider is None:
            raise NotFound.of("model", model_id)
        parts = charged_stream(
            self._budgets,
            provider,
            request,
            model_id,
            self._settings.budget_output_tokens_max,
            call.remaining_seconds(),
        )
        with traces.model_span("chat", provider_name, model, call.traceparent) as span:
            async with aclosing(parts):
                async for part in parts:
                    if isinstance(part, pb.GenerateResponse):
                        span.set(traces.GEN_AI_USAGE_INPUT_TOKENS, part.usage.input_tokens)
                        span.set(traces.GEN_AI_USAGE_OUTPUT_TOKENS, part.usage.output_tokens)
                    yield part

    async def _default_model(self) -> str:
        if self._settings.default_model:
            return self._settings.default_model
        if self._openai is not None:
            return await self._openai.default_model()
        return EXTRACTIVE_ID


def _say_price(model: models_pb2.Model, price: Price | None) -> None:
    if price is not None:
        model.price.input_micro_usd = price.input_micro_usd
        model.price.output_micro_usd = price.output_micro_usd
        model.price.cached_input_micro_usd = price.cached_input_micro_usd


def _check(request: pb.GenerateRequest) -> None:
    """What field options can't say. Raises InvalidArgument with all that is wrong."""
    violations = [*_conversation_violations(request), *_parameter_violations(request.parameters)]
    for index, tool in enumerate(request.tools):
        if not _is_object(tool.parameters_json_schema or "{}"):
            field = f"tools[{index}].parameters_json_schema"
            violations.append(FieldViolation(field, "must be a JSON object"))
    if request.HasField("cache_ttl") and request.cache_ttl.ToNanoseconds() <= 0:
        violations.append(FieldViolation("cache_ttl", "must be more than 0"))
    if violations:
        text = "; ".join(f"{one.field}: {one.description}" for one in violations)
        raise InvalidArgument(text, violations=violations)


def _conversation_violations(request: pb.GenerateRequest) -> list[FieldViolation]:
    messages = request.conversation.messages
    if not messages:
        return [FieldViolation("conversation.messages", "must hold a message")]
    if messages[-1].role == models_pb2.ROLE_ASSISTANT:
        field = f"conversation.messages[{len(messages) - 1}].role"
        return [FieldViolation(field, "the last message must be the user's or a tool's")]
    return []


def _parameter_violations(parameters: models_pb2.Parameters) -> list[FieldViolation]:
    violations = []
    if parameters.HasField("temperature") and not 0 <= parameters.temperature <= _TEMPERATURE_MAX:
        violations.append(FieldViolation("parameters.temperature", "must be from 0 to 2"))
    if parameters.HasField("top_p") and not 0 < parameters.top_p <= 1:
        violations.append(FieldViolation("parameters.top_p", "must be above 0 and up to 1"))
    return violations


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
