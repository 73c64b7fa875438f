"""What the protocols have in common: the port between them and the endpoint."""

import json
from typing import Any, Literal, Protocol

import orjson

from services.models.provider_settings import ProviderSettings
from services.models.providers.http.answer import Answer
from weft.models.v1 import model_service_pb2, models_pb2

EMPTY_SCHEMA = '{"type":"object","properties":{}}'
Sampling = Literal["temperature", "top_p", "seed"]
SCHEMA_NAME = "answer"
"""What we call the schema of an answer, where a protocol wants a name."""


class Dialect(Protocol):
    """A protocol that endpoints speak."""

    path: str
    """Where calls go, below the endpoint's address."""
    models_path: str
    """Where it lists its models."""

    def headers(self, key: str) -> dict[str, str]:
        """Headers of every request; `key` is empty where there is none."""
        ...

    def body(
        self, request: model_service_pb2.GenerateRequest, model: str, settings: ProviderSettings
    ) -> bytes:
        """The JSON of a call that streams."""
        ...

    def answer(self) -> Answer:
        """What takes the events of one answer."""
        ...


def bearer(key: str) -> dict[str, str]:
    """The header with the key as OpenAI wants it."""
    return {"authorization": f"Bearer {key}"} if key else {}


def parameters_of(tool: models_pb2.ToolDefinition) -> orjson.Fragment:
    """The schema of a tool's arguments, as it is: orjson can't write all that JSON can say."""
    return orjson.Fragment(tool.parameters_json_schema or EMPTY_SCHEMA)


def sampling(parameters: models_pb2.Parameters, *names: Sampling) -> dict[str, Any]:
    """Those of the parameters that are set. Floats lose what a float of 32 bits adds."""
    return {
        name: round(getattr(parameters, name), 6) for name in names if parameters.HasField(name)
    }


def told_schema(request: model_service_pb2.GenerateRequest, settings: ProviderSettings) -> str:
    """The schema of the answer, where there is one and the endpoint takes it; else empty."""
    return request.response_json_schema if settings.structured_output == "json_schema" else ""


def named_schema(schema: str) -> dict[str, Any]:
    """The schema as OpenAI wants to be told it."""
    strict = is_strict(json.loads(schema))
    return {"name": SCHEMA_NAME, "schema": orjson.Fragment(schema), "strict": strict}


def instructions(request: model_service_pb2.GenerateRequest, settings: ProviderSettings) -> str:
    """The instructions, with the schema of the answer where the endpoint takes none."""
    if not request.response_json_schema or settings.structured_output == "json_schema":
        return request.instructions
    asked = (
        "Answer with JSON alone, without any other text, that fits this JSON Schema:\n"
        f"{request.response_json_schema}"
    )
    return f"{request.instructions}\n\n{asked}" if request.instructions else asked


def is_strict(schema: object) -> bool:
    """Whether OpenAI can be told to keep to the schema to the letter: it wants every object
    closed and every property required."""
    if isinstance(schema, list):
        return all(is_strict(part) for part in schema)
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if schema.get("type") == "object" or properties is not None:
        names = set(properties) if isinstance(properties, dict) else set()
        required = schema.get("required", [])
        is_closed = schema.get("additionalProperties") is False
        if not is_closed or not isinstance(required, list) or names != set(map(str, required)):
            return False
    return all(is_strict(part) for part in schema.values())
