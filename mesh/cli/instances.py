"""`weft mesh`: the processes of a deployment."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.output import show_list
from mesh.cli.pages import LIMIT, Limit, fetch

if TYPE_CHECKING:
    from weft.control.v1.instances_pb2 import Instance, InstanceLoad

instances = typer.Typer(
    help="See and operate the processes of the deployment.", no_args_is_help=True
)

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


@command(instances, "instances", example="weft mesh instances --service scheduler")
def list_instances(
    client: Client,
    service: Annotated[str, typer.Option(help="Those only that serve it, such as scheduler.")] = "",
    limit: Limit = LIMIT,
) -> None:
    """Lists the instances that are there: what each serves, where, and how busy it is."""
    from weft.control.v1 import registry_service_pb2 as pb
    from weft.control.v1.registry_service_pb2_grpc import RegistryServiceStub

    stub = client.stub(RegistryServiceStub)
    request = pb.ListInstancesRequest(service=service)
    found = fetch(client, stub.ListInstances, request, lambda page: page.instances, limit)
    columns = {
        "instance": lambda each: each.name.removeprefix("instances/"),
        "state": state_text,
        "target": lambda each: each.target,
        "zone": lambda each: each.zone or "-",
        "version": lambda each: each.version,
        "load": lambda each: load_text(each.load),
        "age": _age,
        "services": lambda each: ", ".join(each.services),
    }
    show_list(client.output, found, columns)


def state_text(instance: "Instance") -> str:
    """Whether it takes calls, in a word."""
    from weft.control.v1 import instances_pb2

    name: str = instances_pb2.InstanceState.Name(instance.state)
    return name.removeprefix("INSTANCE_STATE_").lower()


def load_text(load: "InstanceLoad") -> str:
    """How busy it is, in a few words."""
    return f"{load.cpu_utilization:.0%} cpu, {load.calls} calls"


def _age(instance: "Instance") -> str:
    """How long it runs, in the largest unit that fits."""
    seconds = max(0, int(time.time() - instance.start_time.seconds))
    size, unit = next((each for each in _UNITS if seconds >= each[0]), _UNITS[-1])
    return f"{seconds // size}{unit}"
