"""The first administrator's API key: made where there is none, and kept for the commands."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from mesh.cli.clusters import ClusterFile
from mesh.cli.failures import CommandFailed
from mesh.errors import NotFound
from mesh.private_files import config_folder
from mesh.runtime.host import Host
from services.auth.directory import AccessDirectory
from services.auth.first_start import FIRST_TENANT, first_start, recover_admin


@dataclass(frozen=True, slots=True)
class FirstKey:
    """An API key that was just made, and the file that it was written to; None where it
    couldn't be written."""

    text: str = field(repr=False)
    file: Path | None


async def admitted(
    host: Host, serves: Collection[str] = (), *, another: str | None = None
) -> FirstKey | None:
    """Makes the first tenant with its administrator's API key where there is none yet, or an
    administrator's key in the tenant `another`; None where nothing was made. Raises NotFound
    where there is no such tenant. `serves` are the services of the process, all where it is
    empty: only one with auth makes a key, as who has that may write who may call.

    The key is kept in the folder of the CLI's settings, and the address of a process that
    takes clients' calls, so that commands on this machine find both. Where it can't be written
    there, that is noted, and the key is told all the same: nobody could tell it again.
    """
    address = host.addresses["grpc"] if not serves or "gateway" in serves else ""
    if serves and "auth" not in serves:
        _keep(host, address)
        return None
    directory = cast(AccessDirectory, host.access)
    if another and another != FIRST_TENANT and another not in directory.tenants:
        # Before anything is made: a first key that isn't told would be lost.
        raise NotFound.of("tenant", another)
    key = await first_start(directory, host.clock)
    if another and (key is None or another != FIRST_TENANT):
        recovered = await recover_admin(directory, another, host.clock)
        if another != FIRST_TENANT:
            # The commands on this machine go on to act for the deployment's administrator.
            return FirstKey(recovered, None)
        key = recovered
    file = _keep(host, address, key)
    return FirstKey(key, file) if key is not None else None


def _keep(host: Host, address: str, key: str | None = None) -> Path | None:
    """Keeps the deployment's key, and that it is reached at the address; returns the file. None
    where that can't be, which is noted."""
    if not address and key is None:
        return None
    files = ClusterFile(config_folder() / "clusters")
    try:
        # Also where no key is known here: what is kept for that address is another deployment's.
        files.write(host.cluster, address, key or "")
        if files.find(cluster=host.cluster) is None:
            roots = host.transport.bundle_file
            known_by = f" --ca-file {roots}" if roots is not None else ""
            host.notes.append(
                "commands on this machine have no key for this deployment yet:"
                f" `weft context add NAME --address {address}{known_by}` keeps one"
            )
    except CommandFailed as failure:
        host.notes.append(f"commands won't find the key by themselves: {failure.message}")
        return None
    return files.path(host.cluster)
