"""`weft model chat`: a model without an agent around it."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import usage_error
from mesh.cli.inputs import read_argument
from mesh.cli.models import models
from mesh.cli.output import Output, note, printable, show_item
from mesh.cli.transcript import usage_line

if TYPE_CHECKING:
    from weft.models.v1 import model_service_pb2 as pb
    from weft.models.v1 import models_pb2

__all__ = ["models"]

CHAT_SECONDS = 600.0
LINES_MAX = 1_000
LINE_CHARACTERS_MAX = 1_048_576
"""Questions of one conversation, and how long each may be."""
PROMPT = "> "


@command(models, "chat", example='weft model chat "Why is the sky blue?" --model ollama/qwen3')
def chat(
    client: Client,
    question: Annotated[
        str | None,
        typer.Argument(help="The question; @FILE or - read it. None: ask line by line."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="The model, as PROVIDER/MODEL or route/ROUTE; the default else.")
    ] = "",
    instructions: Annotated[
        str, typer.Option(help="What the model is to be and do; @FILE reads it.")
    ] = "",
    schema: Annotated[
        str, typer.Option(help="JSON Schema that the answer must fit; @FILE reads it.")
    ] = "",
    label: Annotated[
        list[str] | None, typer.Option(help="Label that the model must have, as KEY=VALUE.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Sampling temperature.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=0, help="Most tokens of an answer; 0: any.")] = 0,
) -> None:
    """Asks a model and streams its answer to stdout.

    No agent, no tools, and nothing is kept. Without a question each line that comes is
    one, and the model knows those before it; an empty line or the end of the input ends it.
    """
    from weft.models.v1 import model_service_pb2 as pb

    request = pb.GenerateRequest(
        parent=client.parent,
        model=model,
        instructions=read_argument(instructions) if instructions else "",
        response_json_schema=read_argument(schema) if schema else "",
        labels=[_label(each) for each in label or ()],
    )
    request.parameters.output_tokens_max = tokens
    if temperature is not None:
        request.parameters.temperature = temperature
    questions = _lines() if question is None else iter([read_argument(question)])
    for each in questions:
        _ask(client, request, each)


def _ask(client: Client, request: "pb.GenerateRequest", question: str) -> None:
    """Asks, shows the answer, and adds both to the conversation."""
    from weft.models.v1 import model_service_pb2 as pb
    from weft.models.v1 import models_pb2
    from weft.models.v1.model_service_pb2_grpc import ModelServiceStub

    request.conversation.messages.add(role=models_pb2.ROLE_USER, text=question)
    stub: ModelServiceStub = client.stub(ModelServiceStub)
    seconds = client.remaining_seconds(CHAT_SECONDS)
    for part in stub.StreamGenerate(pb.StreamGenerateRequest(request=request), timeout=seconds):
        if client.output is not Output.TABLE:
            show_item(client.output, part)
        elif part.HasField("completed"):
            sys.stdout.write("\n")
            note(f"{part.completed.model}: {usage_line(part.completed.usage)}")
        else:
            sys.stdout.write(printable(part.text_delta))
            sys.stdout.flush()
        if part.HasField("completed"):
            request.conversation.messages.append(part.completed.message)


def _lines() -> Iterator[str]:
    """The questions that are typed, or come through a pipe."""
    for _ in range(LINES_MAX):
        if sys.stdin.isatty():
            sys.stderr.write(PROMPT)
            sys.stderr.flush()
        line = sys.stdin.readline(LINE_CHARACTERS_MAX).strip()
        if not line:
            return
        yield line
    note(f"A conversation has {LINES_MAX} questions at most.")


def _label(text: str) -> "models_pb2.ModelLabel":
    from weft.models.v1 import models_pb2

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise usage_error(f"{text!r} isn't a label", "Write it as KEY=VALUE: region=eu.")
    return models_pb2.ModelLabel(key=key, value=value)
