"""A copy of all that a deployment has on disk, its secrets folder apart: no key in it lets
anybody in, signs anything or opens anything."""

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import EventStoreUnavailable, WeftError
from mesh.events.jetstream.connection import Login, connect
from mesh.runtime.host import Host
from mesh.runtime.settings import RuntimeSettings
from services.auth.directory import AccessDirectory
from services.catalog import CATALOGUE, access
from tests.security.conftest import Deployment, deployed, environment
from tests.support.blobs import requests
from weft.agents.v1 import agent_pb2, agent_service_pb2
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub
from weft.auth.v1 import auth_service_pb2
from weft.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from weft.blobs.v1.blob_service_pb2_grpc import BlobServiceStub

MARK = "zebrafish in the attic"
API_KEY = re.compile(rb"weft_[0-9a-z]{26}_[a-z2-7]{52}")
TOKEN = re.compile(rb"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}")


async def use(weft: Deployment) -> list[bytes]:
    """Works with the deployment; returns every secret that it then has."""
    _, second = await weft.new_key("acme", "developer")
    tokens: Any = AuthServiceStub(weft.keyed("acme"))
    exchange = auth_service_pb2.ExchangeTokenRequest(api_key=second)
    token = (await tokens.ExchangeToken(exchange, timeout=10)).token
    agents: Any = AgentServiceStub(weft.keyed("acme"))
    request = agent_service_pb2.CreateAgentRequest(
        parent="tenants/acme", agent_id="a", spec=agent_pb2.AgentSpec(instructions=MARK)
    )
    await agents.CreateAgent(request, timeout=10)
    blobs: Any = BlobServiceStub(weft.keyed("acme"))
    await blobs.PutBlob(requests("tenants/acme/blobs/b", MARK.encode() * 1_000), timeout=10)
    directory = weft.host.access
    assert isinstance(directory, AccessDirectory)
    names = ["pepper", *(f"signing.{key.kid}" for key in directory.signing.keys)]
    kept = [await weft.host.keyring.secret(name) for name in names]
    texts = [*weft.keys.values(), second, token, MARK]
    parts = [text.split("_")[2] for text in texts if text.startswith("weft_")]
    return [*kept, *(text.encode() for text in (*texts, *parts))]


def forms(secret: bytes) -> Iterator[bytes]:
    """How it could be written down."""
    yield secret
    yield secret.hex().encode()
    yield base64.b64encode(secret).rstrip(b"=")
    yield base64.urlsafe_b64encode(secret).rstrip(b"=")


@pytest.fixture(scope="module")
async def thief(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The copied folder, taken while it worked, the secrets that it must not hold, and the
    deployment, started again since."""
    home, copy = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("copy") / "data"
    async with deployed(home) as weft:
        secrets = await use(weft)
        shutil.copytree(home / "data", copy, ignore=shutil.ignore_patterns("*.sock", "*.lock"))
    master = (home / "secrets" / "master.key").read_bytes().strip()
    settings = RuntimeSettings(data_dir=home / "data", grpc_port=0, http_port=0, nats_port=0)
    with environment({"WEFT_SECURITY_SECRETS_DIR": str(home / "secrets")}):
        again = Host(CATALOGUE, settings, access)
    async with again as host:
        yield copy, [*secrets, master, base64.b64decode(master)], host


def test_no_secret_is_in_any_file_of_it(thief: Any) -> None:
    copy, secrets, _ = thief
    files = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert any(path.name == "access.conf" for path in files)
    assert any("blobs" in path.parts for path in files)
    found = [
        (path.name, secret)
        for path, data in files.items()
        for secret in secrets
        if any(form in data for form in forms(secret))
    ]
    assert found == []
    assert not any(API_KEY.search(data) or TOKEN.search(data) for data in files.values())


async def test_no_login_of_it_is_let_in_by_the_deployment(thief: Any) -> None:
    copy, _, host = thief
    url = f"nats://{host.addresses['nats']}"
    seeds = list((copy / "nats").glob("*.nkey"))
    assert seeds
    for seed in seeds:
        with pytest.raises(EventStoreUnavailable):
            await connect(url, name="thief", login=Login(seed), timeout=0.5)


async def test_nothing_starts_on_it_without_the_master_key(thief: Any, tmp_path: Path) -> None:
    copy, _, _ = thief
    settings = RuntimeSettings(data_dir=copy, grpc_port=0, http_port=0, nats_port=0)
    with (
        environment({"WEFT_SECURITY_SECRETS_DIR": str(tmp_path / "none")}),
        pytest.raises(WeftError, match="master key"),
    ):
        async with Host(CATALOGUE, settings, access):
            pass
