"""The administrator's key of a deployment in parts, and how commands on its machine find it."""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mesh.runtime.nats_server import EmbeddedNats, NatsEndpoint
from mesh.runtime.nats_users import ADMIN, bus_users, process_user
from services.catalog import CATALOGUE
from tests.support.weft_up import WeftUp, weft, weft_serve

pytestmark = pytest.mark.timeout(180)
FREE_PORTS = ("--port", "0", "--http-port", "0", "--data-dir")


@pytest.fixture
async def endpoint(tmp_path: Path) -> AsyncIterator[NatsEndpoint]:
    server = EmbeddedNats(tmp_path / "bus", bus_users(CATALOGUE), port=0)
    yield await server.start()
    await server.stop()


async def test_commands_find_the_key_at_every_gateway_whoever_started_last(
    endpoint: NatsEndpoint, tmp_path: Path
) -> None:
    environment = {
        "NATS_URL": endpoint.url,
        "WEFT_RUNTIME_NATS_SEED_FILE": str(endpoint.login(process_user(CATALOGUE)).seed_file),
        "WEFT_RUNTIME_NATS_ADMIN_SEED_FILE": str(endpoint.login(ADMIN).seed_file),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }

    def part(name: str, *arguments: str) -> WeftUp:
        log, data = tmp_path / f"{name}.log", tmp_path / name
        started = weft_serve(log, *arguments, *FREE_PORTS, data, **environment)
        return stack.enter_context(started)

    def who(gateway: WeftUp) -> str:
        ran = gateway.weft("whoami", "-o", "json", XDG_CONFIG_HOME=str(tmp_path / "config"))
        return ran.data["principal"] if ran.code == 0 else ran.err

    with ExitStack() as stack:
        one = part("one", "gateway")
        assert any("weft context add NAME" in note for note in one.said["notes"])  # type: ignore[attr-defined]
        assert "No key was found" in who(one)
        auth = part("auth", "auth", "control")
        assert auth.said["api_key"]
        two = part("two", "gateway")
        assert two.said["notes"] == []
        admin = who(one)
        assert "/apiKeys/" in admin
        assert who(two) == admin
        # Whoever calls its address isn't at a gateway: it takes none from those.
        auth.stop()
        again = part("auth", "auth", "control", "--new-admin-key", "default")
        assert again.said["api_key"] not in (None, auth.said["api_key"])
        assert who(one) == who(two) != admin


def test_a_key_is_made_where_auth_runs(tmp_path: Path) -> None:
    options = (*FREE_PORTS, tmp_path, "--new-admin-key", "default")
    ran = weft("serve", "gateway", *options, NATS_URL="nats://127.0.0.1:1")
    assert ran.code == 2
    assert "--new-admin-key needs auth" in ran.err
