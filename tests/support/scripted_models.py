"""A models service that does what the question says: it stands in where a test needs a
model without thought or delay. Everything around it is the real thing.

The question is JSON: `{"steps": [STEP, ...]}`, or any other text, which is echoed. Each
step is one answer: `{"text": "..."}` ends the turn, `{"calls": [{"tool": "...",
"arguments": {...}}, ...], "text": "..."}` asks for tools, `"tokens": N` streams the text in
N parts, `"delay_seconds": X` waits before each part.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from mesh.call import Call
from services.models.providers import hashing
from services.models.providers.builtin import HASHING_ID
from weft.models.v1 import model_service_pb2, models_pb2

MODEL = "scripted/plan"


class ScriptedModels:
    """`weft.models.v1.ModelService`, and the service around it."""

    @property
    def handlers(self) -> Mapping[str, object]:
        """What implements the contract."""
        return {"weft.models.v1.ModelService": self}

    async def start(self) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """Nothing to do."""

    async def list_models(
        self, request: model_service_pb2.ListModelsRequest, call: Call
    ) -> model_service_pb2.ListModelsResponse:
        """The one model."""
        model = models_pb2.Model(
            id=MODEL,
            description="follows the plan in the question",
            context_tokens_max=32_768,
            is_default=True,
        )
        return model_service_pb2.ListModelsResponse(models=[model])

    async def generate(
        self, request: model_service_pb2.GenerateRequest, call: Call
    ) -> model_service_pb2.GenerateResponse:
        """The plan's next step, at once."""
        return _answer(next_step(request.conversation.messages))

    async def stream_generate(
        self, request: model_service_pb2.StreamGenerateRequest, call: Call
    ) -> AsyncGenerator[model_service_pb2.StreamGenerateResponse, None]:
        """The plan's next step, its text in as many parts as it asks for."""
        step = next_step(request.request.conversation.messages)
        for part in _parts(step.get("text", ""), step.get("tokens", 1)):
            if delay_seconds := step.get("delay_seconds"):
                await asyncio.sleep(delay_seconds)
            yield model_service_pb2.StreamGenerateResponse(text_delta=part)
        yield model_service_pb2.StreamGenerateResponse(completed=_answer(step))

    async def embed(
        self, request: model_service_pb2.EmbedRequest, call: Call
    ) -> model_service_pb2.EmbedResponse:
        """The offline embedding's vectors."""
        values = (hashing.embed(text) for text in request.texts)
        return model_service_pb2.EmbedResponse(
            embeddings=[model_service_pb2.Embedding(values=each) for each in values],
            model=HASHING_ID,
        )


def next_step(messages: Sequence[models_pb2.Message]) -> dict[str, Any]:
    """The step of the last question's plan that comes after the answers given to it."""
    answers, place = 0, len(messages) - 1
    while messages[place].role != models_pb2.ROLE_USER:
        answers += messages[place].role == models_pb2.ROLE_ASSISTANT
        place -= 1
    question = messages[place].text
    try:
        steps: list[dict[str, Any]] = json.loads(question)["steps"]
    except (json.JSONDecodeError, KeyError, TypeError):
        steps = [{"text": question}]
    return steps[min(answers, len(steps) - 1)]


def _answer(step: Mapping[str, Any]) -> model_service_pb2.GenerateResponse:
    message = models_pb2.Message(role=models_pb2.ROLE_ASSISTANT, text=step.get("text", ""))
    for index, call in enumerate(step.get("calls", ())):
        message.tool_calls.add(
            id=f"call{index}",
            tool=call["tool"],
            arguments_json=json.dumps(call.get("arguments", {})),
        )
    return model_service_pb2.GenerateResponse(
        message=message,
        usage=models_pb2.Usage(input_tokens=10, output_tokens=5, estimated=True),
        finish_reason=models_pb2.FINISH_REASON_TOOL_CALLS
        if message.tool_calls
        else models_pb2.FINISH_REASON_STOP,
        model=MODEL,
    )


def _parts(text: str, count: int) -> list[str]:
    size = max(1, -(-len(text) // max(1, count)))
    return [text[start : start + size] for start in range(0, len(text), size)]
