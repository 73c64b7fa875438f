"""The services of `deploy/compose.mesh.yaml` as processes of this machine: their commands, their
environments and their scripts, with addresses of loopback and folders in place of containers."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from mesh.runtime import valkey_files
from tests.support.command_line import Ran
from tests.support.processes import ROOT, finished
from tests.support.weft_up import environment, weft

DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
START_SECONDS_MAX = 120.0
NATS = ("nats-1", "nats-2", "nats-3")
ZONES = {
    "north": ("edge-north", "work-north", "vectors"),
    "south": ("edge-south", "work-south"),
}
HOSTS = {
    **{name: f"127.0.0.{11 + number}" for number, name in enumerate(NATS)},
    "valkey": "127.0.0.14",
    **{name: f"127.0.1.{1 + number}" for number, name in enumerate(ZONES["north"])},
    **{name: f"127.0.2.{1 + number}" for number, name in enumerate(ZONES["south"])},
}
"""Addresses of loopback, one for each container."""


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


class Composed:
    """All services, once they were started; `close` kills them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._compose: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.mesh.yaml").read_text())
        self.services: dict[str, Any] = self._compose["services"]
        self._ports = {name: free_port(HOSTS[name]) for name in (*NATS, "valkey")}
        self._routes = {name: free_port(HOSTS[name]) for name in NATS}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.said: dict[str, Any] = {}
        self._credentials = self._prepared()

    def start(self) -> None:
        """Returns once all take calls."""
        self._start_valkey()
        for name in NATS:
            self.start_nats(name)
        self._issue()
        for name in (*ZONES["north"], *ZONES["south"]):
            self._start_weft(name)
        for name in (*ZONES["north"], *ZONES["south"]):
            self._wait(name)

    def close(self) -> None:
        """Kills what is left."""
        for process in self.processes.values():
            process.kill()
            process.wait()

    def signal(self, number: signal.Signals, *names: str) -> None:
        """Sends each of them a signal, and waits until it is gone."""
        for name in names:
            self.processes[name].send_signal(number)
        for name in names:
            self.processes[name].wait(30)

    def start_zone(self, zone: str) -> None:
        """Starts the zone's services again; returns once they take calls."""
        for name in ZONES[zone]:
            self._start_weft(name)
        for name in ZONES[zone]:
            self._wait(name)

    def weft(self, edge: str, *arguments: str) -> Ran:
        """A command of the administrator, by the gateway of that name."""
        (key,) = {said["api_key"] for said in self.said.values() if "api_key" in said}
        bundle = str(self.folder / "certificates" / "edge" / "bundle.pem")
        address = ("--address", self.said[edge]["grpc"], "--ca-file", bundle)
        return weft(*address, *arguments, WEFT_API_KEY=key)

    def log(self, name: str) -> str:
        """What a service wrote."""
        return (self.folder / f"{name}.log").read_text()

    def start_nats(self, name: str) -> None:
        """Starts one of the NATS servers, on the folder that it has."""
        nats = self.folder / name / "etc"
        shutil.copytree(DEPLOY / "nats", nats, dirs_exist_ok=True)
        text = (nats / "cluster.conf").read_text()
        text = text.replace("0.0.0.0:4222", f"{HOSTS[name]}:{self._ports[name]}")
        text = text.replace("0.0.0.0:6222", f"{HOSTS[name]}:{self._routes[name]}")
        text = text.replace('http: "127.0.0.1:8222"', "")
        text = text.replace("/data", str(self.folder / name / "data"))
        (nats / "cluster.conf").write_text(text)
        given = self.services[name]["environment"]
        variables = {
            key: re.sub(r"\$\{(\w+)(:\?[^}]*)?\}", lambda found: self._credentials[found[1]], value)
            for key, value in given.items()
        }
        for other in NATS:
            place = f"{HOSTS[other]}:{self._routes[other]}"
            variables = {k: v.replace(f"{other}:6222", place) for k, v in variables.items()}
        _, config = self.services[name]["command"]
        config = config.replace("/etc/nats", str(nats))
        self._run(name, [str(BIN / "nats-server"), "-c", config], variables)

    def _prepared(self) -> dict[str, str]:
        script = self.folder / "prepare.py"
        script.write_text((DEPLOY / "prepare.py").read_text())
        assert finished([sys.executable, script]).returncode == 0
        lines = script.with_name(".env").read_text().splitlines()
        credentials = dict(line.split("=", 1) for line in lines)
        secrets = self.folder / "secrets"
        secrets.mkdir(mode=0o700)
        for name, secret in self._compose["secrets"].items():
            (secrets / name).write_text(credentials[secret["environment"]])
            (secrets / name).chmod(0o400)
        (secrets / "master_key").rename(secrets / "master.key")
        return credentials

    def _start_valkey(self) -> None:
        rules = (DEPLOY / "valkey" / "weft.acl").read_text()
        text = (DEPLOY / "valkey" / "valkey.conf").read_text()
        text = text.replace("port 6379", f"bind {HOSTS['valkey']}\nport {self._ports['valkey']}")
        password = self._credentials["VALKEY_PASSWORD"]
        config = self.folder / "valkey.conf"
        config.write_text(f"{text}\nuser weft reset on >{password} {rules}\n")
        binary = str(valkey_files.find_binary(None))
        self._run("valkey", [binary, str(config), "--dir", str(self.folder)], {})

    def _issue(self) -> None:
        """Runs the script of the service `certificates`."""
        certificates = self.folder / "certificates"
        certificates.mkdir(mode=0o700)
        script: str = self.services["certificates"]["command"][0].replace("$$", "$")
        edges = " ".join(f"--ip {HOSTS[name]}" for name in ("edge-north", "edge-south"))
        script = script.replace("--ip 127.0.0.1", edges)
        given = self.services["certificates"]["environment"]
        variables = {key: self._placed(value, certificates) for key, value in given.items()}
        path = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        ran = subprocess.run(
            ["sh", "-ec", script],
            cwd=certificates,
            env=environment(**variables, **path),
            capture_output=True,
            text=True,
            timeout=START_SECONDS_MAX,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr

    def _start_weft(self, name: str) -> None:
        service = self.services[name]
        (certificate,) = (each for each in service["volumes"] if isinstance(each, dict))
        role = certificate["volume"]["subpath"]
        data = self.folder / name
        data.mkdir(mode=0o700, exist_ok=True)
        variables = {key: self._placed(text, data) for key, text in service["environment"].items()}
        variables["WEFT_TLS_CERTIFICATE_DIR"] = str(self.folder / "certificates" / role)
        variables["WEFT_RUNTIME_HOST"] = HOSTS[name]
        # Other tests run on this machine, too.
        ports = ("GRPC", "HTTP", "MESH", "XDS")
        variables |= {f"WEFT_RUNTIME_{port}_PORT": "0" for port in ports}
        command = [self._placed(part, data) for part in service["command"]]
        self._run(name, [str(BIN / "weft"), *command, "-o", "json"], variables)

    def _placed(self, text: str, data: Path) -> str:
        """The text with folders and addresses in the places of a container's."""
        secrets = str(self.folder / "secrets")
        for here, there in (("/run/secrets", secrets), ("/run/weft-secrets", secrets)):
            text = text.replace(here, there)
        text = text.replace("/var/lib/weft", str(data))
        for other in NATS:
            text = text.replace(f"{other}:4222", f"{HOSTS[other]}:{self._ports[other]}")
        return text.replace("valkey:6379", f"{HOSTS['valkey']}:{self._ports['valkey']}")

    def _run(self, name: str, command: list[str], variables: dict[str, str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if "weft" in Path(command[0]).name else log,
                stderr=log,
            )

    def _wait(self, name: str) -> None:
        """Until the service says where it listens."""
        process = self.processes[name]
        assert process.stdout is not None
        too_late = threading.Timer(START_SECONDS_MAX, process.kill)
        too_late.start()
        line = process.stdout.readline()
        too_late.cancel()
        assert line, f"{name} ended at its start:\n{self.log(name)[-2000:]}"
        said = json.loads(line)
        # The first key is told once.
        key = self.said.get(name, {}).get("api_key")
        self.said[name] = {"api_key": key, **said} if key else said


def eventually(holds: Any, seconds_max: float = 60.0) -> None:
    """Waits until it holds."""
    deadline = time.monotonic() + seconds_max
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
