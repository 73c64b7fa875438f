"""OpenAI's Chat Completions: the request as JSON, the answer out of its chunks.

Source: the API reference of Chat Completions, `stream: true`, as OpenAI, vLLM, Ollama,
DashScope, llama.cpp and others serve it.
"""

from typing import Any

import orjson

from mesh.errors import ModelBadAnswer
from services.models.provider_settings import ProviderSettings
from services.models.providers.http.answer import Answer, FinishReason, items, string, usage_of
from services.models.providers.http.dialect import (
    bearer,
    instructions,
    named_schema,
    parameters_of,
    sampling,
    told_schema,
)
from weft.models.v1 import model_service_pb2, models_pb2

_ROLES = {
    models_pb2.ROLE_USER: "user",
    models_pb2.ROLE_ASSISTANT: "assistant",
    models_pb2.ROLE_TOOL: "tool",
}
_FINISH_REASONS: dict[str, FinishReason.ValueType] = {
    "stop": models_pb2.FINISH_REASON_STOP,
    "tool_calls": models_pb2.FINISH_REASON_TOOL_CALLS,
    "function_call": models_pb2.FINISH_REASON_TOOL_CALLS,
    "length": models_pb2.FINISH_REASON_LENGTH,
    "content_filter": models_pb2.FINISH_REASON_CONTENT_FILTER,
}


class Chat:
    """Chat Completions."""

    path = "/chat/completions"
    models_path = "/models"

    def headers(self, key: str) -> dict[str, str]:
        """The key, where there is one."""
        return bearer(key)

    def body(
        self, request: model_service_pb2.GenerateRequest, model: str, settings: ProviderSettings
    ) -> bytes:
        """The JSON of a call that streams."""
        body: dict[str, Any] = {
            "model": model,
            "messages": _messages(request, settings),
            "stream": True,
            "stream_options": {"include_usage": True},
            **sampling(request.parameters, "temperature", "top_p", "seed"),
        }
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        if request.parameters.output_tokens_max:
            # OpenAI's newer models refuse `max_tokens`; most others know nothing else.
            field = "max_completion_tokens" if settings.is_official else "max_tokens"
            body[field] = request.parameters.output_tokens_max
        schema = told_schema(request, settings)
        if schema:
            named = named_schema(schema)
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif request.response_json_schema and settings.structured_output == "json_object":
            body["response_format"] = {"type": "json_object"}
        return orjson.dumps(body)

    def answer(self) -> "ChatAnswer":
        """What takes the chunks of one answer."""
        return ChatAnswer()


def _messages(
    request: model_service_pb2.GenerateRequest, settings: ProviderSettings
) -> list[dict[str, Any]]:
    said = [_message(message) for message in request.conversation.messages]
    system = instructions(request, settings)
    return [{"role": "system", "content": system}, *said] if system else said


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
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": parameters_of(tool),
    }
    return {"type": "function", "function": function}


class ChatAnswer(Answer):
    """An answer out of the chunks of its stream."""

    def __init__(self) -> None:
        super().__init__()
        self._refused = False

    def add(self, event: dict[str, Any]) -> str:
        """Takes a chunk; see `Answer.add`."""
        usage = event.get("usage")
        if isinstance(usage, dict):
            self.usage = _usage(usage)
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise ModelBadAnswer("the model's endpoint sent a chunk without choices")
        return self._add_choice(choices[0]) if choices else ""

    def _add_choice(self, choice: object) -> str:
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(delta, dict | None):
            raise ModelBadAnswer("the model's endpoint sent a choice without a delta")
        delta = delta or {}
        if any(value for name, value in delta.items() if name != "role"):
            self.has_begun = True
        for piece in items(delta.get("tool_calls"), "tool_calls"):
            self._add_call(piece)
        refusal = string(delta.get("refusal"), "refusal")
        self._refused = self._refused or bool(refusal)
        text = self.add_text(string(delta.get("content"), "content") + refusal)
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self.finish_reason = _FINISH_REASONS.get(reason, models_pb2.FINISH_REASON_STOP)
            if self._refused:
                self.finish_reason = models_pb2.FINISH_REASON_CONTENT_FILTER
        return text

    def _add_call(self, piece: object) -> None:
        if not isinstance(piece, dict):
            raise ModelBadAnswer("the model's endpoint sent a tool call that isn't an object")
        function = piece.get("function") or {}
        if not isinstance(function, dict):
            raise ModelBadAnswer("the model's endpoint sent a malformed tool call")
        call_id = string(piece.get("id"), "id")
        index = piece.get("index")
        call = self.call(self._index_of(call_id) if index is None else index)
        call.id = call.id or call_id
        call.name = call.name or string(function.get("name"), "name")
        call.more(string(function.get("arguments"), "arguments"))

    def _index_of(self, call_id: str) -> int:
        """Of a piece without an index, as some endpoints send: another id begins another call."""
        last = self.last_call_index
        is_next = call_id and last in self._calls and self._calls[last].id != call_id
        return last + 1 if is_next else last


def _usage(usage: dict[str, Any]) -> models_pb2.Usage | None:
    read, written = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    return usage_of(
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
        read.get("cached_tokens") if isinstance(read, dict) else 0,
        written.get("reasoning_tokens") if isinstance(written, dict) else 0,
    )
