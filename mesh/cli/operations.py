"""`weft mesh`: what there is, where calls go, and taking an instance out."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.bootstrap import instances
from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import CommandFailed, ExitCode, usage_error
from mesh.cli.instances import load_text, state_text
from mesh.cli.output import Output, as_data, note, show_data, show_message, show_rows

if TYPE_CHECKING:
    from weft.control.v1.instances_pb2 import Instance
    from weft.control.v1.mesh_service_pb2 import ListRoutesResponse, ServiceStatus
    from weft.control.v1.mesh_service_pb2_grpc import MeshServiceStub

__all__ = ["instances"]

COLLECTION = "instances/"
PART_LENGTH_MIN = 4
"""Letters within an id that name an instance: fewer are a slip of the hand."""
InstanceArgument = Annotated[
    str,
    typer.Argument(
        metavar="INSTANCE",
        help="An instance's id, its first letters, or 4 or more in a row that only it has.",
    ),
]


@command(instances, "status", example="weft mesh status")
def show_status(client: Client) -> None:
    """Shows who serves what, which services nobody serves, who drains, and where calls go to.

    Exits 1 where nobody takes calls of a service.
    """
    from weft.control.v1 import mesh_service_pb2 as pb

    status = client.call(_stub(client).GetMeshStatus, pb.GetMeshStatusRequest())
    if client.output is not Output.TABLE:
        show_data(client.output, as_data(status))
    else:
        show_rows(
            ("service", "serving", "draining", "zones", "versions"), _services(status.services)
        )
        sys.stdout.write("\n")
        planes = set(status.control_planes)
        header = ("instance", "zone", "version", "state", "load", "services")
        show_rows(header, [_instance(each, planes) for each in status.instances])
    nobody = [each.name for each in status.services if not each.serving]
    if nobody:
        note(f"nobody takes calls of {', '.join(nobody)}", style="red")
        raise typer.Exit(1)


@command(instances, "routes", example="weft mesh routes --service agents --zone north")
def list_routes(
    client: Client,
    service: Annotated[str, typer.Option(help="This service only, such as agents.")] = "",
    zone: Annotated[
        str, typer.Option(help="Zone of the client; that of who answers where it isn't said.")
    ] = "",
) -> None:
    """Lists where the calls of a client in a zone go, as the control plane tells it.

    Priority 0 is called first. RETRYABLE counts the methods that are tried again where they
    fail as UNAVAILABLE; -o json names them.
    """
    from weft.control.v1 import mesh_service_pb2 as pb

    request = pb.ListRoutesRequest(service=service, zone=zone)
    found = client.call(_stub(client).ListRoutes, request)
    if client.output is not Output.TABLE:
        show_data(client.output, as_data(found))
        return
    header = ("service", "cluster", "portion", "priority", "zone", "endpoint", "health", "weight")
    show_rows((*header, "retryable", "by"), list(_routes(found)))
    for each in found.left_out:
        note(f"not told: {each}")


@command(instances, "drain", example="weft mesh drain fke2zbpa --stop")
def drain(
    client: Client,
    instance: InstanceArgument,
    stop: Annotated[bool, typer.Option("--stop", help="It ends in order, too.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also where nobody else serves what it serves.")
    ] = False,
) -> None:
    """Has an instance take nothing new; it finishes what it has.

    It stays drained until `weft mesh undrain`. With --stop it ends; who supervises it may
    start it again. Ids begin with the time of the start: those of instances that started
    within minutes of each other differ from the seventh letter on, or later.
    """
    from weft.control.v1 import mesh_service_pb2 as pb

    name = _named(client, instance)
    request = pb.DrainInstanceRequest(name=name, stop=stop, force=force)
    _show(client, client.call(_stub(client).DrainInstance, request).instance)


@command(instances, "undrain", example="weft mesh undrain fke2zbpa")
def undrain(client: Client, instance: InstanceArgument) -> None:
    """Has an instance that was drained take calls again."""
    from weft.control.v1 import mesh_service_pb2 as pb

    request = pb.UndrainInstanceRequest(name=_named(client, instance))
    _show(client, client.call(_stub(client).UndrainInstance, request).instance)


@command(instances, "dump", example="weft mesh dump > report.json")
def dump(
    client: Client,
    instance: Annotated[
        str | None,
        typer.Argument(metavar="[INSTANCE]", help="The one that answers where none is named."),
    ] = None,
) -> None:
    """Prints all that a report of a fault needs to say of an instance, as one JSON document.

    The registry as it knows it, gRPC's channels and servers (channelz), what its xDS clients
    were told (CSDS), versions, and settings. No secrets; addresses, though.
    """
    from weft.control.v1 import mesh_service_pb2 as pb

    name = f"{COLLECTION}-" if instance is None else _named(client, instance)
    found = client.call(_stub(client).DumpInstance, pb.DumpInstanceRequest(name=name))
    form = Output.YAML if client.output is Output.YAML else Output.JSON
    show_data(form, as_data(found))


def _stub(client: Client) -> "MeshServiceStub":
    from weft.control.v1.mesh_service_pb2_grpc import MeshServiceStub

    stub: MeshServiceStub = client.stub(MeshServiceStub)
    return stub


def _named(client: Client, text: str) -> str:
    """The full name of an instance, of whose id a part may be given; CommandFailed where it is
    that of none, or of several."""
    from weft.control.v1 import mesh_service_pb2 as pb

    wanted = text.removeprefix(COLLECTION)
    if not wanted:
        raise usage_error("name an instance", "`weft mesh instances` lists them.")
    status = client.call(_stub(client).GetMeshStatus, pb.GetMeshStatusRequest())
    ids = [each.name.removeprefix(COLLECTION) for each in status.instances]
    found = [each for each in ids if each.startswith(wanted)]
    if not found and len(wanted) >= PART_LENGTH_MIN:
        found = [each for each in ids if wanted in each]
    if wanted in found:
        found = [wanted]
    if not found:
        raise CommandFailed(
            f"no instance {wanted}",
            exit_code=ExitCode.NOT_FOUND,
            notes=["`weft mesh instances` lists them."],
        )
    if len(found) > 1:
        raise usage_error(
            f"several instances have {wanted}: {', '.join(found)}",
            "Give letters that only one of them has, from any part of its id.",
        )
    return f"{COLLECTION}{found[0]}"


def _show(client: Client, instance: "Instance") -> None:
    fields = {
        "instance": instance.name.removeprefix(COLLECTION),
        "state": state_text(instance),
        "target": instance.target,
        "services": ", ".join(instance.services),
    }
    show_message(client.output, instance, fields)


def _services(services: "Iterable[ServiceStatus]") -> list[list[str]]:
    return [
        [
            each.name,
            str(each.serving or "NOBODY"),
            str(each.draining),
            ", ".join(zone or "-" for zone in each.zones),
            ", ".join(each.versions),
        ]
        for each in services
    ]


def _instance(instance: "Instance", control_planes: set[str]) -> list[str]:
    plane = " (control plane)" if instance.name in control_planes else ""
    return [
        instance.name.removeprefix(COLLECTION),
        instance.zone or "-",
        instance.version,
        state_text(instance),
        load_text(instance.load),
        ", ".join(instance.services) + plane,
    ]


def _routes(found: "ListRoutesResponse") -> Iterable[list[str]]:
    from weft.control.v1 import mesh_service_pb2 as pb

    for route in found.routes:
        weights = sum(cluster.weight for cluster in route.clusters) or 1
        retried = str(len(route.retryable_methods))
        for cluster in route.clusters:
            portion = f"{cluster.weight / weights:.0%}"
            if not cluster.endpoints:
                yield [route.service, cluster.name, portion, *["-"] * 3, "NOBODY", "-", retried, ""]
            for each in cluster.endpoints:
                health = pb.EndpointHealth.Name(each.health).removeprefix("ENDPOINT_HEALTH_")
                yield [
                    *(route.service, cluster.name, portion, str(each.priority), each.zone or "-"),
                    *(each.address, health.lower(), str(each.weight), retried),
                    route.affinity_header,
                ]
