"""`weft model batch`: many calls of a model from a file, each answer as it comes."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli.chat import models
from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import CommandFailed, ExitCode, usage_error
from mesh.cli.inputs import read_file
from mesh.cli.output import note

if TYPE_CHECKING:
    from weft.models.v1 import model_service_pb2 as pb

__all__ = ["models"]

BATCH_SECONDS = 3_600.0
"""Deadline of a batch where no --timeout is given."""
REQUESTS_MAX = 1_000


@command(models, "batch", example="weft model batch questions.jsonl --concurrency 8")
def batch(
    client: Client,
    file: Annotated[
        str,
        typer.Argument(
            help="A line for each call: a question, or a GenerateRequest as JSON; - is stdin."
        ),
    ],
    model: Annotated[str, typer.Option(help="For lines that name none.")] = "",
    concurrency: Annotated[
        int, typer.Option(help="Most calls at once; 0 as the server has it.", min=0, max=1_000)
    ] = 0,
) -> None:
    """Calls a model once for each line, some at once, and prints each answer as it comes.

    A line of JSON for each: `index` is the line's number in the file from 0, then `text` with
    `usage`, or `error`. Empty lines are passed over. Exits 6 where one of them failed.
    """
    from weft.models.v1 import model_service_pb2 as pb
    from weft.models.v1.model_service_pb2_grpc import ModelServiceStub

    # Not `splitlines`: JSON and questions may hold other separators, such as U+2028.
    written = enumerate(read_file(file).split("\n"))
    lines = {number: line.strip() for number, line in written if line.strip()}
    if not 0 < len(lines) <= REQUESTS_MAX:
        raise usage_error(f"{len(lines)} lines: a batch has 1 to {REQUESTS_MAX}")
    request = pb.BatchGenerateRequest(parent=client.parent, concurrency_max=concurrency)
    for number, line in lines.items():
        request.requests.append(_request(client, number, line, model))
    numbers = list(lines)
    stub: ModelServiceStub = client.stub(ModelServiceStub)
    failed = 0
    for outcome in stub.BatchGenerate(request, timeout=client.remaining_seconds(BATCH_SECONDS)):
        failed += outcome.HasField("error")
        outcome.index = numbers[outcome.index]
        sys.stdout.write(json.dumps(_said(outcome), ensure_ascii=False) + "\n")
        sys.stdout.flush()
    note(f"{len(lines) - failed} of {len(lines)} calls were answered")
    if failed:
        raise CommandFailed(f"{failed} calls failed", exit_code=ExitCode.TURN_FAILED)


def _request(client: Client, number: int, line: str, model: str) -> "pb.GenerateRequest":
    from google.protobuf import json_format

    from weft.models.v1 import model_service_pb2 as pb
    from weft.models.v1 import models_pb2

    request = pb.GenerateRequest()
    if line.startswith("{"):
        try:
            json_format.Parse(line, request)
        except json_format.ParseError as error:
            raise usage_error(f"line {number + 1} is no GenerateRequest: {error}") from error
    else:
        request.conversation.messages.add(role=models_pb2.ROLE_USER, text=line)
    request.parent = request.parent or client.parent
    request.model = request.model or model
    return request


def _said(outcome: "pb.BatchGenerateResponse") -> dict[str, Any]:
    if outcome.HasField("error"):
        return {"index": outcome.index, "error": outcome.error.message}
    answer = outcome.response
    usage: dict[str, Any] = {
        "input_tokens": answer.usage.input_tokens,
        "output_tokens": answer.usage.output_tokens,
    }
    if answer.usage.HasField("cost_micro_usd"):
        usage["cost_micro_usd"] = answer.usage.cost_micro_usd
    return {
        "index": outcome.index,
        "text": answer.message.text,
        "model": answer.model,
        "usage": usage,
    }
