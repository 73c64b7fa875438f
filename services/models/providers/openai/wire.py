"""Chat Completions on the wire: the request as JSON, the answer out of its chunks.

Source: the API reference of Chat Completions, `stream: true`, as OpenAI, vLLM,
llama.cpp and others serve it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import orjson

from mesh.errors import ModelBadAnswer
from services.models.tokens import input_tokens_estimate, message_tokens_estimate
from weft.models.v1 import model_service_pb2, models_pb2

CALLS_MAX = 64
ARGUMENTS_CHARACTERS_MAX = 262_144
TEXT_CHARACTERS_MAX = 1_048_576

_ROLES = {
    models_pb2.ROLE_USER: "user",
    models_pb2.ROLE_ASSISTANT: "assistant",
    models_pb2.ROLE_TOOL: "tool",
}
_FINISH_REASONS: dict[str, "models_pb2.FinishReason.ValueType"] = {
    "stop": models_pb2.FINISH_REASON_STOP,
    "tool_calls": models_pb2.FINISH_REASON_TOOL_CALLS,
    "function_call": models_pb2.FINISH_REASON_TOOL_CALLS,
    "length": models_pb2.FINISH_REASON_LENGTH,
    "content_filter": models_pb2.FINISH_REASON_CONTENT_FILTER,
}


def request_body(
    request: model_service_pb2.GenerateRequest, model: str, tokens_field: str
) -> bytes:
    """The request's JSON. `tokens_field` is what the endpoint calls the bound on tokens."""
    body: dict[str, Any] = {
        "model": model,
        "messages": _messages(request),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    parameters = request.parameters
    for name in ("temperature", "top_p", "seed"):
        if parameters.HasField(name):
            body[name] = round(getattr(parameters, name), 6)
    if parameters.output_tokens_max:
        body[tokens_field] = parameters.output_tokens_max
    return orjson.dumps(body)


def _messages(request: model_service_pb2.GenerateRequest) -> list[dict[str, Any]]:
    said = [_message(message) for message in request.conversation.messages]
    if request.instructions:
        said.insert(0, {"role": "system", "content": request.instructions})
    return said


def _message(message: models_pb2.Message) -> dict[str, Any]:
    written: dict[str, Any] = {"role": _ROLES.get(message.role, "user"), "content": message.text}
    if message.role == models_pb2.ROLE_TOOL:
        written["tool_call_id"] = message.tool_call_id
        if message.is_error:
            # The protocol has no place for the error flag.
            written["content"] = f"Error: {message.text}"
    if message.tool_calls:
        written["content"] = message.text or None
        written["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.tool, "arguments": call.arguments_json or "{}"},
            }
            for call in message.tool_calls
        ]
    return written


def _tool(tool: models_pb2.ToolDefinition) -> dict[str, Any]:
    schema = json.loads(tool.parameters_json_schema or '{"type":"object","properties":{}}')
    function = {"name": tool.name, "description": tool.description, "parameters": schema}
    return {"type": "function", "function": function}


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


class AnswerBuilder:
    """Puts an answer together from the chunks of its stream.

    `has_begun` turns true with the first chunk that holds more than a role.
    `is_finished` turns true with the finish reason.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self._text: list[str] = []
        self._text_characters = 0
        self._calls: dict[int, _Call] = {}
        self._finish_reason: str | None = None
        self._usage: Mapping[str, Any] | None = None
        self._had_choice = False

    @property
    def is_finished(self) -> bool:
        """Whether the model said why it stopped."""
        return self._finish_reason is not None

    def add(self, chunk: object) -> str:
        """Takes a parsed chunk and returns the text that it adds, mostly some, often none.

        Raises ModelBadAnswer where the chunk isn't one of the protocol.
        """
        if not isinstance(chunk, dict):
            raise ModelBadAnswer("the model's endpoint sent a chunk that isn't an object")
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage = usage
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise ModelBadAnswer("the model's endpoint sent a chunk without choices")
        return self._add_choice(choices[0]) if choices else ""

    def _add_choice(self, choice: object) -> str:
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(delta, dict | None):
            raise ModelBadAnswer("the model's endpoint sent a choice without a delta")
        self._had_choice = True
        delta = delta or {}
        if any(value for name, value in delta.items() if name != "role"):
            self.has_begun = True
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self._finish_reason = reason
        for piece in _list(delta.get("tool_calls"), "tool_calls"):
            self._add_call(piece)
        return self._add_text(_string(delta.get("content"), "content"))

    def _add_text(self, text: str) -> str:
        self._text_characters += len(text)
        if self._text_characters > TEXT_CHARACTERS_MAX:
            raise ModelBadAnswer("the model's answer is longer than is allowed")
        if text:
            self._text.append(text)
        return text

    def _add_call(self, piece: object) -> None:
        if not isinstance(piece, dict):
            raise ModelBadAnswer("the model's endpoint sent a tool call that isn't an object")
        index = piece.get("index", max(0, len(self._calls) - 1))
        function = piece.get("function") or {}
        is_sound = isinstance(index, int) and 0 <= index < CALLS_MAX
        if not is_sound or not isinstance(function, dict):
            raise ModelBadAnswer("the model's endpoint sent a malformed tool call")
        call = self._calls.setdefault(index, _Call())
        call.id = call.id or _string(piece.get("id"), "id")
        call.name = call.name or _string(function.get("name"), "name")
        call.arguments += _string(function.get("arguments"), "arguments")
        if len(call.arguments) > ARGUMENTS_CHARACTERS_MAX:
            raise ModelBadAnswer("a tool call's arguments are longer than is allowed")

    def build(
        self, request: model_service_pb2.GenerateRequest, model: str
    ) -> model_service_pb2.GenerateResponse:
        """The whole answer of `model`. Raises ModelBadAnswer where it says nothing at all,
        or calls a tool without a name or with arguments that aren't a JSON object."""
        if not self._had_choice:
            raise ModelBadAnswer("the model's endpoint sent no choices")
        message = models_pb2.Message(role=models_pb2.ROLE_ASSISTANT, text="".join(self._text))
        # A bound on tokens that fell into a call leaves half of one, which nobody may run.
        cut = self._finish_reason == "length"
        for index, call in sorted(self._calls.items()):
            if cut and not _is_object(call.arguments or "{}"):
                continue
            message.tool_calls.append(_tool_call(call, index))
        return model_service_pb2.GenerateResponse(
            message=message,
            usage=self._read_usage(request, message),
            finish_reason=self._read_finish_reason(message),
            model=model,
        )

    def _read_finish_reason(
        self, message: models_pb2.Message
    ) -> "models_pb2.FinishReason.ValueType":
        # Some endpoints say `stop` beside tool calls.
        reason = _FINISH_REASONS.get(self._finish_reason or "", models_pb2.FINISH_REASON_STOP)
        if message.tool_calls and reason == models_pb2.FINISH_REASON_STOP:
            return models_pb2.FINISH_REASON_TOOL_CALLS
        return reason

    def _read_usage(
        self, request: model_service_pb2.GenerateRequest, message: models_pb2.Message
    ) -> models_pb2.Usage:
        usage = self._usage or {}
        read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if _is_count(read) and _is_count(written):
            return models_pb2.Usage(input_tokens=read, output_tokens=written)
        return models_pb2.Usage(
            input_tokens=input_tokens_estimate(request),
            output_tokens=message_tokens_estimate(message),
            estimated=True,
        )


def _tool_call(call: _Call, index: int) -> models_pb2.ToolCall:
    arguments = call.arguments or "{}"
    if not call.name or not _is_object(arguments):
        raise ModelBadAnswer("the model called a tool without a name or with broken arguments")
    return models_pb2.ToolCall(
        id=call.id[:128] or f"call-{index + 1}", tool=call.name[:63], arguments_json=arguments
    )


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _string(value: object, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ModelBadAnswer(f"the model's endpoint sent {name} that isn't text")
    return value


def _list(value: object, name: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ModelBadAnswer(f"the model's endpoint sent {name} that isn't a list")
    return value
