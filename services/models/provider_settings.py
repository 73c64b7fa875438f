"""Settings of providers, their models and the routes over them: parts of `ModelsSettings`."""

import os
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

OFFICIAL_BASE_URLS = {
    "openai": "https://api.openai.com/v1",
    "openai-responses": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com/v1",
}
"""Where each kind of provider is when no address is set."""

BUILTIN = "builtin"
ROUTE = "route"
"""What ids of routes begin with, as those of models do with their provider's name."""

KEY_BYTES_MAX = 16_384

Labels = dict[str, str]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ModelSettings(_Part):
    """What is known of one model. A provider's models needn't be named: of others nothing is
    known but what the endpoint tells. Prices are in millionths of a US dollar for a million
    tokens: 3,000,000 is $3 per million."""

    name: str = Field(min_length=1, max_length=190, pattern=r"^[A-Za-z0-9._:/@-]+$")
    """The endpoint's own name of it."""
    description: str = Field("", max_length=1_024)
    context_tokens_max: int | None = Field(None, ge=1_024, lt=2**32)
    input_price_usd_micros_per_mtok: int | None = Field(None, ge=0, le=10**12)
    cached_input_price_usd_micros_per_mtok: int | None = Field(None, ge=0, le=10**12)
    """For tokens that the provider had cached; as other tokens where it isn't set."""
    output_price_usd_micros_per_mtok: int | None = Field(None, ge=0, le=10**12)
    labels: Labels = Field(default_factory=dict, max_length=16)
    """What a request can choose it by, such as `region: eu`."""
    embedding_dimension: int | None = Field(None, ge=1, le=8_192)
    """Of a model that embeds: how many numbers its vectors have."""


class ProviderSettings(_Part):
    """One endpoint that runs models, how patiently and how much it is called."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """The first part of its models' ids."""
    kind: Literal["openai", "openai-responses", "anthropic"] = "openai"
    """What it speaks: OpenAI's Chat Completions, as most do, OpenAI's Responses, or
    Anthropic's Messages."""
    base_url: str = Field("", max_length=1_024, pattern=r"^(https?://[^?#\s]+)?$")
    """Its address, with the version, such as `http://127.0.0.1:8000/v1`; that of OpenAI or
    Anthropic where it is empty."""
    api_key: SecretStr | None = None
    api_key_variable: str = Field("", max_length=128, pattern=r"^[A-Za-z0-9_]*$")
    """Variable of the environment that holds the key."""
    api_key_file: Path | None = None
    """File that holds the key, and nothing else but space."""
    default_model: str = Field("", max_length=190, pattern=r"^[A-Za-z0-9._:/@-]*$")
    """The endpoint's own name of the model that is used where none is named; the first that
    it lists where it is empty."""
    models: tuple[ModelSettings, ...] = Field((), max_length=200)
    """What is known of some of its models; they are listed even while it doesn't answer."""
    lists_models: bool = True
    """It is asked for its models (`GET /models`)."""
    context_tokens_max: int = Field(16_384, ge=1_024, lt=2**32)
    """For models of which neither the settings nor the endpoint tell it."""
    output_tokens_max: int = Field(8_192, ge=1)
    """Most tokens of an answer where the request sets no bound, for Anthropic, who wants one."""
    structured_output: Literal["json_schema", "json_object", "instructions"] = "json_schema"
    """How the endpoint is told of a JSON Schema that the answer must fit: as such, that it
    must be JSON (the schema is in the instructions then), or in the instructions alone."""

    connect_timeout_seconds: float = Field(5.0, gt=0)
    first_token_timeout_seconds: float = Field(60.0, gt=0)
    between_tokens_timeout_seconds: float = Field(30.0, gt=0)
    timeout_seconds: float = Field(600.0, gt=0)
    """For a whole call, its attempts together; the caller's deadline counts as well."""
    attempts_max: int = Field(4, ge=1, le=10)
    retry_base_seconds: float = Field(0.5, ge=0)
    retry_max_seconds: float = Field(20.0, ge=0)
    """Longest pause before another attempt; where the endpoint asks for more, the call fails."""
    response_bytes_max: int = Field(8_388_608, ge=1_024)
    connections_max: int = Field(100, ge=1)
    list_timeout_seconds: float = Field(5.0, gt=0)
    list_cache_seconds: float = Field(60.0, ge=0)

    concurrency_max: int = Field(64, ge=1, le=10_000)
    """Calls of this process under way at once; more wait."""
    requests_per_minute: int = Field(0, ge=0, le=1_000_000)
    """Calls of this process, each attempt counted; 0 for no limit."""
    requests_burst: int = Field(10, ge=1, le=100_000)
    """Of those, how many may follow one another at once."""
    waiting_max: int = Field(1_000, ge=0, le=100_000)
    """Calls that wait for these limits; more are refused at once."""
    wait_seconds_max: float = Field(30.0, ge=0)
    """How long one waits, within its deadline; then it is refused."""

    breaker_failures_max: int = Field(5, ge=1, le=1_000)
    """Failures in a row after which it isn't asked any more for a while."""
    breaker_pause_seconds: float = Field(10.0, gt=0)
    """That while; it doubles with each trial that fails, up to sixteen times of it."""

    embedding_texts_max: int = Field(100, ge=1, le=2_048)
    """Texts in one request for embeddings."""
    embedding_requests_max: int = Field(4, ge=1, le=64)
    """Such requests of one call under way at once."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name in (BUILTIN, ROUTE):
            raise ValueError(f"the name {self.name} is Weft's own")
        sources = (self.api_key, self.api_key_variable, self.api_key_file)
        if sum(bool(source) for source in sources) > 1:
            raise ValueError("api_key, api_key_variable, api_key_file: set one of them")
        if len({model.name for model in self.models}) < len(self.models):
            raise ValueError("models: a name is there twice")
        try:
            # Read only then: a port that is none.
            urlsplit(self.base_url).port  # noqa: B018
        except ValueError:
            raise ValueError("base_url: must be an address such as http://host:8000/v1") from None
        return self

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return (self.base_url or OFFICIAL_BASE_URLS[self.kind]).rstrip("/")

    @property
    def is_official(self) -> bool:
        """Whether it is OpenAI's or Anthropic's own."""
        return self.url == OFFICIAL_BASE_URLS[self.kind]

    @property
    def system(self) -> str:
        """What OpenTelemetry calls it, `gen_ai.provider.name`."""
        if self.kind == "anthropic":
            return "anthropic"
        return "openai" if self.kind == "openai-responses" or self.is_official else self.name

    def model(self, name: str) -> ModelSettings:
        """What is known of the model that the endpoint calls `name`."""
        found = (model for model in self.models if model.name == name)
        # A caller's name: whether there is such a model is for the endpoint to say.
        return next(found, None) or ModelSettings.model_construct(name=name)

    def key(self) -> str:
        """The key; empty where there is none. Reads the file, or raises ValueError where the
        variable or the file isn't there, or no header can hold the key; the text holds neither
        key nor path."""
        found = self._read_key()
        if not (found.isascii() and found.isprintable()):
            raise ValueError(f"{self.name}: the key has letters that no key has")
        return found

    def _read_key(self) -> str:
        if self.api_key is not None:
            return self.api_key.get_secret_value().strip()
        if self.api_key_variable:
            found = os.environ.get(self.api_key_variable, "").strip()
            if not found:
                raise ValueError(f"{self.name}: the variable api_key_variable names isn't set")
            return found
        if self.api_key_file is None:
            return ""
        try:
            with self.api_key_file.open("rb") as file:
                found = file.read(KEY_BYTES_MAX).decode("ascii").strip()
        except (OSError, ValueError) as error:
            problem = type(error).__name__
            raise ValueError(f"{self.name}: api_key_file can't be read: {problem}") from None
        if not found:
            raise ValueError(f"{self.name}: api_key_file is empty")
        return found


class RouteSettings(_Part):
    """Several models under one name, `route/<name>`. The first that is tried is chosen; where
    it fails before it said anything, the next one is."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    models: tuple[str, ...] = Field(min_length=1, max_length=16)
    """Ids of the models, as `<provider>/<model>`."""
    choose: Literal["order", "cost", "latency"] = "order"
    """Which comes first: as they are written; whichever costs least for the request by its
    prices, those without prices last; whichever began to answer soonest of late."""
