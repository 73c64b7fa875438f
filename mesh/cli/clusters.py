"""The keys of the deployments that were started on this machine, a file for each.

`weft up` writes one at its first start, for the deployment's first administrator; commands
find it by the cluster that a data folder's server names, or by the server's address. Each
gateway that starts on this machine keeps its address there.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mesh.cli.failures import CommandFailed
from mesh.cli.private_files import FILE_BYTES_MAX, read_private, write_private
from mesh.private_files import make_private_folder

FILES_MAX = 256
"""Most files that are looked through for an address."""
ADDRESSES_MAX = 16
"""Most addresses of a cluster that are kept, those last that were kept first."""

_CLUSTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


class ClusterFile:
    """The files `<cluster>.json` of a folder: `{"addresses": ["host:port", ...], "api_key":
    "..."}`, of mode 0600 in a folder of mode 0700. An address is that of one cluster, of whoever
    listened there last; a cluster has several where several of its gateways run here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, cluster: str) -> Path:
        """Where a cluster's key is kept."""
        return self._folder / f"{cluster}.json"

    def write(self, cluster: str, address: str = "", api_key: str = "") -> None:
        """Keeps a cluster's key, in place of one before, and that it is reached at the address,
        as no other cluster is any more. What is empty stays as it is kept. ValueError for what
        can't be a cluster's id, CommandFailed where a file can't be written."""
        if not _CLUSTER.fullmatch(cluster):
            raise ValueError("no cluster's id")
        with self._locked():
            own = _parse(read_private(self.path(cluster)))
            addresses = [address, *own.addresses] if address else own.addresses
            self._put(cluster, _Stored(addresses, api_key or own.api_key))
            for path in self._files():
                other = _parse(_text(path))
                if path != self.path(cluster) and address in other.addresses:
                    left = [each for each in other.addresses if each != address]
                    self._put(path.stem, _Stored(left, other.api_key))

    def find(self, *, cluster: str = "", address: str = "") -> str | None:
        """The key of the cluster or, where none is named, of the one that is reached at the
        address. None where there is none.

        CommandFailed where others can read the file.
        """
        if cluster:
            known = _CLUSTER.fullmatch(cluster)
            return _parse(read_private(self.path(cluster))).api_key or None if known else None
        for path in self._files():
            # Of what is another server's, it doesn't matter here who may read it.
            if address in _parse(_text(path)).addresses:
                return _parse(read_private(path)).api_key or None
        return None

    def addresses(self, beside: str) -> tuple[list[str], list[str]]:
        """Other addresses that are kept: those of the deployment that is reached at `beside`,
        and those of other ones; of each the last ones kept first."""
        own: dict[str, None] = {}
        others: dict[str, None] = {}
        for path in self._files():
            kept = _parse(_text(path)).addresses
            (own if beside in kept else others).update(dict.fromkeys(kept))
        own.pop(beside, None)
        return list(own), list(others)

    def _put(self, cluster: str, stored: "_Stored") -> None:
        kept = list(dict.fromkeys(stored.addresses))[:ADDRESSES_MAX]
        text = json.dumps({"addresses": kept, "api_key": stored.api_key})
        write_private(self.path(cluster), text + "\n")

    def _files(self) -> list[Path]:
        """The last ones written first."""
        try:
            files = [(path.stat().st_mtime_ns, path) for path in self._folder.glob("*.json")]
        except OSError:
            return []
        return [path for _, path in sorted(files, reverse=True)[:FILES_MAX]]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Processes that start together keep each other's addresses."""
        try:
            make_private_folder(self._folder)
            lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CommandFailed(f"can't write to {self._folder}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


@dataclass(frozen=True, slots=True)
class _Stored:
    addresses: list[str] = field(default_factory=list)
    api_key: str = field(default="", repr=False)


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode(errors="replace")
    except OSError:
        return None


def _parse(text: str | None) -> _Stored:
    """What such a file holds; nothing of one that is damaged."""
    try:
        stored = json.loads(text or "")
    except ValueError:
        return _Stored()
    if not isinstance(stored, dict):
        return _Stored()
    # Before there could be several, it was one.
    listed = stored.get("addresses", [stored.get("address")])
    named = listed if isinstance(listed, list) else []
    key = stored.get("api_key")
    addresses = [each for each in named if isinstance(each, str) and each]
    return _Stored(addresses, key if isinstance(key, str) else "")
