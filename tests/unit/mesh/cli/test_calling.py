"""Calling any method, and the doctor."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.cli.application import application, run
from mesh.cli.failures import ExitCode
from tests.support.command_line import Weft
from tests.support.memory_platform import MemoryPlatform
from tests.support.memory_turns import Script, token
from weft.scheduler.v1 import tasks_pb2
from weft.state.v1 import events_pb2 as facts

TALK = "tenants/default/agents/bot/sessions/talk"


def test_without_arguments_all_methods_are_listed(weft: Weft) -> None:
    methods = weft("call").out.splitlines()
    assert "weft.agents.v1.TurnService/RunTurn" in methods
    assert "grpc.health.v1.Health/Check" in methods


@pytest.mark.parametrize(
    "method",
    [
        "weft.models.v1.ModelService/ListModels",
        "/weft.models.v1.ModelService/ListModels",
        "ModelService/ListModels",
    ],
)
def test_a_unary_method_answers_json(weft: Weft, method: str) -> None:
    ran = weft("call", method, "-d", '{"parent": "tenants/default"}')
    assert ran.data["models"][0]["id"] == "builtin/extractive"
    assert ran.data["models"][0]["is_default"] is True


def test_a_method_that_only_reflection_knows_is_called(weft: Weft) -> None:
    ran = weft("call", "grpc.health.v1.Health/Check", "-d", '{"service": ""}')
    assert ran.data == {"status": "SERVING"}


def test_a_stream_is_a_line_for_each_message(platform: MemoryPlatform, weft: Weft) -> None:
    weft("session", "create", "bot", "--id", "talk")
    platform.on_loop(lambda: platform.sessions.commit(TALK, facts.TurnStarted(turn="t1")))
    platform.on_loop(lambda: platform.sessions.cuts.append(1))
    request = {"name": TALK, "after_position": "0"}
    ran = weft("call", "StateService/WatchEvents", "-d", json.dumps(request))
    # The server drains in the middle: a bare call isn't attached again.
    assert [item["event"]["revision"] for item in ran.items] == ["1"]
    assert (ran.code, ran.err.splitlines()[0]) == (5, "weft: draining")


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["ModelService/ListModel"], 3, "did you mean ListModels?"),
        (["acme.v1.Weather/Get"], 3, "the server has no service acme.v1.Weather"),
        (["nonsense"], 2, "is no method"),
        (["ModelService/ListModels", "-d", "{"], 2, "the request is no ListModelsRequest"),
        (["ModelService/ListModels", "-d", '{"parents": 1}'], 2, "Its fields: parent, "),
        (["ModelService/ListModels", "-d", "{}"], 2, "parent"),
        (["ModelService/ListModels", "-d", "@nowhere.json"], 1, "can't read nowhere.json"),
        (["ModelService/Generate", "-d", '{"parent": "x"}'], 2, "reason: INVALID_FIELD"),
        (["grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"], 2, "a stream of"),
    ],
)
def test_what_cant_be_called_is_told(
    weft: Weft, arguments: list[str], code: int, problem: str
) -> None:
    ran = weft("call", *arguments)
    assert ran.code == code
    assert problem in ran.err


def test_a_request_is_read_from_stdin(weft_process: Weft) -> None:
    ran = weft_process("call", "ModelService/ListModels", "-d", "-", stdin='{"parent":"tenants/a"}')
    assert ran.code == 0


def test_doctor_judges_every_service_and_warns_of_the_offline_model(weft: Weft) -> None:
    ran = weft("doctor", "-o", "json")
    assert ran.code == 0
    verdicts = {check["check"]: check["verdict"] for check in ran.data}
    assert verdicts.pop("models") == "warn"
    assert verdicts.pop("key") == "warn"
    assert verdicts.pop("weft.agents.v1.AgentService") == "ok"
    assert set(verdicts.values()) == {"ok"}


def test_doctor_names_what_has_stalled_and_the_command_that_shows_it(
    platform: MemoryPlatform, weft: Weft
) -> None:
    for number in range(12):
        task = platform.tasks.add(f"default/t{number:02}", tasks_pb2.TASK_STATE_RUNNING)
        task.stalled_time.FromSeconds(100)
        task.stalled_reason = "worker w1 has it"
    platform.tasks.add("default/fine", tasks_pb2.TASK_STATE_RUNNING)
    platform.turns.scripts["how"] = Script([token("so ")])
    turn = weft("ask", "bot", "how", "--detach").out.strip()
    platform.turns.stall("model step 1")
    ran = weft("doctor", "-o", "json")
    assert ran.code == 0
    found = [check for check in ran.data if check["check"] == "stalled tasks"]
    assert [check["verdict"] for check in found] == ["warn"] * 11
    assert found[0]["detail"] == "default/t11: worker w1 has it; `weft task show default/t11`"
    assert (
        found[-1]["detail"] == "2 more of queue default; `weft task list --queue default --stalled`"
    )
    (check,) = [check for check in ran.data if check["check"] == "stalled turns"]
    assert check["detail"] == f"{turn}: at model step 1; `weft turn show {turn}`"


class _Readiness(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"events: down\n")

    def log_message(self, *_: object) -> None:
        """Says nothing: the tests' output is theirs."""


@pytest.fixture
def readiness() -> Iterator[http.server.ThreadingHTTPServer]:
    """An HTTP server that answers with the handler's status."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Readiness,), {}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("status", "verdict", "code"), [(200, "ok", 0), (503, "fail", 1)])
def test_doctor_asks_for_readiness_where_it_knows_the_http_address(
    platform: MemoryPlatform,
    weft: Weft,
    readiness: http.server.ThreadingHTTPServer,
    tmp_path: Path,
    status: int,
    verdict: str,
    code: int,
) -> None:
    readiness.RequestHandlerClass.status = status  # type: ignore[attr-defined]
    (tmp_path / "run").mkdir()
    stored = {
        "grpc": platform.address,
        "http": f"127.0.0.1:{readiness.server_port}",
        "pid": 2**22 + 1,
    }
    (tmp_path / "run" / "address.json").write_text(json.dumps(stored), encoding="utf-8")
    ran = weft("doctor", "--data-dir", str(tmp_path), "-o", "json")
    assert ran.code == code
    checks = {check["check"]: check for check in ran.data}
    assert checks["readyz"]["verdict"] == verdict
    assert checks["address"]["verdict"] == "warn"
    if status == 503:
        assert "events: down" in checks["readyz"]["detail"]


def test_no_key_is_sent_to_whoever_took_the_port_of_a_server_that_ended(
    platform: MemoryPlatform,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WEFT_API_KEY", platform.access.add_key("one"))
    (tmp_path / "run").mkdir()
    stored = {"grpc": platform.address, "http": "", "pid": 2**22 + 1}
    (tmp_path / "run" / "address.json").write_text(json.dumps(stored), encoding="utf-8")
    platform.access.authorizations.clear()
    with pytest.raises(SystemExit) as exit_:
        run(application(), ["agent", "list", "--data-dir", str(tmp_path)])
    assert exit_.value.code == ExitCode.UNAVAILABLE
    assert "has ended" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(application(), ["doctor", "--data-dir", str(tmp_path), "-o", "json"])
    checks = {check["check"]: check["verdict"] for check in json.loads(capsys.readouterr().out)}
    assert (checks["address"], checks["key"]) == ("warn", "fail")
    assert not any(authorization for _, authorization in platform.access.authorizations)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"grpc": "x"}', "\0"])
def test_a_damaged_address_file_is_passed_over(weft: Weft, tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "address.json").write_text(content, encoding="utf-8")
    assert weft("doctor", "--data-dir", str(tmp_path)).code == 0
