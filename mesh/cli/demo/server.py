"""`weft up` in a process of its own, which the demo kills and starts again."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

from mesh.cli.access import Access, cluster_credential
from mesh.cli.address import Address, read_running_server
from mesh.cli.failures import CommandFailed

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 20.0
_SECRETS_DIR = "WEFT_SECURITY_SECRETS_DIR"


class Server:
    """The platform on one data folder. Its log goes beside the folder."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._config_dir = data_dir.with_name("config")
        self._log_file = data_dir.with_name("server.log")
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = ("0", "0")
        self.address = ""
        self._addresses: list[str] = []

    def start(self) -> None:
        """Starts it, on the ports of its last start, and returns once it serves."""
        grpc_port, http_port = self._ports
        command = [
            *(sys.executable, "-m", "services", "up"),
            *("--data-dir", str(self._data_dir), "-o", "json"),
            *("--port", grpc_port, "--http-port", http_port),
        ]
        # Keys belong to the demo: none of it may stay in the person's home, nor come from it.
        kept = {name: value for name, value in os.environ.items() if name != _SECRETS_DIR}
        own = {"XDG_CONFIG_HOME": str(self._config_dir)}
        environment = {"WEFT_RUNTIME_NATS_PORT": "0", "WEFT_RUNTIME_XDS_PORT": "0", **kept, **own}
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=environment
            )
        addresses = json.loads(self._first_line())
        self.address = addresses["grpc"]
        self._addresses += [addresses[name] for name in ("grpc", "http", "nats")]
        self._ports = (_port(addresses["grpc"]), _port(addresses["http"]))

    def access(self, tenant: str) -> Access:
        """The way to it, as the administrator that it made at its first start."""
        address = Address(self.address, "the demo", read_running_server(self._data_dir))
        clusters = self._config_dir / "weft" / "clusters"
        return Access(address, tenant, lambda: cluster_credential(address, clusters))

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(STOP_SECONDS_MAX)

    def stop(self) -> None:
        """Ends it, by force where it takes too long."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()

    def listens(self) -> bool:
        """Whether anything still listens where it, or its nats-server, ever did."""
        for address in self._addresses:
            host, _, port = address.rpartition(":")
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex((host, int(port))) == 0:
                    return True
        return False

    def _first_line(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_SECONDS_MAX)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self.stop()
            log = self._log_file.read_text(errors="replace").strip().splitlines()
            raise CommandFailed("the platform didn't start", notes=log[-5:])
        return line


def _port(address: str) -> str:
    return address.rpartition(":")[2]
