"""`weft context`: servers, keys and tenants under names."""

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.support.command_line import ROOT, Weft, command_line, environment_for
from tests.support.memory_access import new_secret
from tests.support.memory_platform import MemoryPlatform


def test_a_context_is_kept_shown_used_and_removed(
    weft: Weft, weft_process: Weft, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = new_secret(), new_secret()
    where = ("--address", "127.0.0.1:7", "--tenant", "acme")
    added = weft_process("context", "add", "prod", *where, stdin=f"{first}\n")
    assert (added.code, added.out) == (0, "")
    monkeypatch.setenv("WEFT_API_KEY", second)
    assert weft("context", "add", "lab", "--from-environment").code == 0
    assert ((config / "contexts.json").stat().st_mode & 0o777) == 0o600
    assert (config.stat().st_mode & 0o777) == 0o700
    listed = weft("context", "list", "-o", "json")
    assert [(c["context"], c["current"]) for c in listed.data] == [("lab", False), ("prod", True)]
    assert {name: listed.data[1][name] for name in ("address", "tenant", "key")} == {
        "address": "127.0.0.1:7",
        "tenant": "acme",
        "key": f"key weft_{first.split('_')[1]}_…",
    }
    assert weft("context", "use", "lab").code == 0
    shown = weft("context", "show").out
    assert shown.splitlines()[0].split() == ["context", "lab"]
    said = shown + listed.out + weft("context", "list").out
    assert not any(secret in said for secret in (first, second))
    assert weft("context", "remove", "lab").code == 0
    assert json.loads((config / "contexts.json").read_text())["current"] == ""
    assert weft("context", "show", "lab").code == 3


def test_the_key_is_asked_for_without_being_shown(platform: MemoryPlatform, config: Path) -> None:
    secret = new_secret()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command_line("context", "add", "prod"),
        env=environment_for(platform.address, XDG_CONFIG_HOME=str(config.parent)),
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    try:
        while b"API key" not in shown:
            shown += os.read(ours, 1024)
        os.write(ours, f"{secret}\n".encode())
        while b"kept context" not in shown:
            shown += os.read(ours, 1024)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert secret.encode() not in shown
    assert (
        json.loads((config / "contexts.json").read_text())["contexts"]["prod"]["api_key"] == secret
    )


@pytest.mark.parametrize(
    ("arguments", "stdin", "code"),
    [
        (["prod"], "", 4),
        (["prod"], "not-a-weft-key", 2),
        (["Not A Name"], "", 2),
        (["prod", "--tenant", "Not A Tenant"], "", 2),
        (["prod", "--from-environment"], "", 4),
    ],
)
def test_a_context_that_cant_be_meant_is_refused(
    weft_process: Weft, config: Path, arguments: list[str], stdin: str, code: int
) -> None:
    ran = weft_process("context", "add", *arguments, stdin=stdin)
    assert ran.code == code
    assert stdin.strip() not in ran.err or not stdin
    assert not (config / "contexts.json").exists()


def test_a_context_keeps_its_key_from_other_servers(
    platform: MemoryPlatform, weft_process: Weft
) -> None:
    secret = new_secret()
    weft_process("context", "add", "prod", "--address", "127.0.0.1:7", stdin=secret)
    ran = weft_process("model", "list", "--context", "prod", "--address", platform.address)
    assert (ran.code, "context prod is for 127.0.0.1:7" in ran.err) == (2, True)
    # The environment never wins over what was typed.
    typed = weft_process("model", "list", "--address", platform.address, WEFT_CONTEXT="prod")
    assert typed.code == 0
    assert {header for _, header in platform.access.authorizations} == {""}
    assert weft_process("model", "list", "--context", "prod").code == 5
    assert weft_process("model", "list", "--context", "nobody").code == 3


def test_a_contexts_tenant_is_used_unless_one_is_typed(
    platform: MemoryPlatform, weft_process: Weft
) -> None:
    weft_process("context", "add", "prod", "--tenant", "acme", stdin=new_secret())

    def tenant_of(*more: str) -> str:
        made = weft_process("session", "create", "bot", "-o", "json", *more, WEFT_ADDRESS="")
        return str(made.data["name"].split("/")[1])

    assert tenant_of() == "acme"
    assert tenant_of("--tenant", "other") == "other"


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [("{}", 0o644, "chmod 600"), ("[", 0o600, "is damaged"), ("\xff", 0o600, "is damaged")],
)
def test_a_file_that_cant_be_trusted_is_refused(
    weft_process: Weft, config: Path, content: str, mode: int, said: str
) -> None:
    config.mkdir(parents=True)
    file = config / "contexts.json"
    file.write_text(content, encoding="utf-8")
    file.chmod(mode)
    ran = weft_process("context", "list")
    assert ran.code in (1, 4)
    assert said in ran.err
    assert file.read_text(encoding="utf-8") == content
