"""What `weft up` leaves for the commands of its machine's user: each deployment's address
and its first administrator's API key.

One file per deployment, `clusters/<cluster>.json` in the folder of the CLI's settings,
which only its owner may read.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from mesh.errors import InvalidArgument

FILES_MAX = 1_000
FILE_BYTES_MAX = 64_000

_CLUSTER = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A deployment: its id, its address as `host:port`, an API key."""

    id: str
    address: str
    api_key: str = field(repr=False)


def cluster_id(log_id: str) -> str:
    """The id of the deployment whose event store's `log_id()` that is."""
    return hashlib.sha256(log_id.encode()).hexdigest()[:16]


def settings_folder() -> Path:
    """The folder of the CLI's settings: `$XDG_CONFIG_HOME/weft`, by default `~/.config/weft`."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification: a path that isn't absolute is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".config") / "weft"


class ClusterFile:
    """The deployments that are known in `folder`, which is that of the CLI's settings where
    it isn't given."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = (folder or settings_folder()) / "clusters"

    def path(self, cluster: str) -> Path:
        """Where the deployment of that id is kept."""
        if _CLUSTER.fullmatch(cluster) is None:
            raise InvalidArgument.of("cluster", "must be 16 hexadecimal digits")
        return self._folder / f"{cluster}.json"

    def write(self, cluster: str, address: str, api_key: str) -> Path:
        """Keeps a deployment, at once or not at all, for its owner's eyes only (0600).

        Returns the file. Raises OSError where it can't be written.
        """
        path = self.path(cluster)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        # Made with mode 0600, so that it never is there for others, not even empty.
        number, name = tempfile.mkstemp(dir=self._folder, prefix=f".{cluster}-")
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                json.dump({"address": address, "api_key": api_key}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        return path

    def move(self, cluster: str, address: str) -> None:
        """Notes that the deployment has another address now; nothing where it isn't known."""
        known = self.find(cluster=cluster)
        if known is not None and known.address != address:
            self.write(cluster, address, known.api_key)

    def find(self, *, cluster: str = "", address: str = "") -> Cluster | None:
        """The deployment of that id or, without an id, the one at that address that was
        written last. None where there is none, or its file can't be read."""
        if cluster:
            return _read(self.path(cluster))
        for path in self._newest_first() if address else ():
            found = _read(path)
            if found is not None and found.address == address:
                return found
        return None

    def _newest_first(self) -> list[Path]:
        try:
            files = [path for path in self._folder.glob("*.json") if _CLUSTER.fullmatch(path.stem)]
            files.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        except OSError:
            return []
        return files[:FILES_MAX]


def _read(path: Path) -> Cluster | None:
    try:
        with path.open(encoding="utf-8") as file:
            stored = json.loads(file.read(FILE_BYTES_MAX))
        return Cluster(path.stem, str(stored["address"]), str(stored["api_key"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
