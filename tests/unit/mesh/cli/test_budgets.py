"""`weft budget`, `weft usage` and `weft model batch`, against a small Weft in memory."""

import json
from pathlib import Path

import pytest

from mesh.cli.budgets import _micro_usd, _tokens, _usd
from mesh.cli.failures import CommandFailed
from services.models.budgets.usage import Caller
from tests.support.command_line import Weft
from tests.support.memory_platform import MemoryPlatform
from weft.models.v1 import models_pb2

SESSION = "tenants/default/agents/bot/sessions/s1"


def test_budgets_are_set_shown_listed_and_deleted(weft: Weft) -> None:
    made = weft("budget", "set", "team", "--usd", "12.50", "--window", "month", "-o", "json").data
    assert made["limit"] == {"micro_usd": "12500000"}
    weft("budget", "set", "bots", "--tokens", "200k", "--agent", "bot")
    weft("budget", "set", "talk", "--tokens", "5000", "--session", "bot/s1", "--requires-prices")
    rows = [line.split() for line in weft("budget", "list").out.splitlines()]
    assert [row[:3] for row in rows[1:]] == [
        ["bots", "agents/bot", "200000"],
        ["talk", "agents/bot/sessions/s1", "5000"],
        ["team", "tenants/default", "$12.50"],
    ]
    shown = weft("budget", "show", "team").out
    assert "$12.50" in shown
    assert "until" in shown
    assert "required" in weft("budget", "show", "talk").out
    assert weft("budget", "delete", "team", "--etag", "r9").code == 1
    assert weft("budget", "delete", "team").err == "deleted budget team\n"
    assert weft("budget", "show", "team").code == 3


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--usd", "much"],
        ["--tokens", "1.5"],
        ["--tokens", "9", "--agent", "bot", "--session", "bot/s1"],
        ["--tokens", "9", "--session", "s1"],
    ],
)
def test_what_is_no_budget_is_a_wrong_use(weft: Weft, options: list[str]) -> None:
    assert weft("budget", "set", "x", *options).code == 2


def test_amounts_are_read_and_written_exactly() -> None:
    assert [_micro_usd(each) for each in ("12.5", "$0.000001", "3")] == [12_500_000, 1, 3_000_000]
    assert [_tokens(each) for each in ("7", "200k", "1.5M")] == [7, 200_000, 1_500_000]
    assert [_usd(each) for each in (0, 1, 12_500_000)] == ["$0", "$0.000001", "$12.50"]
    with pytest.raises(CommandFailed):
        _tokens("-3")


def test_usage_is_told(weft: Weft, platform: MemoryPlatform) -> None:
    used = models_pb2.Usage(input_tokens=30, output_tokens=4, cost_micro_usd=50)
    caller = Caller("tenants/default", SESSION, "openai/tiny")
    platform.on_loop(lambda: platform.budgets._recorder.add(caller, used))
    [row] = weft("usage", "-o", "json").data
    assert (row["calls"], row["cost_micro_usd"]) == ("1", "50")
    told = weft("usage", "--by", "session", "--agent", "bot", "--since", "1d").out.splitlines()
    assert told[0].split()[0] == "SESSION"
    assert told[1].split()[:2] == ["agents/bot/sessions/s1", "1"]
    assert len(weft("usage", "--by", "day", "--until", "1d").out.splitlines()) == 1


def test_a_batch_is_a_line_for_each_call(weft: Weft, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    whole = {"conversation": {"messages": [{"role": "ROLE_USER", "text": "third"}]}}
    whole_line = json.dumps(whole).replace("third", "thi\u2028rd")
    file.write_text(f"first\r\n\nsecond\n{whole_line}\nfail\n")
    ran = weft("model", "batch", str(file), "--model", "builtin/extractive")
    assert ran.code == 6
    answered = (json.loads(line) for line in ran.out.split("\n") if line)
    said = sorted(answered, key=lambda one: one["index"])
    assert [one.get("text") for one in said] == ["first", "second", "thi\u2028rd", None]
    # As the file has them, the empty one counted.
    assert [one["index"] for one in said] == [0, 2, 3, 4]
    assert said[3]["error"] == "no"
    assert "3 of 4 calls were answered" in ran.err
    file.write_text("{]\n")
    assert weft("model", "batch", str(file)).code == 2
