"""What a client demands of a server's certificate, and certificates that change under calls."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from cryptography import x509
from structlog.testing import capture_logs

from mesh.errors import FailedPrecondition, Unavailable
from mesh.rpc.channel import RemoteChannel
from mesh.rpc.pipeline import bind
from mesh.rpc.server import RpcServer
from mesh.rpc.settings import RpcSettings
from mesh.rpc.transport import PLAIN, Transport
from mesh.security import certificate_files
from mesh.security.ca import CertificateAuthority
from mesh.security.certificate_files import CertificateFiles
from mesh.security.certificates import KeyPair, bundle_of, pem_of
from mesh.security.spiffe import TRUST_DOMAIN
from tests.support.certificates import authority, leaf, root_of, transport
from tests.support.edge import pipeline
from tests.support.rpc_service import SmallService
from weft.agents.v1 import turn_service_pb2
from weft.agents.v1.turn_service_pb2_grpc import TurnServiceStub
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb
from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

SETTINGS = RpcSettings()
NAME = "tenants/default/collections/docs"
SESSION = "tenants/default/agents/bot/sessions/s1"


class Watching(Transport):
    """Remembers which certificate each call came with, by serial number."""

    def __init__(self, files: CertificateFiles) -> None:
        super().__init__(files)
        self.serials: list[int] = []

    def acts_as(self, context: Any) -> Callable[[str], bool] | None:
        (proven,) = context.auth_context()["x509_pem_cert"]
        self.serials.append(x509.load_pem_x509_certificate(proven).serial_number)
        return super().acts_as(context)


@asynccontextmanager
async def served(by: Transport) -> AsyncIterator[tuple[SmallService, str]]:
    """A process that serves, and the target of its port for processes."""
    service, around = SmallService(), pipeline(SETTINGS)
    service.vectors.collections[NAME] = collections_pb2.Collection(name=NAME)
    server = RpcServer(bind(service.handlers, around, SETTINGS), SETTINGS, around, by)
    port = server.listen_to_processes("127.0.0.1", 0)
    await server.start("127.0.0.1", 0)
    try:
        yield service, f"127.0.0.1:{port}"
    finally:
        await server.stop()


def vectors(channel: Any) -> Callable[[], Any]:
    """Makes one call."""
    stub: Any = VectorServiceStub(channel)
    return lambda: stub.GetCollection(pb.GetCollectionRequest(name=NAME), timeout=20)


def put(folder: Path, pair: KeyPair, bundle: str) -> Transport:
    """Puts a pair where a process finds it."""
    folder.mkdir()
    for name, text in (("cert", pair.certificate_pem), ("key", pair.key_pem), ("bundle", bundle)):
        (folder / f"{name}.pem").write_text(text)
        (folder / f"{name}.pem").chmod(0o600)
    return Transport(CertificateFiles(folder))


async def refused(target: str, by: Transport, service: str = "vectors") -> Unavailable:
    channel = RemoteChannel(target, SETTINGS, transport=by, service=service)
    stub: Any = VectorServiceStub(cast(Any, channel))
    with pytest.raises(Unavailable) as raised:
        await stub.GetCollection(pb.GetCollectionRequest(name=NAME), timeout=10)
    await channel.close()
    return raised.value


async def test_a_client_calls_the_service_that_it_means_and_no_other(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    client = transport(ca, "gateway")
    async with served(transport(ca, "tools.vectors")) as (_, target):
        for service in ("tools", "vectors"):
            channel = RemoteChannel(target, SETTINGS, transport=client, service=service)
            await vectors(channel)()
            await channel.close()
        for service in ("models", "host", "", "localhost"):
            await refused(target, client, service)


async def test_a_client_does_not_call_a_server_of_another_authority(tmp_path: Path) -> None:
    ours, theirs = authority(tmp_path / "ours"), authority(tmp_path / "theirs")
    async with served(transport(theirs, "vectors")) as (service, target):
        await refused(target, transport(ours, "gateway"))
        assert service.vectors.calls == []


async def test_a_client_does_not_call_a_server_whose_certificate_expired(tmp_path: Path) -> None:
    ca = authority(tmp_path / "ca")
    by = transport(ca, "vectors")
    async with served(by) as (_, target):
        client = transport(ca, "gateway")
        await vectors_once(target, client)
        held = by.held()
        assert held is not None
        old = leaf(root_of(ca), str(held.holder), days=1, ago_days=2)
        object.__setattr__(held, "certificate", old.certificate_pem.encode())
        object.__setattr__(held, "key", old.key_pem.encode())
    async with served(by) as (_, target):
        await refused(target, client)


async def vectors_once(target: str, by: Transport) -> None:
    channel = RemoteChannel(target, SETTINGS, transport=by, service="vectors")
    await vectors(channel)()
    await channel.close()


def turn(words: str) -> turn_service_pb2.RunTurnRequest:
    return turn_service_pb2.RunTurnRequest(session=SESSION, input=words)


async def test_no_call_fails_while_certificates_and_the_root_are_rotated(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    client = transport(ca, "gateway")
    watching = Watching(CertificateFiles(ca.issue("vectors").folder))
    async with served(watching) as (service, target):
        channel = RemoteChannel(target, SETTINGS, transport=client, service="vectors")
        call, ends, made = vectors(channel), asyncio.Event(), 0

        async def caller() -> None:
            nonlocal made
            while not ends.is_set():
                await call()
                made += 1

        callers = [asyncio.create_task(caller()) for _ in range(4)]
        stream: Any = TurnServiceStub(cast(Any, channel)).RunTurn(turn("one wait"))
        await anext(stream)
        for step in (ca.issue_all, ca.rotate, ca.issue_all, ca.finish, ca.issue_all):
            step()
            await seen(watching, serial(ca, "gateway"), callers)
            assert serial(ca, "vectors") == await shown(target)
        ends.set()
        await asyncio.gather(*callers)
        assert made > 5
        # What began on the first connection still is under way there.
        assert not service.turns.closed.is_set()
        await stream.aclose()
        await asyncio.wait_for(service.turns.closed.wait(), 20)
        await channel.close()
        assert await trusts(target, (ca.folder / "bundle.pem").read_text())


def serial(ca: CertificateAuthority, role: str) -> int:
    text = (ca.folder / "certificates" / role / "cert.pem").read_bytes()
    return x509.load_pem_x509_certificate(text).serial_number


async def seen(by: Watching, wanted: int, callers: list[asyncio.Task[None]]) -> None:
    """Waits until calls come with that certificate; raises what a caller raised."""
    for _ in range(1000):
        for each in callers:
            assert not each.done() or each.result() is None
        if by.serials[-1:] == [wanted]:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the new certificate isn't used")


async def shown(target: str) -> int:
    """Serial number of the certificate that the server shows to who connects now."""
    host, _, port = target.rpartition(":")
    pem = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)), timeout=10)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def trusts(target: str, bundle: str) -> bool:
    """Whether who trusts these roots trusts the server."""
    context = ssl.create_default_context(cadata=bundle)
    host, _, port = target.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(
            host, int(port), ssl=context, server_hostname="localhost"
        )
    except ssl.SSLCertVerificationError:
        return False
    writer.close()
    return True


async def test_once_a_rotation_is_finished_the_old_root_opens_nothing(tmp_path: Path) -> None:
    ca = authority(tmp_path / "ca")
    old = root_of(ca)
    gateway = f"spiffe://{TRUST_DOMAIN}/process/gateway"
    stolen = put(tmp_path / "old", leaf(old, gateway), pem_of(old.certificate))
    async with served(transport(ca, "vectors")) as (_, target):
        await vectors_once(target, stolen)
        ca.rotate()
        ca.issue_all()
        both = bundle_of([root_of(ca).certificate, old.certificate])
        trusting = put(tmp_path / "both", leaf(old, gateway), both)
        await vectors_once(target, trusting)
        ca.finish()
        await refused(target, trusting)


async def test_files_that_do_not_fit_each_other_leave_the_old_ones_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that nothing was written with by now, hence of no earlier configuration.
    monkeypatch.setattr(certificate_files, "_log", structlog.get_logger())
    ca = authority(tmp_path / "ca")
    root, uri = root_of(ca), f"spiffe://{TRUST_DOMAIN}/process/vectors"
    bundle = pem_of(root.certificate)
    first, second = leaf(root, uri), leaf(root, uri)
    by = put(tmp_path / "own", first, bundle)
    before = by.held()
    with capture_logs() as logs:
        (tmp_path / "own" / "cert.pem").write_text(second.certificate_pem)
        assert by.held() is before
        assert by.held() is before
        (tmp_path / "own" / "bundle.pem").unlink()
        assert by.held() is before
        (tmp_path / "own" / "bundle.pem").write_text(bundle)
        (tmp_path / "own" / "key.pem").write_text(second.key_pem)
        held = by.held()
    assert held is not None
    assert held.certificate == second.certificate_pem.encode()
    assert "certificate_unusable" in [each["event"] for each in logs]
    for secret in (first.key_pem, second.key_pem):
        line = secret.splitlines()[1]
        assert line not in repr(logs)
        assert line not in repr((held, before, second))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "weft.example"])
async def test_nothing_listens_or_dials_in_plain_text_beyond_this_machine(host: str) -> None:
    around = pipeline(SETTINGS)
    server = RpcServer({}, SETTINGS, around)
    with pytest.raises(FailedPrecondition, match="WEFT_TLS_CERTIFICATE_DIR"):
        await server.start(host, 0)
    name = f"[{host}]" if ":" in host else host
    for target in (f"{name}:50051", f"dns:///{name}:50051"):
        with pytest.raises(FailedPrecondition, match="plain text"):
            RemoteChannel(target, SETTINGS)
    Transport(plain_text=True).check_listening(host)


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1:1", "localhost:1", "[::1]:1", "ipv4:127.0.0.1:1,127.0.0.2:1", "unix:/run/x.sock"],
)
async def test_plain_text_is_for_this_machine(target: str) -> None:
    await PLAIN.channel(target, "", []).close()


async def test_a_list_of_addresses_is_as_private_as_its_worst(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition):
        PLAIN.channel("ipv4:127.0.0.1:1,192.0.2.1:1", "", [])
