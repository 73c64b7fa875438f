"""OpenAI's Responses: the request as JSON, the answer out of its events.

Source: the API reference of Responses, `stream: true`. Nothing is stored there, as our log
has the conversation; hence what a model thought before isn't handed back to it.
"""

from typing import Any

import orjson

from mesh.errors import ModelUnavailable
from services.models.provider_settings import ProviderSettings
from services.models.providers.http.answer import Answer, FinishReason, mapping, string, usage_of
from services.models.providers.http.dialect import (
    bearer,
    instructions,
    named_schema,
    parameters_of,
    sampling,
    told_schema,
)
from weft.models.v1 import model_service_pb2, models_pb2

_INCOMPLETE: dict[str, FinishReason.ValueType] = {
    "max_output_tokens": models_pb2.FINISH_REASON_LENGTH,
    "content_filter": models_pb2.FINISH_REASON_CONTENT_FILTER,
}
_THINKING = frozenset(
    {
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_part.added",
    }
)


class Responses:
    """The Responses API."""

    path = "/responses"
    models_path = "/models"

    def headers(self, key: str) -> dict[str, str]:
        """The key, where there is one."""
        return bearer(key)

    def body(
        self, request: model_service_pb2.GenerateRequest, model: str, settings: ProviderSettings
    ) -> bytes:
        """The JSON of a call that streams. The protocol takes no seed."""
        said = [item for message in request.conversation.messages for item in _items(message)]
        body: dict[str, Any] = {
            "model": model,
            "input": said,
            "stream": True,
            "store": False,
            **sampling(request.parameters, "temperature", "top_p"),
        }
        told = instructions(request, settings)
        if told:
            body["instructions"] = told
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        if request.parameters.output_tokens_max:
            body["max_output_tokens"] = request.parameters.output_tokens_max
        schema = told_schema(request, settings)
        if schema:
            body["text"] = {"format": {"type": "json_schema", **named_schema(schema)}}
        elif request.response_json_schema and settings.structured_output == "json_object":
            body["text"] = {"format": {"type": "json_object"}}
        return orjson.dumps(body)

    def answer(self) -> "ResponsesAnswer":
        """What takes the events of one answer."""
        return ResponsesAnswer()


def _items(message: models_pb2.Message) -> list[dict[str, Any]]:
    if message.role == models_pb2.ROLE_TOOL:
        # The protocol has no place for the error flag.
        output = f"Error: {message.text}" if message.is_error else message.text
        return [{"type": "function_call_output", "call_id": message.tool_call_id, "output": output}]
    said: list[dict[str, Any]] = []
    if message.text or not message.tool_calls:
        role = "assistant" if message.role == models_pb2.ROLE_ASSISTANT else "user"
        said.append({"role": role, "content": message.text})
    said += [
        {
            "type": "function_call",
            "call_id": call.id,
            "name": call.tool,
            "arguments": call.arguments_json or "{}",
        }
        for call in message.tool_calls
    ]
    return said


def _tool(tool: models_pb2.ToolDefinition) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": parameters_of(tool),
        # Tools' schemas are anybody's, and the strict form takes few of them.
        "strict": False,
    }


class ResponsesAnswer(Answer):
    """An answer out of the events of its stream. Events that aren't known are passed over, as
    the protocol grows."""

    def __init__(self) -> None:
        super().__init__()
        self._refused = False

    def add(self, event: dict[str, Any]) -> str:
        """Takes an event; see `Answer.add`."""
        match event.get("type"):
            case "response.output_text.delta":
                return self.add_text(string(event.get("delta"), "delta"))
            case "response.refusal.delta":
                self._refused = True
                return self.add_text(string(event.get("delta"), "delta"))
            case "response.output_item.added":
                item = mapping(event.get("item"), "item")
                if item.get("type") == "function_call":
                    call = self.call(event.get("output_index"))
                    call.id = string(item.get("call_id"), "call_id")
                    call.name = string(item.get("name"), "name")
                    call.more(string(item.get("arguments"), "arguments"))
            case "response.function_call_arguments.delta":
                arguments = string(event.get("delta"), "delta")
                self.call(event.get("output_index")).more(arguments)
            case "response.completed" | "response.incomplete":
                self._end(mapping(event.get("response"), "response"))
            case "response.failed" | "error":
                raise ModelUnavailable("the model's endpoint failed while answering")
            case kind if kind in _THINKING:
                self.has_begun = True
        return ""

    def _end(self, response: dict[str, Any]) -> None:
        details = mapping(response.get("incomplete_details"), "incomplete_details")
        reason = details.get("reason")
        self.finish_reason = models_pb2.FINISH_REASON_STOP
        if self._refused:
            self.finish_reason = models_pb2.FINISH_REASON_CONTENT_FILTER
        elif reason is not None:
            self.finish_reason = _INCOMPLETE.get(str(reason), models_pb2.FINISH_REASON_LENGTH)
        usage = mapping(response.get("usage"), "usage")
        self.usage = usage_of(
            usage.get("input_tokens"),
            usage.get("output_tokens"),
            mapping(usage.get("input_tokens_details"), "usage").get("cached_tokens"),
            mapping(usage.get("output_tokens_details"), "usage").get("reasoning_tokens"),
        )
