"""Anthropic's Messages: the request as JSON, the answer out of its events.

Source: the API reference of Messages, version 2023-06-01, `stream: true`.
"""

import json
import re
from typing import Any

import orjson

from services.models.provider_settings import ProviderSettings
from services.models.providers.http.answer import Answer, FinishReason, mapping, string, usage_of
from services.models.providers.http.dialect import (
    instructions,
    parameters_of,
    sampling,
    told_schema,
)
from weft.models.v1 import model_service_pb2, models_pb2

VERSION = "2023-06-01"

_FINISH_REASONS: dict[str, FinishReason.ValueType] = {
    "end_turn": models_pb2.FINISH_REASON_STOP,
    "stop_sequence": models_pb2.FINISH_REASON_STOP,
    "tool_use": models_pb2.FINISH_REASON_TOOL_CALLS,
    "max_tokens": models_pb2.FINISH_REASON_LENGTH,
    "model_context_window_exceeded": models_pb2.FINISH_REASON_LENGTH,
    "refusal": models_pb2.FINISH_REASON_CONTENT_FILTER,
}
_NO_ID = re.compile(r"[^A-Za-z0-9_-]")


class Messages:
    """The Messages API."""

    path = "/messages"
    models_path = "/models?limit=1000"

    def headers(self, key: str) -> dict[str, str]:
        """The version of the protocol, and the key where there is one."""
        return {"anthropic-version": VERSION} | ({"x-api-key": key} if key else {})

    def body(
        self, request: model_service_pb2.GenerateRequest, model: str, settings: ProviderSettings
    ) -> bytes:
        """The JSON of a call that streams. The protocol takes no seed."""
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": request.parameters.output_tokens_max or settings.output_tokens_max,
            "messages": _messages(request),
            "stream": True,
            **sampling(request.parameters, "temperature", "top_p"),
        }
        told = instructions(request, settings)
        if told:
            body["system"] = told
        if request.tools:
            body["tools"] = [
                {
                    "name": tool.name,
                    "description": tool.description,
                    "input_schema": parameters_of(tool),
                }
                for tool in request.tools
            ]
        schema = told_schema(request, settings)
        if schema:
            form = {"type": "json_schema", "schema": orjson.Fragment(schema)}
            body["output_config"] = {"format": form}
        return orjson.dumps(body)

    def answer(self) -> "MessagesAnswer":
        """What takes the events of one answer."""
        return MessagesAnswer()


def _messages(request: model_service_pb2.GenerateRequest) -> list[dict[str, Any]]:
    """The messages, those of one role that follow one another as one: all results of a step
    must be in the message behind it."""
    said: list[dict[str, Any]] = []
    for message in request.conversation.messages:
        role = "assistant" if message.role == models_pb2.ROLE_ASSISTANT else "user"
        blocks = _blocks(message)
        if said and said[-1]["role"] == role:
            said[-1]["content"] += blocks
        elif blocks:
            said.append({"role": role, "content": blocks})
    return said


def _blocks(message: models_pb2.Message) -> list[dict[str, Any]]:
    if message.role == models_pb2.ROLE_TOOL:
        result: dict[str, Any] = {
            "type": "tool_result",
            "tool_use_id": _id(message.tool_call_id),
            "content": message.text,
        }
        return [result | ({"is_error": True} if message.is_error else {})]
    # Text that is empty is refused.
    blocks: list[dict[str, Any]] = []
    if message.text:
        blocks.append({"type": "text", "text": message.text})
    blocks += [
        {
            "type": "tool_use",
            "id": _id(call.id),
            "name": call.tool,
            "input": orjson.Fragment(call.arguments_json or "{}"),
        }
        for call in message.tool_calls
    ]
    return blocks


def _id(call_id: str) -> str:
    """The id of a call, which another provider may have made, in letters that are taken here."""
    return _NO_ID.sub("_", call_id)


class MessagesAnswer(Answer):
    """An answer out of the events of its stream. Events that aren't known are passed over, as
    the protocol grows."""

    def __init__(self) -> None:
        super().__init__()
        self._usage: dict[str, Any] = {}

    def add(self, event: dict[str, Any]) -> str:
        """Takes an event; see `Answer.add`."""
        match event.get("type"):
            case "message_start":
                message = mapping(event.get("message"), "message")
                self._count(mapping(message.get("usage"), "usage"))
            case "content_block_start":
                return self._start(event)
            case "content_block_delta":
                return self._delta(event)
            case "message_delta":
                self._count(mapping(event.get("usage"), "usage"))
                reason = mapping(event.get("delta"), "delta").get("stop_reason")
                if isinstance(reason, str) and reason:
                    stop = models_pb2.FINISH_REASON_STOP
                    self.finish_reason = _FINISH_REASONS.get(reason, stop)
        return ""

    def _start(self, event: dict[str, Any]) -> str:
        block = mapping(event.get("content_block"), "content_block")
        if block.get("type") == "tool_use":
            call = self.call(event.get("index"))
            call.id = string(block.get("id"), "id")
            call.name = string(block.get("name"), "name")
            # Anthropic's own is empty here; some servers send no parts behind it.
            call.at_once(json.dumps(mapping(block.get("input"), "input")))
        return self.add_text(string(block.get("text"), "text"))

    def _delta(self, event: dict[str, Any]) -> str:
        self.has_begun = True
        delta = mapping(event.get("delta"), "delta")
        if delta.get("type") == "input_json_delta":
            self.call(event.get("index")).more(string(delta.get("partial_json"), "partial_json"))
        return self.add_text(string(delta.get("text"), "text"))

    def _count(self, usage: dict[str, Any]) -> None:
        """Takes the usage so far; what an event doesn't tell stays as it was."""
        self._usage |= {name: value for name, value in usage.items() if value is not None}
        cached, written = (
            self._usage.get(name, 0)
            for name in ("cache_read_input_tokens", "cache_creation_input_tokens")
        )
        read = self._usage.get("input_tokens")
        if all(isinstance(count, int) for count in (read, cached, written)):
            # The provider's `input_tokens` are those that it hadn't cached and doesn't.
            read = self._usage["input_tokens"] + cached + written
        self.usage = usage_of(read, self._usage.get("output_tokens"), cached)
