"""Settings of the models service: the table `[models]`, variables `WEFT_MODELS_*`."""

from collections import Counter
from functools import cached_property
from typing import ClassVar, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from mesh.settings import Section
from services.models.provider_settings import (
    BUILTIN,
    ROUTE,
    ModelSettings,
    ProviderSettings,
    RouteSettings,
)

OPENAI = "openai"


def _either(field: str, customary: str) -> AliasChoices:
    """Weft's own variable, else the one that other programs use as well."""
    return AliasChoices(f"WEFT_MODELS_{field}".upper(), customary, field)


class ModelsSettings(Section):
    """Which models there are and how patiently they are called.

    With `openai_base_url` or `openai_api_key` there is an OpenAI-compatible provider `openai`.
    Any number of others are named, as tables of `weft.toml` or as JSON in the variables
    `WEFT_MODELS_PROVIDERS` and `WEFT_MODELS_ROUTES`:

        [[models.providers]]               # Anthropic
        name = "anthropic"
        kind = "anthropic"
        api_key_variable = "ANTHROPIC_API_KEY"

        [[models.providers.models]]        # what is known of one of its models
        name = "claude-sonnet-4-5"
        context_tokens_max = 200000
        input_price_usd_micros_per_mtok = 3000000
        output_price_usd_micros_per_mtok = 15000000
        labels = {region = "us"}

        [[models.providers]]               # OpenAI's Responses API
        name = "responses"
        kind = "openai-responses"
        api_key_variable = "OPENAI_API_KEY"

        [[models.providers]]               # Qwen of Alibaba Cloud Model Studio (DashScope)
        name = "dashscope"
        base_url = "https://dashscope-intl.aliyuncs.com/compatible-mode/v1"
        api_key_variable = "DASHSCOPE_API_KEY"
        default_model = "qwen-plus"
        structured_output = "json_object"
        embedding_texts_max = 10

        [[models.providers]]               # vLLM
        name = "vllm"
        base_url = "http://127.0.0.1:8000/v1"

        [[models.providers]]               # Ollama
        name = "ollama"
        base_url = "http://127.0.0.1:11434/v1"
        first_token_timeout_seconds = 300  # it may have to load the model first
        concurrency_max = 4

        [[models.routes]]
        name = "fast"
        models = ["vllm/qwen3", "dashscope/qwen-plus"]
        choose = "latency"
    """

    model_config = SettingsConfigDict(populate_by_name=True)

    area: ClassVar[str] = "models"

    default_model: str = Field("", max_length=200)
    """Id of the model or route that answers where an agent names none. Where it is empty,
    the first provider's default model does, `openai` before others, else the offline one."""
    default_embedding_model: str = Field("builtin/hashing", max_length=200)
    """Id of the model that embeds where none is named. Vectors that were kept are of no use to
    another one."""

    providers: tuple[ProviderSettings, ...] = Field((), max_length=32)
    routes: tuple[RouteSettings, ...] = Field((), max_length=100)

    budget_output_tokens_max: int = Field(4_096, ge=1, le=1_000_000)
    """Most tokens of an answer where a budget covers the call and the request sets no bound."""
    budget_wait_seconds: float = Field(10.0, ge=0)
    """How long a call waits for others that hold what is left of a budget."""
    batch_concurrency_max: int = Field(16, ge=1, le=1_000)
    """Calls of one batch that are under way at once."""

    extractive_context_tokens_max: int = Field(32_768, ge=1_024)

    openai_base_url: str = Field("", validation_alias=_either("openai_base_url", "OPENAI_BASE_URL"))
    """Address of the endpoint, such as `http://127.0.0.1:8000/v1`."""
    openai_api_key: SecretStr | None = Field(
        None, validation_alias=_either("openai_api_key", "OPENAI_API_KEY")
    )
    openai_model: str = Field("", validation_alias=_either("openai_model", "OPENAI_MODEL"))
    """The endpoint's own name of the default model; the first that it lists where empty."""
    openai_context_tokens_max: int = Field(16_384, ge=1_024)
    """For models of which the endpoint doesn't tell it."""

    openai_connect_timeout_seconds: float = Field(5.0, gt=0)
    openai_first_token_timeout_seconds: float = Field(60.0, gt=0)
    openai_between_tokens_timeout_seconds: float = Field(30.0, gt=0)
    openai_timeout_seconds: float = Field(600.0, gt=0)
    """For a whole call, its attempts together; the caller's deadline counts as well."""
    openai_attempts_max: int = Field(4, ge=1, le=10)
    openai_retry_base_seconds: float = Field(0.5, ge=0)
    openai_retry_max_seconds: float = Field(20.0, ge=0)
    openai_response_bytes_max: int = Field(8_388_608, ge=1_024)
    openai_connections_max: int = Field(100, ge=1)
    openai_list_timeout_seconds: float = Field(5.0, gt=0)
    openai_list_cache_seconds: float = Field(60.0, ge=0)

    @field_validator("openai_base_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        for kind, parts in (("providers", self.providers), ("routes", self.routes)):
            twice = [name for name, n in Counter(part.name for part in parts).items() if n > 1]
            if twice:
                raise ValueError(f"{kind}: {twice[0]} is there twice")
        known = {BUILTIN, *(provider.name for provider in self.every_provider)}
        for route in self.routes:
            unknown = [model for model in route.models if model.partition("/")[0] not in known]
            if unknown:
                raise ValueError(f"routes: {route.name}: no provider runs {unknown[0]}")
        name = self.default_model.removeprefix(f"{ROUTE}/")
        if name != self.default_model and name not in {route.name for route in self.routes}:
            raise ValueError(f"default_model: no route {name}")
        if self.default_model and self.default_model.partition("/")[0] not in {*known, ROUTE}:
            raise ValueError(f"default_model: no provider runs {self.default_model}")
        return self

    @property
    def has_openai(self) -> bool:
        """Whether an OpenAI-compatible endpoint is configured by the `openai_` fields."""
        return bool(self.openai_base_url or self.openai_api_key)

    @cached_property
    def every_provider(self) -> tuple[ProviderSettings, ...]:
        """The providers, that of the `openai_` fields first unless one named `openai` is there."""
        if not self.has_openai or any(provider.name == OPENAI for provider in self.providers):
            return self.providers
        prefix = f"{OPENAI}_"
        fields = {
            name.removeprefix(prefix): getattr(self, name)
            for name in type(self).model_fields
            if name.startswith(prefix)
        }
        model = fields.pop("model")
        return (ProviderSettings(name=OPENAI, default_model=model, **fields), *self.providers)

    def model(self, model_id: str) -> ModelSettings:
        """What the settings say of the model `<provider>/<model>`; prices, above all."""
        provider_name, _, name = model_id.partition("/")
        for provider in self.every_provider:
            if provider.name == provider_name:
                return provider.model(name)
        return ModelSettings.model_construct(name=name)
