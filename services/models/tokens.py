"""Tokens: estimates, for providers that count none, and sums."""

from weft.models.v1 import model_service_pb2, models_pb2

_BYTES_PER_TOKEN = 4


def tokens_estimate(text: str) -> int:
    """About how many tokens a model would count: four bytes each, the usual rule of thumb."""
    return (len(text.encode()) + _BYTES_PER_TOKEN - 1) // _BYTES_PER_TOKEN


def message_tokens_estimate(message: models_pb2.Message) -> int:
    """Tokens of a message's text and its tool calls."""
    calls = "".join(call.tool + call.arguments_json for call in message.tool_calls)
    return tokens_estimate(message.text + calls)


def input_tokens_estimate(request: model_service_pb2.GenerateRequest) -> int:
    """Tokens of all that a request says to a model."""
    said = sum(message_tokens_estimate(message) for message in request.conversation.messages)
    tools = sum(
        tokens_estimate(tool.name + tool.description + tool.parameters_json_schema)
        for tool in request.tools
    )
    return said + tools + tokens_estimate(request.instructions)


def add_usage(usage: models_pb2.Usage, more: models_pb2.Usage) -> None:
    """Adds `more` to `usage`, field by field; what was estimated in part is an estimate."""
    for field, value in more.ListFields():
        known = getattr(usage, field.name)
        setattr(usage, field.name, True if isinstance(value, bool) else known + value)
