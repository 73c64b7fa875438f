"""The keys of the deployments that were started on this machine, a file for each.

`weft up` writes one at its first start, for the deployment's first administrator; commands
find it by the cluster that a data folder's server names, or by the server's address.
"""

import json
import re
from pathlib import Path

from mesh.cli.private_files import FILE_BYTES_MAX, read_private, write_private

FILES_MAX = 256
"""Most files that are looked through for an address."""

_CLUSTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


class ClusterFile:
    """The files `<cluster>.json` of a folder: `{"address": "host:port", "api_key": "..."}`,
    of mode 0600 in a folder of mode 0700."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, cluster: str) -> Path:
        """Where a cluster's key is kept."""
        return self._folder / f"{cluster}.json"

    def write(self, cluster: str, address: str, api_key: str) -> None:
        """Keeps a cluster's key, in place of one before. ValueError for what can't be a
        cluster's id, CommandFailed where the file can't be written."""
        if not _CLUSTER.fullmatch(cluster):
            raise ValueError("no cluster's id")
        text = json.dumps({"address": address, "api_key": api_key})
        write_private(self.path(cluster), text + "\n")

    def find(self, *, cluster: str = "", address: str = "") -> str | None:
        """The key of the cluster or, where none is named, of the server at the address;
        the last one written where there are several. None where there is none.

        CommandFailed where others can read the file.
        """
        if cluster:
            if not _CLUSTER.fullmatch(cluster):
                return None
            stored = _parse(read_private(self.path(cluster)))
            return stored.get("api_key")
        return self._at(address)

    def _at(self, address: str) -> str | None:
        try:
            files = [(path.stat().st_mtime_ns, path) for path in self._folder.glob("*.json")]
        except OSError:
            return None
        for _, path in sorted(files, reverse=True)[:FILES_MAX]:
            # Of what is another server's, it doesn't matter here who may read it.
            if _parse(_text(path)).get("address") == address:
                return _parse(read_private(path)).get("api_key")
        return None


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode(errors="replace")
    except OSError:
        return None


def _parse(text: str | None) -> dict[str, str]:
    """What such a file holds; nothing of one that is damaged."""
    try:
        stored = json.loads(text or "")
    except ValueError:
        return {}
    if not isinstance(stored, dict):
        return {}
    return {name: value for name, value in stored.items() if isinstance(value, str) and value}
