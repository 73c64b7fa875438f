"""With a trust domain gRPC's own xDS client calls only those who are who the registry says,
and shows its own certificate."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from mesh.control.xds.ads import AdsServer
from mesh.control.xds.bootstrap import CertificateFiles, bootstrap
from mesh.control.xds.mesh_view import MeshView
from tests.support.spiffe_authority import Authority
from tests.support.xds_backend import Load, handlers
from tests.support.xds_client import COLLECTIONS, SESSIONS
from tests.support.xds_mesh import SERVICES, client, instance_at

DOCS = ["tenants/acme/collections/docs"]
TALKS = [f"tenants/acme/agents/bot/sessions/talk-{number}" for number in range(50)]
TRIES_MAX = 50
VECTORS = "spiffe://weft.test/process/state.vectors"


@asynccontextmanager
async def serving(files: CertificateFiles, name: str = "a") -> AsyncIterator[str]:
    """A backend that wants its clients' certificates."""
    server = grpc.aio.server()
    for service, methods in handlers(name, Load(0.0)).items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    pair = (files.private_key.read_bytes(), files.certificate.read_bytes())
    credentials = grpc.ssl_server_credentials(
        [pair], files.authorities.read_bytes(), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize(
    ("real", "told", "known", "answered"),
    [
        (VECTORS, VECTORS, True, True),
        # Another service of the same authority, in its place.
        ("spiffe://weft.test/process/tools", VECTORS, True, False),
        # It has the name of an instance that the registry doesn't know by it.
        (VECTORS, "", True, False),
        # The client's certificate is another authority's.
        (VECTORS, VECTORS, False, False),
    ],
)
async def test_who_answers_is_who_the_registry_says(
    tmp_path: Path, real: str, told: str, known: bool, answered: bool
) -> None:
    ours, others = Authority(tmp_path / "ours"), Authority(tmp_path / "others")
    mine = ours.issue("spiffe://weft.test/process/agents")
    if not known:
        theirs = others.issue("spiffe://weft.test/process/agents")
        mine = CertificateFiles(theirs.certificate, theirs.private_key, mine.authorities)
    ads = AdsServer()
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(serving(ours.issue(real)))
        port = await ads.start("127.0.0.1:0")
        stack.push_async_callback(ads.stop)
        instance = instance_at("a", target, spiffe_id=told)
        ads.set(MeshView(SERVICES, (instance,), trust_domain="weft.test"))
        asks = bootstrap([f"127.0.0.1:{port}"], node="a-client", zone="", certificates=mine)
        caller = await stack.enter_async_context(client(asks))
        [answer] = await caller.call(COLLECTIONS, DOCS)
    assert (answer == "a") == answered
    assert answered or answer.startswith("failed: ")


async def test_a_session_goes_to_its_place_by_a_connection_that_proves_who_is_there(
    tmp_path: Path,
) -> None:
    ours = Authority(tmp_path / "ours")
    mine = ours.issue("spiffe://weft.test/process/agents")
    theirs = ours.issue(VECTORS)
    ads = AdsServer()
    async with AsyncExitStack() as stack:
        instances = [
            instance_at(
                name,
                await stack.enter_async_context(serving(theirs, name)),
                spiffe_id=VECTORS,
            )
            for name in ("a", "b")
        ]
        port = await ads.start("127.0.0.1:0")
        stack.push_async_callback(ads.stop)
        ads.set(MeshView(SERVICES, tuple(instances), trust_domain="weft.test"))
        asks = bootstrap([f"127.0.0.1:{port}"], node="a-client", zone="", certificates=mine)
        caller = await stack.enter_async_context(client(asks))
        await caller.know(instances)
        for _ in range(TRIES_MAX):
            answered = await caller.call(SESSIONS, TALKS)
            if set(answered) == {"a", "b"} and await caller.call(SESSIONS, TALKS) == answered:
                break
        else:
            raise AssertionError("sessions went elsewhere all the time")
