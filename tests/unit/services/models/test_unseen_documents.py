"""How well the offline model answers on documents that it was not made for.

The whole path runs as in a turn: the documents are split, indexed and searched by the
vectors service, the model's calls go through the built-in tools.
"""

import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.call import Call
from mesh.clock import SYSTEM
from services.models.providers.extractive.reply import reply
from services.tools.builtins.builtin import BuiltinCall, BuiltinTools
from services.tools.builtins.definitions import builtin_tools
from services.tools.egress import EgressPolicy
from services.tools.settings import ToolsSettings
from services.vectors.service import VectorsService
from services.vectors.settings import VectorsSettings
from tests.support.embedding import LocalModels
from tests.unit.services.models.unseen_questions import (
    ANSWERABLE,
    FOLLOW_UPS,
    UNANSWERABLE,
    WITH_FIGURES,
    Asked,
)
from weft.models.v1 import model_service_pb2, models_pb2
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as vectors_pb

FOLDER = Path(__file__).parent / "unseen"
TENANT, COLLECTION = "default", "unseen"
NAME = f"tenants/{TENANT}/collections/{COLLECTION}"
STEPS_MAX = 6


def call() -> Call:
    return Call(method="/test/Unseen", deadline=time.monotonic() + 30, request_id="unseen")


def document(path: Path) -> collections_pb2.Document:
    is_markdown = path.suffix == ".md"
    media_type = (
        collections_pb2.MEDIA_TYPE_MARKDOWN if is_markdown else collections_pb2.MEDIA_TYPE_PLAIN
    )
    return collections_pb2.Document(uri=path.name, text=path.read_text(), media_type=media_type)


class LocalVectors:
    """A stub that calls the service in this process."""

    def __init__(self, service: VectorsService) -> None:
        self._service = service

    async def Search(  # noqa: N802 - as generated stubs name it
        self, request: vectors_pb.SearchRequest, *, timeout: float
    ) -> vectors_pb.SearchResponse:
        return await self._service.search(request, call())


@pytest.fixture(scope="module")
async def tools(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BuiltinTools]:
    service = VectorsService(VectorsSettings(), tmp_path_factory.mktemp("vectors"), LocalModels())
    await service.start()
    created = vectors_pb.CreateCollectionRequest(
        parent=f"tenants/{TENANT}", collection_id=COLLECTION
    )
    await service.create_collection(created, call())
    documents = [document(path) for path in sorted(FOLDER.iterdir())]
    await service.upsert_documents(
        vectors_pb.UpsertDocumentsRequest(name=NAME, documents=documents), call()
    )
    tools = BuiltinTools(ToolsSettings(), SYSTEM, LocalVectors(service), None, EgressPolicy())
    yield tools
    await tools.close()
    await service.stop()


def definitions() -> list[models_pb2.ToolDefinition]:
    """The tools as an agent offers them that fixed the collection."""
    offered = []
    for tool_id in ("calculator", "search", "time"):
        tool = builtin_tools(TENANT)[tool_id]
        schema = json.loads(tool.parameters_json_schema)
        schema["properties"].pop("collection", None)
        schema["required"] = [name for name in schema["required"] if name != "collection"]
        offered.append(
            models_pb2.ToolDefinition(
                name=tool_id,
                description=tool.description,
                parameters_json_schema=json.dumps(schema),
            )
        )
    return offered


async def ask(tools: BuiltinTools, questions: tuple[str, ...]) -> str:
    """The answer to the last question of a session."""
    request = model_service_pb2.GenerateRequest(tools=definitions())
    answer = ""
    for question in questions:
        request.conversation.messages.add(role=models_pb2.ROLE_USER, text=question)
        answer = await _answer(tools, request)
    return answer


async def _answer(tools: BuiltinTools, request: model_service_pb2.GenerateRequest) -> str:
    for _ in range(STEPS_MAX):
        message = reply(request).message
        request.conversation.messages.append(message)
        if not message.tool_calls:
            return message.text
        for made in message.tool_calls:
            arguments = json.loads(made.arguments_json)
            if made.tool == "search":
                arguments["collection"] = COLLECTION
            result = await tools.invoke(BuiltinCall(TENANT, made.tool, arguments, 10))
            request.conversation.messages.add(
                role=models_pb2.ROLE_TOOL,
                tool_call_id=made.id,
                text=result.content,
                is_error=result.is_error,
            )
    raise AssertionError(f"no answer after {STEPS_MAX} steps")


def is_right(answer: str, asked: Asked) -> bool:
    """Whether the answer holds the fact; a quoted one next to its source, too."""
    body, _, sources = answer.partition("Sources:")
    at = body.lower().find(asked.fact.lower())
    if at < 0 or asked.fact.startswith("="):
        return at >= 0
    number = re.search(r"\[(\d+)\]", body[at:])
    return number is not None and any(
        line.startswith(f"[{number[1]}]") and asked.source in line for line in sources.splitlines()
    )


@pytest.mark.parametrize(
    ("questions", "share_min"),
    [(ANSWERABLE, 0.85), (WITH_FIGURES, 0.85), (FOLLOW_UPS, 0.85)],
    ids=["answerable", "with figures", "follow-ups"],
)
async def test_unseen_documents_are_answered_from(
    tools: BuiltinTools, questions: tuple[Asked, ...], share_min: float
) -> None:
    answers = [(asked, await ask(tools, asked.questions)) for asked in questions]
    wrong = [(asked, answer) for asked, answer in answers if not is_right(answer, asked)]
    assert len(wrong) <= (1 - share_min) * len(questions), wrong


async def test_what_unseen_documents_do_not_hold_is_said_to_be_missing(
    tools: BuiltinTools,
) -> None:
    answers = [(question, await ask(tools, (question,))) for question in UNANSWERABLE]
    wrong = [one for one in answers if "I found nothing" not in one[1]]
    assert len(wrong) <= 0.15 * len(UNANSWERABLE), wrong


async def test_the_same_question_gets_the_same_answer(tools: BuiltinTools) -> None:
    questions = WITH_FIGURES[0].questions
    assert await ask(tools, questions) == await ask(tools, questions)
