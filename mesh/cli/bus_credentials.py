"""`weft credentials` and `weft nats-credentials`: who may log in to NATS.

They work on the data folder, whether Weft runs on it or not.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.address import DEFAULT_DATA_DIR, find_nats
from mesh.cli.failures import CommandFailed, explained, usage_error
from mesh.cli.output import Output, show_data

if TYPE_CHECKING:
    from mesh.runtime.nats_credentials import NatsCredentials
    from mesh.runtime.nats_users import BusUser

LoadUsers = Callable[[], "Sequence[BusUser]"]
"""Gives the users of NATS: whoever runs the services knows them."""

DataDir = Annotated[Path, typer.Option(help="Data folder of the server.", envvar="WEFT_DATA_DIR")]
Tenant = Annotated[str, typer.Option(help="Tenant whose events are meant.", envvar="WEFT_TENANT")]
Name = Annotated[str, typer.Option(help="What the subscriber is called.")]
Form = Annotated[Output, typer.Option("-o", "--output", help="Form of what is printed.")]

_FOLDER = Path(DEFAULT_DATA_DIR)


def add_credentials(application: typer.Typer, load_users: LoadUsers) -> None:
    """Adds both groups."""
    application.add_typer(_credentials(load_users), name="credentials")
    application.add_typer(_nats_credentials(load_users), name="nats-credentials")


def _credentials(load_users: LoadUsers) -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help="Logins of Weft's own parts.")

    @group.command(epilog="Example: weft credentials rotate --data-dir ./weft-data")
    def rotate(data_dir: DataDir = _FOLDER) -> None:
        """Give every part of Weft a new key to NATS, and Valkey a new password.

        A server that runs takes them at once: connections are cut and come back, and
        nothing that was acknowledged is lost. Subscribers' keys stay as they are.
        """
        folder = _nats_folder(data_dir)
        with explained():
            users = load_users()
            _kept(folder, users).rotate()
            running = _reload(folder)
            _end_valkey(data_dir)
        where = "the running server has them" if running else "no server runs"
        print(f"{len(users)} users have new keys; {where}.")

    @group.command(epilog="Example: weft credentials configuration --user host --user admin")
    def configuration(
        user: Annotated[
            list[str] | None, typer.Option(help="Only these users; all where none is named.")
        ] = None,
    ) -> None:
        """Print the accounts for a nats-server of your own.

        Public keys are read from its environment: WEFT_NATS_HOST_USER for the user host.
        Subscribers stand in subscribers.conf beside it: see weft nats-credentials create.
        """
        from mesh.runtime.nats_access import access_configuration

        users = [each for each in load_users() if not user or each.name in user]
        if user and len(users) < len(set(user)):
            raise usage_error("there is no user of that name")
        keys = {each.name: f"$WEFT_NATS_{each.name.upper()}_USER" for each in users}
        sys.stdout.write(access_configuration(users, keys, include="subscribers.conf"))

    return group


def _nats_credentials(load_users: LoadUsers) -> typer.Typer:
    group = typer.Typer(
        no_args_is_help=True, help="Keys to NATS for subscribers of a tenant's live events."
    )

    @group.command(
        epilog="Example: weft nats-credentials create --tenant acme --name billing --to acme.nkey"
    )
    def create(
        tenant: Tenant,
        to: Annotated[Path, typer.Option(help="New file for the key's seed (0600).")],
        name: Name = "default",
        data_dir: DataDir = _FOLDER,
        output: Form = Output.TABLE,
    ) -> None:
        """Let somebody hear the live events of one tenant, and nothing else, from NATS.

        Envelopes come in the clear, payloads sealed. With NATS_URL, which is a server that
        Weft doesn't configure, what has to be added there is printed.
        """
        with explained():
            if os.environ.get("NATS_URL"):
                _show_entry(tenant, name, to, output)
                return
            folder = _nats_folder(data_dir)
            made = _kept(folder, load_users()).admit(tenant, name, to)
            _reload(folder)
        record = {
            "seed_file": str(to.absolute()),
            "url": find_nats(data_dir),
            "subject": made.subject,
            "nkey": made.nkey,
        }
        _show(record, output)

    @group.command("list", epilog="Example: weft nats-credentials list")
    def list_(data_dir: DataDir = _FOLDER, output: Form = Output.TABLE) -> None:
        """List the subscribers of a data folder, with their public keys."""
        with explained():
            kept = _kept(_nats_folder(data_dir), ()).subscribers()
        rows = [{"tenant": each.tenant, "name": each.name, "nkey": each.nkey} for each in kept]
        if output is not Output.TABLE:
            show_data(output, rows)
            return
        for row in rows:
            print(f"{row['tenant']:<24}{row['name']:<24}{row['nkey']}")

    @group.command(epilog="Example: weft nats-credentials revoke --tenant acme --name billing")
    def revoke(tenant: Tenant, name: Name = "default", data_dir: DataDir = _FOLDER) -> None:
        """End a subscriber's access; its connections are cut."""
        folder = _nats_folder(data_dir)
        with explained():
            _kept(folder, load_users()).revoke(tenant, name)
            _reload(folder)
        print(f"Subscriber {name} of {tenant} is let in no more.")

    return group


def _nats_folder(data_dir: Path) -> Path:
    folder = data_dir.expanduser().absolute() / "nats"
    if not folder.is_dir():
        raise CommandFailed(
            f"{data_dir} isn't a data folder with an embedded nats-server",
            notes=["`weft up --data-dir FOLDER` makes one; a server of yours has its own users."],
        )
    return folder


def _kept(folder: Path, users: "Sequence[BusUser]") -> "NatsCredentials":
    from mesh.runtime.nats_credentials import NatsCredentials

    return NatsCredentials(folder, users)


def _reload(folder: Path) -> bool:
    from mesh.runtime.nats_credentials import reload_server

    return asyncio.run(reload_server(folder))


def _end_valkey(data_dir: Path) -> None:
    """Its owner starts it again, with a new password. What it holds isn't missed."""
    from mesh.runtime.child_process import end_holder

    folder = data_dir.expanduser().absolute() / "valkey"
    end_holder(folder / "server.lock", folder / "valkey.conf")


def _show_entry(tenant: str, name: str, to: Path, output: Output) -> None:
    import json

    from mesh.runtime.nats_access import SUBSCRIBERS, subscriber_user
    from mesh.runtime.nats_credentials import new_subscriber

    made = new_subscriber(tenant, name, to)
    entry = json.dumps(subscriber_user(made))
    if output is not Output.TABLE:
        show_data(output, {"seed_file": str(to.absolute()), "account": SUBSCRIBERS, "user": entry})
        return
    print(f"The seed is in {to.absolute()}.")
    print(f"Add this to the users of the account {SUBSCRIBERS}, then send nats-server a SIGHUP:")
    print(f"  {entry}")


def _show(record: dict[str, str], output: Output) -> None:
    if output is not Output.TABLE:
        show_data(output, record)
        return
    for name, value in record.items():
        print(f"{name:<11}{value}")
