"""Every service with every RPC, over real mTLS: what the catalogue doesn't grant is refused.

The rows come from the catalogue and the contracts. Behind the pipeline no handler is there: a
call that gets past it ends as UNIMPLEMENTED, and nothing else does.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from mesh.errors import FailedPrecondition
from mesh.principal import Principal
from mesh.rpc.methods import MethodSpec
from mesh.rpc.open_methods import PUBLIC
from mesh.rpc.pipeline import Edge, Pipeline, bind
from mesh.rpc.propagation import IDENTITY_KEY
from mesh.rpc.rate_limiter import RateLimiter
from mesh.rpc.server import RpcServer
from mesh.rpc.settings import RpcSettings
from mesh.rpc.transport import Transport
from mesh.runtime.service import callers_of
from mesh.security.ca import CertificateAuthority
from mesh.security.certificate_files import CertificateFiles
from mesh.security.certificates import KeyPair, read_pair
from mesh.security.identity import IdentitySigner, IdentityVerifier, audience_of
from mesh.security.spiffe import TRUST_DOMAIN
from services.catalog import CATALOGUE
from tests.contract.test_contracts import METHODS
from tests.support.access import MovedClock
from tests.support.certificates import SERVICES, authority, dial, leaf, root_of, with_uris
from tests.support.edge import NO_LIMITS, Doorkeeper, OneKey, administrator
from tests.support.requests import filled, outcome

SETTINGS = RpcSettings(peer_calls_max=10_000, peer_failures_max=10_000)
WHO = Principal("tenants/acme/apiKeys/ada", "acme")
KEY = "key"
GRANTED = grpc.StatusCode.UNIMPLEMENTED
REFUSED = grpc.StatusCode.PERMISSION_DENIED
NO_CONNECTION = grpc.StatusCode.UNAVAILABLE
OF_CATALOGUE = [spec for spec in METHODS if spec.service in callers_of(CATALOGUE)]
GUARDED = [spec for spec in OF_CATALOGUE if spec.path not in PUBLIC]
DAY_SECONDS = 86_400


@dataclass
class Served:
    """A process with all services: the port for processes, and the one for everybody."""

    ca: CertificateAuthority
    signer: IdentitySigner
    mesh: str
    public: str

    @property
    def bundle(self) -> bytes:
        return (self.ca.folder / "bundle.pem").read_bytes()

    def identity(self, caller: str, method: str) -> tuple[str, str]:
        return IDENTITY_KEY, self.signer.sign(WHO, caller, audience_of(method, ""), 60)

    def dial(self, pair: KeyPair | None, service: str = "models") -> grpc.aio.Channel:
        return dial(self.mesh, service, self.bundle, pair)

    def issued(self, role: str) -> KeyPair:
        folder = self.ca.issue(role).folder
        return read_pair((folder / "cert.pem").read_bytes(), (folder / "key.pem").read_bytes())

    async def call(
        self, channel: grpc.aio.Channel, caller: str, spec: MethodSpec = GUARDED[0]
    ) -> grpc.StatusCode:
        sent = [self.identity(caller, spec.path)]
        return await outcome(channel, spec, filled(spec, "acme"), sent)


async def serving(ca: CertificateAuthority, clock_seconds: float = 0) -> AsyncIterator[Served]:
    """Serves with a certificate of the authority; who is let in is decided that much later."""
    keys = OneKey()
    callers = callers_of(CATALOGUE)
    doorkeeper = Doorkeeper(**{KEY: administrator("acme", platform=True)})
    edge = Edge(doorkeeper, IdentityVerifier(keys), RateLimiter(NO_LIMITS), callers)
    around = Pipeline(CollectorRegistry(), SETTINGS, edge)
    endpoints = bind(dict.fromkeys(callers, object()), around, SETTINGS)
    files = CertificateFiles(ca.issue("host").folder)
    moved = MovedClock()
    moved.seconds = clock_seconds
    made = Transport(files, clock=moved.clock)
    server = RpcServer(endpoints, SETTINGS, around, made)
    mesh = server.listen_to_processes("127.0.0.1", 0)
    public = await server.start("127.0.0.1", 0)
    yield Served(ca, IdentitySigner(keys), f"127.0.0.1:{mesh}", f"127.0.0.1:{public}")
    await server.stop()


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async for made in serving(authority(tmp_path_factory.mktemp("ca"))):
        yield made


def granted(caller: str, spec: MethodSpec) -> bool:
    """Whether the catalogue lets the service call the method; what is public is everybody's."""
    entry = next(entry for entry in CATALOGUE if entry.name == caller)
    return area(spec.service) in entry.calls or spec.path in PUBLIC


def area(contract: str) -> str:
    return contract.split(".")[1]


def test_the_name_of_a_contract_says_which_service_of_the_catalogue_serves_it() -> None:
    for entry in CATALOGUE:
        assert {area(each.full_name) for each in entry.contracts} <= {entry.name}


@pytest.mark.parametrize("caller", SERVICES)
async def test_a_service_may_call_what_the_catalogue_grants_it_and_nothing_else(
    served: Served, caller: str
) -> None:
    assert len(OF_CATALOGUE) > 50
    async with served.dial(served.issued(caller)) as channel:
        for spec in OF_CATALOGUE:
            expected = GRANTED if granted(caller, spec) else REFUSED
            code = await served.call(channel, caller, spec)
            assert code is expected, (caller, spec.path)


@pytest.mark.parametrize("holder", SERVICES)
async def test_a_certificate_of_one_service_is_no_leave_to_be_another(
    served: Served, holder: str
) -> None:
    async with served.dial(served.issued(holder)) as channel:
        for caller in SERVICES:
            for spec in GUARDED:
                if caller != holder and granted(caller, spec):
                    code = await served.call(channel, caller, spec)
                    assert code is REFUSED, (holder, caller, spec.path)


async def test_a_process_of_several_services_may_act_as_each_and_as_no_other(
    served: Served,
) -> None:
    of_models = next(spec for spec in GUARDED if spec.service == "weft.models.v1.ModelService")
    async with served.dial(served.issued("agents.state")) as channel:
        assert await served.call(channel, "agents", of_models) is GRANTED
        assert await served.call(channel, "gateway", of_models) is REFUSED
    async with served.dial(served.issued("host")) as channel:
        for caller in ("agents", "gateway"):
            assert await served.call(channel, caller, of_models) is GRANTED


async def test_a_clients_certificate_is_no_service_and_lets_it_do_what_its_key_may(
    served: Served,
) -> None:
    # Named as a service, which gives it nothing of that.
    folder = served.ca.issue_client("gateway").folder
    pair = read_pair((folder / "cert.pem").read_bytes(), (folder / "key.pem").read_bytes())
    async with served.dial(pair) as channel:
        for spec in GUARDED:
            for caller in ("gateway", "agents", "client", "host"):
                assert await served.call(channel, caller, spec) is REFUSED, (caller, spec.path)
            sent = [("authorization", f"Bearer {KEY}")]
            by_key = await outcome(channel, spec, filled(spec, "acme"), sent)
            assert by_key is GRANTED, spec.path
        nobody = await outcome(channel, GUARDED[0], filled(GUARDED[0], "acme"))
        assert nobody is grpc.StatusCode.UNAUTHENTICATED
    files = CertificateFiles(folder)
    with pytest.raises(FailedPrecondition, match="client/gateway"):
        Transport(files).check_serving(["gateway"])
    # What it serves all the same nobody calls.
    impostor = grpc.aio.server()
    port = Transport(files).listen(impostor, "127.0.0.1:0", processes=False)
    await impostor.start()
    async with dial(f"127.0.0.1:{port}", "gateway", served.bundle, served.issued("agents")) as one:
        assert await served.call(one, "agents") is NO_CONNECTION
    await impostor.stop(None)


async def test_no_service_is_believed_on_the_port_for_everybody(served: Served) -> None:
    for pair in (None, served.issued("host"), served.issued("gateway")):
        async with dial(served.public, "models", served.bundle, pair) as channel:
            for spec in GUARDED:
                assert await served.call(channel, "gateway", spec) is REFUSED, spec.path


async def test_who_calls_with_a_key_needs_no_certificate_on_the_port_for_everybody(
    served: Served,
) -> None:
    credentials = grpc.ssl_channel_credentials(served.bundle)
    async with grpc.aio.secure_channel(served.public, credentials) as channel:
        code = await outcome(channel, GUARDED[0], filled(GUARDED[0], "acme"))
        assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_nobody_gets_to_the_port_for_processes_without_a_good_certificate(
    served: Served, tmp_path: Path
) -> None:
    root = root_of(served.ca)
    gateway = f"spiffe://{TRUST_DOMAIN}/process/gateway"
    strangers = {
        "none": None,
        "of another authority": leaf(root_of(authority(tmp_path / "other")), gateway),
        "expired": leaf(root, gateway, days=1, ago_days=2),
        "not valid yet": leaf(root, gateway, ago_days=-1),
    }
    async with served.dial(leaf(root, gateway)) as channel:
        assert await served.call(channel, "gateway") is GRANTED, "else this would show nothing"
    for kind, pair in strangers.items():
        async with served.dial(pair) as channel:
            assert await served.call(channel, "gateway") is NO_CONNECTION, kind


async def test_a_certificate_signs_no_other(served: Served) -> None:
    tools = served.issued("tools")
    forged = leaf(tools, f"spiffe://{TRUST_DOMAIN}/process/gateway")
    chain = dial(served.mesh, "models", served.bundle, forged, tools.certificate)
    async with chain as channel:
        assert await served.call(channel, "gateway") is NO_CONNECTION


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://elsewhere.internal/process/gateway",
        f"spiffe://{TRUST_DOMAIN}/process/gateway/",
        f"spiffe://{TRUST_DOMAIN}/process/Gateway",
        f"spiffe://{TRUST_DOMAIN}/process/gateway.",
        f"spiffe://{TRUST_DOMAIN}/process/gateways",
        f"spiffe://{TRUST_DOMAIN}/process/",
        f"spiffe://{TRUST_DOMAIN}/gateway",
        f"spiffe://{TRUST_DOMAIN}",
        f"https://{TRUST_DOMAIN}/process/gateway",
        f"spiffe://{TRUST_DOMAIN}/process/gateway?host",
    ],
)
async def test_a_good_certificate_with_another_name_acts_as_nobody(
    served: Served, uri: str
) -> None:
    async with served.dial(leaf(root_of(served.ca), uri)) as channel:
        assert await served.call(channel, "gateway") is REFUSED


async def test_a_certificate_with_two_names_has_none(served: Served) -> None:
    ids = [f"spiffe://{TRUST_DOMAIN}/process/{role}" for role in ("gateway", "tools")]
    async with served.dial(with_uris(root_of(served.ca), ids)) as channel:
        assert await served.call(channel, "gateway") is REFUSED
    async with served.dial(with_uris(root_of(served.ca), ids[:1])) as channel:
        assert await served.call(channel, "gateway") is GRANTED


async def test_a_connection_is_believed_no_longer_than_its_certificate_lasts(
    tmp_path: Path,
) -> None:
    ca = authority(tmp_path)
    for later_days, expected in ((0, GRANTED), (29, GRANTED), (31, REFUSED)):
        async for served in serving(ca, later_days * DAY_SECONDS):
            async with served.dial(served.issued("gateway")) as channel:
                assert await served.call(channel, "gateway") is expected, later_days
