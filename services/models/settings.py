"""Settings of the models service."""

from typing import ClassVar

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from mesh.settings import Section


def _either(field: str, customary: str) -> AliasChoices:
    """Weft's own variable, else the one that other programs use as well."""
    return AliasChoices(f"WEFT_MODELS_{field}".upper(), customary, field)


class ModelsSettings(Section):
    """Which models there are and how patiently they are called.

    With `openai_base_url` or `openai_api_key` the OpenAI-compatible provider exists, and
    the default model is its own unless `default_model` names another.
    """

    model_config = SettingsConfigDict(populate_by_name=True)

    area: ClassVar[str] = "models"

    default_model: str = Field("", max_length=200)
    """Id of the model that answers where an agent names none."""

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

    @property
    def has_openai(self) -> bool:
        """Whether an OpenAI-compatible endpoint is configured."""
        return bool(self.openai_base_url or self.openai_api_key)
