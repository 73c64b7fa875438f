"""The commands that README and Makefile show exist."""

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest

from services.command import run_command

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"(?m)^([a-z]+):", MAKEFILE))


def shown_commands(text: str) -> list[str]:
    """The command lines of a Markdown text's shell blocks, continued ones joined."""
    blocks = re.findall(r"(?ms)^```(?:sh|bash|shell|console)\n(.*?)^```", text)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").strip() for line in lines if line.strip()]


README = shown_commands((ROOT / "README.md").read_text())


@cache
def help_of(*words: str) -> str:
    """What `weft WORDS --help` prints; fails where there is no such command."""
    plain = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    shown, said = io.StringIO(), io.StringIO()
    # Not in a process of its own, which takes most of a second each.
    with (
        patch.dict(os.environ, plain),
        patch.object(sys, "argv", ["weft", *words, "--help"]),
        redirect_stdout(shown),
        redirect_stderr(said),
        pytest.raises(SystemExit) as ended,
    ):
        run_command()
    assert not ended.value.code, f"weft {' '.join(words)}: {said.getvalue()[-300:]}"
    assert "Usage:" in shown.getvalue()
    return shown.getvalue()


def words_of(line: str) -> list[str]:
    """The words of the line's first command, without a comment or what it is piped into."""
    words = shlex.split(line, comments=True)
    return words[: words.index("|")] if "|" in words else words


def command_of(words: list[str]) -> tuple[str, ...]:
    """Those of a `weft` line's words that name a command: what help knows, level by level."""
    command: tuple[str, ...] = ()
    for word in words[1:]:
        if not re.fullmatch(r"[a-z][a-z-]*", word) or "COMMAND" not in help_of(*command):
            break
        command += (word,)
    return command


def test_readme_begins_with_the_two_commands_that_a_newcomer_needs() -> None:
    shown = [words_of(line) for line in README]
    assert ["make", "run"] in shown
    assert ["make", "test"] in shown


@pytest.mark.parametrize("line", [line for line in README if line.startswith("make ")])
def test_readme_names_only_targets_that_make_has(line: str) -> None:
    named = {word for word in words_of(line)[1:] if "=" not in word}
    assert named <= TARGETS


@pytest.mark.parametrize(
    "line", [line for line in README if re.match(r"(\.venv/bin/)?weft ", line)]
)
def test_readme_names_only_commands_and_flags_that_weft_has(line: str) -> None:
    words = words_of(line)
    shown = help_of(*command_of(words))
    for flag in (word.partition("=")[0] for word in words if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", shown)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_help_says_what_each_target_does(target: str) -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(rf"(?m)^make {target} +\w+", said.stdout)
