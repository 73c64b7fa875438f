"""What a conversation holds for the answer to its last question."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from services.models.providers.extractive.results import Result, read_result
from weft.models.v1 import models_pb2

PREVIOUS_MAX = 4
_CALLS_MAX = 256


@dataclass(frozen=True, slots=True)
class Step:
    """A tool call of this turn and its result, which may be missing."""

    tool: str
    arguments: str
    text: str
    is_error: bool
    result: Result


@dataclass(frozen=True, slots=True)
class Transcript:
    """The last question, what the user said before it, and this turn's calls.

    `previous` are the user's last messages, oldest first, at most PREVIOUS_MAX.
    `arguments` of a step are canonical JSON, so that equal calls compare equal.
    """

    question: str
    previous: tuple[str, ...]
    steps: tuple[Step, ...]
    earlier: tuple[models_pb2.Message, ...]


def canonical(arguments_json: str) -> str:
    """Arguments as JSON with sorted keys; what isn't a JSON object counts as an empty one."""
    try:
        value = json.loads(arguments_json or "{}")
    except (ValueError, RecursionError):
        return "{}"
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else "{}"


def made(tool: str, arguments: str, steps: Sequence[Step]) -> list[Step]:
    """The steps that made this call; whoever ran it may have added arguments of its own."""
    wanted = _items(arguments)
    return [step for step in steps if step.tool == tool and wanted <= _items(step.arguments)]


def _items(arguments: str) -> frozenset[tuple[str, str]]:
    value = json.loads(arguments)
    return frozenset((name, json.dumps(member)) for name, member in value.items())


def read_transcript(messages: Sequence[models_pb2.Message]) -> Transcript:
    """The transcript of a conversation; its turn begins with the last user message."""
    asked = [at for at, one in enumerate(messages) if one.role == models_pb2.ROLE_USER]
    if not asked:
        return Transcript("", (), (), tuple(messages))
    start = asked[-1]
    previous = tuple(messages[at].text for at in asked[:-1][-PREVIOUS_MAX:])
    return Transcript(
        question=messages[start].text,
        previous=previous,
        steps=tuple(_steps(messages[start + 1 :]))[-_CALLS_MAX:],
        earlier=tuple(messages[:start]),
    )


def _steps(messages: Sequence[models_pb2.Message]) -> list[Step]:
    answers = {one.tool_call_id: one for one in messages if one.role == models_pb2.ROLE_TOOL}
    missing = models_pb2.Message(text="the call has no result", is_error=True)
    steps = []
    for call in (call for one in messages for call in one.tool_calls):
        answer = answers.get(call.id, missing)
        result = Result() if answer.is_error else read_result(answer.text)
        steps.append(
            Step(call.tool, canonical(call.arguments_json), answer.text, answer.is_error, result)
        )
    return steps
