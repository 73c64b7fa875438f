"""Where a command's key comes from, what it goes to, and where it never shows."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mesh.cli.clusters import ADDRESSES_MAX, ClusterFile
from mesh.cli.credentials import Credential
from mesh.cli.demo.server import Server
from mesh.private_files import write_private
from tests.support.command_line import ROOT, Weft, command_line, environment_for
from tests.support.memory_access import new_secret
from tests.support.memory_platform import MemoryPlatform

ADMIN = "tenants/acme/apiKeys/ops"
TALK = "tenants/acme/agents/bot/sessions/talk"


@pytest.fixture
def clusters(config: Path) -> ClusterFile:
    """The folder in which `weft up` leaves keys."""
    return ClusterFile(config / "clusters")


@pytest.fixture
def secret(platform: MemoryPlatform) -> str:
    """A key of the platform, which now lets nobody in without one."""
    platform.access.demands = True
    return platform.access.add_key(ADMIN)


def sent(platform: MemoryPlatform) -> set[str]:
    """The headers that came with all calls so far, which are forgotten."""
    headers = {header for _, header in platform.access.authorizations}
    platform.access.authorizations.clear()
    return headers


def test_every_kind_of_call_carries_the_key(
    platform: MemoryPlatform, weft: Weft, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_API_KEY", secret)
    assert weft("session", "create", "bot", "--id", "talk").code == 0
    assert weft("events", "tail", "--all", "-n", "1").code == 0
    exported = weft("session", "export", "bot/talk")
    file = Path(os.environ["XDG_CONFIG_HOME"]).parent / "talk.ndjson"
    file.write_text(exported.out, encoding="utf-8")
    assert weft("session", "import", "bot", str(file)).code == 0
    assert weft("call", "ModelService/ListModels", "-d", '{"parent":"tenants/acme"}').code == 0
    called = {method for method, _ in platform.access.authorizations}
    assert {"CreateSession", "WatchEvents", "ExportSession", "ImportSession"} <= called
    assert sent(platform) == {f"Bearer {secret}"}


class _Recorder(grpc.ServerInterceptor):
    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        metadata = {name: str(value) for name, value in details.invocation_metadata}
        self.headers[details.method.rsplit("/", 1)[1]] = metadata.get("authorization", "")
        return continuation(details)


@pytest.fixture
def recorder() -> Iterator[tuple[_Recorder, str]]:
    """A server of health and reflection, and what came to it."""
    recorder = _Recorder()
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[recorder])
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    reflection.enable_server_reflection((health.SERVICE_NAME,), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield recorder, f"127.0.0.1:{port}"
    server.stop(None)


def test_reflection_and_health_carry_it_too(
    weft: Weft, recorder: tuple[_Recorder, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = new_secret()
    monkeypatch.setenv("WEFT_API_KEY", secret)
    assert "grpc.health.v1.Health/Check" in weft("call", "--address", recorder[1]).out
    weft("doctor", "--address", recorder[1])
    headers = recorder[0].headers
    assert {"ServerReflectionInfo", "Check", "WhoAmI", "ListModels"} <= headers.keys()
    assert set(headers.values()) == {f"Bearer {secret}"}


def test_the_key_comes_from_the_environment_then_the_context_then_the_cluster(
    platform: MemoryPlatform,
    weft_process: Weft,
    clusters: ClusterFile,
) -> None:
    by_cluster, by_context, by_environment = (new_secret() for _ in range(3))
    clusters.write("c1", platform.address, by_cluster)
    weft_process("context", "add", "prod", stdin=by_context)
    model_list = ("model", "list", "--tenant", "acme")
    weft_process(*model_list)
    assert sent(platform) == {f"Bearer {by_cluster}"}
    weft_process(*model_list, "--context", "prod")
    assert sent(platform) == {f"Bearer {by_context}"}
    weft_process(*model_list, WEFT_ADDRESS="")
    assert sent(platform) == {f"Bearer {by_context}"}, "the current context, where none is named"
    weft_process(*model_list, WEFT_ADDRESS="", WEFT_CONTEXT="prod", WEFT_API_KEY=by_environment)
    assert sent(platform) == {f"Bearer {by_environment}"}


def test_the_cluster_is_that_of_the_data_folders_server(
    platform: MemoryPlatform, weft_process: Weft, clusters: ClusterFile, tmp_path: Path
) -> None:
    ours, other = new_secret(), new_secret()
    clusters.write("ours", "127.0.0.1:1", ours)
    clusters.write("other", platform.address, other)
    (tmp_path / "run").mkdir()
    stored = {"grpc": platform.address, "http": "", "pid": os.getpid(), "cluster": "ours"}
    (tmp_path / "run" / "address.json").write_text(json.dumps(stored), encoding="utf-8")
    weft_process("model", "list", "--tenant", "a", "--data-dir", str(tmp_path), WEFT_ADDRESS="")
    assert sent(platform) == {f"Bearer {ours}"}


def test_a_cluster_file_is_its_owners_alone_and_replaced_at_once(
    clusters: ClusterFile, config: Path
) -> None:
    first, second = new_secret(), new_secret()
    clusters.write("c1", "127.0.0.1:1", first)
    clusters.write("c1", "127.0.0.1:2", second)
    (file,) = (config / "clusters").glob("*.json")
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert first not in file.read_text()
    for found in ({"cluster": "c1"}, {"address": "127.0.0.1:1"}, {"address": "127.0.0.1:2"}):
        assert clusters.find(**found) == second
    assert clusters.find(address="127.0.0.1:3") is None
    assert clusters.find(cluster="../contexts") is None
    with pytest.raises(ValueError, match="cluster"):
        clusters.write("../c1", "127.0.0.1:1", first)


def test_a_key_file_that_others_can_read_is_refused(
    platform: MemoryPlatform, weft: Weft, clusters: ClusterFile, config: Path
) -> None:
    secret = new_secret()
    clusters.write("c1", platform.address, secret)
    (config / "clusters" / "c1.json").chmod(0o640)
    ran = weft("model", "list")
    assert (ran.code, sent(platform)) == (4, set())
    assert "others can read" in ran.err
    assert "chmod 600" in ran.err
    told = {check["check"]: check["verdict"] for check in weft("doctor", "-o", "json").data}
    assert (told["key"], told["key files"], told["models"]) == ("fail", "warn", "warn")
    assert sent(platform) == {""}


@pytest.mark.parametrize(
    ("target", "options", "goes"),
    [
        ("10.255.255.1:50051", [], False),
        ("weft.example:50051", [], False),
        ("127.0.0.1.example:1", [], False),
        ("localhost:1/x", [], False),
        ("127.0.0.1:1", [], True),
        ("[::1]:1", [], True),
        ("weft.invalid:1", ["--insecure"], True),
    ],
)
def test_no_key_goes_to_another_machine_in_plain_text(
    weft: Weft, monkeypatch: pytest.MonkeyPatch, target: str, options: list[str], goes: bool
) -> None:
    monkeypatch.setenv("WEFT_API_KEY", new_secret())
    ran = weft("model", "list", "--address", target, "--tenant", "a", "--timeout", "3", *options)
    assert ran.code in ((5, 124) if goes else (4,))
    assert ("isn't encrypted" in ran.err) != goes


def test_the_tenant_is_the_keys_own_and_asked_for_once(
    platform: MemoryPlatform, weft: Weft, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_API_KEY", secret)

    def called(*arguments: str) -> list[str]:
        assert weft(*arguments).code == 0
        methods = [method for method, _ in platform.access.authorizations]
        platform.access.authorizations.clear()
        return methods

    made = weft("session", "create", "bot", "--id", "talk", "-o", "json").data
    assert made["name"] == TALK
    platform.access.authorizations.clear()
    assert called("session", "show", "bot/talk") == ["WhoAmI", "GetSession"]
    assert called("session", "show", TALK) == ["GetSession"]
    assert called("session", "list", "--tenant", "acme") == ["ListSessions"]
    assert weft("session", "show", "Not A Session").code == 2
    assert platform.access.authorizations == []


def test_who_isnt_known_is_told_where_keys_are_looked_for(
    platform: MemoryPlatform, weft: Weft, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = weft("agent", "list")
    assert ran.code == 4
    assert f"No key was found for {platform.address}." in ran.err
    assert "reason: CREDENTIAL_INVALID" in ran.err
    unknown = new_secret()
    monkeypatch.setenv("WEFT_API_KEY", unknown)
    ran = weft("agent", "list")
    assert ran.code == 4
    assert f"The key weft_{unknown.split('_')[1]}_… is from WEFT_API_KEY" in ran.err
    assert unknown not in ran.err


def test_who_may_not_is_told_what_is_needed(
    platform: MemoryPlatform, weft: Weft, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_API_KEY", secret)
    platform.access.denied.add("agents.list")
    ran = weft("agent", "list")
    assert ran.code == 4
    assert "needed: agents.list on tenants/default" in ran.err
    assert "weft whoami" in ran.err


@pytest.mark.parametrize("text", ["weft_a b", "weft_\x01", "schlüssel", "x" * 5000])
def test_what_cant_be_a_key_is_refused_and_not_repeated(
    platform: MemoryPlatform, weft_process: Weft, text: str
) -> None:
    ran = weft_process("model", "list", WEFT_API_KEY=text, WEFT_DEBUG="1")
    assert (ran.code, sent(platform)) == (4, set())
    assert text not in ran.err
    assert "WEFT_API_KEY" in ran.err


@pytest.mark.parametrize("where", ["refused", "unreachable", "traced", "stream"])
def test_no_key_shows_in_what_a_command_says(
    platform: MemoryPlatform, weft_process: Weft, where: str
) -> None:
    secret = new_secret()
    platform.access.demands = True
    command = ("events", "tail") if where == "stream" else ("agent", "list")
    environment = {
        "unreachable": {"WEFT_ADDRESS": "127.0.0.1:1"},
        "traced": {"GRPC_VERBOSITY": "debug", "GRPC_TRACE": "all"},
    }
    ran = weft_process(*command, WEFT_API_KEY=secret, WEFT_DEBUG="1", **environment.get(where, {}))
    assert ran.code in (4, 5)
    assert secret not in ran.out + ran.err
    assert secret.split("_")[2] not in ran.out + ran.err


def test_an_unexpected_error_shows_no_key_even_when_debugging() -> None:
    secret = new_secret()
    broken = (
        "from mesh.cli.application import application, run\n"
        "from mesh.cli.command import command\n"
        "app = application()\n"
        "def broken(client) -> None:\n"
        "    '''Breaks.'''\n"
        "    client.channel\n"
        "    raise ZeroDivisionError(f'{client.credential} {vars(client)}')\n"
        "command(app, 'broken', example='weft broken')(broken)\n"
        "run(app, ['broken'])\n"
    )
    ran = subprocess.run(
        [*command_line()[:1], "-c", broken],
        env=environment_for("127.0.0.1:1", WEFT_DEBUG="1", WEFT_API_KEY=secret),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert "Credential(source='WEFT_API_KEY')" in ran.stderr
    assert secret not in ran.stderr


def test_a_credential_is_no_text() -> None:
    secret = new_secret()
    found = Credential(secret, "somewhere")
    assert secret not in f"{found!r} {found} {found.label}"


def test_every_gateway_of_a_deployment_is_found_and_none_of_another(
    clusters: ClusterFile, config: Path
) -> None:
    ours, other = new_secret(), new_secret()
    clusters.write("ours", api_key=ours)
    for port in (1, 2):
        clusters.write("ours", f"127.0.0.1:{port}")
    clusters.write("other", "127.0.0.1:3", other)
    # Another deployment listens there now, whose key nobody here has; then ours elsewhere.
    clusters.write("third", "127.0.0.1:2")
    clusters.write("ours", "127.0.0.1:4")
    found = [clusters.find(address=f"127.0.0.1:{port}") for port in range(1, 5)]
    assert found == [ours, None, other, ours]
    assert [clusters.find(cluster=each) for each in ("ours", "other", "third")] == [
        *(ours, other, None)
    ]
    clusters.write("other", "127.0.0.1:1")
    assert clusters.find(address="127.0.0.1:1") == other
    assert clusters.find(cluster="ours") == ours
    for port in range(100):
        clusters.write("ours", f"127.0.0.1:{port}")
    kept = json.loads((config / "clusters" / "ours.json").read_text())["addresses"]
    assert kept == [f"127.0.0.1:{port}" for port in range(99, 99 - ADDRESSES_MAX, -1)]


def test_a_file_of_before_there_could_be_several_addresses_is_read(
    clusters: ClusterFile, config: Path
) -> None:
    key = new_secret()
    stored = json.dumps({"address": "127.0.0.1:1", "api_key": key})
    write_private(config / "clusters" / "c1.json", stored)
    assert clusters.find(address="127.0.0.1:1") == clusters.find(cluster="c1") == key
    clusters.write("c1", "127.0.0.1:2")
    assert clusters.find(address="127.0.0.1:1") == clusters.find(address="127.0.0.1:2") == key


def test_gateways_that_start_together_are_all_kept(clusters: ClusterFile) -> None:
    clusters.write("c1", api_key=(key := new_secret()))
    addresses = [f"127.0.0.1:{port}" for port in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda address: clusters.write("c1", address), addresses))
    assert {clusters.find(address=each) for each in addresses} == {key}


def test_the_demo_uses_the_key_of_its_own_server_alone(
    clusters: ClusterFile, tmp_path: Path
) -> None:
    ours, own = new_secret(), new_secret()
    server = Server(tmp_path / "demo" / "data")
    server.address = "127.0.0.1:1"
    clusters.write("ours", server.address, ours)
    assert server.access("tenants/default").find_credential() is None
    ClusterFile(tmp_path / "demo" / "config" / "weft" / "clusters").write("c", server.address, own)
    found = server.access("tenants/default").find_credential()
    assert found is not None
    assert found.secret == own


def test_no_option_takes_a_key(weft: Weft) -> None:
    assert weft("--api-key", new_secret(), "model", "list").code == 2
    assert "it is no option" in " ".join(weft("--help").out.split())
