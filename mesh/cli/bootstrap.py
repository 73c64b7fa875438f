"""`weft mesh bootstrap`: what gRPC's xDS client of any language needs to find the mesh."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import CommandFailed, usage_error
from mesh.cli.instances import instances
from mesh.cli.output import note
from mesh.cli.pages import fetch

if TYPE_CHECKING:
    from weft.control.v1.instances_pb2 import Instance

__all__ = ["instances"]
LIMIT = 1_000


@command(instances, "bootstrap", example="weft mesh bootstrap --zone west > bootstrap.json")
def write_bootstrap(
    client: Client,
    zone: Annotated[
        str, typer.Option(help="Zone that the client runs in: instances of it come first.")
    ] = "",
    node: Annotated[str, typer.Option(help="What the client is called in logs.")] = "client",
    certificates: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder with cert.pem, key.pem and bundle.pem, as `weft ca issue --client` makes"
            " it, where the client will have it.",
        ),
    ] = None,
) -> None:
    """Prints the bootstrap of an xDS client, for GRPC_XDS_BOOTSTRAP.

    With it gRPC's own client, in any language that has one, dials xds:///weft and reaches
    every service: nearest zone first, with retries, splits and failover. It asks the control
    planes that there are by now, one after the other.
    """
    from mesh.control.xds.bootstrap import CertificateFiles, bootstrap
    from weft.control.v1 import registry_service_pb2 as pb
    from weft.control.v1.registry_service_pb2_grpc import RegistryServiceStub

    request = pb.ListInstancesRequest(service="control")
    stub = client.stub(RegistryServiceStub)
    found = fetch(client, stub.ListInstances, request, lambda page: page.instances, LIMIT)
    serving = [each for each in found if each.xds_target]
    if not serving:
        raise CommandFailed("no instance serves xDS: `weft serve control` does")
    encrypted = any(each.spiffe_id for each in serving)
    if encrypted and certificates is None:
        raise usage_error(
            "the mesh is mutual TLS: --certificates names the folder with the client's own,"
            " as `weft ca issue --client NAME` makes it"
        )
    files = None
    if certificates is not None:
        folder = certificates.expanduser().absolute()
        _check(folder, encrypted)
        files = CertificateFiles(folder / "cert.pem", folder / "key.pem", folder / "bundle.pem")
    servers = [each.xds_target for each in serving] if encrypted else _together(serving)
    text = bootstrap(servers, node=node, zone=zone, certificates=files, encrypted=encrypted)
    typer.echo(text)


def _check(folder: Path, encrypted: bool) -> None:
    """Says what keeps the client from using the folder, as far as that shows here: the client
    may run on another machine. CommandFailed where the folder is here, and of no use."""
    from mesh.errors import FailedPrecondition
    from mesh.security.certificate_files import CertificateFiles
    from mesh.security.spiffe import ProcessId

    if not encrypted:
        note("The mesh is plain text: it asks nobody for a certificate.")
    if not folder.is_dir():
        note(f"There is no folder {folder} on this machine: the client must have it there.")
        return
    try:
        holder = CertificateFiles(folder).held().holder
    except FailedPrecondition as error:
        raise CommandFailed(error.message) from error
    if isinstance(holder, ProcessId):
        note(
            f"It is the certificate of {holder}: who has it is that service."
            " `weft ca issue --client NAME` makes one that is none."
        )


def _together(serving: "list[Instance]") -> list[str]:
    """Each of them, behind one server with all their addresses: some clients (Node) ask the
    first server only, and others (Go, Java) can't dial several addresses, and take the next."""
    targets = [each.xds_target for each in serving]
    hosts = [target.rpartition(":")[0] for target in targets]
    if len(targets) == 1:
        return targets
    if all(host.startswith("[") for host in hosts):
        return ["ipv6:" + ",".join(targets), *targets]
    if all(host.replace(".", "").isdigit() for host in hosts):
        return ["ipv4:" + ",".join(targets), *targets]
    return targets
