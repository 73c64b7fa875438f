"""What holds for every command: help, options, exit codes, failures, forms of output."""

import json
import os
import pty
import signal
import socket
import subprocess
from pathlib import Path

import grpc.aio
import pytest
import typer
import typer.main
import yaml

from mesh.cli.application import application, run
from mesh.cli.clusters import ClusterFile
from mesh.cli.failures import CommandFailed, ExitCode, from_rpc_error
from tests.support.certificates import authority
from tests.support.command_line import ROOT, Weft, command_line, environment_for
from tests.support.memory_platform import MemoryPlatform
from tests.support.memory_turns import Event, Script, call_of, completed, model_step, token

COMMANDS = [
    *(["agent", verb] for verb in ("apply", "list", "show", "delete", "revisions")),
    ["ask"],
    *(["session", verb] for verb in ("list", "create", "history", "state", "fork", "verify")),
    *(["session", verb] for verb in ("erase", "export", "import")),
    *(["key", verb] for verb in ("create", "list", "show", "rotate", "revoke")),
    *(["role", verb] for verb in ("list", "show", "create", "update", "delete", "check")),
    *(["role", verb] for verb in ("bind", "bindings", "unbind")),
    *(["tenant", verb] for verb in ("create", "list", "show", "rotate-key")),
    *(["context", verb] for verb in ("add", "use", "list", "show", "remove")),
    *(["auth", verb] for verb in ("jwks", "rotate-signing-key", "revoke-token")),
    *(["whoami"], ["token"], ["audit"], ["verify"]),
    *(["turn", verb] for verb in ("show", "watch", "cancel", "approve", "resolve")),
    *(["turn", verb] for verb in ("stalled", "skip-call", "fail")),
    *(["tool", verb] for verb in ("list", "show", "call", "add-grpc", "delete")),
    *(["task", verb] for verb in ("submit", "list", "show", "cancel", "retry", "watch")),
    *(["task", verb] for verb in ("skip", "fail")),
    *(["queue", verb] for verb in ("create", "list", "show", "update", "pause", "resume")),
    *(["deadletter", verb] for verb in ("list", "show", "redrive", "discard")),
    *(["worker", verb] for verb in ("run", "list")),
    ["events", "tail"],
    *(["collection", verb] for verb in ("create", "list", "show", "delete", "ingest", "search")),
    *(["model", verb] for verb in ("list", "chat", "batch")),
    *(["budget", verb] for verb in ("set", "show", "list", "delete")),
    ["usage"],
    ["call"],
    ["doctor"],
]

APPROVAL = Event(approval_required=Event.ApprovalRequired(call=call_of("send")))
IN_DOUBT = Event(in_doubt=Event.InDoubt(call=call_of("send")))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_the_shared_options(
    weft: Weft, command: list[str]
) -> None:
    ran = weft(*command, "--help")
    assert ran.code == 0
    assert f"Example: weft {' '.join(command)}" in " ".join(ran.out.split())
    for option in ("--address", "--data-dir", "--tenant", "--context", "--output"):
        assert option in ran.out


@pytest.mark.parametrize("arguments", [["agent", "list", "-o"], ["-o"]], ids=["after", "before"])
def test_shared_options_may_stand_before_or_after_the_command(
    weft: Weft, arguments: list[str]
) -> None:
    rest = [] if "agent" in arguments else ["agent", "list"]
    assert weft(*arguments, "json", *rest).data == []


def test_an_option_after_the_command_wins_over_the_one_before(weft: Weft) -> None:
    assert weft("-o", "yaml", "agent", "list", "-o", "json").data == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["agent", "list"], 0),
        (["session", "create", "missing"], 3),
        (["agent", "show", "nobody"], 3),
        (["agent", "nonsense"], 2),
        (["agent", "list", "-o", "xml"], 2),
        (["agent", "list", "--limit", "0"], 2),
        (["--tenant", "Not A Tenant", "agent", "list"], 2),
        (["agent", "list", "--address", "127.0.0.1:1"], 5),
        (["events", "tail", "--address", "127.0.0.1:1"], 5),
        (["turn", "watch", "a/b/c", "--address", "127.0.0.1:1"], 5),
        (["task", "watch", "a", "--address", "127.0.0.1:1"], 5),
        (["doctor", "--address", "127.0.0.1:1"], 5),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_exit_codes(weft: Weft, arguments: list[str], code: int) -> None:
    ran = weft(*arguments)
    assert ran.code == code
    assert "Traceback" not in ran.err
    assert bool(ran.err) == (code != 0)


def test_a_group_is_known_before_its_commands_are_built(weft: Weft) -> None:
    """Its name where another was meant, its commands and its help where it is asked for."""
    assert "Did you mean 'agent', 'tenant'?" in weft("agnt").err
    assert "Did you mean 'list'?" in weft("agent", "lst").err
    listed = weft("--help").out
    assert "Apply, list, show and delete agents." in listed
    assert "Example: weft" in weft("agent", "list", "--help").out


def test_a_server_that_never_answers_is_a_matter_of_time(weft: Weft) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        ran = weft("agent", "list", "--address", address, "--timeout", "0.5")
    assert ran.code == 124
    assert ran.err == f"weft: {address} took too long to answer; --timeout gives it more seconds\n"


def test_an_unreachable_server_is_told_with_what_to_do(weft: Weft) -> None:
    ran = weft("agent", "list", "--address", "127.0.0.1:1")
    assert ran.err == (
        "weft: can't reach Weft at 127.0.0.1:1\n"
        "  Start it with `weft up`, or name another server with --address.\n"
    )


def test_an_unreachable_server_is_told_with_where_weft_is_known(weft: Weft, config: Path) -> None:
    files = ClusterFile(config / "clusters")
    for cluster, address in (("one", "127.0.0.1:1"), ("one", "127.0.0.1:3"), ("two", "[::1]:4")):
        files.write(cluster, address)
    start = "  Start it with `weft up`, or name another server with --address.\n"
    same = weft("agent", "list", "--address", "127.0.0.1:1")
    assert (same.code, same.err) == (
        5,
        f"weft: can't reach Weft at 127.0.0.1:1\n{start}  Its deployment is known here at"
        " 127.0.0.1:3; --address or WEFT_ADDRESS picks one.\n",
    )
    other = weft("mesh", "status", "--address", "127.0.0.1:2")
    assert (other.code, other.err) == (
        5,
        f"weft: can't reach Weft at 127.0.0.1:2\n{start}  Known here: [::1]:4, 127.0.0.1:3,"
        " 127.0.0.1:1; --address or WEFT_ADDRESS picks one.\n",
    )


def test_a_server_in_plain_text_that_is_called_with_tls_is_told_so(
    platform: MemoryPlatform, weft: Weft, tmp_path: Path
) -> None:
    roots = authority(tmp_path / "ca").folder / "bundle.pem"
    ran = weft("agent", "list", "--ca-file", str(roots))
    assert ran.code == 5
    assert ran.err.startswith(
        f"weft: {platform.address} speaks plain text, and was called with TLS\n"
    )


@pytest.mark.parametrize("debug", ["", "1"])
def test_an_unexpected_error_is_one_line_unless_debugging(debug: str) -> None:
    broken = (
        "from mesh.cli.application import application, run\n"
        "app = application()\n"
        "@app.command()\n"
        "def broken() -> None:\n"
        "    raise ZeroDivisionError('of course')\n"
        "run(app, ['broken'])\n"
    )
    ran = subprocess.run(
        [*command_line()[:1], "-c", broken],
        env=environment_for("127.0.0.1:1", WEFT_DEBUG=debug),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert "weft: unexpected ZeroDivisionError: of course\n" in ran.stderr
    assert ("Traceback" in ran.stderr) == (debug == "1")


def test_commands_can_be_added(capsys: pytest.CaptureFixture[str]) -> None:
    app = application()

    @app.command()
    def up(context: typer.Context) -> None:
        """Starts."""
        typer.echo(f"up {context.obj.tenant}")

    with pytest.raises(SystemExit) as exit_:
        run(app, ["--tenant", "acme", "up"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == "up acme\n"


@pytest.mark.parametrize(
    "command",
    [["model", "list"], ["tool", "show", "sum"], ["call"], ["doctor"], ["session", "list"]],
    ids=" ".join,
)
def test_json_and_yaml_hold_the_same(weft: Weft, command: list[str]) -> None:
    as_json = weft(*command, "-o", "json")
    as_yaml = weft(*command, "-o", "yaml")
    assert as_json.code == as_yaml.code == 0
    assert json.loads(as_json.out) == yaml.safe_load(as_yaml.out)


def test_the_address_is_that_of_the_data_folders_server(
    platform: MemoryPlatform, weft_process: Weft, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    stored = {"grpc": platform.address, "http": "", "pid": os.getpid()}
    (tmp_path / "run" / "address.json").write_text(json.dumps(stored), encoding="utf-8")
    ran = weft_process("doctor", "--data-dir", str(tmp_path), WEFT_ADDRESS="")
    assert ran.code == 0
    assert f"process {os.getpid()}" in ran.out
    by_environment = weft_process("model", "list", WEFT_ADDRESS="", WEFT_DATA_DIR=str(tmp_path))
    assert by_environment.code == 0


def test_an_option_wins_over_the_environment(weft_process: Weft, platform: MemoryPlatform) -> None:
    ran = weft_process("--address", platform.address, "model", "list", WEFT_ADDRESS="127.0.0.1:1")
    assert ran.code == 0


@pytest.mark.parametrize("colour", [True, False])
def test_no_color_is_honoured(weft_process: Weft, colour: bool) -> None:
    environment = {"FORCE_COLOR": "1", "TERM": "xterm-256color"} | (
        {} if colour else {"NO_COLOR": "1"}
    )
    ran = weft_process("--help", **environment)
    colours = [part for part in ran.out.split("\x1b[")[1:] if part[0] in "39" or ";3" in part[:5]]
    assert bool(colours) == colour


def test_a_pipe_gets_whole_lines_without_colour(weft_process: Weft, weft: Weft) -> None:
    long = "x" * 60
    weft_process("agent", "apply", "-f", "-", stdin=f"agent: {long}\ndisplay_name: {long * 4}")
    row = weft_process("agent", "list").out.splitlines()[1]
    assert row.startswith(long)
    assert row.endswith(long * 4)
    assert "\x1b" not in row


def test_a_broken_pipe_is_quiet(platform: MemoryPlatform, weft: Weft) -> None:
    weft("session", "create", "bot", "--id", "talk")
    process = subprocess.Popen(
        command_line("events", "tail", "--all", "-n", "1"),
        env=environment_for(platform.address),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process:
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_ctrl_c_exits_130_and_says_that_the_turn_goes_on(platform: MemoryPlatform) -> None:
    waiting = Event(tool_call=Event.ToolCalled(call=call_of("search")))
    platform.turns.scripts["how"] = Script([token("Ev"), waiting])
    process = subprocess.Popen(
        command_line("ask", "bot", "how", "--session", "talk"),
        env=environment_for(platform.address),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.read(2) == "Ev"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "weft turn cancel bot/talk/" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("event", "answer", "kind"),
    [
        (APPROVAL, "y\n", "DecideApprovalRequest"),
        (IN_DOUBT, "completed\nit was sent\n", "ResolveInDoubtRequest"),
    ],
    ids=["approval", "in-doubt"],
)
def test_on_a_terminal_the_person_is_asked(
    platform: MemoryPlatform, event: Event, answer: str, kind: str
) -> None:
    script = Script([event], after_decision=[model_step("Sent."), completed("Sent.")])
    platform.turns.scripts["how"] = script
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command_line("ask", "bot", "how"),
        env=environment_for(platform.address),
        cwd=ROOT,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    try:
        assert 'send {"n": 1}' in _read_until(ours, "later)")
        os.write(ours, answer.encode())
        out, _ = process.communicate(timeout=30)
    finally:
        # A process that still asks would outlive its failed test.
        process.kill()
        process.wait()
        os.close(ours)
    assert (process.returncode, out) == (0, "Sent.\n")
    (decision,) = platform.turns.decisions
    assert (type(decision).__name__, decision.call_id) == (kind, "call-1")


def _read_until(terminal: int, end: str) -> str:
    text = ""
    while end not in text:
        text += os.read(terminal, 1024).decode()
    return text


def test_a_server_that_ends_a_call_without_a_word_is_one_that_stops() -> None:
    metadata = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, metadata, metadata, "CANCELLED")
    failure = from_rpc_error(error, "weft.example:50051")
    assert failure.exit_code is ExitCode.UNAVAILABLE
    assert failure.message.startswith("weft.example:50051 ended the call without an answer")


def test_a_connection_that_broke_is_told_from_one_that_never_was() -> None:
    def failure(details: str) -> CommandFailed:
        metadata = grpc.aio.Metadata()
        error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, metadata, metadata, details)
        return from_rpc_error(error, "weft.example:50051")

    broken = failure("Socket closed")
    assert broken.message == "the connection to weft.example:50051 broke before the answer came"
    assert "may have been done" in broken.notes[0]
    refused = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: refused"
    assert failure(refused).message == "can't reach Weft at weft.example:50051"
    assert broken.exit_code is failure(refused).exit_code is ExitCode.UNAVAILABLE
