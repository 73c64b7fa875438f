"""What is wrong with a request that field options can't say."""

import json

from mesh.errors import FieldViolation, InvalidArgument
from services.models.structured import schema_problem
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

_TEMPERATURE_MAX = 2.0


def check_generate(request: pb.GenerateRequest) -> None:
    """Raises InvalidArgument with all that is wrong."""
    violations = [*_conversation_violations(request), *_parameter_violations(request.parameters)]
    for index, tool in enumerate(request.tools):
        if not _is_object(tool.parameters_json_schema or "{}"):
            field = f"tools[{index}].parameters_json_schema"
            violations.append(FieldViolation(field, "must be a JSON object"))
    if request.response_json_schema:
        problem = schema_problem(request.response_json_schema)
        if problem:
            violations.append(FieldViolation("response_json_schema", problem))
    if request.HasField("cache_ttl") and request.cache_ttl.ToNanoseconds() <= 0:
        violations.append(FieldViolation("cache_ttl", "must be more than 0"))
    _refuse(violations)


def check_embed(request: pb.EmbedRequest) -> None:
    """Raises InvalidArgument with all that is wrong."""
    violations = []
    if request.HasField("cache_ttl") and request.cache_ttl.ToNanoseconds() <= 0:
        violations.append(FieldViolation("cache_ttl", "must be more than 0"))
    empty = next((index for index, text in enumerate(request.texts) if not text.strip()), None)
    if empty is not None:
        violations.append(FieldViolation(f"texts[{empty}]", "must not be empty"))
    _refuse(violations)


def _refuse(violations: list[FieldViolation]) -> None:
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
    return [
        FieldViolation(
            f"conversation.messages[{index}].tool_calls[{number}].arguments_json",
            "must be a JSON object",
        )
        for index, message in enumerate(messages)
        for number, called in enumerate(message.tool_calls)
        if not _is_object(called.arguments_json or "{}")
    ]


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
