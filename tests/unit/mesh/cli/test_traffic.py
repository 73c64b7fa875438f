"""Splits by the command line."""

import re
from pathlib import Path

import pytest

from tests.support.command_line import Weft
from tests.support.memory_platform import MemoryPlatform
from weft.control.v1 import instances_pb2


@pytest.fixture
def versions(platform: MemoryPlatform) -> tuple[str, ...]:
    """Two versions of the scheduler run."""
    for version in ("1.4", "1.5"):
        instance = instances_pb2.Instance(
            name=f"instances/v{version[-1]}",
            services=["scheduler"],
            version=version,
            state=instances_pb2.INSTANCE_STATE_SERVING,
        )
        platform.instances.add(instance)
    return "1.4", "1.5"


def lines(text: str) -> list[str]:
    """Without the times, and with single spaces."""
    bare = re.sub(r"\d{4}-\d\d-\d\d [\d:.]+Z", "AT", text)
    return [" ".join(line.split()) for line in bare.splitlines()]


@pytest.mark.usefixtures("versions")
def test_a_split_is_set_promoted_and_rolled_back(weft: Weft) -> None:
    policy = ("--rollback-above", "5%", "--calls-min", "20", "--window", "30s", "--over-base")
    shown = weft("mesh", "split", "scheduler", "1.4=90", "1.5=10", *policy, "--reason", "canary")
    assert shown.code == 0, shown.err
    assert lines(shown.out)[:4] == [
        "split scheduler",
        "portions 1.4 90%, 1.5 10%",
        "rollback above 5% over the base, of 20 calls or more within 30 s",
        "etag r1",
    ]
    stored = weft("mesh", "splits", "scheduler", "-o", "json").data
    assert stored["rollback_policy"] == {
        "failures_per_million_max": 50_000,
        "calls_min": 20,
        "window": "30s",
        "over_base": True,
    }
    assert lines(weft("mesh", "promote", "scheduler", "1.5").out)[1] == "portions 1.5 100%"
    assert lines(weft("mesh", "rollback", "scheduler").out)[1] == "portions 1.4 90%, 1.5 10%"
    listed = weft("mesh", "splits")
    assert lines(listed.out)[0] == "SPLIT PORTIONS ROLLBACK CHANGED HOW BY REASON"
    assert lines(listed.out)[1].startswith(
        "scheduler 1.4 90%, 1.5 10% above 5% over the base, of 20 calls or more within 30 s"
        " AT rolled back "
    )
    history = lines(weft("mesh", "splits", "scheduler").out)
    assert [line.partition(",")[0] for line in history[4:]] == [
        "last change AT rolled back: 1.4 90%",
        "change 2 AT promoted: 1.5 100%",
        "change 1 AT set: 1.4 90%",
    ]
    assert history[-1].endswith("canary")


@pytest.mark.usefixtures("versions")
def test_a_split_is_ended(weft: Weft) -> None:
    weft("mesh", "split", "scheduler", "1.4=1")
    assert weft("mesh", "split", "scheduler", "--end").code == 0
    assert lines(weft("mesh", "splits").out)[1].startswith("scheduler - - AT set")


@pytest.mark.usefixtures("versions")
def test_what_does_not_run_must_be_wanted(weft: Weft) -> None:
    refused = weft("mesh", "split", "scheduler", "1.4=1", "1.6=1")
    assert refused.code == 1
    assert "runs 1.6" in refused.err
    assert "--allow-absent" in refused.err
    assert weft("mesh", "split", "scheduler", "1.4=1", "1.6=1", "--allow-absent").code == 0
    assert weft("mesh", "promote", "scheduler", "1.6").code == 1
    assert weft("mesh", "promote", "scheduler", "1.6", "--allow-absent").code == 0
    assert weft("mesh", "split", "nobody", "1.4=1").code == 3


def test_an_agents_revisions_are_split(weft: Weft, tmp_path: Path) -> None:
    file = tmp_path / "bot.yaml"
    for instructions in ("one", "two"):
        file.write_text(f"agent: bot\ninstructions: {instructions}\n")
        applied = weft("agent", "apply", "-f", str(file))
        assert applied.code == 0, applied.err
    shown = weft("mesh", "split", "agents/bot", "1=99", "2=1")
    assert shown.code == 0, shown.err
    assert lines(shown.out)[:2] == ["split agents/bot", "portions 1 99%, 2 1%"]
    assert weft("mesh", "promote", "tenants/default/agents/bot", "2").code == 0
    assert lines(weft("mesh", "splits", "--agents").out)[1].startswith("agents/bot 2 100%")
    policy = ("--rollback-above", "5%", "--calls-min", "20")
    shown = weft("mesh", "split", "agents/bot", "1=99", "2=1", *policy)
    assert lines(shown.out)[2] == "rollback above 5%, of 20 turns or more within 60 s"
    stored = weft("mesh", "splits", "agents/bot", "-o", "json").data["rollback_policy"]
    assert (stored["failures_per_million_max"], stored["calls_min"]) == (50_000, 20)
    assert lines(weft("mesh", "splits", "--agents").out)[1].startswith(
        "agents/bot 1 99%, 2 1% above 5%, of 20 turns or more within 60 s AT set "
    )
    weft("mesh", "split", "scheduler", "1=1", "--allow-absent")
    both = [line.split()[0] for line in lines(weft("mesh", "splits").out)]
    assert both == ["SPLIT", "scheduler", "agents/bot"]
    assert len(weft("mesh", "splits", "--limit", "1", "-o", "json").data) == 1
    refused = weft("mesh", "split", "agents/bot", "3=1")
    assert refused.code == 2
    assert "the latest revision is 2" in refused.err


@pytest.mark.usefixtures("versions")
def test_a_policy_is_shown_with_what_it_does_not_say(weft: Weft) -> None:
    shown = weft("mesh", "split", "scheduler", "1.4=90", "1.5=10", "--rollback-above", "0.5%")
    assert lines(shown.out)[2] == "rollback above 0.5%, of 100 calls or more within 60 s"


@pytest.mark.parametrize("text", ["5", "0.05", "101%"])
def test_a_percentage_without_its_sign_is_told_how_to_write_it(weft: Weft, text: str) -> None:
    refused = weft("mesh", "split", "scheduler", "1.4=1", "--rollback-above", text)
    assert refused.code == 2
    assert f"'{text}' is no percentage" in refused.err
    assert "with its sign, such as 5%" in refused.err


@pytest.mark.usefixtures("versions")
def test_a_watch_begins_with_what_is(weft: Weft) -> None:
    weft("mesh", "split", "scheduler", "1.4=90", "1.5=10")
    watched = weft("--timeout", "2", "mesh", "splits", "--watch", "-o", "json")
    assert watched.code == 124
    assert [each["name"] for each in watched.items] == ["services/scheduler/split"]
    table = weft("--timeout", "2", "mesh", "splits", "--watch")
    assert lines(table.out)[0].startswith("AT scheduler 1.4 90%, 1.5 10% set by ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("split", "scheduler"),
        ("split", "scheduler", "1.4=1", "--end"),
        ("split", "scheduler", "1.4"),
        ("split", "scheduler", "1.4=x"),
        ("split", "scheduler", "=1"),
        ("split", "agents/bot", "v1=1"),
        ("split", "Sched uler", "1.4=1"),
        ("split", "scheduler", "1.4=1", "--rollback-above", "0.05"),
        ("split", "scheduler", "1.4=1", "--rollback-above", "101%"),
        ("split", "scheduler", "1.4=1", "--window", "30s"),
        ("promote", "agents/bot", "v1"),
        ("splits", "scheduler", "--watch"),
    ],
)
def test_what_can_not_be_meant_is_a_usage_error(weft: Weft, arguments: tuple[str, ...]) -> None:
    assert weft("mesh", *arguments).code == 2
