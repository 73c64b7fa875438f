"""Talking to a model without an agent."""

import io
import json
from collections.abc import AsyncGenerator, Iterator

import pytest

from mesh.call import Call
from mesh.errors import ModelUnavailable
from tests.support.command_line import Weft
from tests.support.memory_catalogues import MemoryModels
from tests.support.memory_platform import MemoryPlatform
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2


class EchoModels(MemoryModels):
    """Answers with what was asked, a word at a time."""

    def __init__(self) -> None:
        self.requests: list[pb.GenerateRequest] = []

    async def stream_generate(
        self, request: pb.StreamGenerateRequest, _: Call
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        """The last message; an error behind the first word where that is `break`."""
        self.requests.append(request.request)
        text = request.request.conversation.messages[-1].text
        for word in text.split(" "):
            yield pb.StreamGenerateResponse(text_delta=f"{word} ")
            if word == "break":
                raise ModelUnavailable("the model's answer broke off")
        message = models_pb2.Message(role=models_pb2.ROLE_ASSISTANT, text=text)
        usage = models_pb2.Usage(input_tokens=3, output_tokens=2)
        yield pb.StreamGenerateResponse(
            completed=pb.GenerateResponse(message=message, usage=usage, model="echo/m")
        )


@pytest.fixture
def models() -> EchoModels:
    return EchoModels()


@pytest.fixture
def platform(models: EchoModels) -> Iterator[MemoryPlatform]:
    platform = MemoryPlatform()
    platform.models = models
    platform.start()
    yield platform
    platform.stop()


def test_an_answer_streams_to_stdout_and_its_usage_to_stderr(
    weft: Weft, models: EchoModels
) -> None:
    ran = weft(
        *("model", "chat", "hello there", "--model", "route/fast", "--instructions", "Be brief."),
        *("--label", "region=eu", "--temperature", "0.5", "--tokens", "9"),
        *("--schema", '{"type": "object"}'),
    )
    assert (ran.code, ran.out) == (0, "hello there \n")
    assert "echo/m: 3 tokens read, 2 written" in ran.err
    (asked,) = models.requests
    assert (asked.parent, asked.model) == ("tenants/default", "route/fast")
    assert asked.instructions == "Be brief."
    assert asked.response_json_schema == '{"type": "object"}'
    assert [(each.key, each.value) for each in asked.labels] == [("region", "eu")]
    assert (asked.parameters.temperature, asked.parameters.output_tokens_max) == (0.5, 9)


def test_lines_are_one_conversation(
    weft: Weft, models: EchoModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n\nnever\n"))
    ran = weft("model", "chat")
    assert (ran.code, ran.out) == (0, "one \ntwo \n")
    said = [message.text for message in models.requests[-1].conversation.messages]
    assert said == ["one", "one", "two"]


def test_as_json_each_part_is_a_line(weft: Weft) -> None:
    ran = weft("model", "chat", "hello there", "-o", "json")
    parts = [json.loads(line) for line in ran.out.splitlines()]
    assert [part.get("text_delta") for part in parts] == ["hello ", "there ", None]
    assert parts[-1]["completed"]["model"] == "echo/m"


def test_an_answer_that_breaks_off_shows_what_came_and_fails(weft: Weft) -> None:
    ran = weft("model", "chat", "break it")
    assert ran.code != 0
    assert ran.out == "break "
    assert "the model's answer broke off" in ran.err


@pytest.mark.parametrize("label", ["region", "=eu"])
def test_a_label_that_is_none_is_a_mistake(label: str, weft: Weft) -> None:
    ran = weft("model", "chat", "hello", "--label", label)
    assert ran.code == 2
    assert "isn't a label" in ran.err
