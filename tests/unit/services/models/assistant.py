"""Talks to the offline model as an agent does: runs its calls, hands back the results."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.models.providers.extractive.reply import reply
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

STEPS_MAX = 6

Run = Callable[[dict[str, Any]], str]


def tool(
    name: str, description: str, properties: Mapping[str, Any], required: Sequence[str] = ()
) -> models_pb2.ToolDefinition:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return models_pb2.ToolDefinition(
        name=name, description=description, parameters_json_schema=json.dumps(schema)
    )


SEARCH = tool(
    "search",
    "Searches the documents and returns the passages that fit best, with their sources.",
    {"query": {"type": "string", "description": "What to look for"}},
    ["query"],
)
CALCULATOR = tool(
    "calculator",
    "Evaluates an arithmetic expression with + - * / ** and sqrt.",
    {"expression": {"type": "string"}},
    ["expression"],
)
CLOCK = tool(
    "time",
    "Tells the current date and time.",
    {"timezone": {"type": "string", "description": "IANA time zone; UTC where it isn't given"}},
)


def asked(question: str, *tools: models_pb2.ToolDefinition) -> pb.GenerateRequest:
    request = pb.GenerateRequest(tools=tools)
    request.conversation.messages.add(role=models_pb2.ROLE_USER, text=question)
    return request


def calls(question: str, *tools: models_pb2.ToolDefinition) -> list[tuple[str, Any]]:
    """What the model calls first for `question`."""
    message = reply(asked(question, *tools)).message
    return [(call.tool, json.loads(call.arguments_json)) for call in message.tool_calls]


class Chat:
    """A conversation; `made` lists the calls in order."""

    def __init__(self, tools: Sequence[models_pb2.ToolDefinition], runs: Mapping[str, Run]) -> None:
        self.request = pb.GenerateRequest(tools=tools)
        self.made: list[tuple[str, dict[str, Any]]] = []
        self._runs = runs

    def ask(self, question: str) -> str:
        """The answer, after all calls that it takes; a run that raises is a failed call."""
        self.request.conversation.messages.add(role=models_pb2.ROLE_USER, text=question)
        for _ in range(STEPS_MAX):
            message = reply(self.request).message
            self.request.conversation.messages.append(message)
            if not message.tool_calls:
                return message.text
            for call in message.tool_calls:
                self._answer(call)
        raise AssertionError(f"no answer after {STEPS_MAX} steps: {self.made}")

    def _answer(self, call: models_pb2.ToolCall) -> None:
        arguments = json.loads(call.arguments_json)
        self.made.append((call.tool, arguments))
        answer = models_pb2.Message(role=models_pb2.ROLE_TOOL, tool_call_id=call.id)
        try:
            answer.text = self._runs[call.tool](arguments)
        except ValueError as error:
            answer.text, answer.is_error = str(error), True
        self.request.conversation.messages.append(answer)
