"""`weft model`: the models that can be called."""

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.output import one_line, show_list
from mesh.cli.pages import LIMIT, Limit, fetch

models = typer.Typer(help="List models, and talk to one.", no_args_is_help=True)


@command(models, "list", example="weft model list")
def list_models(client: Client, limit: Limit = LIMIT) -> None:
    """Lists the models that can be called, and which one is used by default."""
    from weft.models.v1 import model_service_pb2 as pb
    from weft.models.v1.model_service_pb2_grpc import ModelServiceStub

    stub: ModelServiceStub = client.stub(ModelServiceStub)
    request = pb.ListModelsRequest(parent=client.parent)
    found = fetch(client, stub.ListModels, request, lambda page: page.models, limit)
    columns = {
        "model": lambda m: m.id,
        "default": lambda m: "yes" if m.is_default else "",
        "embeds": lambda m: "yes" if m.embeds else "",
        "labels": lambda m: ", ".join(f"{each.key}={each.value}" for each in m.labels),
        "context tokens": lambda m: m.context_tokens_max,
        "description": lambda m: one_line(m.description),
    }
    show_list(client.output, found, columns)
