"""The offline model itself: a pure function from a request to the assistant's message."""

from collections.abc import Sequence

from services.models.providers.extractive.answering import answer
from services.models.providers.extractive.figures import candidates
from services.models.providers.extractive.planning import next_calls, plan
from services.models.providers.extractive.questions import read_clauses
from services.models.providers.extractive.quoting import quote
from services.models.providers.extractive.ranking import Ranking
from services.models.providers.extractive.results import Passage
from services.models.providers.extractive.schema import Tool, read_tool
from services.models.providers.extractive.summary import MARKER, summarise
from services.models.providers.extractive.transcript import Transcript, read_transcript
from services.models.tokens import (
    input_tokens_estimate,
    message_tokens_estimate,
    tokens_estimate,
)
from weft.models.v1 import model_service_pb2, models_pb2

WHAT_I_AM = (
    "I am Weft's built-in offline model: extractive, without weights. I call tools and "
    "quote what they return; I can't write freely."
)

QUESTION_CHARACTERS_MAX = 8_000
_TOLD_MESSAGES_MAX = 50
_TOLD_CHARACTERS_MAX = 20_000


def reply(request: model_service_pb2.GenerateRequest) -> model_service_pb2.GenerateResponse:
    """The model's next message: tool calls, or the answer. `model` is left to the caller."""
    message, finish = _message(request)
    tokens_max = request.parameters.output_tokens_max
    if tokens_max and tokens_estimate(message.text) > tokens_max:
        message.text = _cut(message.text, tokens_max)
        finish = models_pb2.FINISH_REASON_LENGTH
    return model_service_pb2.GenerateResponse(
        message=message,
        usage=models_pb2.Usage(
            input_tokens=input_tokens_estimate(request),
            output_tokens=message_tokens_estimate(message),
            estimated=True,
        ),
        finish_reason=finish,
    )


def _message(
    request: model_service_pb2.GenerateRequest,
) -> tuple[models_pb2.Message, "models_pb2.FinishReason.ValueType"]:
    messages = request.conversation.messages
    transcript = read_transcript(messages)
    if transcript.question.startswith(MARKER):
        text = summarise(messages, request.parameters.output_tokens_max, request.instructions)
        return _said(text), models_pb2.FINISH_REASON_STOP
    transcript = Transcript(
        transcript.question[:QUESTION_CHARACTERS_MAX],
        tuple(text[:QUESTION_CHARACTERS_MAX] for text in transcript.previous),
        transcript.steps,
        transcript.earlier,
    )
    tools = [
        read_tool(one.name, one.description, one.parameters_json_schema) for one in request.tools
    ]
    needs = plan(transcript, tools)
    calls = next_calls(needs, transcript.steps)
    if calls:
        first = len(transcript.steps) + 1
        message = models_pb2.Message(role=models_pb2.ROLE_ASSISTANT)
        for number, call in enumerate(calls, first):
            message.tool_calls.add(
                id=f"call-{number}", tool=call.tool, arguments_json=call.arguments
            )
        return message, models_pb2.FINISH_REASON_TOOL_CALLS
    if transcript.steps:
        return _said(answer(needs, transcript.steps, tools)), models_pb2.FINISH_REASON_STOP
    return _said(_untooled(request, transcript, tools)), models_pb2.FINISH_REASON_STOP


def _said(text: str) -> models_pb2.Message:
    return models_pb2.Message(role=models_pb2.ROLE_ASSISTANT, text=text or WHAT_I_AM)


def _untooled(
    request: model_service_pb2.GenerateRequest, transcript: Transcript, tools: Sequence[Tool]
) -> str:
    """An answer without any tool's result: what the instructions or the conversation say."""
    told = [Passage(request.instructions[:_TOLD_CHARACTERS_MAX], title="my instructions")]
    told += [
        Passage(message.text[:_TOLD_CHARACTERS_MAX], title="this conversation")
        for message in transcript.earlier[-_TOLD_MESSAGES_MAX:]
        if message.role in (models_pb2.ROLE_USER, models_pb2.ROLE_TOOL)
    ]
    ranking = Ranking([one for one in candidates(told) if not one.sentence.text.endswith("?")])
    clauses = read_clauses(transcript.question, transcript.previous)
    found = [one.candidate for clause in clauses for one in quote(clause, ranking)[:2]]
    if found:
        quotes = dict.fromkeys(f"“{one.sentence.text}” (from {one.title})" for one in found)
        return "\n".join(quotes)
    if not tools:
        return f"{WHAT_I_AM} I was given no tools and nothing that answers this."
    names = ", ".join(tool.name for tool in tools)
    return f"{WHAT_I_AM} None of my tools fits this: {names}."


def _cut(text: str, tokens_max: int) -> str:
    """The first words of `text` that are within `tokens_max` by our estimate."""
    kept = text.encode()[: tokens_max * 4].decode(errors="ignore")
    return kept.rsplit(None, 1)[0] if len(kept) < len(text) and " " in kept else kept
