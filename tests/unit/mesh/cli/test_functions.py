"""`weft fn`, against a small Weft in memory."""

import json
from pathlib import Path

import pytest

from tests.support.command_line import Weft

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "double.py"
    path.write_text("def handler(a):\n    print('doubling')\n    return a * 2\n")
    return path


def test_a_function_is_deployed_invoked_and_deleted(weft: Weft, file: Path) -> None:
    deployed = weft("fn", "deploy", "double", str(file), "--memory", "128", "--seconds", "5")
    assert "5 s, 10 s of CPU, 128 MiB" in deployed.out
    assert weft("fn", "invoke", "double", "-d", "21").out == "42\n"
    assert weft("fn", "logs", "double").out == "doubling\n"
    told = weft("fn", "invoke", "double", "-d", '"x"', "-o", "json").data
    assert (json.loads(told["result_json"]), told["version"]) == ("xx", 1)
    listed = weft("fn", "list")
    assert [line.split()[:2] for line in listed.out.splitlines()[1:]] == [["double", "1"]]
    assert weft("fn", "delete", "double").err == "deleted function double\n"
    assert weft("fn", "invoke", "double").code == 3


def test_a_version_is_gone_back_to(weft: Weft, file: Path) -> None:
    weft("fn", "deploy", "double", str(file))
    file.write_text("def triple(a):\n    return a * 3\n")
    weft("fn", "deploy", "double", str(file), "--entry-point", "triple")
    assert weft("fn", "invoke", "double", "-d", "1").out == "3\n"
    assert "versions" in weft("fn", "rollback", "double", "1").out
    assert weft("fn", "invoke", "double", "-d", "1").out == "2\n"
    assert weft("fn", "show", "double", "--source", "--version", "2").out == file.read_text()


def test_what_goes_wrong_is_said(weft: Weft, file: Path) -> None:
    file.write_text("def handler(a):\n    return 1 / a\n")
    weft("fn", "deploy", "invert", str(file))
    failed = weft("fn", "invoke", "invert", "-d", "0")
    assert failed.code == 1
    assert "the function failed (raised): ZeroDivisionError" in failed.err
    assert "line 2, in handler" in failed.err
    file.write_text("def handler(a)\n")
    refused = weft("fn", "deploy", "invert", str(file))
    assert refused.code == 2
    assert "doesn't compile" in refused.err
    assert weft("fn", "deploy", "invert", str(file) + "x").code == 1


def test_doctor_says_what_confines_functions(weft: Weft) -> None:
    lines = weft("doctor").out.splitlines()
    assert any(line.split()[1] == "functions" for line in lines if "confine" in line)


def test_a_function_becomes_a_tool(weft: Weft, file: Path) -> None:
    weft("fn", "deploy", "double", str(file))
    schema = '{"type": "object", "properties": {"x": {"type": "integer"}}}'
    made = weft(
        "tool", "add-function", "double", "--effect", "read", "--schema", schema, "--trusted",
        "--scope", "pay.send", "--timeout", "7", "--cache", "60",
    )  # fmt: skip
    assert made.code == 0
    assert "function" in made.out
    shown = weft("tool", "show", "double", "-o", "json").data
    assert shown["function"]["name"] == "tenants/default/functions/double"
    assert shown["parameters_json_schema"] == schema
    assert shown["trust"] == "TRUST_TRUSTED"
    assert shown["required_scopes"] == ["pay.send"]
    assert (shown["timeout"], shown["cache_ttl"]) == ("7s", "60s")
