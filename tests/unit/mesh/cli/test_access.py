"""Keys, roles, tenants, who one is, the audit trail and the check of the log."""

import os
import pty
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.command_line import ROOT, Weft, command_line, environment_for
from tests.support.memory_platform import MemoryPlatform
from weft.auth.v1 import audit_service_pb2 as audit
from weft.state.v1 import state_service_pb2 as state


@pytest.fixture
def admin(platform: MemoryPlatform, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key of an administrator, in the environment of every command."""
    secret = platform.access.add_key("tenants/default/apiKeys/root")
    platform.access.demands = True
    monkeypatch.setenv("WEFT_API_KEY", secret)
    return secret


def test_a_keys_secret_is_alone_on_stdout(weft: Weft, admin: str) -> None:
    ran = weft("key", "create", "ci", "--role", "viewer", "--ttl", "30d", "--name", "CI")
    assert ran.code == 0
    assert ran.out.startswith("weft_")
    assert len(ran.out.splitlines()) == 1
    assert "shown this once" in ran.err
    assert ran.out.strip() not in ran.err
    listed = weft("key", "list").out
    assert listed.splitlines()[0].split()[:4] == ["KEY", "NAME", "STATE", "SCOPES"]
    assert "ci    CI    active" in listed
    shown = weft("key", "show", "ci", "-o", "json").data
    left = datetime.fromisoformat(shown["expire_time"]) - datetime.now(UTC)
    assert timedelta(days=29) < left <= timedelta(days=30)
    assert ran.out.strip() not in listed + str(shown)
    (bound,) = weft("role", "bindings", "--key", "ci", "-o", "json").data
    assert bound["role"] == "tenants/default/roles/viewer"


def test_a_secret_goes_to_a_file_of_its_owners_alone(
    weft: Weft, admin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ci.key"
    made = weft("key", "create", "ci", "--to", str(file), "-o", "json")
    secret = file.read_text().strip()
    assert (made.code, made.data["name"]) == (0, "tenants/default/apiKeys/ci")
    assert file.stat().st_mode & 0o777 == 0o600
    assert secret not in made.out + made.err
    rotated = weft("key", "rotate", "ci", "--overlap", "1h", "--to", str(file))
    assert rotated.code == 0
    assert file.read_text().strip() != secret
    assert "valid until" in rotated.out
    monkeypatch.setenv("WEFT_API_KEY", file.read_text())
    assert "tenants/default/apiKeys/ci" in weft("whoami").out
    assert list(tmp_path.glob("*.new")) == list(tmp_path.glob(".*.new")) == []


def test_no_key_is_made_where_its_file_cant_be_written(
    weft: Weft, admin: str, tmp_path: Path
) -> None:
    for place in (tmp_path, tmp_path / "no" / "folder"):
        assert weft("key", "create", "ci", "--to", str(place)).code == 1
    assert weft("key", "show", "ci").code == 3
    file = tmp_path / "kept.key"
    file.write_text("before")
    assert weft("key", "rotate", "nobody", "--to", str(file)).code == 3
    assert file.read_text() == "before"


def test_a_revoked_key_lets_nobody_in(
    weft: Weft, admin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = weft("key", "create", "ci").out.strip()
    unsure = weft("key", "revoke", "ci")
    assert (unsure.code, "say --yes" in unsure.err) == (2, True)
    assert weft("key", "revoke", "ci", "--yes", "-o", "json").data["revoke_time"]
    assert "revoked" in weft("key", "list").out
    monkeypatch.setenv("WEFT_API_KEY", secret)
    assert weft("key", "list").code == 4


@pytest.mark.parametrize(("answer", "state"), [("yes", "revoked"), ("no", "active")])
def test_on_a_terminal_one_is_asked_before_a_key_is_revoked(
    platform: MemoryPlatform, weft: Weft, admin: str, answer: str, state: str
) -> None:
    weft("key", "create", "ci")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command_line("key", "revoke", "ci"),
        env=environment_for(platform.address, WEFT_API_KEY=admin),
        cwd=ROOT,
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        asked = ""
        while "(yes, no)" not in asked:
            asked += os.read(ours, 1024).decode()
        os.write(ours, f"{answer}\n".encode())
        assert process.wait(30) == (0 if answer == "yes" else 1)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert f"ci          {state}" in weft("key", "list").out


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "Not An Id"],
        ["create", "ci", "--ttl", "soon"],
        ["create", "ci", "--ttl", "9999999999d"],
        ["create", "ci", "--role", "No Role"],
        ["rotate", "ci", "--overlap", "-1h"],
        ["show", "a/b"],
    ],
)
def test_keys_that_cant_be_meant_are_a_usage_error(
    weft: Weft, admin: str, arguments: list[str]
) -> None:
    assert weft("key", *arguments).code == 2


def test_a_role_is_made_changed_given_checked_and_taken_back(weft: Weft, admin: str) -> None:
    weft("key", "create", "ci")
    assert weft("role", "create", "reader", "--permission", "agents.get").code == 0
    updated = weft(
        "role", "update", "reader", "--add", "agents.list", "--remove", "agents.get",
        "--name", "Reads", "-o", "json",
    ).data  # fmt: skip
    assert (updated["permissions"], updated["display_name"]) == (["agents.list"], "Reads")
    assert "agents.list" in weft("role", "show", "reader").out
    assert "admin" in weft("role", "list").out
    bound = weft(
        "role", "bind", "reader", "--key", "ci", "--resource", "agents/*", "--id", "b1",
        "-o", "json",
    ).data  # fmt: skip
    assert bound["resource"] == "tenants/default/agents/*"
    assert bound["members"] == ["tenants/default/apiKeys/ci"]
    check = ("role", "check", "agents.list", "--key", "ci", "--resource")
    assert weft(*check, "agents/bot").out == "allowed by reader\n"
    denied = weft(*check, "tools/x", "-o", "json")
    assert (denied.code, denied.data["allowed"]) == (4, False)
    assert "agents.list is denied on tenants/default/tools/x" in denied.err
    assert "reader" in weft("role", "bindings", "--role", "reader").out
    assert weft("role", "unbind", "b1").code == 0
    assert weft("role", "bindings", "-o", "json").data == []
    assert weft("role", "delete", "reader").code == 0
    assert weft("role", "show", "reader").code == 3


@pytest.mark.parametrize(
    "options", [[], ["--permission", "a.b", "--add", "a.c"]], ids=["nothing", "both"]
)
def test_a_change_of_a_role_must_be_one(weft: Weft, admin: str, options: list[str]) -> None:
    assert weft("role", "update", "viewer", *options).code == 2


def test_a_tenant_comes_with_its_administrators_key(
    weft: Weft, admin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = weft("tenant", "create", "acme", "--name", "Acme Ltd").out.strip()
    assert "acme    Acme Ltd" in weft("tenant", "list").out
    monkeypatch.setenv("WEFT_API_KEY", secret)
    assert weft("tenant", "rotate-key", "acme", "-o", "json").data["key_id"] == "t2"
    assert weft("tenant", "show", "-o", "json").data["name"] == "tenants/acme"
    assert weft("whoami", "-o", "json").data["principal"] == "tenants/acme/apiKeys/admin"


def test_whoami_says_what_the_key_may_do_and_where_it_was_found(weft: Weft, admin: str) -> None:
    weft("role", "bind", "admin", "--key", "root")
    out = weft("whoami").out
    assert "admin on tenants/default" in out
    assert f"key weft_{admin.split('_')[1]}_…, from WEFT_API_KEY" in out
    assert admin not in out


def test_a_key_is_exchanged_for_a_token(
    weft: Weft, admin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = weft("token")
    assert ran.out.startswith("header.")
    assert "expires at" in ran.err
    assert weft("auth", "jwks", "-o", "json").data["keys"][0]["crv"] == "Ed25519"
    assert "k2" in weft("auth", "rotate-signing-key").out
    assert weft("auth", "revoke-token", "01j9x").code == 0
    mistaken = weft("auth", "revoke-token", ran.out.strip())
    assert (mistaken.code, ran.out.strip() in mistaken.err) == (2, False)
    monkeypatch.delenv("WEFT_API_KEY")
    without = weft("token")
    assert (without.code, without.out) == (4, "")
    assert "No key was found" in without.err


def test_the_audit_trail_comes_page_by_page_within_its_limit(
    platform: MemoryPlatform, weft: Weft, admin: str
) -> None:
    for position in range(1, 6):
        entry = audit.AuditEntry(
            position=position,
            actor="tenants/default/apiKeys/ci",
            resource="tenants/default/agents/bot",
            actions=["weft.agents.v1.AgentCreated"],
        )
        platform.access.entries.append(entry)
    ran = weft("audit", "--actor", "ci", "--resource", "agents/*", "-o", "json")
    assert [item["position"] for item in ran.items] == ["1", "2", "3", "4", "5"]
    asked = platform.access.audit_requests[0]
    assert (asked.actor, asked.resource) == (
        "tenants/default/apiKeys/ci",
        "tenants/default/agents/*",
    )
    since = datetime.now(UTC) - asked.start_time.ToDatetime(UTC)
    assert timedelta(hours=23) < since < timedelta(hours=25)
    few = weft("audit", "--all", "--limit", "3")
    assert len(few.out.splitlines()) == 3
    assert few.out.splitlines()[0].endswith("tenants/default/agents/bot  AgentCreated")
    assert "There are more" in few.err
    assert not platform.access.audit_requests[-1].HasField("start_time")
    assert weft("audit", "--since", "1h", "--until", "2h").code == 2


def test_verify_lists_what_doesnt_hold(platform: MemoryPlatform, weft: Weft) -> None:
    ran = weft("verify")
    assert (ran.code, ran.out) == (0, "all holds\n")
    assert ran.err == "checked 2 aggregates, 1 of them erased, 5 commits\n"
    broken = state.LogProblem(stream="state.default.bot.talk", problem="commit 3 was altered")
    platform.sessions.log_problems.append(broken)
    ran = weft("verify")
    assert (ran.code, ran.out) == (1, "state.default.bot.talk  commit 3 was altered\n")
    items = weft("verify", "-o", "json").items
    assert items[0]["problems"][0]["problem"] == "commit 3 was altered"
    assert items[-1]["done"] is True


def test_doctor_says_who_one_is_and_that_the_key_expires(
    platform: MemoryPlatform, weft: Weft, admin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = {check["check"]: check for check in weft("doctor", "-o", "json").data}
    assert checks["identity"]["detail"] == "tenants/default/apiKeys/root"
    assert checks["key"]["verdict"] == checks["identity"]["verdict"] == "ok"
    monkeypatch.setenv("WEFT_API_KEY", weft("key", "create", "ci", "--ttl", "1d").out)
    checks = {check["check"]: check for check in weft("doctor", "-o", "json").data}
    assert checks["identity"]["verdict"] == "warn"
