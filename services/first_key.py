"""The first administrator's API key: made where there is none, and kept for the commands."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from mesh.cli.clusters import ClusterFile
from mesh.private_files import config_folder
from mesh.runtime.host import Host
from services.auth.directory import AccessDirectory
from services.auth.first_start import first_start, recover_admin


@dataclass(frozen=True, slots=True)
class FirstKey:
    """An API key that was just made, and the file that it was written to."""

    text: str = field(repr=False)
    file: Path


async def admitted(host: Host, *, another: bool = False) -> FirstKey | None:
    """Makes the first tenant with its administrator's API key where there is none yet, or
    `another` such key; None where nothing was made.

    The key is kept in the folder of the CLI's settings, with the address at which this
    process serves, so that commands on this machine find both. Raises CommandFailed where
    it can't be written there.
    """
    directory = cast(AccessDirectory, host.access)
    key = await first_start(directory, host.clock)
    if key is None and another:
        key = await recover_admin(directory, clock=host.clock)
    files, address = ClusterFile(config_folder() / "clusters"), host.addresses["grpc"]
    known = key or files.find(cluster=host.cluster)
    if known:
        # Also of a key that was there already: the address may be another one this time.
        files.write(host.cluster, address, known)
    return FirstKey(key, files.path(host.cluster)) if key is not None else None
