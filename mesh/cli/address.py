"""Where the server is: what was typed, else what a running `weft up` left in its data folder."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from mesh.cli.failures import CommandFailed, ExitCode

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_DATA_DIR = ".weft"
_AS_GIVEN = "as given"
_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, slots=True)
class RunningServer:
    """What `weft up` writes to `<data-dir>/run/address.json`: where it listens, as
    `host:port`, and its process id. `http` is empty where it serves none; `cluster` names
    the deployment, and is empty where the server doesn't tell. `ca_file` holds the roots of its
    certificate, and is empty where it speaks plain text."""

    grpc: str
    http: str
    pid: int
    cluster: str = ""
    ca_file: str = ""

    @property
    def is_alive(self) -> bool:
        """Whether a process of that id runs on this machine."""
        if self.pid < 1:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


@dataclass(frozen=True, slots=True)
class Address:
    """The server's address as `host:port`, and who said so, for people."""

    target: str
    source: str
    running: RunningServer | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine, so that nobody can listen to what is sent, and no
        proxy may come between."""
        host, _, port = self.target.rpartition(":")
        return host in _LOOPBACK_HOSTS and port.isdecimal()

    @property
    def is_left_behind(self) -> bool:
        """Whether nobody named it and the server that did listen there has ended, so that
        anybody may have taken its port."""
        running = self.running
        return running is not None and self.source != _AS_GIVEN and not running.is_alive


def address_file(data_dir: Path) -> Path:
    """The file in which a server leaves its address."""
    return data_dir / "run" / "address.json"


def read_running_server(data_dir: Path) -> RunningServer | None:
    """What the server of that data folder left; None where there is no such file, or
    none that can be read."""
    try:
        file = address_file(data_dir)
        if file.stat().st_uid != os.getuid():
            # Somebody else's word isn't taken for where to send a key.
            return None
        stored = json.loads(file.read_text(encoding="utf-8"))
        return RunningServer(
            grpc=str(stored["grpc"]),
            http=str(stored.get("http", "")),
            pid=int(stored["pid"]),
            cluster=str(stored.get("cluster", "")),
            ca_file=str(stored.get("ca_file", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_nats(data_dir: Path) -> str:
    """URL of the NATS server that runs on the data folder; empty where none does."""
    try:
        stored = json.loads(address_file(data_dir).read_text(encoding="utf-8"))
        return f"nats://{stored['nats']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def find_address(given: str | None, data_dir: Path | None) -> Address:
    """The address that was given, else that of the data folder's server.

    Where no folder is named either, that of the usual folder's server, else the default.
    CommandFailed where a folder is named and no server runs on it: another server's
    answer would be about something else.
    """
    folder = data_dir or Path(DEFAULT_DATA_DIR)
    running = read_running_server(folder)
    if given:
        same = running is not None and running.grpc == given
        return Address(given, _AS_GIVEN, running if same else None)
    if running is not None:
        return Address(running.grpc, f"from {address_file(folder)}", running)
    if data_dir is not None:
        raise CommandFailed(
            f"no server runs on the data folder {data_dir}",
            exit_code=ExitCode.UNAVAILABLE,
            notes=[f"Start it with `weft up --data-dir {data_dir}`, or use --address."],
        )
    return Address(DEFAULT_ADDRESS, "the default")
