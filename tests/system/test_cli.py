"""The command `weft` as a person types it, against `weft up` with its offline model."""

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command_line import Ran
from tests.support.ledger_server import LEDGER, read_entries
from tests.support.platform import platform
from tests.support.processes import running, until
from tests.support.weft_up import WeftUp, weft, weft_up

TENANT = "tenants/default"
FREE_PORTS = ("--port", "0", "--http-port", "0")
FERRY = """# Boats

The ferry Aurora carries 240 passengers and 30 cars.

# Times

The ferry leaves the harbour at 7 in the morning.
"""
QUESTION = "How many passengers does the ferry Aurora carry?"

CLERK = "agent: clerk\ntools:\n  - tool: credit\n"
CREDIT = json.dumps(
    {
        "steps": [
            {"calls": [{"tool": "credit", "arguments": {"account": "ada", "amount": 5}}]},
            {"text": "done"},
        ]
    }
)

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Typed:
    """Runs commands against a platform; none may ever show a traceback."""

    up: WeftUp

    def __call__(self, *arguments: str | Path, code: int = 0, stdin: str = "") -> Ran:
        ran = self.up.weft(*arguments, stdin=stdin)
        assert "Traceback" not in ran.err + ran.out
        assert ran.code == code, f"{ran.out}\n{ran.err}"
        assert not code or ran.err.strip()
        return ran

    def rpc(self, method: str, request: object, *, code: int = 0) -> Ran:
        """A call of any method."""
        return self("call", method, "-d", json.dumps(request), code=code)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents and files of agents."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "docs").mkdir()
    (folder / "docs" / "boats.md").write_text(FERRY)
    return folder


@pytest.fixture(scope="module")
def up(folder: Path) -> Iterator[WeftUp]:
    """The platform of this module."""
    with weft_up(folder / "up.log", "--ephemeral", *FREE_PORTS) as up:
        yield up
        assert up.stop() == 0
        assert "Traceback" not in up.log


@pytest.fixture(scope="module")
def typed(up: WeftUp) -> Typed:
    return Typed(up)


@pytest.fixture(scope="module")
def captain(typed: Typed, folder: Path) -> str:
    """An agent that searches and calculates, with the session `talk` of one turn."""
    typed("collection", "ingest", "boats", folder / "docs")
    file = folder / "captain.yaml"
    file.write_text(
        "agent: captain\n"
        "instructions: Answer from the documents.\n"
        "tools:\n"
        "  - tool: search\n"
        "    fixed_arguments: {collection: boats}\n"
        "  - tool: calculator\n"
    )
    typed("agent", "apply", "-f", file)
    typed("session", "create", "captain", "--id", "talk")
    typed("ask", "captain", QUESTION, "--session", "talk", "--request-id", "first")
    return "captain"


@pytest.fixture(scope="module")
def careful(typed: Typed) -> str:
    """An agent whose every calculation a person must approve."""
    spec = "agent: careful\ntools:\n  - tool: calculator\n    requires_approval: true\n"
    typed("agent", "apply", "-f", "-", stdin=spec)
    return "careful"


def short_name(turn: str) -> str:
    """`agent/session/turn` of a turn's full name."""
    return "/".join(turn.split("/")[3::2])


def waiting_turn(typed: Typed, agent: str) -> str:
    """A turn that waits for a person."""
    ran = typed("ask", agent, "What is 12 * 12?", "-o", "json", code=1)
    return short_name(ran.items[0]["accepted"]["turn"])


class TestAgents:
    def test_applying_a_file_makes_revisions_only_where_something_changed(
        self, typed: Typed
    ) -> None:
        def apply(text: str) -> Ran:
            return typed("agent", "apply", "-f", "-", "-o", "json", stdin=f"agent: mate\n{text}")

        assert apply("instructions: one").data["outcome"] == "created"
        assert apply("instructions: one").data["outcome"] == "unchanged"
        assert apply("instructions: two").data["revision"] == 2
        shown = typed("agent", "show", "mate", "--revision", "1", "-o", "json").data
        assert shown["spec"]["instructions"] == "one"
        listed = typed("agent", "revisions", "mate", "-o", "json").data
        assert [agent["revision"] for agent in listed] == ["2", "1"]
        names = [agent["name"] for agent in typed("agent", "list", "-o", "json").data]
        assert f"{TENANT}/agents/mate" in names

    def test_a_deleted_agent_is_gone_but_for_its_past(self, typed: Typed) -> None:
        typed("agent", "apply", "-f", "-", stdin="agent: gone\ninstructions: go")
        typed("agent", "delete", "gone")
        typed("agent", "show", "gone", code=3)
        assert typed("agent", "show", "gone", "--revision", "1").out

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("agent: mate\nnonsense: 1", "nonsense"),
            ("agent: Not An Id\ninstructions: x", "agent"),
            ("agent: [", ""),
            ("- just\n- a list", ""),
            ("agent: mate\ntools:\n - tool: search\n - tool: search", "tools[1].tool"),
            ("agent: mate\nparameters: {temperature: 9}", "temperature"),
        ],
    )
    def test_a_bad_file_is_refused_with_what_is_wrong_with_it(
        self, typed: Typed, text: str, said: str
    ) -> None:
        assert said in typed("agent", "apply", "-f", "-", stdin=text, code=2).err

    def test_a_file_that_is_not_there_is_named(self, typed: Typed) -> None:
        ran = typed("agent", "apply", "-f", "no-such-file.yaml", code=1)
        assert "no-such-file.yaml" in ran.err


class TestAsking:
    def test_an_answer_streams_with_its_sources(self, typed: Typed, captain: str) -> None:
        ran = typed("ask", captain, QUESTION)
        assert "240" in ran.out
        assert "boats.md" in ran.out

    def test_its_events_are_one_json_document_a_line(self, typed: Typed, captain: str) -> None:
        events = typed("ask", captain, QUESTION, "-o", "json").items
        kinds = [next(k for k in event if k not in ("offset", "time")) for event in events]
        assert kinds[0] == "accepted"
        assert {"model_step", "tool_call", "tool_result", "token"} <= set(kinds)
        assert kinds[-1] == "completed"
        assert events[-1]["completed"]["sources"][0]["uri"].endswith("boats.md")

    def test_a_question_may_come_from_stdin_or_a_file(
        self, typed: Typed, captain: str, folder: Path
    ) -> None:
        (folder / "question.txt").write_text(QUESTION)
        assert "240" in typed("ask", captain, "-", stdin=QUESTION).out
        assert "240" in typed("ask", captain, f"@{folder / 'question.txt'}").out

    def test_the_same_request_finds_the_same_turn_again(self, typed: Typed, captain: str) -> None:
        asked = ("ask", captain, QUESTION, "--session", "talk", "--request-id", "first")
        again = typed(*asked, "-o", "json").items
        shown = typed("session", "show", "captain/talk", "-o", "json").data
        assert again[0]["accepted"]["request_id"] == "first"
        assert shown["turn_count"] == "1"

    def test_the_same_request_with_another_question_is_refused(
        self, typed: Typed, captain: str
    ) -> None:
        other = ("ask", captain, "Other?", "--session", "talk", "--request-id", "first")
        assert "REQUEST_ID_REUSED" in typed(*other, code=2).err

    def test_a_detached_turn_is_watched_later(self, typed: Typed, captain: str) -> None:
        name = typed("ask", captain, QUESTION, "--detach", "-o", "json").data["turn"]
        watched = typed("turn", "watch", short_name(name), "-o", "json").items
        assert "completed" in watched[-1]
        assert "240" in typed("turn", "watch", short_name(name)).out
        assert typed("turn", "show", name, "-o", "json").data["status"] == "TURN_STATUS_COMPLETED"

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (("nobody", "Hello?"), 3),
            (("captain", "Hello?", "--session", "no-such-session"), 3),
            (("Not An Agent", "Hello?"), 2),
            (("captain",), 2),
            (("captain", "@no-such-file"), 1),
            (("captain", ""), 2),
            (("captain", "-", "--session", "talk"), 2),
        ],
    )
    def test_bad_questions(
        self, typed: Typed, captain: str, arguments: tuple[str, ...], code: int
    ) -> None:
        typed("ask", *arguments, code=code)

    def test_a_question_that_is_too_long_is_refused_with_its_field(
        self, typed: Typed, captain: str
    ) -> None:
        ran = typed("ask", captain, "-", stdin="x" * 300_000, code=2)
        assert "input" in ran.err

    def test_a_turn_of_a_model_that_is_down_fails_with_the_reason(self, typed: Typed) -> None:
        typed("agent", "apply", "-f", "-", stdin="agent: lost\nmodel: openai/none")
        ran = typed("ask", "lost", "Hello?", "-o", "json", code=6)
        assert ran.items[-1]["failed"]["error"]["message"]


class TestSessions:
    def test_its_history_and_past_states_are_there(self, typed: Typed, captain: str) -> None:
        history = typed("session", "history", "captain/talk", "-o", "json").data
        revisions = [int(event["revision"]) for event in history]
        assert revisions == list(range(1, len(revisions) + 1))
        later = typed("session", "history", "captain/talk", "--after-revision", "4", "-o", "json")
        assert [int(event["revision"]) for event in later.data] == revisions[4:]
        state = typed("session", "state", "captain/talk", "--revision", "2", "-o", "json").data
        assert "active_turn" in json.dumps(state)
        time = history[1]["time"]
        typed("session", "state", "captain/talk", "--time", time)

    def test_a_fork_holds_the_past_and_goes_its_own_way(self, typed: Typed, captain: str) -> None:
        typed("session", "fork", "captain/talk", "--revision", "3", "--id", "other")
        assert "240" in typed("ask", captain, QUESTION, "--session", "other").out
        shown = typed("session", "show", "captain/other", "-o", "json").data
        assert shown["forked_from"]["revision"] == "3"
        for session in ("captain/talk", "captain/other"):
            assert typed("session", "verify", session, "-o", "json").data["matches"] is True

    def test_they_are_listed(self, typed: Typed, captain: str) -> None:
        listed = typed("session", "list", captain, "-o", "json").data
        assert f"{TENANT}/agents/captain/sessions/talk" in [each["name"] for each in listed]

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (("history", "captain/nothing"), 3),
            (("state", "captain/nothing"), 3),
            (("state", "captain/talk", "--revision", "999"), 3),
            (("state", "captain/talk", "--revision", "1", "--time", "2026-01-01T00:00:00Z"), 2),
            (("state", "captain/talk", "--time", "yesterday"), 2),
            (("fork", "captain/talk", "--revision", "999"), 3),
            (("fork", "captain/nothing"), 3),
            (("fork", "captain/talk", "--id", "talk"), 1),
            (("verify", "captain/nothing"), 3),
            (("create", "nobody"), 3),
            (("create", "captain", "--id", "Not An Id"), 2),
            (("show", "captain"), 2),
        ],
    )
    def test_bad_sessions(
        self, typed: Typed, captain: str, arguments: tuple[str, ...], code: int
    ) -> None:
        typed("session", *arguments, code=code)


class TestBackgroundTurns:
    def test_a_turn_is_submitted_and_found_by_its_name(self, typed: Typed, captain: str) -> None:
        submit = ("turn", "submit", f"{captain}/later", QUESTION)
        typed("session", "create", captain, "--id", "later")
        assert "240" in typed(*submit, "--watch").out
        typed("queue", "pause", "turns")
        sent = typed(*submit, "--request-id", "r1", "--priority", "9", "-o", "json").data
        turn = short_name(sent["turn"])
        assert typed(*submit, "--request-id", "r1", "--priority", "9").out == f"{turn}\n"
        shown = typed("turn", "show", turn, "-o", "json").data
        assert (shown["status"], shown["input"]) == ("TURN_STATUS_QUEUED", QUESTION)
        assert turn.rpartition("/")[2] in typed("task", "list", "--queue", "turns").out
        typed("queue", "resume", "turns")
        assert "240" in typed("turn", "watch", turn).out
        typed("turn", "submit", f"{captain}/none", QUESTION, code=3)
        typed(*submit, "--not-before", "soon", code=2)


class TestWaitingTurns:
    def test_a_turn_waits_until_a_person_approves(self, typed: Typed, careful: str) -> None:
        turn = waiting_turn(typed, careful)
        shown = typed("turn", "show", turn, "-o", "json").data
        assert shown["status"] == "TURN_STATUS_WAITING_APPROVAL"
        typed("turn", "approve", turn)
        assert "144" in typed("turn", "watch", turn).out
        assert "waits for this" in typed("turn", "approve", turn, code=1).err

    def test_a_denied_call_is_not_made(self, typed: Typed, careful: str) -> None:
        turn = waiting_turn(typed, careful)
        typed("turn", "approve", turn, "--deny", "--comment", "not today")
        events = typed("turn", "watch", turn, "-o", "json").items
        assert not [event for event in events if "tool_call" in event]
        given = next(event["approval_given"] for event in events if "approval_given" in event)
        assert given["comment"] == "not today"

    def test_a_cancelled_turn_exits_as_one_that_failed(self, typed: Typed, careful: str) -> None:
        turn = waiting_turn(typed, careful)
        typed("turn", "cancel", turn)
        typed("turn", "cancel", turn)
        assert "cancelled" in typed("turn", "watch", turn, "-o", "json", code=6).items[-1]

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (("show", "careful/talk/nothing"), 3),
            (("watch", "careful/talk/nothing"), 3),
            (("cancel", "careful/talk/nothing"), 3),
            (("approve", "careful/talk/nothing", "call"), 3),
            (("resolve", "careful/talk/nothing", "call", "--retry"), 3),
            (("resolve", "careful/talk/nothing", "call"), 2),
            (("resolve", "careful/talk/nothing", "call", "--retry", "--failed", "x"), 2),
            (("watch", "careful"), 2),
        ],
    )
    def test_bad_turns(
        self, typed: Typed, careful: str, arguments: tuple[str, ...], code: int
    ) -> None:
        typed("turn", *arguments, code=code)

    def test_what_is_not_in_doubt_is_not_resolved(self, typed: Typed, careful: str) -> None:
        turn = waiting_turn(typed, careful)
        typed("turn", "resolve", turn, "step1-call1", "--completed", "144", code=1)
        typed("turn", "cancel", turn)


class TestCallsInDoubt:
    """The scripted model asks for what the offline one wouldn't: an irreversible call."""

    @pytest.mark.parametrize(
        ("resolution", "effects"),
        [(("--completed", "credited"), 1), (("--failed", "lost"), 1), (("--retry",), 2)],
    )
    async def test_a_person_says_what_became_of_one(
        self, tmp_path: Path, resolution: tuple[str, ...], effects: int
    ) -> None:
        file, address_file = tmp_path / "ledger", tmp_path / "address"
        slow = ("--file", file, "--address-file", address_file, "--delay-after-seconds", 30)
        async with (
            platform(tmp_path / "data") as scripted,
            running("tests.support.ledger_server", *slow),
        ):
            await until(address_file.exists)

            def typed(*arguments: str, stdin: str = "") -> Ran:
                ran = weft(*arguments, stdin=stdin, WEFT_ADDRESS=scripted.addresses["grpc"])
                assert "Traceback" not in ran.err
                return ran

            added = ("tool", "add-grpc", address_file.read_text(), f"{LEDGER}/Credit")
            assert typed(*added, "--effect", "irreversible", "--timeout", "0.5").code == 0
            assert typed("agent", "apply", "-f", "-", stdin=CLERK).code == 0
            asked = typed("ask", "clerk", CREDIT, "-o", "json")
            assert asked.code == 1
            assert "turn resolve" in asked.err
            turn = short_name(asked.items[0]["accepted"]["turn"])

            # Until the call's timeout and a lease are over it may still be running.
            await until(lambda: typed("turn", "resolve", turn, *resolution).code == 0, 30.0)

            if resolution != ("--retry",):
                assert "done" in typed("turn", "watch", turn).out
            await until(lambda: len(read_entries(file)) == effects)


class TestTools:
    def test_they_are_listed_and_called(self, typed: Typed) -> None:
        names = [tool["name"] for tool in typed("tool", "list", "-o", "json").data]
        assert {f"{TENANT}/tools/calculator", f"{TENANT}/tools/search"} <= set(names)
        called = typed("tool", "call", "calculator", "-d", '{"expression": "6*7"}', "-o", "json")
        assert called.data["content"] == "42"

    async def test_a_method_of_a_grpc_server_becomes_one(
        self, typed: Typed, tmp_path: Path
    ) -> None:
        file, address_file = tmp_path / "ledger", tmp_path / "address"
        options = ("--port", 0, "--file", file, "--address-file", address_file)
        async with running("tests.support.ledger_server", *options):
            await until(address_file.exists)
            address = await asyncio.to_thread(address_file.read_text)
            method = f"{LEDGER}/Credit"
            typed("tool", "add-grpc", address, method, "--effect", "irreversible", "--id", "credit")
            request = json.dumps({"account": "ada", "amount": 5})
            typed("tool", "call", "credit", "-d", request)
            assert [entry.amount for entry in read_entries(file)] == [5]
            typed("tool", "call", "credit", "-d", '{"account": 5}', code=2)
            typed("tool", "add-grpc", address, f"{LEDGER}/Nothing", "--effect", "read", code=3)
        typed("tool", "call", "credit", "-d", request, code=5)
        typed("tool", "delete", "credit")
        typed("tool", "call", "credit", "-d", request, code=3)

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (("call", "nothing"), 3),
            (("call", "calculator", "-d", "{"), 2),
            (("call", "calculator", "-d", "[]"), 2),
            (("call", "calculator", "-d", '{"nonsense": 1}'), 2),
            (("call", "calculator", "-d", '{"expression": "1/0"}'), 1),
            (("add-grpc", "127.0.0.1:1", "a.v1.B/C", "--effect", "read"), 5),
            (("add-grpc", "127.0.0.1:1", "no-method", "--effect", "read"), 2),
            (("add-grpc", "127.0.0.1:1", "a.v1.B/C", "--effect", "nonsense"), 2),
            (("add-grpc", "127.0.0.1:1", "a.v1.B/C"), 2),
        ],
    )
    def test_bad_tools(self, typed: Typed, arguments: tuple[str, ...], code: int) -> None:
        typed("tool", *arguments, code=code)


class TestCollections:
    def test_documents_are_ingested_and_found(self, typed: Typed, folder: Path) -> None:
        said = typed("collection", "ingest", "harbour", folder / "docs", "-o", "json").data
        assert said["document_count"] == 1
        (first, *_) = typed(
            "collection", "search", "harbour", "when does it leave", "-o", "json"
        ).data
        assert (first["uri"], first["line"]) == ("boats.md", 7)

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (("search", "nothing", "words"), 3),
            (("search", "boats", ""), 2),
            (("ingest", "boats", "no-such-folder"), 1),
            (("ingest", "Not An Id", "."), 2),
            (("show", "nothing"), 3),
        ],
    )
    def test_bad_collections(
        self, typed: Typed, captain: str, arguments: tuple[str, ...], code: int
    ) -> None:
        typed("collection", *arguments, code=code)


class TestEvents:
    def test_the_log_is_printed_a_document_a_line(self, typed: Typed, captain: str) -> None:
        events = typed("events", "tail", "captain/talk", "--all", "-n", "4", "-o", "json").items
        assert [event["revision"] for event in events] == ["1", "2", "3", "4"]
        typed("events", "tail", "captain/talk", "--all", "-n", "2")

    def test_a_filtered_one_resumes_behind_a_position(self, typed: Typed, captain: str) -> None:
        completed = ("events", "tail", "captain/talk", "--type", "TurnCompleted", "-o", "json")
        (event,) = typed(*completed, "--all", "-n", "1").items
        assert event["type"] == "weft.state.v1.TurnCompleted"
        position = event["position"]
        typed(*completed, "--after-position", position, "--timeout", "1", code=124)

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (("--since", "soon"), 2),
            (("--all", "--after-position", "3"), 2),
            (("captain/talk/turn/too/long",), 2),
        ],
    )
    def test_bad_tails(self, typed: Typed, arguments: tuple[str, ...], code: int) -> None:
        typed("events", "tail", *arguments, code=code)


class TestCalls:
    def test_any_method_is_called(self, typed: Typed) -> None:
        listed = typed.rpc("ModelService/ListModels", {"parent": TENANT}).data
        assert listed["models"][0]["id"] == "builtin/extractive"
        assert "weft.agents.v1.TurnService/RunTurn" in typed("call").out.split()
        health = typed.rpc("grpc.health.v1.Health/Check", {}).data
        assert health["status"] == "SERVING"

    def test_a_streaming_answer_is_a_document_a_line(self, typed: Typed, captain: str) -> None:
        session = f"{TENANT}/agents/captain/sessions/talk"
        request = {"session": session, "input": QUESTION, "request_id": "first"}
        lines = typed.rpc("TurnService/RunTurn", request).items
        assert "completed" in lines[-1]["events"][-1]

    @pytest.mark.parametrize(
        ("method", "request_", "code", "said"),
        [
            ("AgentService/GetAgent", {"name": f"{TENANT}/agents/nobody"}, 3, "RESOURCE_NOT_FOUND"),
            ("AgentService/GetAgent", {"name": "nobody"}, 2, "name"),
            ("AgentService/GetAgent", {}, 2, "name"),
            ("AgentService/GetAgent", {"nonsense": 1}, 2, "nonsense"),
            ("AgentService/Nonsense", {}, 3, "Nonsense"),
            ("NoService/GetAgent", {}, 3, "NoService"),
            ("nonsense", {}, 2, "nonsense"),
            (
                "AgentService/CreateAgent",
                {"parent": TENANT, "agent_id": "x", "spec": {"limits": {"steps_max": 1000}}},
                2,
                "spec.limits.steps_max",
            ),
            (
                "TurnService/RunTurn",
                {
                    "session": f"{TENANT}/agents/captain/sessions/talk",
                    "input": "?",
                    "expected_revision": 1,
                },
                1,
                "REVISION_CONFLICT",
            ),
        ],
    )
    def test_bad_calls(
        self, typed: Typed, captain: str, method: str, request_: object, code: int, said: str
    ) -> None:
        assert said in typed.rpc(method, request_, code=code).err

    def test_json_that_does_not_parse_is_a_matter_of_usage(self, typed: Typed) -> None:
        typed("call", "AgentService/GetAgent", "-d", "{", code=2)


class TestDoctor:
    def test_a_healthy_platform_passes_every_check(self, typed: Typed) -> None:
        checks = typed("doctor", "-o", "json").data
        assert checks
        assert {check["verdict"] for check in checks} <= {"ok", "warn"}


class TestUp:
    def test_help_and_version(self) -> None:
        assert weft("--version").out.startswith("weft ")
        assert "--ephemeral" in weft("up", "--help").out
        assert weft("nonsense").code == 2

    def test_a_port_in_use_is_passed_over_and_said(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            options = ("--ephemeral", "--port", str(port), "--http-port", "0")
            with weft_up(tmp_path / "log", *options) as up:
                assert up.address != f"127.0.0.1:{port}"
                notes = up.said["notes"]
                assert notes == [f"port {port} (grpc) is in use; using {up.address.split(':')[1]}"]
                assert up.weft("model", "list").code == 0

    def test_a_data_folder_in_use_is_refused_and_found_by_commands(self, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        with weft_up(tmp_path / "log", "--data-dir", folder, *FREE_PORTS) as up:
            second = weft("up", "--data-dir", folder, *FREE_PORTS)
            assert second.code == 1
            assert "in use by process" in second.err
            assert "Traceback" not in second.err
            assert weft("model", "list", "--data-dir", folder).code == 0
            assert up.stop(signal.SIGINT) == 0
        assert weft("model", "list", "--data-dir", folder, "--timeout", "5").code == 5

    @pytest.mark.parametrize(
        ("file", "content"),
        [("VERSION", "weft-data 999"), ("VERSION", "\x00\x01"), ("notes.txt", "mine")],
    )
    def test_a_damaged_or_foreign_data_folder_is_refused(
        self, tmp_path: Path, file: str, content: str
    ) -> None:
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / file).write_text(content)
        if file == "VERSION":
            (folder / "lock").touch()
        ran = weft("up", "--data-dir", folder, *FREE_PORTS)
        assert ran.code == 1
        assert str(folder) in ran.err
        assert "Traceback" not in ran.err
        assert (folder / file).read_text() == content

    @pytest.mark.parametrize(
        ("arguments", "settings"),
        [
            (("--ephemeral", "--data-dir", "x"), {}),
            (("--ephemeral", "--port", "nonsense"), {}),
            (("--ephemeral", "--port", "70000"), {}),
            (("--ephemeral", "--log-level", "loud"), {}),
            (("--ephemeral",), {"WEFT_RUNTIME_GRPC_PORT": "many"}),
        ],
    )
    def test_bad_settings_are_named(
        self, arguments: tuple[str, ...], settings: dict[str, str]
    ) -> None:
        ran = weft("up", *arguments, **settings)
        assert ran.code == 2
        assert "Traceback" not in ran.err
        assert "unexpected" not in ran.err

    @pytest.mark.parametrize("tenant", ["nosuch", "no name"])
    def test_a_key_in_no_tenant_is_refused_and_no_first_key_lost(
        self, tmp_path: Path, tenant: str
    ) -> None:
        folder = tmp_path / "data"
        ran = weft("up", "--data-dir", folder, *FREE_PORTS, "--new-admin-key", tenant)
        assert (ran.code, ran.err) == (3, f"weft: no tenant {tenant}\n")
        with weft_up(tmp_path / "log", "--data-dir", folder, *FREE_PORTS) as up:
            assert str(up.said["api_key"]).startswith("weft_")

    def test_a_nats_that_is_not_there_is_told_within_a_bound(self) -> None:
        ran = weft("up", "--ephemeral", *FREE_PORTS, NATS_URL="nats://127.0.0.1:1")
        assert ran.code == 5
        assert "Traceback" not in ran.err

    def test_what_was_said_is_there_after_a_restart(self, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        with weft_up(tmp_path / "log", "--data-dir", folder, *FREE_PORTS) as up:
            assert up.weft("agent", "apply", "-f", "-", stdin="agent: mate").code == 0
            assert up.weft("ask", "mate", "Hello?").code == 0
            up.process.kill()
            up.process.wait()
        with weft_up(tmp_path / "log", "--data-dir", folder, *FREE_PORTS) as up:
            (session,) = up.weft("session", "list", "mate", "-o", "json").data
            verified = up.weft("session", "verify", session["name"], "-o", "json")
            assert verified.data["matches"] is True

    def test_an_ephemeral_folder_is_gone_afterwards(self, tmp_path: Path) -> None:
        with weft_up(tmp_path / "log", "--ephemeral", *FREE_PORTS, TMPDIR=str(tmp_path)) as up:
            assert list(tmp_path.glob("weft-*"))
            assert up.stop() == 0
        assert not list(tmp_path.glob("weft-*"))
