"""Weft with certificates: commands, keys and services over TLS, and certificates renewed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from mesh.call import Call, current_call
from mesh.clock import SYSTEM
from mesh.errors import PermissionDenied
from mesh.principal import Principal
from mesh.rpc.channel import RemoteChannel
from mesh.runtime.host import Host
from mesh.runtime.settings import RuntimeSettings
from mesh.security.ca import CertificateAuthority
from mesh.worker import Worker
from mesh.worker.task import WorkerTask
from services.catalog import CATALOGUE, access
from services.first_key import admitted
from tests.support.certificates import SERVICES, authority, transport
from tests.support.command_line import Ran
from tests.support.weft_up import weft, weft_up
from weft.models.v1 import model_service_pb2
from weft.models.v1.model_service_pb2_grpc import ModelServiceStub

WHO = Principal("tenants/default/apiKeys/admin", "default")


def ca(home: Path, *arguments: str) -> Ran:
    ran = weft("ca", *arguments, "--secrets-dir", home / "secrets")
    assert ran.code == 0, ran.err
    return ran


def test_commands_and_keys_over_tls(tmp_path: Path) -> None:
    ca(tmp_path, "init")
    ca(tmp_path, "issue")
    folder = tmp_path / "secrets" / "ca" / "certificates" / "host"
    bundle = folder / "bundle.pem"
    variables = {
        "WEFT_TLS_CERTIFICATE_DIR": str(folder),
        "WEFT_SECURITY_SECRETS_DIR": str(tmp_path / "secrets"),
        "WEFT_RUNTIME_MESH_PORT": "0",
        # All addresses of this machine: what takes certificates.
        "WEFT_RUNTIME_HOST": "0.0.0.0",
    }
    data = tmp_path / "data"
    ports = ("--port", "0", "--http-port", "0")
    with weft_up(tmp_path / "log", "--data-dir", data, *ports, **variables) as up:
        address = f"127.0.0.1:{up.address.rpartition(':')[2]}"
        key = {"WEFT_API_KEY": str(up.said["api_key"])}
        shown = weft("--data-dir", data, "--address", address, "--ca-file", bundle, "whoami", **key)
        assert shown.code == 0, shown.err
        assert weft("--data-dir", data, "doctor", **key).out.count("ok   certificate") == 1
        plain = weft("--address", address, "whoami", **key)
        assert plain.code == 5, "TLS isn't spoken with who doesn't ask for it"
        assert f"{address} speaks TLS" in plain.err
        assert "--ca-file" in plain.err
        ca(tmp_path / "theirs", "init")
        others = tmp_path / "theirs" / "secrets" / "ca" / "bundle.pem"
        assert others.exists()
        strange = weft("--address", address, "--ca-file", others, "whoami", **key)
        assert strange.code == 5
        assert f"a certificate of others than {others}" in strange.err
        ca(tmp_path, "rotate")
        ca(tmp_path, "issue", "--all")
        ca(tmp_path, "rotate", "--finish")
        stdin = f"{up.said['api_key']}\n"
        config = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
        adding = ("--address", address, "--ca-file", bundle, "context", "add", "here")
        assert weft(*adding, stdin=stdin, **config).code == 0
        assert weft("--context", "here", "whoami", **config).code == 0
        assert up.process.poll() is None
        secrets = [path.read_text() for path in (tmp_path / "secrets" / "ca").rglob("key.pem")]
        assert secrets
        for secret in secrets:
            assert secret.splitlines()[1] not in up.log
        assert "certificate_changed" in up.log


def test_the_certificate_is_asked_for_where_others_could_read(tmp_path: Path) -> None:
    ran = weft("up", "--ephemeral", WEFT_RUNTIME_HOST="0.0.0.0")
    assert ran.code == 1
    assert "WEFT_TLS_CERTIFICATE_DIR" in ran.err


@pytest.fixture
async def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    """All services in this process, with a certificate of the authority in `ca`."""
    monkeypatch.setenv(
        "WEFT_TLS_CERTIFICATE_DIR", str(authority(tmp_path / "ca").issue("host").folder)
    )
    monkeypatch.setenv("WEFT_SECURITY_SECRETS_DIR", str(tmp_path / "secrets"))
    settings = RuntimeSettings(
        data_dir=tmp_path / "data", grpc_port=0, http_port=0, nats_port=0, mesh_port=0
    )
    async with Host(CATALOGUE, settings, access) as made:
        yield made


@pytest.mark.parametrize(
    ("role", "caller", "granted"),
    [("agents", "agents", True), ("tools", "tools", False), ("tools", "agents", False)],
)
async def test_services_call_each_other_over_mutual_tls(
    host: Host, tmp_path: Path, role: str, caller: str, granted: bool
) -> None:
    assert host.transport.spiffe_id == "spiffe://weft.internal/process/host"
    channel = RemoteChannel(
        host.addresses["mesh"],
        host.rpc_settings,
        caller=caller,
        sign=host.access.sign,
        transport=transport(CertificateAuthority(tmp_path / "ca", SERVICES), role),
        service="models",
    )
    stub: Any = ModelServiceStub(cast(Any, channel))
    request = model_service_pb2.ListModelsRequest(parent="tenants/default")
    token = current_call.set(Call("/outer", SYSTEM.monotonic() + 20, "r1", WHO))
    try:
        if granted:
            assert (await stub.ListModels(request)).models
        else:
            with pytest.raises(PermissionDenied):
                await stub.ListModels(request)
    finally:
        current_call.reset(token)
        await channel.close()


async def test_a_worker_attaches_over_tls(host: Host, tmp_path: Path) -> None:
    first = await admitted(host)
    assert first is not None
    worker = Worker("tenants/default/queues/default", host.addresses["grpc"], first.text)
    worker.ca_file = host.transport.bundle_file

    @worker.task("double")
    async def double(task: WorkerTask) -> bytes:
        return task.payload * 2

    working = asyncio.create_task(worker.work())
    submit = ("--data-dir", tmp_path / "data", "task", "submit", "double", "--payload", "ab")
    ran = await asyncio.to_thread(weft, *submit, "--watch", WEFT_API_KEY=first.text)
    worker.stop()
    await working
    assert ran.code == 0, ran.err
    assert "abab" in ran.out
