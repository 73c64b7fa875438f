"""Agents and the files that say what they are."""

from pathlib import Path

import pytest

from mesh.cli.agent_files import parse_agent
from mesh.cli.failures import CommandFailed
from tests.support.command_line import Weft

LIBRARIAN = """
agent: librarian
display_name: The librarian
model: builtin/extractive
instructions: Answer from the documents.
tools:
  - calculator
  - tool: search
    fixed_arguments: {limit: 3, collection: docs}
    requires_approval: true
parameters: {temperature: 0.5}
limits: {steps_max: 8, turn_timeout: 120s}
"""


def test_a_file_becomes_a_spec() -> None:
    agent, spec = parse_agent(LIBRARIAN, "librarian.yaml")
    assert agent == "librarian"
    assert [binding.tool for binding in spec.tools] == ["calculator", "search"]
    assert spec.tools[1].fixed_arguments_json == '{"collection": "docs", "limit": 3}'
    assert spec.tools[1].requires_approval
    assert spec.limits.turn_timeout.seconds == 120
    assert spec.parameters.temperature == 0.5


@pytest.mark.parametrize("seconds", ["90", "90s", "90.0"])
def test_a_duration_may_be_a_number_of_seconds(seconds: str) -> None:
    _, spec = parse_agent(f"agent: a\nlimits: {{turn_timeout: {seconds}}}", "a.yaml")
    assert spec.limits.turn_timeout.seconds == 90


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("agent: a\ninstruction: x", "unknown key 'instruction'; did you mean 'instructions'?"),
        ("agent: a\nlimits: {step_max: 1}", "unknown key 'limits.step_max'; did you mean 'steps_"),
        ("agent: a\ntools: [{tol: x}]", "unknown key 'tools[0].tol'; did you mean 'tool'?"),
        ("agent: a\ntools: [{tool: x, fixed_argument: {}}]", "did you mean 'fixed_arguments'?"),
        ("agent: a\ntools: search", "tools must be a list"),
        ("agent: a\nlimits: [1]", "limits must be an object"),
        ("agent: a\ntools: [{tool: x, fixed_arguments: 3}]", "tools[0].fixed_arguments must be"),
        ("agent: a\nlimits: {steps_max: many}", "steps_max"),
        ("agent: a\nlimits: {turn_timeout: soon}", "turn_timeout"),
        ("display_name: x", "`agent` must be the agent's id"),
        ("agent: [a", "is neither YAML nor JSON"),
        ("- agent", "must hold one object"),
        ("", "must hold one object"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_path(text: str, problem: str) -> None:
    with pytest.raises(CommandFailed) as failure:
        parse_agent(text, "a.yaml")
    assert failure.value.exit_code == 2
    assert failure.value.message.startswith("a.yaml")
    assert problem in failure.value.message


def test_apply_creates_then_says_unchanged_then_updates(weft: Weft, tmp_path: Path) -> None:
    file = tmp_path / "librarian.yaml"
    file.write_text(LIBRARIAN, encoding="utf-8")
    apply = ("agent", "apply", "-f", str(file))
    assert weft(*apply).out == "librarian created, revision 1\n"
    assert weft(*apply).out == "librarian unchanged, revision 1\n"
    file.write_text(LIBRARIAN.replace("The librarian", "Librarian"), encoding="utf-8")
    assert weft(*apply, "-o", "json").data == {
        "outcome": "updated",
        "agent": "tenants/default/agents/librarian",
        "revision": 2,
    }
    revisions = weft("agent", "revisions", "librarian", "-o", "json").data
    assert [revision["revision"] for revision in revisions] == ["2", "1"]


def test_apply_reads_json_from_stdin(weft_process: Weft) -> None:
    ran = weft_process("agent", "apply", "-f", "-", stdin='{"agent": "bot", "model": "a/b"}')
    assert (ran.code, ran.out) == (0, "bot created, revision 1\n")


def test_apply_of_a_missing_file_says_so(weft: Weft) -> None:
    ran = weft("agent", "apply", "-f", "nowhere.yaml")
    assert (ran.code, ran.err) == (1, "weft: can't read nowhere.yaml: No such file or directory\n")


def test_the_servers_field_violations_are_shown_once_with_the_request_id(
    weft: Weft, tmp_path: Path
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("agent: bot\nmodel: NotAModel\ntools: [Bad_Id]", encoding="utf-8")
    ran = weft("agent", "apply", "-f", str(file))
    assert ran.code == 2
    assert ran.err.count("spec.model") == 1
    assert ran.err.count("spec.tools[0].tool") == 1
    assert "reason: INVALID_FIELD" in ran.err
    assert "request id: " in ran.err


@pytest.mark.parametrize("form", ["bot", "tenants/default/agents/bot"])
def test_an_agent_may_be_named_in_short_or_in_full(
    weft_process: Weft, weft: Weft, form: str
) -> None:
    weft_process("agent", "apply", "-f", "-", stdin="agent: bot")
    shown = weft("agent", "show", form)
    assert shown.out.splitlines()[0].split() == ["agent", "bot"]
    assert weft("agent", "delete", form).code == 0
    assert weft("agent", "show", form).code == 3


@pytest.mark.parametrize(
    "name", ["Bad", "a/b/c", "tenants/default/tools/x", "tenants/default/agents/", ""]
)
def test_what_is_no_agents_name_is_a_usage_error(weft: Weft, name: str) -> None:
    ran = weft("agent", "show", name)
    assert ran.code == 2
    assert "is no agent name" in ran.err


def test_lists_follow_pages_up_to_the_limit(weft: Weft, tmp_path: Path) -> None:
    for number in range(5):
        file = tmp_path / f"{number}.yaml"
        file.write_text(f"agent: bot-{number}", encoding="utf-8")
        weft("agent", "apply", "-f", str(file))
    listed = weft("agent", "list", "--limit", "3", "-o", "json")
    assert [agent["name"][-5:] for agent in listed.data] == ["bot-0", "bot-1", "bot-2"]
    assert "There are more" in listed.err
    assert len(weft("agent", "list").out.splitlines()) == 6
