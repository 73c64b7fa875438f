"""An answer, put together from the events of its stream, whatever the protocol."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeGuard

from mesh.errors import ModelBadAnswer
from services.models.tokens import input_tokens_estimate, message_tokens_estimate
from weft.models.v1 import model_service_pb2, models_pb2

CALLS_MAX = 64
ARGUMENTS_CHARACTERS_MAX = 262_144
TEXT_CHARACTERS_MAX = 1_048_576
_ARGUMENTS_TOO_LONG = "a tool call's arguments are longer than is allowed"
_TOKENS_MAX = 2**32
"""More than any model's window holds; who tells of more is wrong, and sums would overflow."""

FinishReason = models_pb2.FinishReason


@dataclass(slots=True)
class CallParts:
    """A tool call as far as it has come."""

    id: str = ""
    name: str = ""
    arguments: str = ""
    whole: str = ""
    """The arguments as they came at once, where no parts of them do."""

    def more(self, arguments: str) -> None:
        """Adds to the arguments. Raises ModelBadAnswer where they get too long."""
        self.arguments += arguments
        if len(self.arguments) > ARGUMENTS_CHARACTERS_MAX:
            raise ModelBadAnswer(_ARGUMENTS_TOO_LONG)

    def at_once(self, arguments: str) -> None:
        """Takes all arguments. Raises ModelBadAnswer where they are too long."""
        if len(arguments) > ARGUMENTS_CHARACTERS_MAX:
            raise ModelBadAnswer(_ARGUMENTS_TOO_LONG)
        self.whole = arguments


class Answer(ABC):
    """What the protocols' answers have in common; `add` of each takes its events.

    `has_begun` turns true with the first event that holds something of the answer.
    `finish_reason` is set by the event that says why the model stopped.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self.finish_reason: FinishReason.ValueType | None = None
        self.usage: models_pb2.Usage | None = None
        self._text: list[str] = []
        self._text_characters = 0
        self._calls: dict[int, CallParts] = {}

    @property
    def is_finished(self) -> bool:
        """Whether the model said why it stopped."""
        return self.finish_reason is not None

    @abstractmethod
    def add(self, event: dict[str, Any]) -> str:
        """Takes a parsed event and returns the text that it adds, mostly some, often none.

        Raises ModelBadAnswer where the event isn't one of the protocol.
        """

    def add_text(self, text: str) -> str:
        """Takes text, and returns it. Raises ModelBadAnswer where it gets too long."""
        if text:
            self.has_begun = True
            self._text_characters += len(text)
            if self._text_characters > TEXT_CHARACTERS_MAX:
                raise ModelBadAnswer("the model's answer is longer than is allowed")
            self._text.append(text)
        return text

    def call(self, index: object) -> CallParts:
        """The tool call of that index, new where there was none. Raises ModelBadAnswer for an
        index that is none."""
        if not isinstance(index, int) or index < 0:
            raise ModelBadAnswer("the model's endpoint sent a malformed tool call")
        if index not in self._calls and len(self._calls) >= CALLS_MAX:
            raise ModelBadAnswer("the model calls more tools at once than is allowed")
        self.has_begun = True
        return self._calls.setdefault(index, CallParts())

    @property
    def last_call_index(self) -> int:
        """The index of the tool call that came last; 0 before the first."""
        return max(self._calls, default=0)

    def build(
        self, request: model_service_pb2.GenerateRequest, model: str
    ) -> model_service_pb2.GenerateResponse:
        """The whole answer of `model`. Raises ModelBadAnswer where a tool is called without a
        name or with arguments that aren't a JSON object."""
        message = models_pb2.Message(role=models_pb2.ROLE_ASSISTANT, text="".join(self._text))
        # A bound on tokens that fell into a call leaves half of one, which nobody may run.
        cut = self.finish_reason == models_pb2.FINISH_REASON_LENGTH
        for number, (_, call) in enumerate(sorted(self._calls.items()), 1):
            if cut and not is_object(call.arguments or call.whole or "{}"):
                continue
            message.tool_calls.append(_tool_call(call, number))
        return model_service_pb2.GenerateResponse(
            message=message,
            usage=self.usage or _estimated(request, message),
            finish_reason=self._reason(message),
            model=model,
        )

    def _reason(self, message: models_pb2.Message) -> FinishReason.ValueType:
        # Some endpoints say that all was said beside tool calls.
        if message.tool_calls and self.finish_reason == models_pb2.FINISH_REASON_STOP:
            return models_pb2.FINISH_REASON_TOOL_CALLS
        return self.finish_reason or models_pb2.FINISH_REASON_STOP


def _estimated(
    request: model_service_pb2.GenerateRequest, message: models_pb2.Message
) -> models_pb2.Usage:
    return models_pb2.Usage(
        input_tokens=input_tokens_estimate(request),
        output_tokens=message_tokens_estimate(message),
        estimated=True,
    )


def _tool_call(call: CallParts, number: int) -> models_pb2.ToolCall:
    arguments = call.arguments or call.whole or "{}"
    if not call.name or not is_object(arguments):
        raise ModelBadAnswer("the model called a tool without a name or with broken arguments")
    return models_pb2.ToolCall(
        id=call.id[:128] or f"call-{number}", tool=call.name[:63], arguments_json=arguments
    )


def usage_of(
    read: object, written: object, cached: object = 0, reasoning: object = 0
) -> models_pb2.Usage | None:
    """The usage that the endpoint tells; None where it doesn't."""
    if not is_count(read) or not is_count(written):
        return None
    return models_pb2.Usage(
        input_tokens=read,
        output_tokens=written,
        cached_input_tokens=min(cached, read) if is_count(cached) else 0,
        reasoning_tokens=min(reasoning, written) if is_count(reasoning) else 0,
    )


def is_count(value: object) -> TypeGuard[int]:
    """Whether it can be a number of tokens."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _TOKENS_MAX


def is_object(text: str) -> bool:
    """Whether it is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def string(value: object, name: str) -> str:
    """The text, empty where there is none. Raises ModelBadAnswer where it is something else."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ModelBadAnswer(f"the model's endpoint sent {name} that isn't text")
    return value


def items(value: object, name: str) -> list[object]:
    """The list, empty where there is none. Raises ModelBadAnswer where it is something else."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ModelBadAnswer(f"the model's endpoint sent {name} that isn't a list")
    return value


def mapping(value: object, name: str) -> dict[str, Any]:
    """The object, empty where there is none. Raises ModelBadAnswer where it is something
    else."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ModelBadAnswer(f"the model's endpoint sent {name} that isn't an object")
    return value
