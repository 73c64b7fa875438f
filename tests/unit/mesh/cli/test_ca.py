"""`weft ca`, as it is typed."""

import json
from pathlib import Path

import pytest
import typer

from mesh.cli.application import application, run
from mesh.cli.ca import add_ca
from tests.support.command_line import Ran, Weft


@pytest.fixture
def weft(capsys: pytest.CaptureFixture[str]) -> Weft:
    """Runs a command line in this process, for a platform of two services."""

    def invoke(*arguments: str) -> Ran:
        app: typer.Typer = application()
        add_ca(app, lambda: ["agents", "models"])
        with pytest.raises(SystemExit) as exit_:
            run(app, list(arguments))
        captured = capsys.readouterr()
        return Ran(int(exit_.value.code or 0), captured.out, captured.err)

    return invoke


def test_from_nothing_to_a_rotated_root(weft: Weft, config: Path) -> None:
    made = weft("ca", "init", "--trust-domain", "weft.example.org")
    assert made.code == 0
    assert "weft ca issue" in made.out
    one = weft("ca", "issue", "agents", "--dns", "weft-1.example", "--ip", "10.0.0.7")
    folder = config / "secrets" / "ca" / "certificates" / "agents"
    assert f"WEFT_TLS_CERTIFICATE_DIR={folder}" in one.out
    assert weft("ca", "issue", "-o", "json").data[0]["spiffe_id"].endswith("/process/host")
    shown = weft("ca", "show")
    assert "spiffe://weft.example.org/process/agents" in shown.out
    assert "weft-1.example 127.0.0.1 ::1 10.0.0.7" in shown.out
    assert weft("ca", "rotate").code == 0
    early = weft("ca", "rotate", "--finish")
    assert early.code == 1
    assert "weft ca issue --all" in early.err
    assert len(weft("ca", "issue", "--all").out.splitlines()) == 2
    assert "No longer trusted: Weft CA" in weft("ca", "rotate", "--finish").out
    last = weft("ca", "show", "-o", "json").data
    assert [root["signs"] for root in last["roots"]] == [True]
    assert all(each["current"] for each in last["certificates"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("issue",), 1, "weft ca init"),
        (("issue", "agent"), 2, "there are agents, models"),
        (("issue", "--all", "agents"), 2, "renew all"),
        (("issue", "--ip", "here"), 2, "no IP address"),
        (("issue", "--dns", "10.0.0.7"), 2, "--ip"),
        (("issue", "--client", "ci"), 1, "weft ca init"),
        (("issue", "--client", "C I"), 2, "can't name"),
        (("issue", "--client", ""), 2, "can't name"),
        (("issue", "--name", ""), 2, "can't name"),
        (("issue", "--client", "ci", "agents"), 2, "--client goes alone"),
        (("issue", "--client", "ci", "--dns", "a"), 2, "--client goes alone"),
        (("issue", "--all", "--name", "a"), 2, "renew all"),
        (("issue", "--all"), 1, "weft ca init"),
        (("init", "--trust-domain", "No Name"), 2, "trust domain"),
        (("show",), 1, "weft ca init"),
        (("rotate",), 1, "weft ca init"),
    ],
)
def test_what_goes_wrong_is_said_with_what_helps(
    weft: Weft, config: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    ran = weft("ca", *arguments)
    assert ran.code == code
    assert said in ran.err
    assert not (config / "secrets" / "ca" / "ca.key").exists()


def test_what_was_issued_is_renewed_and_what_was_not_is_said(weft: Weft) -> None:
    weft("ca", "init")
    nothing = weft("ca", "issue", "--all")
    assert (nothing.code, nothing.out) == (0, "")
    assert "nothing to renew" in nothing.err
    one = weft("ca", "issue", "--name", "weft-1", "--dns", "weft-1.example")
    assert one.out.splitlines()[1].endswith("/certificates/weft-1")
    assert one.err == ""
    other = weft("ca", "issue", "--name", "weft-1", "--dns", "weft-2.example")
    assert "was reached as weft-1.example" in other.err
    client = weft("ca", "issue", "--client", "ci")
    assert "spiffe://weft.internal/client/ci" in client.out
    assert "WEFT_TLS_CERTIFICATE_DIR" not in client.out
    shown = [line.split()[:2] for line in weft("ca", "show").out.splitlines()]
    assert ["spiffe://weft.internal/process/host", "weft-1"] in shown
    assert ["spiffe://weft.internal/client/ci", "ci"] in shown
    assert len(weft("ca", "issue", "--all").out.splitlines()) == 2


def test_no_key_is_printed(weft: Weft, config: Path) -> None:
    said = [weft("ca", "init"), weft("ca", "issue", "-o", "json"), weft("ca", "show")]
    said.append(weft("ca", "show", "-o", "yaml"))
    folder = config / "secrets" / "ca"
    keys = [(folder / "ca.key").read_text(), *(p.read_text() for p in folder.rglob("key.pem"))]
    assert len(keys) >= 2
    for key in keys:
        assert key.splitlines()[1] not in json.dumps([(each.out, each.err) for each in said])
