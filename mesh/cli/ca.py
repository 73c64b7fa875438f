"""`weft ca`: the certificates by which Weft's processes know each other.

The authority lies in the secrets folder of whoever runs these commands, and nowhere else;
what serves gets a folder with its own certificate.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli.failures import explained, usage_error
from mesh.cli.output import Output, note, show_data, show_rows

if TYPE_CHECKING:
    from mesh.security.ca import CertificateAuthority, Issued, Root

LoadServices = Callable[[], Sequence[str]]
"""Gives the names of all services: whoever runs them knows them."""
DAYS_MAX = 3650

SecretsDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the master key, else ~/.config/weft/secrets; the authority is in its ca/.",
        envvar="WEFT_SECURITY_SECRETS_DIR",
    ),
]
Form = Annotated[Output, typer.Option("-o", "--output", help="Form of what is printed.")]


def add_ca(application: typer.Typer, load_services: LoadServices) -> None:
    """Adds the group."""
    application.add_typer(_ca(load_services), name="ca")


def _ca(load_services: LoadServices) -> typer.Typer:
    group = typer.Typer(
        no_args_is_help=True,
        help="Certificates of Weft's own processes: mTLS between them, TLS for everybody else.",
    )

    @group.command(epilog="Example: weft ca init --trust-domain weft.example.org")
    def init(
        trust_domain: Annotated[
            str, typer.Option(help="What all IDs begin with; no name that has to resolve.")
        ] = "weft.internal",
        days: Annotated[int, typer.Option(help="How long it lasts.", min=1, max=DAYS_MAX)] = 1825,
        secrets_dir: SecretsDir = None,
        output: Form = Output.TABLE,
    ) -> None:
        """Make the authority of a deployment, once.

        Its key stays in the secrets folder (0600): whoever has that is any service of yours.
        Keep it off the machines that serve, and back it up.
        """
        with explained():
            from mesh.security.spiffe import check_trust_domain

            authority = _authority(secrets_dir, load_services)
            root = authority.init(check_trust_domain(trust_domain), days)
        if output is not Output.TABLE:
            show_data(output, _root_record(root))
            return
        print(f"{root.name} is in {authority.folder}, until {_day(root.expire_time)}.")
        print("Next: `weft ca issue` makes the certificate of a process.")

    @group.command(epilog="Example: weft ca issue agents state --dns weft-1.example.org")
    def issue(
        services: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[SERVICE]...",
                help="The services of the process; all where none is named, as for `weft up`.",
            ),
        ] = None,
        dns: Annotated[
            list[str] | None, typer.Option(help="A name by which clients reach it; repeatable.")
        ] = None,
        ip: Annotated[
            list[str] | None, typer.Option(help="An address by which clients reach it; repeatable.")
        ] = None,
        name: Annotated[
            str | None,
            typer.Option(
                help="What its folder is called, so that each machine has one: the services'"
                " names where it isn't said."
            ),
        ] = None,
        client: Annotated[
            str | None,
            typer.Option(
                metavar="NAME",
                help="Instead one for a client that isn't Weft's, such as grpc-go on xds:///weft.",
            ),
        ] = None,
        everything: Annotated[
            bool, typer.Option("--all", help="Renew all that were issued, with their names.")
        ] = False,
        days: Annotated[int, typer.Option(help="How long it lasts.", min=1, max=DAYS_MAX)] = 30,
        secrets_dir: SecretsDir = None,
        output: Form = Output.TABLE,
    ) -> None:
        """Make or renew the certificate of the processes of some services, or of a client.

        A process takes part in calls as the services in its certificate, and as no other. A
        client is let connect to processes, and may do what its API key allows, nothing else.
        What runs already takes a new certificate without a restart; renew in time, by cron:
        `weft ca issue --all`. On another machine it needs a copy of the folder: `cp -rL`.
        """
        # One that is empty is meant, too, as where a shell's variable isn't set.
        named = name is not None or client is not None
        if everything and (services or dns or ip or named):
            raise usage_error("--all renews what there is; name services or renew all")
        if client is not None and (services or dns or ip or name is not None):
            raise usage_error("--client goes alone: a client is no service, and isn't dialled")
        with explained():
            from mesh.security.spiffe import role_of

            authority = _authority(secrets_dir, load_services)
            if everything:
                made = authority.issue_all(days)
            elif client is not None:
                made = [authority.issue_client(client, days)]
            else:
                role = role_of(services or (), load_services())
                made = [authority.issue(role, dns or (), ip or (), days, name=name)]
        if not made:
            note("there is nothing to renew: no certificate was issued by this authority yet")
        for each in made:
            if each.lost:
                # Two machines with one folder take their names from each other.
                note(
                    f"{each.folder} was reached as {', '.join(each.lost)}, and isn't any more: with"
                    " --name each machine has a folder of its own."
                )
        if output is not Output.TABLE:
            show_data(output, [_issued_record(each) for each in made])
            return
        for each in made:
            print(f"{each.holder} until {_day(each.expire_time)}, in {each.folder}")
        if client is not None:
            print("Copy the folder to the client (cp -rL), and name it there:")
            print("weft mesh bootstrap --certificates FOLDER")
        elif len(made) == 1 and not everything:
            print(f"Serve with it: WEFT_TLS_CERTIFICATE_DIR={made[0].folder}")

    @group.command(epilog="Example: weft ca rotate; weft ca issue --all; weft ca rotate --finish")
    def rotate(
        finish: Annotated[
            bool, typer.Option("--finish", help="Trust the old root no more.")
        ] = False,
        days: Annotated[int, typer.Option(help="How long it lasts.", min=1, max=DAYS_MAX)] = 1825,
        secrets_dir: SecretsDir = None,
        output: Form = Output.TABLE,
    ) -> None:
        """Replace the root, without a call that fails.

        Three steps, each once the one before is on all machines: the new root is trusted
        beside the old one; `weft ca issue --all` has it sign; --finish ends the old one.
        """
        with explained():
            authority = _authority(secrets_dir, load_services)
            roots = authority.finish() if finish else [authority.rotate(days)]
        if output is not Output.TABLE:
            show_data(output, [_root_record(each) for each in roots])
        elif finish:
            ended = ", ".join(root.name for root in roots) or "nothing more"
            print(f"No longer trusted: {ended}.")
        else:
            print(f"{roots[0].name} is trusted and signs, until {_day(roots[0].expire_time)}.")
            print("Copy certificates to other machines again, and bundle.pem to clients that name")
            print("one (--ca-file), then `weft ca issue --all`, copy certificates once more, then")
            print("`weft ca rotate --finish`, and copy both: until then they trust the old root.")

    @group.command(epilog="Example: weft ca show")
    def show(secrets_dir: SecretsDir = None, output: Form = Output.TABLE) -> None:
        """Show the roots that are trusted, and the certificates that were issued."""
        with explained():
            authority = _authority(secrets_dir, load_services)
            roots, issued = authority.roots(), authority.issued()
        if output is not Output.TABLE:
            record: dict[str, Any] = {"roots": [_root_record(each) for each in roots]}
            show_data(output, record | {"certificates": [_issued_record(each) for each in issued]})
            return
        rows = [
            [root.name, _day(root.expire_time), "signs" if root.signs else "trusted"]
            for root in roots
        ]
        show_rows(["root", "until", "use"], rows)
        rows = [
            [
                str(each.holder),
                each.folder.name,
                _day(each.expire_time),
                "" if each.current else "signed by the old root",
                " ".join((*each.names.dns, *each.names.ip)),
            ]
            for each in issued
        ]
        show_rows(["certificate", "folder", "until", "note", "names"], rows)

    return group


def _authority(secrets_dir: Path | None, load_services: LoadServices) -> "CertificateAuthority":
    from mesh.security.ca import CertificateAuthority
    from mesh.security.settings import SecuritySettings

    folder = secrets_dir or SecuritySettings().secrets_dir
    return CertificateAuthority(folder / "ca", load_services())


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


def _root_record(root: "Root") -> dict[str, Any]:
    return {"name": root.name, "expire_time": root.expire_time.isoformat(), "signs": root.signs}


def _issued_record(each: "Issued") -> dict[str, Any]:
    return {
        "spiffe_id": str(each.holder),
        "folder": str(each.folder),
        "expire_time": each.expire_time.isoformat(),
        "dns": list(each.names.dns),
        "ip": list(each.names.ip),
        "current": each.current,
    }
